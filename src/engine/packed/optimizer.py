"""AdamW over a bucket's buffers, each run with its own rate, decay and clip, in torch.optim.AdamW's arithmetic."""

from __future__ import annotations

import torch

from .buffers import Bucket

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.AdamW's defaults, which engine peft uses


def gradient_norms(buckets: list[Bucket]) -> torch.Tensor:
    """The 2-norm of each run's gradient, [runs] in slot order."""
    return torch.cat([torch.linalg.vector_norm(bucket.grads, dim=(0, 2)) for bucket in buckets])


def update(
    values: torch.Tensor,
    grads: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    clip: torch.Tensor,
    lr: torch.Tensor,
    decay: torch.Tensor,
    correction1: torch.Tensor,
    correction2: torch.Tensor,
    alive: torch.Tensor,
) -> None:
    """One step in place. Buffers are [layers, runs, parameters], the others [runs, 1]; ``clip`` is gradient clipping's factor.

    A run that is not ``alive`` keeps every number as it is, whatever its gradients are. ``correction1`` is
    ``1 - BETA1^t``, ``correction2`` the square root of ``1 - BETA2^t`` (Adam's bias corrections).
    """
    grads = grads * clip
    first = torch.lerp(exp_avg, grads, 1 - BETA1)
    second = exp_avg_sq * BETA2 + (1 - BETA2) * grads * grads
    new = values * (1 - lr * decay) - lr / correction1 * (first / (second.sqrt() / correction2 + EPS))
    values.copy_(torch.where(alive, new, values))
    exp_avg.copy_(torch.where(alive, first, exp_avg))
    exp_avg_sq.copy_(torch.where(alive, second, exp_avg_sq))
