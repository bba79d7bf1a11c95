"""``python -m src.eval``: the records of a sweep -> a comparison table and figures under reports/."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import ConfigError
from src.eval.frame import Gathered, gather, known_sweeps, run_ids
from src.records import RUNS, read_sweep

if TYPE_CHECKING:
    from rich.table import Table

    from src.eval.comparison import Comparison
    from src.eval.writers import Cells

BAD_INPUT = 2
INTERRUPTED = 130
REPORTS = Path("reports")
EVERYTHING = "all"
PIPED_WIDTH = 200
DEFAULTS = {"sweep": "", "metric": "test/loss"}
USAGE = """\
usage: python -m src.eval [sweep=NAME] [metric=NAME]

Reads runs/*/ in this folder, prints a comparison table and writes it with figures to reports/<sweep>/.

  sweep=NAME    only the runs of this sweep (runs/sweeps/NAME.json); without it all runs, to reports/all/
  metric=NAME   what is compared: test/loss (default), val/loss, test/exact_match, ...
"""


def read_arguments(arguments: list[str]) -> dict[str, str]:
    """``key=value`` words as a dict.

    Raises:
        ConfigError: a word is none, or its key is unknown, empty or given twice.
    """
    given: dict[str, str] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if key not in DEFAULTS:
            raise ConfigError(f"{word!r}: no such key; choose from sweep=NAME, metric=NAME, --help")
        if not equals or not value:
            raise ConfigError(f"{key}: needs a value, such as {key}={DEFAULTS[key] or 'NAME'}")
        if key in given:
            raise ConfigError(f"{key}: given twice")
        given[key] = value
    return given


def read_runs(given: dict[str, str]) -> Gathered:
    """The runs that the command line asks for.

    Raises:
        ConfigError: there is no such sweep, no run, or no run that has the metric.
    """
    sweep = given.get("sweep")
    ids = run_ids() if sweep is None else _runs_of(sweep)
    found = gather(ids)
    for problem in found.problems:
        print(f"warning: {' '.join(problem.split())}", file=sys.stderr)
    if not found.rows:
        where = f"runs of sweep {sweep}" if sweep else f"runs in {RUNS.absolute()}"
        raise ConfigError(f"no {where} to compare; python -m src.train makes them")
    measured = found.measured()
    if "metric" in given and measured and given["metric"] not in measured:
        raise ConfigError(f"metric={given['metric']}: no finished run has it; measured are {', '.join(measured)}")
    return found


def _runs_of(sweep: str) -> list[str]:
    known = known_sweeps()
    if sweep not in known:
        raise ConfigError(f"sweep={sweep}: no such sweep in {RUNS / 'sweeps'}; known are {', '.join(known) or 'none'}")
    try:
        ids = read_sweep(sweep)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{RUNS / 'sweeps' / sweep}.json: cannot be read: {' '.join(str(error).split())}") from error
    # An id is a folder's name: a hand-edited list must not lead out of runs/.
    return list(dict.fromkeys(run for run in ids or [] if isinstance(run, str) and Path(run).name == run))


def report(found: Gathered, metric: str, folder: Path) -> None:
    """Write tables and figures into ``folder`` and print the table."""
    from src.eval import figures, writers
    from src.eval.comparison import compare

    comparison = compare(found.frame(), metric, found.expected, tuple(found.absent))
    written = writers.write(comparison, folder) + figures.write(comparison, found.curve_frame(), folder)
    show(comparison)
    for path in written:
        print(path)


def show(comparison: Comparison) -> None:
    """Print the table, its caption and notes: as wide as the terminal, and never cut where there is none."""
    from rich.console import Console

    from src.eval.writers import cells, clean

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
    if "--help" in arguments or "-h" in arguments:
        print(USAGE, end="")
        return 0
    try:
        given = read_arguments(arguments)
        folder = REPORTS / given.get("sweep", EVERYTHING)
        found = read_runs(given)
        try:
            report(found, given.get("metric", DEFAULTS["metric"]), folder)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader, such as head, has seen enough. What is left in the buffer must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error}") from error
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))
