"""Errors and byte counts as text: one place for each, for records, tables and the terminal."""

from __future__ import annotations

import pytest

from src.files.text import binary_size, first_line


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 KiB"),
        (1023, "1.0 KiB"),
        (2**20 - 1, "1024.0 KiB"),
        (2**20, "1.0 MiB"),
        (1.5 * 2**30, "1.50 GiB"),
        (2**41, "2048.00 GiB"),
    ],
)
def test_bytes_are_in_the_largest_named_unit_that_they_fill(count: float, text: str) -> None:
    assert binary_size(count, KiB=1, MiB=1, GiB=2) == text


def test_bytes_below_every_named_unit_are_in_the_smallest() -> None:
    assert binary_size(2**19, MiB=0, GiB=1) == "0 MiB" and binary_size(3 * 2**19, GiB=1, MiB=0) == "2 MiB"


def test_an_errors_first_line_is_the_first_that_says_anything() -> None:
    assert first_line(RuntimeError("bad luck\nmore")) == first_line(RuntimeError("\n  bad luck \nmore")) == "bad luck"
    assert first_line(MemoryError()) == first_line(MemoryError("\n \n")) == "MemoryError"
