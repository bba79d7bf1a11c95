"""A study's measurements as CSV: written as they are made, read back checked."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd


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


def read(path: Path, filled: Collection[str], numbers: Collection[str], texts: Collection[str] = ()) -> pd.DataFrame:
    """The rows of a CSV, with these columns at least.

    Those of ``filled`` stand in every row, those of ``numbers`` are numbers or missing, those of ``texts`` may be empty. What
    is no number is a text.

    Raises:
        ConfigError: it is not such a table, or has no rows; one line.
    """
    import pandas as pd  # here, since what writes measures the memory of its own process
    from pandas.api.types import is_numeric_dtype

    try:
        found = pd.read_csv(path, dtype={name: str for name in (*filled, *texts) if name not in numbers})
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"{path}: cannot be read ({why})") from error
    if missing := {*filled, *numbers, *texts} - set(found.columns):
        raise ConfigError(f"{path}: has no column {', '.join(sorted(missing))}")
    if found.empty:
        raise ConfigError(f"{path}: has no rows")
    for name in filled:
        if found[name].isna().any():
            raise ConfigError(f"{path}: a row has no {name}")
    for name in numbers:
        if not is_numeric_dtype(found[name]):
            raise ConfigError(f"{path}: {name} are not all numbers")
    return found.fillna(dict.fromkeys(texts, ""))
