"""Print the comparison table: as wide as the terminal is, and in full where there is no terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..files.text import clean
from .columns import Cells, cells
from .comparison import Comparison

PIPED_WIDTH = 200  # characters at least, where the output is no terminal
ENDLESS = 100_000  # characters; wider than any table


def show(comparison: Comparison) -> None:
    """Print the table, its caption and its notes. A terminal gets blocks that fit its width; a pipe gets whole lines."""
    content = cells(comparison)
    on_terminal = sys.stdout.isatty()
    if on_terminal:
        width = shutil.get_terminal_size().columns
        tables = split(content, width)
    else:
        tables = [table(content, range(len(content.headings)))]
        width = max(PIPED_WIDTH, full_width(tables[0]))
    # Rich ends the process where a reader leaves early, so it writes to memory. It obeys a width only beside a height.
    console = Console(file=io.StringIO(), width=width, height=25, force_terminal=on_terminal, color_system=None)
    for block in tables:
        console.print(block)
        console.print()
    print(console.file.getvalue(), end="")  # type: ignore[attr-defined]
    for line in [comparison.caption, *(f"- {note}" for note in comparison.notes)]:
        print(clean(line))
    print()


def table(content: Cells, columns: Sequence[int]) -> Table:
    """Lay out the chosen columns, given by their indices, as Rich's table."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for column in columns:
        side: Literal["left", "right"] = "right" if content.numeric[column] else "left"
        result.add_column(Text(content.headings[column]), justify=side, overflow="fold")
    for row in content.rows:
        result.add_row(*(Text(row[column]) for column in columns))
    return result


def full_width(layout: Table) -> int:
    """Measure the width in characters at which nothing is cut or wrapped."""
    console = Console(width=ENDLESS, height=25)
    return Measurement.get(console, console.options, layout).maximum


def split(content: Cells, width: int) -> list[Table]:
    """Split the table into blocks of at most ``width`` characters; each repeats the columns that name the row."""
    naming = list(range(content.naming))
    blocks: list[list[int]] = [[]]
    for column in range(content.naming, len(content.headings)):
        if blocks[-1] and full_width(table(content, [*naming, *blocks[-1], column])) > width:
            blocks.append([])
        blocks[-1].append(column)
    return [table(content, naming + block) for block in blocks]
