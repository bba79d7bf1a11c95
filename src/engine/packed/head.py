"""Log-loss of labelled tokens alone, in chunks, with its gradient computed on the way.

The head is frozen, so its gradient with respect to the hidden states is known as soon as the logits are: no logits are
kept, and nothing is computed twice. Arithmetic is that of ``F.cross_entropy`` on fp32 logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

CHUNK = 4096  # rows of logits at a time

# (logits [rows, vocabulary], targets [rows], weights [rows]) -> (losses [rows], gradient of the logits)
Softmax = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def softmax_losses(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted log-losses [rows] and their gradient with respect to ``logits``, in the logits' format."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = torch.log_softmax(wide, dim=-1)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1) * weights
    gradient = log_p.exp_()
    gradient.scatter_add_(1, targets[:, None], torch.full_like(targets, -1, dtype=gradient.dtype)[:, None])
    return losses, gradient.mul_(weights[:, None]).to(logits.dtype)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, softmax: Softmax
    ) -> torch.Tensor:
        losses, gradients = [], []
        for at in range(0, len(targets), CHUNK):
            rows = slice(at, at + CHUNK)
            logits = hidden[rows] @ weight.t()
            loss, gradient = softmax(logits, targets[rows], weights[rows])
            losses.append(loss)
            gradients.append(gradient @ weight)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None, None, None


def weighted_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, softmax: Softmax = softmax_losses
) -> torch.Tensor:
    """``weights`` times the log-loss of each row, [rows].

    Shapes: hidden [rows, d], weight [vocabulary, d] (frozen), targets [rows], weights [rows].
    """
    found: torch.Tensor = _Head.apply(hidden, weight, targets, weights, softmax)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-loss of each row, [rows], in fp32."""
    chunks = [slice(at, at + CHUNK) for at in range(0, len(targets), CHUNK)]
    found = [F.cross_entropy((hidden[rows] @ weight.t()).float(), targets[rows], reduction="none") for rows in chunks]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)
