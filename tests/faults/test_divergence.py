"""Numbers that stop being finite: the run is over and says where; not a bit of its neighbors changes. For every variant."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch

from src.config.schema import named_variants
from src.engine.packed.engine import PackedEngine
from src.record.records import RunFolder
from src.variants.methods.point import AXES
from tests.conftest import Run, TrainPack
from tests.train.test_worker import adapter, lines

PACKED = {point: name for point, name in named_variants().items() if point[0] == "adapter"}
AXIS = list(AXES).index("base_precision")  # of a point: runs that agree on it share a pack
PRECISIONS = sorted({point[AXIS] for point in PACKED})
STEPS, AT = 5, 2  # the fault comes at this step, 0-based
SETTINGS = [f"train.steps={STEPS}", "eval.generate=false", "forgetting.tokens=0", "eval.every=2", "lora.dropout=0.1"]


def inject(monkeypatch: pytest.MonkeyPatch, run: int, what: str) -> None:
    """From step ``AT`` on a run's weights, or its gradients, are not finite."""
    advance, update = PackedEngine.advance, PackedEngine._update
    value = {"weights": math.nan, "gradients": math.inf, "gradient overflow": 3e38}[what]
    reached = False

    def advanced(self: PackedEngine, first: int, last: int) -> Any:
        nonlocal reached
        reached = first >= AT
        if first == AT and what == "weights":
            bucket, row = self.model.bucket_of(run)
            bucket.values[:, row] = value
        return advance(self, first, last)

    def updated(self: PackedEngine) -> None:
        if reached and what != "weights":
            bucket, row = self.model.bucket_of(run)
            bucket.grads[:, row] = value  # 3e38 is finite, and its square is not: the norm overflows
        update(self)

    monkeypatch.setattr(PackedEngine, "advance", advanced)
    monkeypatch.setattr(PackedEngine, "_update", updated)


def bits(record: RunFolder, result: dict[str, Any]) -> tuple[Any, ...]:
    return adapter(record), record.metrics.read_bytes(), record.predictions.read_bytes(), result["metrics"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_that_diverges_changes_no_bit_of_its_neighbours(
    train_pack: TrainPack, precision: str, monkeypatch: pytest.MonkeyPatch, size: Any, figure: Any
) -> None:
    names = [name for point, name in PACKED.items() if point[AXIS] == precision]
    runs = [[f"variant={name}", "lora.r=4", *SETTINGS] for name in names]
    healthy = train_pack(*runs)
    assert [result["status"] for result in healthy.results] == ["ok"] * len(runs), healthy.results
    kept = {record.run_id: bits(record, result) for record, result in zip(healthy.records, healthy.results, strict=True)}
    slots = list(told_taken(healthy))
    losses = {record.run_id: lines(record, "train/loss") for record in healthy.records}

    kinds = ("weights", "gradients", "gradient overflow")
    cases = [(slot, what) for slot in range(len(runs)) for what in kinds]
    at = PRECISIONS.index(precision)
    tried = cases if size(0, 1) else [(at % len(runs), kinds[at % len(kinds)])]
    for slot, what in tried:
        for record in healthy.records:
            shutil.rmtree(record.path)
        with monkeypatch.context() as patch:
            inject(patch, slot, what)
            trained = train_pack(*runs)
        for record, result in zip(trained.records, trained.results, strict=True):
            if record.run_id != slots[slot]:
                assert result["status"] == "ok" and bits(record, result) == kept[record.run_id], (result["variant"], what)
                continue
            last = losses[record.run_id][AT - 1]
            name = "loss" if what == "weights" else "gradient norm"
            assert result["status"] == "diverged"
            assert result["reason"] == f"{name} was not finite at step {AT + 1}; last finite loss {last:.4f}", what
            assert "test/loss" not in result["metrics"] and not record.adapter.exists() and not record.checkpoints.exists()
    figure(
        "Loss NaN or inf, gradient overflow",
        f"{precision}: {len(tried)} faults in {len({slot for slot, _ in tried})} of {len(names)} variants"
        f" ({', '.join(names)}), 0 bits of neighbours changed",
    )


def told_taken(trained: Any) -> list[str]:
    """The runs in the order of their slots."""
    (event,) = [event for event in trained.events if event["event"] == "taken"]
    runs: list[str] = event["runs"]
    return runs


def test_full_training_that_diverges_is_no_number(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.engine.peft import PeftEngine

    step = PeftEngine.step

    def poisoned(self: PeftEngine, at: int, batches: Any) -> Any:
        if at == AT:
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(math.nan)
        return step(self, at, batches)

    monkeypatch.setattr(PeftEngine, "step", poisoned)
    _, result = run("variant=full", *SETTINGS)
    assert result["status"] == "diverged" and result["reason"].startswith(
        f"loss was not finite at step {AT + 1}; last finite loss"
    )
    assert "test/loss" not in result["metrics"]
