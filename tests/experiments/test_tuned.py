"""Two stages of a tuned sweep, over records that a stand-in for training writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest

from experiments import tuned
from src.files.errors import ConfigError
from src.record.records import RUNS
from src.sweep.plan import Job
from tests.conftest import TINY

# Validation loss of (rank, rate, seed): at r=4 rate 2 is the best on average though not at seed 0; at r=8 it diverges.
LOSSES = {
    (4, 1.0, 0): 1.0, (4, 1.0, 1): 3.0, (4, 2.0, 0): 1.5, (4, 2.0, 1): 1.6,
    (8, 1.0, 0): 2.0, (8, 1.0, 1): 2.0, (8, 2.0, 0): 0.1, (8, 2.0, 1): None,
}  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """(rank, rate, seed) of all that was trained, in order."""
    found = []

    def launch(jobs: Sequence[Job]) -> None:
        for job in jobs:
            config = job.config
            assert config.data_seed == config.seed and config.sweep == "both"
            key = (config.lora.r, config.train.lr, config.seed)
            found.append(key)
            loss = LOSSES.get(key, 0.0)
            job.folder.path.mkdir(parents=True)
            metrics = {} if loss is None else {"val/loss": loss}
            job.folder.write_result({"run_id": job.run_id, "status": "ok" if metrics else "diverged", "metrics": metrics})

    monkeypatch.setattr(tuned, "launch", launch)
    return found


CONDITIONS = [[*TINY, f"lora.r={r}", "sweep=both"] for r in (4, 8)]


def test_the_report_seeds_get_the_rate_that_is_best_on_average(trained: list[tuple[int, float, int]]) -> None:
    assert tuned.train(CONDITIONS, [1.0, 2.0], tune=[0, 1], report=[5, 6]) == [2.0, 1.0]
    assert sorted(trained[:8]) == sorted(LOSSES)
    assert trained[8:] == [(4, 2.0, 5), (4, 2.0, 6), (8, 1.0, 5), (8, 1.0, 6)]
    (sweep,) = RUNS.glob("sweeps/*.json")
    assert len(set(json.loads(sweep.read_text())["run_ids"])) == 12


def test_a_condition_without_any_rate_says_so(trained: list[tuple[int, float, int]]) -> None:
    with pytest.raises(ConfigError, match=r"lora r=8: no learning rate at which all tuning seeds came to an end"):
        tuned.train(CONDITIONS, [2.0], tune=[0, 1], report=[5])


def test_a_best_rate_at_the_end_of_the_grid_gives_all_conditions_the_next_one(
    trained: list[tuple[int, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = {
        (r, rate, seed): 5.0 - rate if r == 4 else rate for r in (4, 8) for rate in (0.5, 1.0, 2.0, 3.0, 4.0) for seed in (0,)
    }
    monkeypatch.setattr(sys.modules[__name__], "LOSSES", falling)
    assert tuned.train(CONDITIONS, [1.0, 2.0], tune=[0], report=[], spare=[0.5, 3.0]) == [3.0, 0.5]
    assert [rate for _, rate, _ in trained] == [1.0, 2.0, 1.0, 2.0, 0.5, 3.0, 0.5, 3.0]  # and no 4: it was not offered


def test_a_best_rate_inside_needs_no_further_one(trained: list[tuple[int, float, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LOSSES", {(4, 1.0, 0): 1.0, (4, 2.0, 0): 0.5, (4, 3.0, 0): 0.7})
    assert tuned.train(CONDITIONS[:1], [1.0, 2.0, 3.0], tune=[0], report=[], spare=[0.5, 4.0]) == [2.0]
    assert {rate for _, rate, _ in trained} == {1.0, 2.0, 3.0}
