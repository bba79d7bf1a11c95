"""``python -m src.eval``: the records of a sweep -> a comparison table, figures and a page under reports/.

Its first word may name a command for one trained adapter instead.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ..command import admission, cli
from ..command.messages import suggest
from ..command.words import Key, positive, read, switch
from ..compare.frame import Gathered, gather, known_sweeps, run_ids
from ..compare.pair import compare_pair
from ..files.durable import Damaged, write_atomically
from ..files.errors import ConfigError
from ..files.text import clean
from ..record.records import RUNS, read_sweep

REPORTS = Path("reports")
EVERYTHING = "all"
LONGEST_NAME = 255  # bytes; a file system's limit
USAGE = """\
usage: python -m src.eval [sweep=NAME] [reference=lora] [metric=NAME] [tune=0,1,2] [margin=0.01] [strict=true]
       python -m src.eval pair=ID,ID
       python -m src.eval score|generate|merge|push|harness ...   use one trained adapter; each has its own --help

Compares the runs in runs/ of this folder: chooses the best learning rate of each variant at each rank, prints a table, and
writes tables, figures and a page to reports/<sweep>/. It can run while the sweep still trains, and says which runs are missing.

  sweep=NAME       only the runs of this sweep, runs/sweeps/NAME.json (default: all runs, to reports/all/)
  reference=NAME   the variant that the others are compared with, seed by seed (default: lora)
  metric=NAME      the metric to report: test/loss (default), val/loss, test/exact_match, ...
  tune=SEEDS       the seeds that choose the learning rates, by val/loss; the other seeds report (default: the lowest third)
  margin=NUMBER    the largest difference that the equivalence test takes for none (default: 0.01 nats, or 0.01 of a share)
  strict=true      refuse to compare rows that differ in more than the variant
  pair=ID,ID       compare two runs, test example by test example: McNemar's test and the difference in log-loss
"""


# First word: the module that has USAGE and run(words). A module is imported only when its word is given.
COMMANDS = {
    "score": "..adapter.score",
    "generate": "..adapter.generate",
    "merge": "..adapter.merge",
    "push": "..adapter.push",
    "harness": "..adapter.harness",
}


def _seeds(value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,10}(,\d{1,10})*", value):
        raise ValueError("seeds")
    return tuple(int(seed) for seed in value.split(","))


def _pair(value: str) -> tuple[str, str]:
    ids = value.split(",")
    if len(ids) != 2 or not all(re.fullmatch(r"[0-9a-f]{10}", run) for run in ids) or ids[0] == ids[1]:
        raise ValueError("the ids of two runs")
    return ids[0], ids[1]


KEYS = {
    "sweep": Key(str, "NAME"),
    "reference": Key(str, "lora"),
    "metric": Key(str, "test/loss"),
    "tune": Key(_seeds, "0,1,2"),
    "margin": Key(positive, "0.01"),
    "strict": Key(switch, "true"),
    "pair": Key(_pair, "0eed806141,87a53e1b0f"),
}


@dataclass(frozen=True)
class Arguments:
    """The words of the comparison, by key; ``words`` are all of them as they were typed."""

    sweep: str | None = None
    reference: str = "lora"
    metric: str = "test/loss"
    tune: tuple[int, ...] | None = None
    margin: float | None = None
    strict: bool = False
    pair: tuple[str, str] | None = None
    words: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return REPORTS / (self.sweep or EVERYTHING)


def read_runs(arguments: Arguments) -> Gathered:
    """Read the runs that the command line asks for, and warn of each that cannot be read.

    Raises:
        ConfigError: there is no such sweep, no run, or no run that has the metric, is of the reference or has a seed of ``tune``.
    """
    sweep = arguments.sweep
    gathered = gather(run_ids() if sweep is None else _runs_of(sweep))
    for problem in gathered.problems:
        print(f"warning: {clean(problem)}", file=sys.stderr)
    if not gathered.rows:
        runs = f"runs of sweep {sweep}" if sweep else f"runs in {RUNS.absolute()}"
        raise ConfigError(f"no {runs} to compare; python -m src.train makes them")
    measured = gathered.measured()
    if arguments.metric != Arguments.metric and measured and arguments.metric not in measured:
        raise ConfigError(f"metric={arguments.metric}: no finished run has it; measured are {', '.join(measured)}")
    variants = sorted({row["variant"] for row in gathered.rows})
    if arguments.reference != Arguments.reference and arguments.reference not in variants:
        raise ConfigError(f"reference={arguments.reference}: no run is of this variant; there are {', '.join(variants)}")
    seeds = sorted({row["seed"] for row in gathered.rows})
    if arguments.tune is not None and not set(seeds) & set(arguments.tune):
        wanted = ",".join(map(str, arguments.tune))
        raise ConfigError(f"tune={wanted}: no run has such a seed; there are {', '.join(map(str, seeds[:20]))}")
    return gathered


def _runs_of(sweep: str) -> list[str]:
    """List the ids of a sweep's runs."""
    known = known_sweeps()
    if sweep not in known:
        raise ConfigError(f"sweep={sweep}: no such sweep in {RUNS / 'sweeps'}; known are {', '.join(known) or 'none'}")
    try:
        ids = read_sweep(sweep)
    except (OSError, Damaged) as error:
        raise ConfigError(f"{RUNS / 'sweeps' / sweep}.json: cannot be read: {' '.join(str(error).split())}") from error
    # An id is a folder's name: a hand-edited list must not lead out of runs/.
    return list(dict.fromkeys(run for run in ids or [] if _is_folder_name(run)))


