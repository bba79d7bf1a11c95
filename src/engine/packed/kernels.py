"""Triton kernels, each kept because a profile said so (benchmarks/LOG.md). Without Triton nothing here can be called."""

from __future__ import annotations

import torch

from .optimizer import BETA1, BETA2, EPS

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None

AVAILABLE = triton is not None
BYTES = 1024  # packed bytes that one program dequantizes


def dequantize_four_bit(
    packed: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, absmax2: torch.Tensor, code2: torch.Tensor,
    offset: torch.Tensor, rows: int, columns: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Dequantize the weight [rows, columns] of an NF4 or FP4 layer in one pass, to the bit as bitsandbytes' two passes do.

    packed: two 4-bit indices per byte, the first in the high bits; absmax: one scale for 64 weights, fp32, or with
    double quantization an index into ``code2`` [256] times ``absmax2`` (one for 256 scales) plus ``offset``; code: the
    format's 16 values.
    """
    weight = torch.empty(rows, columns, dtype=dtype, device=packed.device)
    size = rows * columns // 2
    _dequantize_four_bit[(triton.cdiv(size, BYTES),)](
        packed, absmax, code, absmax2, code2, offset, weight, size,
        NESTED=len(absmax2) > 0, BYTES=BYTES, enable_fp_fusion=False,
    )  # fmt: skip
    return weight


def softmax_losses(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as ``head.softmax_losses`` does, in two readings of the logits; the gradient takes the logits' place."""
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _softmax_losses[(rows,)](logits, targets, weights, losses, columns, BLOCK=4096, num_warps=8)
    return losses, logits


def adamw(
    values: torch.Tensor, grads: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, clip: torch.Tensor,
    lr: torch.Tensor, decay: torch.Tensor, correction1: torch.Tensor, correction2: torch.Tensor, alive: torch.Tensor,
) -> None:  # fmt: skip
    """Do as ``optimizer.update`` does, each number read once and written once. Buffers may be stretches of wider ones."""
    layers, runs, size = values.shape
    _adamw[(triton.cdiv(size, 2048), layers * runs)](
        values, grads, exp_avg, exp_avg_sq, clip, lr, decay, correction1, correction2, alive, runs, size,
        values.stride(1), grads.stride(1),
        BETA1=BETA1, BETA2=BETA2, EPS=EPS, BLOCK=2048,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _adamw(
        values, grads, exp_avg, exp_avg_sq, clip, lr, decay, correction1, correction2, alive, runs, size,
        width, state_width,
        BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(1)
        run = row % runs
        if tl.load(alive + run) != 0:
            column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            inside = column < size
            place = row.to(tl.int64) * width + column
            state = row.to(tl.int64) * state_width + column
            rate = tl.load(lr + run)
            old = tl.load(values + place, mask=inside)
            grad = tl.load(grads + state, mask=inside) * tl.load(clip + run)
            first = tl.load(exp_avg + state, mask=inside)
            first = first + (1 - BETA1) * (grad - first)
            second = tl.load(exp_avg_sq + state, mask=inside) * BETA2 + (1 - BETA2) * grad * grad
            change = rate / tl.load(correction1) * (first / (tl.sqrt(second) / tl.load(correction2) + EPS))
            tl.store(values + place, old * (1 - rate * tl.load(decay + run)) - change, mask=inside)
            tl.store(exp_avg + state, first, mask=inside)
            tl.store(exp_avg_sq + state, second, mask=inside)

    @triton.jit
    def _dequantize_four_bit(
        packed, absmax, code, absmax2, code2, offset, weight, size,
        NESTED: tl.constexpr, BYTES: tl.constexpr,
    ):  # fmt: skip
        start = tl.program_id(0).to(tl.int64) * BYTES
        place = start + tl.arange(0, BYTES)
        inside = place < size
        byte = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
        block = place // 32
        if NESTED:
            index = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
            scale = tl.load(code2 + index) * tl.load(absmax2 + block // 256, mask=inside, other=0.0) + tl.load(offset)
        else:
            scale = tl.load(absmax + block, mask=inside, other=0.0)
        both = tl.interleave(tl.load(code + (byte >> 4)) * scale, tl.load(code + (byte & 15)) * scale)
        to = start * 2 + tl.arange(0, 2 * BYTES)
        tl.store(weight + to, both.to(weight.dtype.element_ty), mask=to < 2 * size)

    @triton.jit
    def _softmax_losses(logits, targets, weights, losses, columns, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        line = logits + row * columns
        target = tl.load(targets + row)
        weight = tl.load(weights + row)
        wanted = tl.load(line + target).to(tl.float32)
        highest = -float("inf")
        total = 0.0
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(line + column, mask=column < columns, other=-float("inf")).to(tl.float32)
            new = tl.maximum(highest, tl.max(x, 0))
            total = total * tl.exp(highest - new) + tl.sum(tl.exp(x - new), 0)
            highest = new
        log_total = highest + tl.log(total)
        tl.store(losses + row, (log_total - wanted) * weight)
        tl.debug_barrier()  # ``wanted`` must be read before its place is written
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(line + column, mask=column < columns, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - log_total) * weight
            gradient = tl.where(column == target, gradient - weight, gradient)
            tl.store(line + column, gradient.to(logits.dtype.element_ty), mask=column < columns)
