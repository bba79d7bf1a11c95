"""Tables of the studies' reports in Markdown."""

from __future__ import annotations


def table(rows: list[dict[str, str]]) -> str:
    """Rows by column name, the columns in the order in which they first come; "-" where a row has none."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "-") for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
