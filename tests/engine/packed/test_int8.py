"""Compare LLM.int8() for several runs at once with bitsandbytes' own product of each run's real tokens."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt

from src.engine.packed import frozen, int8
from src.engine.packed.frozen import Int8
from tests.conftest import rounding

RUNS, TOKENS, IN, OUT = 3, 20, 64, 48


def layer_of(generator: torch.Generator) -> bnb.nn.Linear8bitLt:
    layer = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
    weight = torch.randn(OUT, IN, generator=generator)
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")  # type: ignore[no-any-return]


def alone(layer: bnb.nn.Linear8bitLt, x: torch.Tensor) -> torch.Tensor:
    """Run bitsandbytes' LLM.int8() for one run, as it is on a GPU."""
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    y: torch.Tensor = MatMul8bitLt.apply(x, layer.weight, None, None, layer.state)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_run_is_multiplied_as_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = layer_of(generator)
    packed = Int8(layer).eval()  # rounds its inputs on a CPU too
    x = torch.randn(RUNS, TOKENS, IN, generator=generator)
    x[0, 3, 5], x[1, 7, 9], x[1, 2, 9], x[1, 0, 40] = 9.0, -8.0, 7.0, 30.0  # run 2 has no outlier
    x[2, 4] = 0.0  # a token of zeros
    x = x.to(dtype)
    ours = x.clone().requires_grad_()
    y = packed(ours, None, ours)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    y.backward(grad)
    for run in range(RUNS):
        theirs = x[run].clone().requires_grad_()
        if run == 2:
            theirs = torch.cat([x[run, :4], x[run, 5:]]).requires_grad_()  # bitsandbytes divides by the absmax of zeros
        wanted = alone(layer, theirs)
        wanted.backward(grad[run] if run < 2 else torch.cat([grad[run, :4], grad[run, 5:]]))  # type: ignore[no-untyped-call]
        result, gradient = y[run].detach(), ours.grad[run]  # type: ignore[index]
        if run == 2:
            assert not result[4].any()
            result, gradient = (torch.cat([t[:4], t[5:]]) for t in (result, gradient))
        assert theirs.grad is not None
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(result, wanted.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient, theirs.grad, rtol=tolerance, atol=tolerance)


def test_the_rounding_is_there() -> None:
    """The product differs from the dense one by the rounding of its inputs, and in outlier columns not at all."""
    generator = torch.Generator().manual_seed(1)
    layer = layer_of(generator)
    packed = Int8(layer).eval()
    x = torch.randn(1, TOKENS, IN, generator=generator)
    dense = x @ packed.dense().t()
    gap = (packed(x, None, x) - dense).norm() / dense.norm()
    # A value is off by absmax/127/sqrt(12) on average; absmax of 64 normal numbers is about 2.4.
    assert 0.5 < gap / (2.4 / 127 / 12**0.5) < 2
    x[0, 0] = 7.0  # every column an outlier of some token: nothing is rounded
    torch.testing.assert_close(packed(x, None, x), x @ packed.dense().t(), rtol=1e-4, atol=1e-4)


def test_padding_makes_no_column_an_outlier() -> None:
    generator = torch.Generator().manual_seed(2)
    packed = Int8(layer_of(generator)).eval()
    x = torch.randn(RUNS, TOKENS, IN, generator=generator).clamp(-3, 3)
    rows = torch.zeros(RUNS, TOKENS, dtype=torch.int64)
    rows[:, 15:] = -1
    noisy = x.clone()
    noisy[:, 15:] *= 100
    assert torch.equal(packed(noisy, rows, noisy)[:, :15], packed(x, rows, x)[:, :15])
    assert not torch.equal(packed(noisy, None, noisy)[:, :15], packed(x, None, x)[:, :15])


def test_evaluation_takes_some_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    packed = Int8(layer_of(generator)).eval()
    x = 3 * torch.randn(RUNS, TOKENS, IN, generator=generator)
    rows = torch.zeros(RUNS, TOKENS, dtype=torch.int64)
    wanted = packed(x, rows, x)
    sizes = []
    product = int8.product
    monkeypatch.setattr(int8, "product", lambda x, *rest: sizes.append(len(x)) or product(x, *rest))  # type: ignore[func-returns-value]
    monkeypatch.setattr(frozen, "AT_ONCE", 2 * TOKENS * IN)
    with torch.no_grad():
        for found in (packed(x, rows, x), packed(x, None, x)):  # of another height, so maybe in another order
            assert (found - wanted).norm() <= rounding(IN) * wanted.norm()
    assert sizes == [2, 1, 2, 1]


def test_a_run_that_is_not_finite_says_so_and_leaves_its_neighbors_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    packed = Int8(layer_of(generator)).eval()
    x = torch.randn(RUNS, TOKENS, IN, generator=generator)
    wanted = packed(x, None, x)
    x[1, 4, 4], x[2, 0, 0] = torch.nan, torch.inf
    y = packed(x, None, x)
    assert torch.equal(y[0], wanted[0])
    assert not y[1, 4].isfinite().any() and not y[2, 0].isfinite().any()


def test_where_bitsandbytes_has_no_8_bit_products_training_is_dense_as_its() -> None:
    generator = torch.Generator().manual_seed(4)
    layer = layer_of(generator)
    packed = Int8(layer).train()
    x = torch.randn(RUNS, TOKENS, IN, generator=generator).requires_grad_()
    y = packed(x, None, x)
    y.sum().backward()
    layer.train()
    theirs = x.detach().clone().requires_grad_()
    wanted = layer(theirs)
    wanted.sum().backward()
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(x.grad, theirs.grad)
