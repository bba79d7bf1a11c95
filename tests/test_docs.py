"""The documents: the map names every file once, and no link, path, command or key leads nowhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.command.cli import compose
from src.record.records import run_id
from tests.conftest import CODE
from tests.faults import kinds, page
from tests.test_house import ROOMS

MAP = "docs/house.md"
README_WORDS, README_BYTES = 1400, 9 * 1024
# Beginnings of paths in the tree. A path with a placeholder (NAME, <axis>, *) is no path.
PLACES = re.compile(r"(?:src|conf|tests|docs|benchmarks|experiments|hydra_plugins|notebooks)(?:/[a-z0-9_.]+)*/?")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(r"python -m ((?:src|experiments|benchmarks)(?:\.\w+)*)")
MAPPED = re.compile(r"(?:src|hydra_plugins|notebooks)/.*|(?:benchmarks|experiments)/.*\.py")
BY_FOLDER = re.compile(r"conf/.*\.yaml|tests/.*\.py")


@cache
def tree() -> tuple[str, ...]:
    """The files of the tree: those that git has, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CODE, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository, so nothing says which files belong to it")
    return tuple(sorted(name for name in set(listed.stdout.splitlines()) if (CODE / name).is_file()))


def documents() -> list[str]:
    return [name for name in tree() if name.endswith(".md")]


def text_of(name: str) -> str:
    return (CODE / name).read_text(encoding="utf-8")


def entries(text: str) -> list[tuple[str, str]]:
    """(path, phrase) of each line of a map: headings name folders, and the lines of a block below one name files in it."""
    named, folder, inside = [], "", False
    for line in text.splitlines():
        if heading := re.fullmatch(r"## `(.+)`", line):
            folder = heading[1]
        elif line.startswith("```"):
            inside = not inside
        elif inside and line:
            name, _, phrase = line.partition(" ")
            named.append((f"{folder}/{name}", phrase.strip()))
    return named


def belonging(files: Iterable[str]) -> set[str]:
    """What the map has to name: files of code one by one; of conf and tests the folders that hold choices or code."""
    names = {name for name in files if MAPPED.fullmatch(name) and not (name.endswith("__init__.py") and is_empty(name))}
    for name in files:
        folder = name.rpartition("/")[0]
        if folder == "conf":
            names.add(name)
        elif folder == "tests":
            names.add("tests/*.py")
        elif BY_FOLDER.fullmatch(name):
            names.add(folder + "/")
    return names


def is_empty(name: str) -> bool:
    """An ``__init__.py`` that holds a docstring at most."""
    return not re.sub(r'^""".*?"""', "", text_of(name).strip(), flags=re.DOTALL).strip()


def differences(named: list[str], wanted: set[str]) -> list[str]:
    lacking = [f"{MAP} lacks {name}" for name in sorted(wanted - set(named))]
    beyond = [f"{MAP} names {name}, which is not there" for name in sorted(set(named) - wanted)]
    twice = [f"{MAP} names {name} twice" for name in sorted({name for name in named if named.count(name) > 1})]
    return lacking + beyond + twice


def test_the_map_names_every_file_once_and_nothing_else() -> None:
    problems = differences([path for path, _ in entries(text_of(MAP))], belonging(tree()))
    assert not problems, "; ".join(problems)


def test_a_name_that_is_missing_or_too_many_is_told_in_one_line() -> None:
    text = "## `src/data`\n\nFiles to batches.\n\n```\nrows.py   reads rows\nold.py    was moved\nrows.py   again\n```\n"
    assert differences([path for path, _ in entries(text)], {"src/data/rows.py", "src/data/new.py"}) == [
        "docs/house.md lacks src/data/new.py",
        "docs/house.md names src/data/old.py, which is not there",
        "docs/house.md names src/data/rows.py twice",
    ]


def test_the_map_has_the_rooms_in_the_order_of_the_import_rule() -> None:
    headings = re.findall(r"^## `src/(.+)`$", text_of(MAP), re.MULTILINE)
    assert headings == list(ROOMS)


def test_each_phrase_of_the_map_has_three_to_nine_words() -> None:
    assert [(path, phrase) for path, phrase in entries(text_of(MAP)) if not 3 <= len(phrase.split()) <= 9] == []


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    readme = text_of("README.md")
    assert len(readme.split()) <= README_WORDS and len(readme.encode()) <= README_BYTES


def test_the_readme_names_every_variant_and_every_room() -> None:
    spans = set(CODE_SPAN.findall(text_of("README.md")))
    variants = {Path(name).stem for name in tree() if name.startswith("conf/variant/")}
    rooms = {f"src/{room.partition('/')[0]}" for room in ROOMS}
    assert sorted((variants | rooms) - spans) == []


def dead_links(name: str, text: str) -> list[str]:
    """Relative links of a document that lead to no file, or to no heading of one."""
    dead = []
    for link in LINK.findall(without_blocks(text)):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (CODE / name).parent / place if place else CODE / name
        if not target.exists():
            dead.append(f"{name}: {link} leads nowhere")
        elif anchor and anchor not in map(slug, re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)):
            dead.append(f"{name}: {link} leads to no heading")
    return dead


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def absent_paths(name: str, text: str) -> list[str]:
    """Paths of the tree that a document names in backticks and that are not there."""
    spans = CODE_SPAN.findall(without_blocks(text))
    return [f"{name}: no {path}" for path in spans if PLACES.fullmatch(path) and not (CODE / path).exists()]


def absent_modules(name: str, text: str) -> list[str]:
    """Commands ``python -m MODULE`` of a document whose module cannot be run."""
    files = ((module, CODE / module.replace(".", "/")) for module in MODULE.findall(text))
    return [
        f"{name}: no module {m}"
        for m, path in files
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file()
    ]


