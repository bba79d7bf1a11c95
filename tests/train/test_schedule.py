"""The learning-rate curves are transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from src.train.schedule import lr_factor


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")])
@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.0), (20, 0.1), (7, 0.3), (1, 0.0), (100, 0.03)])
def test_the_curve_is_that_of_transformers(ours: str, theirs: str, steps: int, warmup: float) -> None:
    import math

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=math.ceil(steps * warmup), num_training_steps=steps)
    for step in range(steps):
        assert lr_factor(ours, step, steps, warmup) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()
