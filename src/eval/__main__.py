"""``python -m src.eval``: the records of a sweep -> a comparison table, figures and a page under reports/."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import commands
from ..command.cli import suggest
from ..compare.frame import Gathered, gather, known_sweeps, run_ids
from ..compare.pair import compare_pair
from ..files.durable import Damaged, write_atomically
from ..files.errors import ConfigError
from ..files.text import clean
from ..record.records import RUNS, read_sweep

if TYPE_CHECKING:
    from rich.table import Table

    from ..compare.columns import Cells
    from ..compare.comparison import Comparison

REPORTS = Path("reports")
EVERYTHING = "all"
LONGEST_NAME = 255  # bytes; a file system's limit
PIPED_WIDTH = 200
USAGE = """\
usage: python -m src.eval [sweep=NAME] [reference=lora] [metric=NAME] [tune=0,1,2] [margin=0.01] [strict=true]
       python -m src.eval pair=ID,ID [sweep=NAME]
       python -m src.eval score|generate|merge|push|harness ...   one trained adapter; each has its own --help

Reads runs/*/ in this folder, gives each variant at each rank its own best learning rate, prints the comparison and writes
tables, figures and a page to reports/<sweep>/. It can be run while the sweep still trains, and says what is missing.

  sweep=NAME       only the runs of this sweep (runs/sweeps/NAME.json); without it all runs, to reports/all/
  reference=NAME   the variant that the others are paired with, seed by seed (default: lora)
  metric=NAME      what is reported: test/loss (default), val/loss, test/exact_match, ...
  tune=SEEDS       the seeds that choose the learning rates, by val/loss; the others report. Default: a third, the lowest
  margin=NUMBER    differences up to this count as none in the test of equivalence (default: 0.01 nats, or 0.01 of a share)
  strict=true      compared rows that differ in more than the variant are an error
  pair=ID,ID       two runs, test example by test example: McNemar's test and the difference in log-loss
"""


@dataclass(frozen=True)
class Arguments:
    sweep: str | None = None
    reference: str = "lora"
    metric: str = "test/loss"
    tune: tuple[int, ...] | None = None
    margin: float | None = None
    strict: bool = False
    pair: tuple[str, str] | None = None
    given: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return REPORTS / (self.sweep or EVERYTHING)


def read_arguments(words: list[str]) -> Arguments:
    """``key=value`` words, checked.

    Raises:
        ConfigError: a word is none, or its key is unknown, empty or given twice, or its value is of the wrong kind.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "sweep": str, "reference": str, "metric": str, "tune": _seeds, "margin": _margin, "strict": _strict, "pair": _pair,
    }  # fmt: skip
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in readers:
            known = ", ".join(f"{name}=" for name in readers)
            first = ", ".join(commands.COMMANDS) + suggest(word, commands.COMMANDS)
            raise ConfigError(f"{word!r}: no such key; choose from {known} or --help; as the first word: {first}")
        if not equals or not value:
            raise ConfigError(f"{key}: needs a value, such as {EXAMPLES[key]}")
        if key in given:
            raise ConfigError(f"{key}: given twice")
        try:
            given[key] = readers[key](value)
        except ValueError as error:
            raise ConfigError(f"{word}: needs {error}, such as {EXAMPLES[key]}") from error
    return Arguments(**given, given=tuple(words))


EXAMPLES = {
    "sweep": "sweep=NAME", "reference": "reference=lora", "metric": "metric=test/loss", "tune": "tune=0,1,2",
    "margin": "margin=0.01", "strict": "strict=true", "pair": "pair=0eed806141,87a53e1b0f",
}  # fmt: skip


def _seeds(value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,10}(,\d{1,10})*", value):
        raise ValueError("seeds")
    return tuple(int(seed) for seed in value.split(","))


def _margin(value: str) -> float:
    try:
        margin = float(value)
    except ValueError:
        margin = -1.0
    if not 0 < margin < float("inf"):
        raise ValueError("a number above 0")
    return margin


def _strict(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def _pair(value: str) -> tuple[str, str]:
    ids = value.split(",")
    if len(ids) != 2 or not all(re.fullmatch(r"[0-9a-f]{10}", run) for run in ids) or ids[0] == ids[1]:
        raise ValueError("the ids of two runs")
    return ids[0], ids[1]


def read_runs(arguments: Arguments) -> Gathered:
    """The runs that the command line asks for.

    Raises:
        ConfigError: there is no such sweep, no run, or no run that has the metric, is of the reference or has a seed of ``tune``.
    """
    sweep = arguments.sweep
    found = gather(run_ids() if sweep is None else _runs_of(sweep))
    for problem in found.problems:
        print(f"warning: {clean(problem)}", file=sys.stderr)
    if not found.rows:
        where = f"runs of sweep {sweep}" if sweep else f"runs in {RUNS.absolute()}"
        raise ConfigError(f"no {where} to compare; python -m src.train makes them")
    measured = found.measured()
    if arguments.metric != Arguments.metric and measured and arguments.metric not in measured:
        raise ConfigError(f"metric={arguments.metric}: no finished run has it; measured are {', '.join(measured)}")
    variants = sorted({row["variant"] for row in found.rows})
    if arguments.reference != Arguments.reference and arguments.reference not in variants:
        raise ConfigError(f"reference={arguments.reference}: no run is of this variant; there are {', '.join(variants)}")
    seeds = sorted({row["seed"] for row in found.rows})
    if arguments.tune is not None and not set(seeds) & set(arguments.tune):
        wanted = ",".join(map(str, arguments.tune))
        raise ConfigError(f"tune={wanted}: no run has such a seed; there are {', '.join(map(str, seeds[:20]))}")
    return found


def _runs_of(sweep: str) -> list[str]:
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


def report(found: Gathered, arguments: Arguments) -> None:
    """Write tables, figures and the page, and print the table.

    Raises:
        ConfigError: ``strict``, and compared rows differ in more than the variant. Then nothing is written.
    """
    from ..compare import figures, logs, writers
    from ..compare.assay import READ_AT_MOST, assay, at_fixed_rates
    from ..compare.findings import method
    from ..compare.page.render import page
    from ..compare.report import report as as_dict

    result = assay(found, arguments.metric, arguments.reference, arguments.tune, arguments.margin)
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
    command = " ".join(["python -m src.eval", *arguments.given])
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


def show(comparison: Comparison) -> None:
    """Print the table, its caption and notes: as wide as the terminal, and never cut where there is none."""
    from rich.console import Console

    from ..compare.columns import cells

    shown = cells(comparison)
    names = list(range(shown.naming))
    rest = list(range(shown.naming, len(shown.headings)))
    on_terminal = sys.stdout.isatty()
    if on_terminal:
        width = shutil.get_terminal_size().columns
        blocks = split(shown, names, rest, width)
    else:
        blocks = [drawn(shown, names + rest)]
        width = max(PIPED_WIDTH, needed(blocks[0]))
    # Rich ends the process where a reader leaves early, so it writes to memory. It obeys a width only beside a height.
    console = Console(file=io.StringIO(), width=width, height=25, force_terminal=on_terminal, color_system=None)
    for block in blocks:
        console.print(block)
        console.print()
    print(console.file.getvalue(), end="")  # type: ignore[attr-defined]
    for line in [comparison.caption, *(f"- {note}" for note in comparison.notes)]:
        print(clean(line))
    print()


def drawn(shown: Cells, columns: list[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for index in columns:
        table.add_column(Text(shown.headings[index]), justify="right" if shown.numeric[index] else "left", overflow="fold")
    for row in shown.rows:
        table.add_row(*(Text(row[index]) for index in columns))
    return table


def needed(table: Table) -> int:
    """The width in characters at which nothing is cut or wrapped."""
    from rich.console import Console
    from rich.measure import Measurement

    endless = Console(width=100_000, height=25)
    return Measurement.get(endless, endless.options, table).maximum


def split(shown: Cells, names: list[int], rest: list[int], width: int) -> list[Table]:
    """The table in as many blocks as the terminal's width asks for; each block repeats the columns that name the row."""
    blocks: list[list[int]] = [[]]
    for index in rest:
        if blocks[-1] and needed(drawn(shown, [*names, *blocks[-1], index])) > width:
            blocks.append([])
        blocks[-1].append(index)
    return [drawn(shown, names + block) for block in blocks]


def main(arguments: list[str]) -> int:
    """Run the command; 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    if arguments and arguments[0] in commands.COMMANDS:
        return commands.main(arguments[0], arguments[1:])
    if "--help" in arguments or "-h" in arguments:
        print(USAGE, end="")
        return 0
    return commands.conducted(lambda: compare(arguments), arguments)


def compare(arguments: list[str]) -> None:
    """The table and its page, or a pair of runs."""
    given = read_arguments(arguments)
    try:
        if given.pair is not None:
            compare_pair(*given.pair)
        else:
            report(read_runs(given), given)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"{given.folder}: cannot be written: {error}") from error


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))
