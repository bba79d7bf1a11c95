"""The loss over labelled tokens against ``F.cross_entropy``."""

from __future__ import annotations

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
    found, wanted = head.weighted_losses(hidden, weight, targets, weights), reference(hidden, weight, targets, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    outer = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    (mine,), (theirs,) = (torch.autograd.grad(losses @ outer, hidden) for losses in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert not mine[[2, 7]].any() and mine[[0, 1]].all()


def test_the_gradient_numerically() -> None:
    hidden, weight, targets, weights = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h: head.weighted_losses(h, weight, targets, weights), (hidden,))


def test_16_bit_logits_are_widened_before_the_softmax() -> None:
    hidden, weight, targets, weights = inputs(torch.bfloat16)
    found = head.weighted_losses(hidden, weight, targets, weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference(hidden, weight, targets, weights), rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(reference(exact, weight.double(), targets, weights).sum(), exact)
    assert gradient.dtype == torch.bfloat16
    assert (gradient - wanted).norm() <= 0.01 * wanted.norm()  # a unit of bf16 is 0.004


def test_logits_far_apart_overflow_nothing() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    found = head.weighted_losses(hidden, weight, torch.tensor([0, 0]), torch.ones(2))
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert found.tolist() == [0, 600] and gradient.tolist() == [[0], [-2]]


def test_a_row_that_is_not_finite_keeps_to_itself() -> None:
    hidden, weight, targets, weights = inputs(torch.float64)
    spoilt = hidden.detach().clone()
    spoilt[4] = torch.nan
    spoilt.requires_grad_()
    wanted, found = (head.weighted_losses(h, weight, targets, weights) for h in (hidden, spoilt))
    others = [row for row in range(ROWS) if row != 4]
    (mine,), (theirs,) = torch.autograd.grad(found.sum(), spoilt), torch.autograd.grad(wanted.sum(), hidden)
    assert found[4].isnan() and mine[4].isnan().all()
    assert torch.equal(found[others], wanted[others]) and torch.equal(mine[others], theirs[others])


def test_losses_of_an_evaluation() -> None:
    hidden, weight, targets, _ = inputs(torch.float32)
    found = head.losses(hidden.detach(), weight, targets)
    torch.testing.assert_close(found.double(), reference(hidden, weight, targets, torch.ones(ROWS)), rtol=1e-6, atol=1e-7)
    assert head.losses(hidden[:0].detach(), weight, targets[:0]).shape == (0,)
