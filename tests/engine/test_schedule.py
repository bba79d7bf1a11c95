"""Compare the learning-rate curves with transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from src.config.schema import TrainConfig
from src.engine.schedule import learning_rate


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")])
@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.0), (20, 0.1), (7, 0.3), (1, 0.0), (100, 0.03)])
def test_the_curve_is_that_of_transformers(ours: str, theirs: str, steps: int, warmup: float) -> None:
    train = TrainConfig(lr=1.0, schedule=ours, warmup=warmup)
    compare(train, theirs, math.ceil(steps * warmup), steps)


def test_a_number_of_warm_up_steps_stands_before_a_share() -> None:
    compare(TrainConfig(lr=2e-4, schedule="cosine", warmup=0.5, warmup_steps=10), "cosine", 10, 60)
    compare(TrainConfig(lr=2e-4, warmup_steps=5), "linear", 5, 2)  # longer than the run: never at the full rate


def compare(train: TrainConfig, theirs: str, rise: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=train.lr)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=rise, num_training_steps=steps)
    for step in range(steps):
        assert learning_rate(train, step, steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()
