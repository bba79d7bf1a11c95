"""Compare the loss over labeled tokens with ``F.cross_entropy``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from src.engine.packed import head

ROWS, D, VOCABULARY = 10, 6, 37


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [rows, d], weight [vocabulary, d], targets [rows], weights [rows]; two weights are 0."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (3 * torch.randn(VOCABULARY, D, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    weights[[2, 7]] = 0
    return hidden, weight, targets, weights.to(torch.promote_types(dtype, torch.float32))


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weights * F.cross_entropy((hidden @ weight.t()).double(), targets, reduction="none")


@pytest.mark.parametrize("chunk", [1, 3, 5, ROWS, 4096])
def test_values_and_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the losses are weighted again on their way to the sum, as a sum over runs may do."""
    monkeypatch.setattr(head, "CHUNK", chunk)
    hidden, weight, targets, weights = inputs(torch.float64)
    losses, wanted = head.weighted_losses(hidden, weight, targets, weights), reference(hidden, weight, targets, weights)
    torch.testing.assert_close(losses, wanted, rtol=1e-13, atol=1e-14)
    outer = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    (gradient,), (expected,) = (torch.autograd.grad(part @ outer, hidden) for part in (losses, wanted))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not gradient[[2, 7]].any() and gradient[[0, 1]].all()


def softmax_in_place(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As a kernel does it: the gradient takes the logits' place, unseen by autograd."""
    losses, gradient = head.softmax_losses(logits, targets, weights)
    logits.data.copy_(gradient)
    return losses, logits


@pytest.mark.parametrize("softmax", [head.softmax_losses, softmax_in_place])
@pytest.mark.parametrize("chunk", [3, 4096])
@pytest.mark.parametrize(
    "transform",
    [lambda z: z / 4, lambda z: 2 * torch.tanh(z / 2), torch.tanh, lambda z: z],
    ids=["scale", "soft cap", "ends in tanh", "bare"],
)
def test_a_head_that_changes_its_products(transform: Any, chunk: int, softmax: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd; ``tanh`` keeps its result for its gradient, so that nothing may take its place."""
    monkeypatch.setattr(head, "CHUNK", chunk)
    hidden, weight, targets, weights = inputs(torch.float64)
    losses = head.weighted_losses(hidden, weight, targets, weights, softmax, transform)
    wanted = weights * F.cross_entropy(transform(hidden @ weight.t()), targets, reduction="none")
    torch.testing.assert_close(losses, wanted, rtol=1e-13, atol=1e-14)
    outer = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    (gradient,), (expected,) = (torch.autograd.grad(part @ outer, hidden) for part in (losses, wanted))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_the_gradient_numerically() -> None:
    hidden, weight, targets, weights = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h: head.weighted_losses(h, weight, targets, weights), (hidden,))


def test_16_bit_logits_are_widened_before_the_softmax() -> None:
    hidden, weight, targets, weights = inputs(torch.bfloat16)
    losses = head.weighted_losses(hidden, weight, targets, weights)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), reference(hidden, weight, targets, weights), rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(reference(exact, weight.double(), targets, weights).sum(), exact)
    assert gradient.dtype == torch.bfloat16
    assert (gradient - wanted).norm() <= 0.01 * wanted.norm()  # a unit of bf16 is 0.004


def test_logits_far_apart_overflow_nothing() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    losses = head.weighted_losses(hidden, weight, torch.tensor([0, 0]), torch.ones(2))
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    assert losses.tolist() == [0, 600] and gradient.tolist() == [[0], [-2]]


def test_a_row_that_is_not_finite_keeps_to_itself() -> None:
    hidden, weight, targets, weights = inputs(torch.float64)
    spoilt = hidden.detach().clone()
    spoilt[4] = torch.nan
    spoilt.requires_grad_()
    wanted, losses = (head.weighted_losses(h, weight, targets, weights) for h in (hidden, spoilt))
    others = [row for row in range(ROWS) if row != 4]
    (gradient,), (expected,) = torch.autograd.grad(losses.sum(), spoilt), torch.autograd.grad(wanted.sum(), hidden)
    assert losses[4].isnan() and gradient[4].isnan().all()
    assert torch.equal(losses[others], wanted[others]) and torch.equal(gradient[others], expected[others])


def test_losses_of_an_evaluation() -> None:
    hidden, weight, targets, _ = inputs(torch.float32)
    losses = head.losses(hidden.detach(), lambda rows: rows @ weight.t(), targets)
    torch.testing.assert_close(losses.double(), reference(hidden, weight, targets, torch.ones(ROWS)), rtol=1e-6, atol=1e-7)
    assert head.losses(hidden[:0].detach(), lambda rows: rows @ weight.t(), targets[:0]).shape == (0,)
