"""Text from files that anyone may have edited, made fit for a line of a terminal, a table or a page."""

from __future__ import annotations


def clean(value: str) -> str:
    """One line without control characters, invisible direction marks or halves of surrogate pairs."""
    if value.isascii() and value.isprintable() and "  " not in value:
        return value.strip()
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())
