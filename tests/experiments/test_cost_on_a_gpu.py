"""Cases that fail, die or are known already, and the table made of them."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import cases, measure
from benchmarks.step import Case, config_of
from experiments.cost_on_a_gpu import report
from experiments.cost_on_a_gpu.measure import GROUPS, TINY
from src.config import ConfigError

ABOUT = {"gpu": "none", "python": "3", "torch": "2", "commit": "abc"}
FAILS = replace(TINY, overrides=("lora.target_modules=[nothing]",))  # a module that no layer is named


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def row(case: Case, about: dict[str, str] = ABOUT, **found: Any) -> dict[str, str]:
    return cases.filled(cases.identity(case) | found, about)


def test_a_case_that_fails_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    """Through the real child process: the failure ends it, another one measures what is left, and nothing is done twice."""
    path = tmp_path / "results.csv"
    cases.run([FAILS, TINY], path, 200)
    failed, measured = rows_of(path)
    assert "nothing" in failed["note"] and not failed["ms/step"]
    assert float(measured["ms/step"]) > 0 and not measured["note"] and measured["speed"] == "eager"
    again = path.read_text()
    cases.run([TINY], path, 200)
    assert path.read_text() == again


def test_a_process_that_dies_or_outlasts_its_time_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def dies(left: list[Case], path: Path, remaining: float) -> int:
        started.append(len(left))
        if len(left) == 2:
            cases.write(path, cases.filled(cases.identity(left[0]) | {"ms/step": 1.0}, measure.machine()))
        return -9

    monkeypatch.setattr(cases, "_in_a_child", dies)
    path = tmp_path / "results.csv"
    cases.run([TINY, replace(TINY, rows=3)], path, 100)
    assert started == [2]  # the second was under way when its process died
    assert [row["note"] for row in rows_of(path)] == ["", "its process ended with code -9"]
    cases.run([TINY, replace(TINY, rows=3)], path, 100)
    assert started == [2, 1] and len(rows_of(path)) == 2  # a failure is tried again, and stands there once


def test_no_case_is_begun_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "_in_a_child", lambda *_: pytest.fail("began"))
    cases.run([TINY], tmp_path / "results.csv", 0)
    assert "1 not begun, 0 s are spent: tiny lora ours" in capsys.readouterr().out


def test_what_is_known(tmp_path: Path) -> None:
    """Of such a machine and such versions, whatever the commit; a lack of memory counts, another failure does not."""
    path = tmp_path / "results.csv"
    others = [replace(TINY, rows=rows) for rows in (3, 4, 5)]
    cases.write(path, row(TINY, **{"ms/step": 1.0}))
    cases.write(path, row(others[0], note="out of memory"))
    cases.write(path, row(others[1], note="RuntimeError: no"))
    cases.write(path, row(others[2], ABOUT | {"torch": "1"}, **{"ms/step": 1.0}))
    found = cases.known([path], ABOUT | {"commit": "def"})
    assert set(found) == {cases.key_of(cases.identity(case)) for case in (TINY, others[0])}
    cases.write(path, row(TINY, ABOUT | {"commit": "def"}, **{"ms/step": 2.0}))
    assert [each["ms/step"] for each in rows_of(path) if each["rows"] == "2"] == ["2.0"]


def test_every_case_can_be_composed_and_70b_is_quantised() -> None:
    for name, group in GROUPS.items():
        for case in group:
            config = config_of(case)
            assert config.model.weights == "random"
            assert name != "70b" or config.variant.base_precision == "nf4"
            assert case.engine == "ours" or case.runs == 1


def test_the_table_sets_ours_beside_pefts(tmp_path: Path) -> None:
    numbers = {"spread ms": 1, "share of peak": 0.5, "peak GiB": 10.0}
    for case, found in [
        (TINY, {"ms/step": 100.0, "tokens/s": 3000.0, **numbers}),
        (replace(TINY, engine="peft", runs=1), {"ms/step": 50.0, "tokens/s": 1000.0, **numbers}),
        (replace(TINY, variant="dora", engine="peft", runs=1), {"note": "out of memory"}),
    ]:
        cases.write(tmp_path / "results.csv", row(case, **found))
    frame = report.load(tmp_path)
    lines = report.tables(frame).splitlines()
    assert lines[2].endswith("| 3.00 |") and "100.0 (± 1.0)" in lines[2]
    assert "out of memory" in lines[3] and "not measured" in lines[3] and lines[3].endswith("| - |")
    figure = report.draw(frame)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1,000", "out of memory", "3,000", "not measured"]
    assert isinstance(frame, pd.DataFrame)


def test_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from experiments.cost_on_a_gpu import measure as study

    monkeypatch.setattr(sys, "argv", ["measure", "cases=9b", f"out={tmp_path}"])
    with pytest.raises(ConfigError, match="cases=9b: choose from 8b, 70b"):
        study.main()
    monkeypatch.setattr(sys, "argv", ["measure", "cases=tiny", "out=/dev/null/nowhere"])
    with pytest.raises(ConfigError, match="out=/dev/null/nowhere: no folder to write to"):
        study.main()
    with pytest.raises(ConfigError, match=r"no results\.csv there"):
        report.load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    cases.write(path, row(TINY, **{"ms/step": 1.0}))
    whole = path.read_text()
    for text, said, refused in (
        ("", "cannot be read", False),
        (whole.splitlines()[0] + "\n", "has no rows", False),
        (whole[: whole.rindex("tiny") + 9], "row 1 has 2 cells for ", True),
        (whole.replace("ms/step", "ms"), "has no column ms/step", True),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            report.load(tmp_path)
        if refused:
            with pytest.raises(ConfigError, match="a row has no "):
                cases.read(path)
        else:
            assert cases.read(path) == []  # nothing is known yet
    path.write_bytes(b"\xff\xfe\x00")
    for read in (report.load, lambda folder: cases.read(folder / "results.csv")):
        with pytest.raises(ConfigError, match=r"results\.csv: cannot be read"):
            read(tmp_path)
