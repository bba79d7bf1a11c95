"""Compute the learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from ..config.schema import TrainConfig


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """Compute the learning rate at 0-based ``step`` of ``steps``."""
    # transformers' warm-up starts at 0, so a run of one step must not be all warm-up, unless warmup_steps asks for it.
    share = min(math.ceil(steps * train.warmup), steps - 1)
    warmup = share if train.warmup_steps is None else train.warmup_steps
    return train.lr * lr_factor(train.schedule, step, steps, warmup)


def lr_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Compute the factor on the peak learning rate at 0-based ``step`` of ``steps``, the first ``warmup`` of them warm-up.

    It rises linearly over the warm-up; then it is constant, falls linearly to 0, or by half a cosine to 0. The curves are
    those of ``transformers.get_scheduler`` under the names constant_with_warmup, linear, cosine.
    """
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": max(0.0, 1.0 - progress), "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[schedule]
