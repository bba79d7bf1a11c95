"""Write a study's measurements as CSV while they are made, read them back checked, and merge those of several machines."""

from __future__ import annotations

import csv
import fcntl
import gzip
import io
import os
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.files.errors import ConfigError
from src.files.text import few

if TYPE_CHECKING:
    import pandas as pd

WHOLE = ("r", "seed", "step")  # whole numbers in every study


def append(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Append whole rows to a CSV under a lock, so that several processes may write; the first rows add the header.

    A killed process leaves the rows that it measured. None and "" become empty cells; the study formats its numbers.
    """
    with open(path, "a", encoding="utf-8", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.writer(file, lineterminator="\n")
        if os.fstat(file.fileno()).st_size == 0:  # the size under the lock: another process may have written first
            writer.writerow(columns)
        writer.writerows(rows)


def read(
    path: Path | str, filled: Collection[str], numbers: Collection[str], texts: Collection[str] = (), text: str | None = None
) -> pd.DataFrame:
    """Read a CSV, plain or gzipped (.gz), that has at least these columns.

    filled: columns that no row leaves empty. numbers: numeric or missing, infinity included; whole where in ``WHOLE``. texts:
    may be empty. All other columns are texts. ``text`` is read instead of the file; ``path`` then names its origin.

    Raises:
        ConfigError: it is not such a table, has no rows, or is cut off; one line, which names the row.
    """
    import pandas as pd  # here, since processes that append also measure their own memory

    try:
        text = _text(Path(path)) if text is None else text
        frame = pd.read_csv(io.StringIO(text), dtype={name: str for name in (*filled, *texts) if name not in numbers})
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' own errors are ValueErrors
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"{path}: cannot be read ({why})") from error
    if missing := [name for name in dict.fromkeys((*filled, *numbers, *texts)) if name not in frame]:
        raise ConfigError(f"{path}: has no column {few(missing)}")
    if frame.empty:
        raise ConfigError(f"{path}: has no rows")
    _refuse_cut(text, path)
    for name in filled:
        if (empty := frame[name].isna()).any():
            raise ConfigError(f"{path}: row {empty.argmax() + 1} has no {name}")
    counted = as_numbers(frame, numbers, path, infinite=True)
    for name in (name for name in WHOLE if name in numbers):
        if (broken := counted[name].notna() & (counted[name] % 1 != 0)).any():
            index = int(broken.argmax())
            raise ConfigError(f"{path}: {name} of row {index + 1} is {frame[name].iloc[index]}, not a whole number")
    return counted.fillna(dict.fromkeys(texts, ""))


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")


def _refuse_cut(text: str, path: Path | str) -> None:
    """Raise ConfigError where a row has too few or too many cells, or the last line has no end, as in a partial copy.

    pandas would fill the missing cells, and half of a number is a number.
    """
    number = 0
    rows = filter(None, csv.reader(io.StringIO(text, newline="")))  # pandas leaves empty lines out too
    columns = len(next(rows))
    try:
        for number, row in enumerate(rows, start=1):
            if len(row) != columns:
                raise ConfigError(f"{path}: row {number} has {len(row)} cell{'s' * (len(row) != 1)} for {columns} columns")
    except csv.Error as error:
        raise ConfigError(f"{path}: cannot be read (after row {number}: {error})") from error
    if not text.endswith(("\n", "\r")):
        raise ConfigError(f"{path}: row {number} has no end of line, so it may be cut off")


def as_numbers(frame: pd.DataFrame, columns: Collection[str], where: Path | str, infinite: bool = False) -> pd.DataFrame:
    """Convert columns to numbers or missing. Raises ConfigError, one line, for a text or, unless ``infinite``, for infinity."""
    import numpy as np
    import pandas as pd

    numeric = frame.copy()
    for name in columns:
        numeric[name] = pd.to_numeric(frame[name], errors="coerce")
        wrong = numeric[name].isna() & frame[name].notna()
        if not infinite:
            wrong |= np.isinf(numeric[name])
        if wrong.any():
            index = int(wrong.argmax())
            raise ConfigError(f"{where}: {name} of row {index + 1} is {frame[name].iloc[index]}, not a number")
    return numeric


def lacking(runs: pd.DataFrame, cell: Sequence[str]) -> list[tuple[Any, ...]]:
    """List (*cell, seed) of missing runs whose seed other cells have: all that a file cut between two rows shows."""
    seeds = set(runs["seed"])
    cells = runs.groupby(list(cell), sort=False)["seed"]
    return [(*key, seed) for key, present in cells for seed in sorted(seeds - set(present))]


def merged(path: Path, records: str, order: Sequence[str]) -> tuple[str, str]:
    """Merge the CSV text ``records`` with the other runs (by run_id) of the CSV at ``path``: (CSV text, a line that counts both).

    ``path`` has been checked before. Cells stay as they are written; columns are those of ``path``, then those that only
    ``records`` has; rows are sorted by the columns of ``order``.
    """
    import pandas as pd

    old, new = (pd.read_csv(io.StringIO(text), dtype=str, na_filter=False) for text in (_text(path), records))
    kept = old[~old["run_id"].isin(new["run_id"])]
    message = f"{path.name}: {len(kept)} rows kept, {len(new)} from records"
    if kept.empty:
        return records, message
    every = pd.concat([kept, new]).fillna("").sort_values(list(order), key=_sizes)
    return every.to_csv(index=False), message


def _sizes(column: pd.Series[str]) -> pd.Series[Any]:
    """Make the sort key of a column of cells: numbers by size, empty cells last."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    return column if (numbers.isna() & (column != "")).any() else numbers
