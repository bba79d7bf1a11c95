"""Words for values, against cases that were worked out by hand."""

from __future__ import annotations

import pytest

from src.files.text import byte_size, counted, first_line, plain


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 KiB"), (512, "0.5 KiB"), (1024, "1.0 KiB"), (2**20 - 1, "1024.0 KiB"), (2**20, "1.0 MiB"),
     (2**30 - 1, "1024.0 MiB"), (2**30, "1.00 GiB"), (3 * 2**41, "6144.00 GiB")],
)  # fmt: skip
def test_bytes_in_the_largest_unit_that_they_fill(count: int, text: str) -> None:
    assert byte_size(count, KiB=1, MiB=1, GiB=2) == text


def test_bytes_in_the_units_that_are_asked_for() -> None:
    assert byte_size(1000, MiB=2, GiB=1) == "0.00 MiB"
    assert byte_size(3e9, MiB=0, GiB=2) == "2.79 GiB"  # 3e9 / 1024**3 = 2.794
    assert byte_size(2**40, B=0, KiB=2, MiB=2, GiB=2, TiB=2) == "1.00 TiB"


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("one\ntwo", "one"), ("\n  \n  three  \nfour", "three"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_the_first_line_of_an_error(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_values_and_counts_in_words() -> None:
    assert [plain(value) for value in (0.001, 2.0, 1e-7, 3, "x", None)] == ["0.001", "2", "1e-07", "3", "x", "None"]
    assert [counted(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
