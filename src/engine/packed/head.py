"""Compute the log-loss of labeled tokens alone, in chunks, and its gradient on the way.

The head is frozen, so its gradient with respect to the hidden states is known as soon as the logits are: no logits are
kept, and nothing is computed twice. Arithmetic is that of ``F.cross_entropy`` on fp32 logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .backbone import Transform

CHUNK = 4096  # rows of logits at a time

# (logits [rows, vocabulary], targets [rows], weights [rows]) -> (losses [rows], gradient of the logits)
Softmax = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def softmax_losses(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute weighted log-losses [rows] and their gradient with respect to ``logits``, in the logits' format."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = torch.log_softmax(wide, dim=-1)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1) * weights
    gradient = log_p.exp_()
    gradient.scatter_add_(1, targets[:, None], torch.full_like(targets, -1, dtype=gradient.dtype)[:, None])
    return losses, gradient.mul_(weights[:, None]).to(logits.dtype)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, softmax: Softmax,
        transform: Transform | None,
    ) -> torch.Tensor:  # fmt: skip
        losses, gradients = [], []
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            products = hidden[rows] @ weight.t()
            if transform is None:
                loss, gradient = softmax(products, targets[rows], weights[rows])
            else:
                loss, gradient = _through(transform, products, targets[rows], weights[rows], softmax)
            losses.append(loss)
            gradients.append(gradient @ weight)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None, None, None, None


def _through(
    transform: Transform, products: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, softmax: Softmax
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute losses [rows] of the transformed products, and their gradient with respect to the products."""
    with torch.enable_grad():
        logits = transform(products.requires_grad_())
    # A copy: a softmax may put its gradient in the place of the logits, which the transform may need for its own.
    loss, outer = softmax(logits.detach().clone(), targets, weights)
    (gradient,) = torch.autograd.grad(logits, products, outer)
    return loss, gradient


def weighted_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, softmax: Softmax = softmax_losses,
    transform: Transform | None = None,
) -> torch.Tensor:  # fmt: skip
    """Compute ``weights`` times the log-loss of each row, [rows].

    Shapes: hidden [rows, d], weight [vocabulary, d] (frozen), targets [rows], weights [rows]. ``transform`` as in ``Backbone``.
    """
    losses: torch.Tensor = _Head.apply(hidden, weight, targets, weights, softmax, transform)  # type: ignore[no-untyped-call]
    return losses


@torch.no_grad()
def losses(hidden: torch.Tensor, logits: Transform, targets: torch.Tensor) -> torch.Tensor:
    """Compute the log-loss of each row of ``hidden`` [rows, d], [rows], in fp32; ``logits`` is the model's head."""
    chunks = [slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK)]
    parts = [F.cross_entropy(logits(hidden[rows]).float(), targets[rows], reduction="none") for rows in chunks]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
