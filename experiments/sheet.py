"""A study's measurements as CSV: written as they are made, read back checked, those of several machines in one."""

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
    """Rows to the end of a CSV, whole, whichever process writes; the first ones bring the names of the columns.

    What a killed process has measured stays. None and "" are empty; how a number is written is the study's to say.
    """
    with open(path, "a", encoding="utf-8", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.writer(file, lineterminator="\n")
        if os.fstat(file.fileno()).st_size == 0:  # not where the file was opened: another process may have come before
            writer.writerow(columns)
        writer.writerows(rows)


def read(
    path: Path | str, filled: Collection[str], numbers: Collection[str], texts: Collection[str] = (), text: str | None = None
) -> pd.DataFrame:
    """The rows of a CSV, or of one in gzip's format (.gz), with these columns at least.

    Those of ``filled`` stand in every row, those of ``numbers`` are numbers (infinite ones too; of ``WHOLE`` whole ones) or
    missing, those of ``texts`` may be empty. What is no number is a text. ``text`` is read in place of a file, and ``path`` then
    says where it is from.

    Raises:
        ConfigError: it is not such a table, has no rows, or one that is cut off; one line, which names the row.
    """
    import pandas as pd  # here, since what writes measures the memory of its own process

    try:
        text = _text(Path(path)) if text is None else text
        found = pd.read_csv(io.StringIO(text), dtype={name: str for name in (*filled, *texts) if name not in numbers})
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' own errors are ValueErrors
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"{path}: cannot be read ({why})") from error
    if missing := [name for name in dict.fromkeys((*filled, *numbers, *texts)) if name not in found]:
        raise ConfigError(f"{path}: has no column {few(missing)}")
    if found.empty:
        raise ConfigError(f"{path}: has no rows")
    _refuse_cut(text, path)
    for name in filled:
        if (empty := found[name].isna()).any():
            raise ConfigError(f"{path}: row {empty.argmax() + 1} has no {name}")
    counted = as_numbers(found, numbers, path, infinite=True)
    for name in (name for name in WHOLE if name in numbers):
        if (broken := counted[name].notna() & (counted[name] % 1 != 0)).any():
            at = int(broken.argmax())
            raise ConfigError(f"{path}: {name} of row {at + 1} is {found[name].iloc[at]}, not a whole number")
    return counted.fillna(dict.fromkeys(texts, ""))


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")


def _refuse_cut(text: str, path: Path | str) -> None:
    """Raise ConfigError where a row has other cells than the columns, or the last one no end, as after half a copy.

    pandas fills what is missing with nothing, and half of a number is a number.
    """
    at = 0
    rows = filter(None, csv.reader(io.StringIO(text, newline="")))  # pandas leaves empty lines out too
    columns = len(next(rows))
    try:
        for at, row in enumerate(rows, start=1):
            if len(row) != columns:
                raise ConfigError(f"{path}: row {at} has {len(row)} cell{'s' * (len(row) != 1)} for {columns} columns")
    except csv.Error as error:
        raise ConfigError(f"{path}: cannot be read (after row {at}: {error})") from error
    if not text.endswith(("\n", "\r")):
        raise ConfigError(f"{path}: row {at} has no end of line, so it may be cut off")


def as_numbers(frame: pd.DataFrame, columns: Collection[str], where: Path | str, infinite: bool = False) -> pd.DataFrame:
    """The frame with these columns as numbers, or missing. Raises ConfigError, one line, for a text or an infinite number."""
    import numpy as np
    import pandas as pd

    found = frame.copy()
    for name in columns:
        found[name] = pd.to_numeric(frame[name], errors="coerce")
        wrong = found[name].isna() & frame[name].notna()
        if not infinite:
            wrong |= np.isinf(found[name])
        if wrong.any():
            at = int(wrong.argmax())
            raise ConfigError(f"{where}: {name} of row {at + 1} is {frame[name].iloc[at]}, not a number")
    return found


def lacking(runs: pd.DataFrame, cell: Sequence[str]) -> list[tuple[Any, ...]]:
    """(*cell, seed) of the runs that are not there though others have their seed: a file cut between two rows shows no more."""
    seeds = set(runs["seed"])
    cells = runs.groupby(list(cell), sort=False)["seed"]
    return [(*key, seed) for key, found in cells for seed in sorted(seeds - set(found))]


def merged(path: Path, records: str, order: Sequence[str]) -> tuple[str, str]:
    """(A CSV of runs and those of the CSV at ``path`` that it has not, by run_id; a line that counts both).

    ``path`` has been read before. Cells stay as they are written; columns are those of ``path``, then those that only
    ``records`` has; rows are sorted by the columns of ``order``.
    """
    import pandas as pd

    old, new = (pd.read_csv(io.StringIO(text), dtype=str, na_filter=False) for text in (_text(path), records))
    kept = old[~old["run_id"].isin(new["run_id"])]
    said = f"{path.name}: {len(kept)} rows kept, {len(new)} from records"
    if kept.empty:
        return records, said
    every = pd.concat([kept, new]).fillna("").sort_values(list(order), key=_sizes)
    return every.to_csv(index=False), said


def _sizes(column: pd.Series[str]) -> pd.Series[Any]:
    """What to sort a column of cells by: numbers by size, an empty one last."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    return column if (numbers.isna() & (column != "")).any() else numbers
