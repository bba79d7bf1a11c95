"""Measurements as CSV: rows that several processes append."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import sheet
from tests.conftest import CODE


def test_rows_are_appended_under_one_line_of_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    sheet.append(path, ("a", "b"), [])
    assert path.read_bytes() == b"a,b\n"
    sheet.append(path, ("a", "b"), [(1, None), ("x, y", True)])
    sheet.append(path, ("a", "b"), ([each, ""] for each in (0.1, 2)))
    assert path.read_bytes() == b'a,b\n1,\n"x, y",True\n0.1,\n2,\n'


def test_a_process_that_comes_between_opening_and_locking_has_brought_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    lock = sheet.fcntl.flock

    def late(file: Any, how: int) -> None:
        path.write_text("a\n1\n")
        lock(file, how)

    monkeypatch.setattr(sheet.fcntl, "flock", late)
    sheet.append(path, ("a",), [(2,)])
    assert path.read_text() == "a\n1\n2\n"


WRITER = """
import sys
from pathlib import Path
from experiments import sheet

for at in range(50):
    sheet.append(Path(sys.argv[1]), ("name", "at", "text"), [(sys.argv[2], at, "x" * 5000)] * 3)
"""


def test_the_rows_of_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], cwd=CODE) for name in "abcd"]
    assert [writer.wait() for writer in writers] == [0] * 4
    head, *lines = path.read_text().splitlines()
    assert head == "name,at,text"
    assert sorted(lines) == sorted(f"{name},{at},{'x' * 5000}" for name in "abcd" for at in range(50) for _ in range(3))
    assert all(lines[at] == lines[at + 1] == lines[at + 2] for at in range(0, len(lines), 3))
