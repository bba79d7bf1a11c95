"""Measurements as CSV: rows that several processes append, what is no table, and the rows of several machines."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import sheet
from experiments.finlora_small import report as finlora
from experiments.variants_at_their_best import results as variants
from src.files.errors import ConfigError
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


TABLE = "run_id,seed,loss,note\n12345e6789,0,1.50,\n01,1,,NVIDIA\n"


def test_a_table_is_read_from_a_file_or_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for ending in ("\n", "\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", ending).encode())
        for found in (
            sheet.read(path, ["run_id", "seed"], ["seed", "loss"], ["note"]),
            sheet.read("runs", ["run_id", "seed"], ["seed", "loss"], ["note"], TABLE),
        ):
            assert found["run_id"].tolist() == ["12345e6789", "01"] and found["seed"].tolist() == [0, 1]
            assert found["loss"].tolist()[0] == 1.5 and found["loss"].isna().tolist() == [False, True]
            assert found["note"].tolist() == ["", "NVIDIA"]
    assert sheet.read("", ["seed"], ["seed", "loss"], [], TABLE.replace("1.50", "inf"))["loss"].max() == float("inf")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "runs: cannot be read (No columns to parse from file)"),
        ("run_id,note\n", "runs: has no column seed, loss"),
        (TABLE.splitlines()[0] + "\n", "runs: has no rows"),
        (TABLE[:-11], "runs: row 2 has 1 cell for 4 columns"),
        (TABLE[:-3], "runs: row 2 has no end of line, so it may be cut off"),
        (TABLE[:-1], "runs: row 2 has no end of line, so it may be cut off"),
        ("run_id,seed,loss,note\na,0,1,b,c\n", "runs: row 1 has 5 cells for 4 columns"),
        ('run_id,seed,loss,note\na,0,1,"b\n', "runs: cannot be read (Error"),
        (TABLE + f"a,2,1,{'x' * 200_000}\n", "runs: cannot be read (after row 2: field larger than"),
        ("\n" + TABLE + "\n\na,2,1\n", "runs: row 3 has 3 cells for 4 columns"),
        (TABLE.replace("1.50", "low"), "runs: loss of row 1 is low, not a number"),
        (TABLE.replace("01,1", "01,"), "runs: row 2 has no seed"),
        (TABLE.replace("01,1", "01,1.5"), "runs: seed of row 2 is 1.5, not a whole number"),
        (TABLE.replace("01,1", "01,inf"), "runs: seed of row 2 is inf, not a whole number"),
    ],
)
def test_what_is_no_table_is_one_line_that_names_the_row(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sheet.read("runs", ["run_id", "seed"], ["seed", "loss"], ["note"], text)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_numbers_that_are_infinite_can_be_refused() -> None:
    found = sheet.read("runs", ["seed"], ["seed", "loss"], [], TABLE.replace("1.50", "-inf"))
    with pytest.raises(ConfigError, match=r"^runs: loss of row 1 is -inf, not a number$"):
        sheet.as_numbers(found, ["seed", "loss"], "runs")


def cut(text: str, line: int) -> str:
    """Without one of its rows, as after two halves were put together wrongly."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[: line - 1] + lines[line:])


def test_a_row_that_others_have_a_like_of_is_lacking() -> None:
    runs = pd.DataFrame([(name, r, seed) for name in "ba" for r in (4, 8) for seed in (0, 1)], columns=["name", "r", "seed"])
    assert sheet.lacking(runs, ["name", "r"]) == []
    assert sheet.lacking(runs.drop(index=[1, 4]), ["name", "r"]) == [("b", 4, 1), ("a", 4, 0)]


@pytest.mark.parametrize(
    ("study", "table", "line", "said"),
    [
        ("finlora_small", "results.csv", 2, "Not there, so their rates are no candidates: QLoRA, alpha 16 at 0.0001, seed 0."),
        ("four_bits", "training.csv", 2, "Not there: bf16 at 0.0003, seed 0."),
        ("rank_stability", "results.csv", 3, "Lost, because they diverged or were cut off: fixed: lora r=4 seed=3."),
    ],
)
def test_a_report_of_a_table_without_one_of_its_rows_says_so(
    study: str, table: str, line: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = import_module(f"experiments.{study}.report")
    (tmp_path / table).write_text(cut((report.HERE / table).read_text(), line))
    monkeypatch.setattr(sys, "argv", ["report", f"folder={tmp_path}"])
    assert report.main() == 0
    assert said in (tmp_path / "tables.md").read_text() and said not in (report.HERE / "tables.md").read_text()


def test_rows_are_kept_as_they_stand_and_those_of_both_are_of_the_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('run_id,r,rate,note\na,16,1e-04,"x, y"\nb,4,0.0010,NA\nc,,5e-5,\n')
    text, said = sheet.merged(path, "run_id,rate,r,loss\nd,0.01,4,1.50\nb,0.001,4,True\n", ["r", "rate"])
    assert text == 'run_id,r,rate,note,loss\nb,4,0.001,,True\nd,4,0.01,,1.50\na,16,1e-04,"x, y",\nc,,5e-5,,\n'
    assert said == "a.csv: 2 rows kept, 2 from records"
    every = "run_id,r,rate\nc,4,1\nb,4,2\na,16,1\n"
    assert sheet.merged(path, every, ["r", "rate"]) == (every, "a.csv: 0 rows kept, 3 from records")


@pytest.mark.parametrize("study", [finlora, variants])
def test_committed_results_from_two_machines_are_the_same_bytes(study: Any, tmp_path: Path) -> None:
    whole = (Path(study.__file__).parent / "results.csv").read_text()
    head, *rows = whole.splitlines(keepends=True)
    path = tmp_path / "results.csv"
    path.write_text(head + "".join(rows[::2]))
    text, said = sheet.merged(path, head + "".join(reversed(rows[100:])), study.KEY)
    assert (
        text == head + "".join(rows[:100:2] + rows[100:]) and said == f"results.csv: 50 rows kept, {len(rows) - 100} from records"
    )