def test_links_paths_and_modules_of_the_documents_exist() -> None:
    problems = [
        problem
        for name in documents()
        for check in (dead_links, absent_paths, absent_modules)
        for problem in check(name, text_of(name))
    ]
    assert not problems, "; ".join(problems)


def test_what_leads_nowhere_is_seen() -> None:
    text = (
        "[a](gone.md) [b](../README.md#no-such) [c](../README.md#limits) [d](https://x.y/z) `src/gone.py` `conf/model/NAME.yaml`"
    )
    assert dead_links("docs/x.md", text) == [
        "docs/x.md: gone.md leads nowhere",
        "docs/x.md: ../README.md#no-such leads to no heading",
    ]
    assert absent_paths("docs/x.md", text + "`src/config`") == ["docs/x.md: no src/gone.py"]
    assert absent_modules("x.md", "python -m src.gone a=b; python -m src.eval; python -m src.config") == [
        "x.md: no module src.gone",
        "x.md: no module src.config",
    ]


def training_commands(text: str) -> list[list[str]]:
    """The arguments of each whole command line ``python -m src.train`` in a document, without ``-m`` and ``--help``."""
    lines = re.findall(r"python -m src\.train((?: [^`\n#]*)?)", text)
    commands = [shlex.split(line) for line in lines]
    return [[word for word in words if not word.startswith("-")] for words in commands if "..." not in words]


def first_job(arguments: list[str]) -> list[str]:
    """The overrides of the first run of a sweep."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    return [
        f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else text
        for o, text in zip(overrides, arguments, strict=True)
    ]


def test_every_training_command_of_the_documents_composes() -> None:
    """Its keys and values are legal; the folder with a user's own model is taken out, since only the user has it."""
    commands = [(name, words) for name in documents() for words in training_commands(text_of(name))]
    assert len(commands) > 10
    for name, words in commands:
        usual = [word for word in words if word not in ("model=path",) and not word.startswith("model.path=")]
        try:
            compose(first_job(usual))
        except Exception as error:
            pytest.fail(f"{name}: python -m src.train {' '.join(words)}: {error}")


def shown_ids(text: str) -> list[tuple[list[str], str]]:
    """(arguments of a training command, the first run id that its block shows after it)."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown = (
        re.search(r"^\$ python -m src\.train ([^\n]*)\n.*?\b([0-9a-f]{10})\b", block, re.MULTILINE | re.DOTALL)
        for block in blocks
    )
    return [([word for word in shlex.split(m[1]) if word != "-m"], m[2]) for m in shown if m]


def test_the_run_ids_that_documents_show_are_those_of_their_commands() -> None:
    shown = [pair for name in documents() for pair in shown_ids(text_of(name))]
    assert len(shown) >= 3
    assert [(run_id(compose(first_job(words))), words) for words, _ in shown] == [(shown_id, words) for words, shown_id in shown]


def test_a_training_command_with_a_wrong_key_is_seen() -> None:
    (words,) = training_commands("`python -m src.train -m variant=lora,dora lora.rank=4,8 seed='range(0,3)'`")
    assert words == ["variant=lora,dora", "lora.rank=4,8", "seed=range(0,3)"]
    assert first_job(["lora.r=4,8", "seed=range(2,5)"]) == ["lora.r=4", "seed=2"]
    with pytest.raises(ValueError, match="rank"):
        compose(first_job(words))


def test_the_figures_of_faults_are_those_that_were_measured() -> None:
    """The sums in docs/sweeps.md, against the page that ``make test-faults`` writes."""
    rows = dict(line.strip("| ").split(" | ", 1) for line in text_of("docs/reliability.md").splitlines() if line.startswith("| "))
    inputs = sum(
        number(n) for row, cell in rows.items() if row.startswith("Bad input") for n in re.findall(r"([\d,]+) cases", cell)
    )
    damages = sum(number(n) for n in re.findall(r"([\d,]+) damages", text_of("docs/reliability.md")))
    kills = re.search(r"(\d+) kills in (\d+) sweeps of 8 runs.*?(\d+ of \d+) runs bit-identical", text_of("docs/reliability.md"))
    assert kills is not None
    text = " ".join(text_of("docs/sweeps.md").split())
    assert f"{inputs:,} random inputs" in text and f"{damages:,} cuts, flips and swaps" in text
    assert f"{kills[1]} SIGKILLs in {kills[2]} sweeps of 8 runs" in text and f"brought {kills[3]} runs to the same bits" in text


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_speeds_in_the_readme_of_the_benchmarks_are_measured_ones() -> None:
    """Each number of four digits and more stands in the results, in the log, or in the study of costs."""
    sources = [
        "benchmarks/results/step.md",
        "benchmarks/results/sweep.md",
        "benchmarks/LOG.md",
        "experiments/cost_on_a_gpu/README.md",
    ]
    measured = {n for name in sources for n in re.findall(r"\d{1,3}(?:,\d{3})+", text_of(name))}
    assert set(re.findall(r"\d{1,3}(?:,\d{3})+", text_of("benchmarks/README.md"))) - measured == set()


def test_the_page_on_reliability_is_made_from_its_figures_and_names_tests_that_exist() -> None:
    assert (CODE / "docs" / "reliability.md").read_text(encoding="utf-8") == page.page(page.known_figures())
    for *_, tests in kinds.KINDS:
        for test in tests.split(", "):
            path, _, name = test.partition("::")
            assert f"def {name}" in (CODE / path).read_text(encoding="utf-8")
