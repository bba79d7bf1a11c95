"""Make text fit for a line of a terminal, a table or a page: from files that anyone may have edited, and from values."""

from __future__ import annotations

from collections.abc import Sequence

UNITS = {name: 2 ** (10 * power) for power, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))}


def clean(value: str) -> str:
    """One line without control characters, invisible direction marks or halves of surrogate pairs."""
    if value.isascii() and value.isprintable() and "  " not in value:
        return value.strip()
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def few(names: Sequence[str], most: int = 6) -> str:
    """Names in one line, none twice: ``a, b and 3 more``."""
    names = list(dict.fromkeys(names))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])} and {len(names) - most + 1:,} more"


def first_line(error: BaseException) -> str:
    """Take the first line of an error's message that is not empty; the error's type where all are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def plain(value: object) -> str:
    """Write a value for a reader: a number without trailing zeros, in at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(n: int, noun: str) -> str:
    """Count things in words: ``1 seed``, ``2 seeds``."""
    return f"{n} {noun}{'s' * (n != 1)}"


def byte_size(count: float, **digits: int) -> str:
    """Write bytes in the largest of some units that they fill, else in the first: ``byte_size(3e9, MiB=0, GiB=2)`` is
    ``2.79 GiB``.

    Args:
        digits: decimals by unit, of B, KiB, MiB, GiB and TiB, in this order.
    """
    units = [name for name in digits if count >= UNITS[name]] or list(digits)[:1]
    return f"{count / UNITS[units[-1]]:.{digits[units[-1]]}f} {units[-1]}"
