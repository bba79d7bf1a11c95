"""Progress bars on a terminal; nothing where the output is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]


@contextmanager
def bar(what: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
    """Show ``what`` with a bar and the time left (a spinner if ``total`` is unknown); yields ``advance(n, note)``."""
    if not sys.stderr.isatty():
        yield lambda n=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()] if total is not None else [TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done, note="")
        yield lambda n=1, note="": progress.update(task, advance=n, note=note)
