"""Text from files that anyone may have edited, made fit for a line of a terminal, a table or a page."""

from __future__ import annotations

from collections.abc import Sequence

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def clean(value: str) -> str:
    """One line without control characters, invisible direction marks or halves of surrogate pairs."""
    if value.isascii() and value.isprintable() and "  " not in value:
        return value.strip()
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def binary_size(count: float, **digits: int) -> str:
    """Bytes in the largest of the named binary units that they fill, or the smallest: ``binary_size(9.8e9, MiB=0, GiB=1)``."""
    fits = [unit for unit in digits if count >= UNITS[unit]]
    unit = max(fits, key=lambda unit: UNITS[unit], default=min(digits, key=lambda unit: UNITS[unit]))
    return f"{count / UNITS[unit]:.{digits[unit]}f} {unit}"


def few(names: Sequence[str], most: int = 6) -> str:
    """Names in one line, none twice: ``a, b and 3 more``."""
    names = list(dict.fromkeys(names))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])} and {len(names) - most + 1:,} more"
