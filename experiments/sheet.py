"""A study's measurements as CSV."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from src.config import ConfigError


def read(path: Path, filled: Collection[str], numbers: Collection[str], texts: Collection[str] = ()) -> pd.DataFrame:
    """The rows of a CSV, with these columns at least.

    Those of ``filled`` stand in every row, those of ``numbers`` are numbers or missing, those of ``texts`` may be empty. What
    is no number is a text.

    Raises:
        ConfigError: it is not such a table, or has no rows; one line.
    """
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
