"""Write the tables of the studies' reports in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: list[dict[str, str]]) -> str:
    """Write rows by column name, the columns in the order of their first appearance; "-" where a row lacks one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return under(columns, [[row.get(name, "-") for name in columns] for row in rows])


def under(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write rows in the order of the headings; headings may repeat or be empty."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
