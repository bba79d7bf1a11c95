"""The flagship study's own commands; the loop over rates is test_tuned.py's."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from experiments.variants_at_their_best import peft, run
from src.train.peft_engine import PeftEngine
from tests.conftest import TINY


def test_the_cells_and_rates_are_those_of_the_experiment() -> None:
    cells, rates = run.cells()
    assert len(cells) * len(rates) * 11 == 1232  # as the study says
    assert cells[0] == ("lora", 4) and cells[-1] == ("qlora", 256)
    assert run.SPARE[0] < min(rates) and max(rates) < run.SPARE[1]
    assert rates == sorted(rates)


def test_peft_is_timed_on_the_rows_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    advance = PeftEngine.advance

    def watched(engine: PeftEngine, start: int, end: int) -> list:
        steps = advance(engine, start, end)
        seen.append((start, end, sum(step.tokens[0] for step in steps)))
        return steps

    monkeypatch.setattr(PeftEngine, "advance", watched)
    monkeypatch.setattr(peft, "cells", lambda: ([("lora", 2), ("dora", 4)], []))
    monkeypatch.setattr(peft, "TIMED", 3)
    monkeypatch.setattr(sys, "argv", ["peft", f"out={tmp_path}", *TINY, "train.batch_size=2"])
    assert peft.main() == 0
    with open(tmp_path / "peft.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["r"], row["steps"]) for row in rows] == [("lora", "2", "3"), ("dora", "4", "3")]
    assert [int(row["tokens"]) for row in rows] == [tokens for start, _, tokens in seen if start]  # not those of the warm-up
    for row in rows:
        assert float(row["tokens_per_second"]) == pytest.approx(int(row["tokens"]) / float(row["seconds"]), rel=1e-2)
