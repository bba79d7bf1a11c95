"""Multiply by an LLM.int8() weight for K runs at once, each with its own outlier columns.

Source: Dettmers et al. 2022, arXiv 2208.07339, section 3.2. bitsandbytes gathers the outlier columns, which waits for the
device and makes a product of another size each time. Here they stay in place, zero in the 8-bit factor and alone in a
16-bit one: the same sums in fixed shapes, so that runs share the products and a step can be compiled and recorded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


@torch.no_grad()
def split(x: torch.Tensor, real: torch.Tensor | None, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split ``x`` into its 8-bit part and its outlier columns.

    Returns the 8-bit factor [runs, tokens, in], its absmax fp32 [runs, tokens], and the outlier columns in the format of
    x [runs, tokens, in], zero elsewhere. A column is an outlier of a run if any of the run's tokens reaches ``threshold``
    in it. ``real`` [runs, tokens] is false at padding, which makes no column an outlier; None: there is no padding.
    """
    halves = x.half()  # what bitsandbytes compares and rounds
    large = halves.abs() >= threshold
    counted = large if real is None else large & real[..., None]
    columns = counted.any(1, keepdim=True)
    small = halves.masked_fill(large, 0).float()
    absmax = small.abs().amax(-1)
    # Where a token is zero everywhere 0 / 0 would follow; a run that is not finite keeps its NaN through absmax.
    steps = 127 / torch.where(absmax == 0, torch.ones_like(absmax), absmax)
    rounded = torch.round(small * steps[..., None]).masked_fill(columns, 0).to(torch.int8)
    return rounded, absmax, x.masked_fill(~columns, 0)


def dense(weight: torch.Tensor, absmax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Dequantize the weight [out, in]."""
    return (weight.float() * (absmax / 127)[:, None]).to(dtype)


# Operators of their own, so that no compiler sees the dequantized weight and keeps it for the backward pass.
@torch.library.custom_op("lora_assay::int8_product", mutates_args=())
def product(
    x: torch.Tensor, rounded: torch.Tensor, scales: torch.Tensor, kept: torch.Tensor, weight: torch.Tensor, absmax: torch.Tensor
) -> torch.Tensor:
    """Compute ``x W^T`` from the parts of ``split``; x itself only takes the gradient, which is that of the dense product."""
    import bitsandbytes  # noqa: F401  # registers the operator

    scaled_mm = torch.ops.bitsandbytes.int8_scaled_mm.default
    y = scaled_mm(rounded.flatten(0, 1), weight, scales.flatten(), absmax, dtype=x.dtype)
    y = torch.addmm(y, kept.flatten(0, 1), dense(weight, absmax, x.dtype).t())
    return y.unflatten(0, x.shape[:2])


@product.register_fake
def _(x, rounded, scales, kept, weight, absmax):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:2], weight.shape[0])


@torch.library.custom_op("lora_assay::int8_dense_product", mutates_args=())
def dense_product(x: torch.Tensor, weight: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """Compute ``x W^T`` with the dequantized weight, as bitsandbytes trains where it has no 8-bit products, on a CPU."""
    return F.linear(x, dense(weight, absmax, x.dtype))


@dense_product.register_fake
def _(x, weight, absmax):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("lora_assay::int8_product_backward", mutates_args=())
def product_backward(grad: torch.Tensor, weight: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    return grad @ dense(weight, absmax, grad.dtype)


@product_backward.register_fake
def _(grad, weight, absmax):  # type: ignore[no-untyped-def]
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[-2:])
    ctx.others = len(inputs) - 1


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return product_backward(grad.contiguous(), *ctx.saved_tensors), *[None] * ctx.others


product.register_autograd(_backward, setup_context=_save)
dense_product.register_autograd(_backward, setup_context=_save)