def _is_folder_name(run: object) -> bool:
    if not isinstance(run, str) or run in ("", ".", "..") or "/" in run or "\0" in run:
        return False
    try:
        return len(os.fsencode(run)) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def report(gathered: Gathered, arguments: Arguments) -> None:
    """Write tables, figures and the page, and print the table.

    Raises:
        ConfigError: ``strict``, and compared rows differ in more than the variant. Then nothing is written.
    """
    from ..compare import figures, logs, writers
    from ..compare.assay import READ_AT_MOST, assay, at_fixed_rates
    from ..compare.findings import method
    from ..compare.page.render import page
    from ..compare.report import report as as_dict
    from ..compare.terminal_table import show

    result = assay(gathered, arguments.metric, arguments.reference, arguments.tune, arguments.margin)
    if arguments.strict and not result.audit.clean:
        lines = "; ".join(f"{line.field} ({line.text})" for line in result.audit.confounds)
        raise ConfigError(f"strict=true: compared rows differ in more than the variant: {lines}")
    fixed = at_fixed_rates(result)
    comparison = replace(result.comparison, notes=[*method(result), *result.comparison.notes])
    ok = comparison.runs[comparison.runs["status"] == "ok"]
    drawn = list(ok["run_id"][:READ_AT_MOST])
    if len(ok) > len(drawn):
        comparison.notes.append(f"Loss curves are of the first {len(drawn):,} of {len(ok):,} runs.")
    curves = logs.curves(drawn)
    for problem in curves.problems:
        print(f"warning: {clean(problem)}", file=sys.stderr)
    command = " ".join(["python -m src.eval", *arguments.words])
    data = as_dict(replace(result, comparison=comparison), fixed, curves.frame, command)
    folder = arguments.folder
    written = writers.write(comparison, result.rates, folder) + figures.write(comparison, curves.frame, folder, result.rates)
    write_atomically(folder / "report.html", page(data))
    for finding in data["findings"]:
        print(clean(finding))
    print(clean(result.audit.summary))
    for line in result.audit.lines:
        print(clean(f"- {line.severity}: {line.field}: {line.text}"))
    print()
    show(comparison)
    for path in [*written, folder / "report.html"]:
        print(clean(str(path)))


def compare(words: list[str]) -> None:
    """Compare the runs of a sweep and write the report, or compare a pair of runs.

    Raises:
        ConfigError: a word is wrong, there is nothing to compare, or the report cannot be written.
    """
    for word in words:
        if word not in KEYS and re.fullmatch(r"\w+", word):
            known = ", ".join(COMMANDS)
            raise ConfigError(f"{word!r}: no such command{suggest(word, [*COMMANDS, *KEYS])}; the first word can be {known}")
    arguments = Arguments(**read(words, KEYS)[0], words=tuple(words))
    try:
        if arguments.pair is not None:
            compare_pair(*arguments.pair)
        else:
            report(read_runs(arguments), arguments)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"{arguments.folder}: cannot be written: {error}") from error


def use_adapter(command: str, words: list[str]) -> None:
    """Run one of ``COMMANDS``, or print its help.

    Raises:
        ConfigError: a word is wrong, or a file or the hub does not give what is needed.
    """
    module = importlib.import_module(COMMANDS[command], __package__)
    if asks_for_help(words[: words.index("--")] if "--" in words else words):
        print(module.USAGE, end="")
        return
    try:
        module.run(words)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, or a model that the hub does not give
        raise ConfigError(clean(str(error))) from error


def asks_for_help(words: list[str]) -> bool:
    return "--help" in words or "-h" in words


def main(words: list[str]) -> None:
    """Do what the words ask for; ``cli.run`` makes exit codes of what this raises."""
    command = words[0] if words and words[0] in COMMANDS else None
    if command is None and asks_for_help(words):
        print(USAGE, end="")
        return
    admission.refuse_secrets(words)
    if command is None:
        compare(words)
    else:
        use_adapter(command, words[1:])


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]), resumes=False)
