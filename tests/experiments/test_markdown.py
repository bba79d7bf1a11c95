"""The studies' tables in Markdown, by hand."""

from __future__ import annotations

from experiments import markdown


def test_columns_stand_in_the_order_in_which_they_come() -> None:
    rows = [{"a": "1"}, {"b": "2", "a": ""}]
    assert markdown.table(rows).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | - |", "|  | 2 |"]


def test_headings_may_be_alike_and_rows_missing() -> None:
    assert markdown.under(["", "x", "x"], [["1", "2", "3"]]).splitlines() == [
        "|  | x | x |",
        "| --- | --- | --- |",
        "| 1 | 2 | 3 |",
    ]
    assert markdown.under(["", "x"], []).splitlines() == ["|  | x |", "| --- | --- |"]
