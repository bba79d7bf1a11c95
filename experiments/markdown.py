"""Tables of the studies' reports in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: list[dict[str, str]]) -> str:
    """Rows by column name, the columns in the order in which they first come; "-" where a row has none."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return under(columns, [[row.get(name, "-") for name in columns] for row in rows])


def under(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in the order of the headings, of which several may be alike, or empty."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
