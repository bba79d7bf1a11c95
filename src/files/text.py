"""Text from files that anyone may have edited, made fit for a line of a terminal, a table or a page."""

from __future__ import annotations

from collections.abc import Sequence


def clean(value: str) -> str:
    """One line without control characters, invisible direction marks or halves of surrogate pairs."""
    if value.isascii() and value.isprintable() and "  " not in value:
        return value.strip()
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def few(names: Sequence[str], most: int = 6) -> str:
    """Names in one line, none twice: ``a, b and 3 more``."""
    names = list(dict.fromkeys(names))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])} and {len(names) - most + 1:,} more"
