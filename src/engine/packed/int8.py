"""LLM.int8() for K runs at once, each with its own outlier columns (Dettmers et al. 2022, arXiv 2208.07339, section 3.2).

bitsandbytes picks the columns that hold outliers, which waits for the device and leaves a product of another size each
time. Here those columns stay in place, zero in the 8-bit factor and alone in a 16-bit one: the same sums in fixed shapes,
so that runs share the products and a step can be compiled and recorded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


@torch.no_grad()
def split(x: torch.Tensor, real: torch.Tensor | None, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(8-bit factor [runs, tokens, in], its absmax fp32 [runs, tokens], what stays in the format of x [runs, tokens, in]).

    ``real`` [runs, tokens] is false where a token is padding, which makes no column an outlier; None: all are. A column
    is one for a run if any of its tokens reaches ``threshold`` in it.
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
    """The dequantised weight [out, in]."""
    return (weight.float() * (absmax / 127)[:, None]).to(dtype)


# Operators of their own, so that no compiler sees the dequantised weight and keeps it for the backward pass.
@torch.library.custom_op("lora_assay::int8_product", mutates_args=())
def product(
    x: torch.Tensor, rounded: torch.Tensor, scales: torch.Tensor, kept: torch.Tensor, weight: torch.Tensor, absmax: torch.Tensor
) -> torch.Tensor:
    """``x W^T`` from what ``split`` made of x; x itself only takes the gradient, which is that of the dense product."""
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
    """``x W^T`` with the dequantised weight: how bitsandbytes trains where it has no 8-bit products, on a CPU."""
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
