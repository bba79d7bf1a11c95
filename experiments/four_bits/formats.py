"""Store a weight matrix [out, in] in each number format and read it back.

NF4, FP4 and LLM.int8() are bitsandbytes' own, as the product uses them. The others are controls: FP4 as the standard E2M1 of
the papers' tables, and 4-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # one sign, two exponent and one mantissa bit (OCP Microscaling, section 5.3.3)
SCALE, DOUBLE = 32 / 64, 8 / 64 + 32 / (64 * 256)  # bits a weight of fp32 scales, and of quantized ones (2305.14314, section 3)


@dataclass(frozen=True)
class Format:
    """A number format. ``bits``: nominal bits a weight, scales included; None where they depend on the matrix."""

    name: str
    bits: float | None
    stored: Callable[[torch.Tensor], torch.Tensor]


def bitsandbytes_4bit(weight: torch.Tensor, quant_type: str, double_quant: bool) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=64, quant_type=quant_type, compress_statistics=double_quant)
    restored: torch.Tensor = dequantize_4bit(packed, state)
    return restored


def llm_int8(weight: torch.Tensor) -> torch.Tensor:
    """Round to 127 levels on each side with a scale for each output row (arXiv 2208.07339, section 2.1), computed in fp16."""
    from bitsandbytes.functional import int8_vectorwise_quant

    values, scales, _ = int8_vectorwise_quant(weight.half())
    rounded: torch.Tensor = values.float() * (scales.float()[:, None] / 127)
    return rounded


def nearest(weight: torch.Tensor, levels: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Divide each block by its largest magnitude and round to the nearest of the ascending ``levels``, which end at 1."""
    blocks = weight.reshape(-1, block)
    scale = blocks.abs().amax(1, keepdim=True)
    scaled = blocks / torch.where(scale == 0, torch.ones_like(scale), scale)
    middles = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(scaled, middles)] * scale).view_as(weight)


def symmetric(levels: torch.Tensor) -> torch.Tensor:
    return torch.cat([-levels.flip(0)[:-1], levels]) / levels.max()


def int4_absmax(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Round to -7 ... 7 times the block's largest magnitude over 7."""
    return nearest(weight, symmetric(torch.arange(8, device=weight.device, dtype=weight.dtype)), block)


def e2m1(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    return nearest(weight, symmetric(torch.tensor(E2M1, device=weight.device, dtype=weight.dtype)), block)


def int4_affine(weight: torch.Tensor, block: int = 32) -> torch.Tensor:
    """Round to 16 even levels from a block's lowest value to its highest, step and lowest in fp16: the embedded base's Q4_1."""
    blocks = weight.reshape(-1, block)
    low = blocks.amin(1, keepdim=True).half().to(weight.dtype)
    step = ((blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15).half().to(weight.dtype)
    index = ((blocks - low) / torch.where(step == 0, torch.ones_like(step), step)).round().clamp(0, 15)
    return (low + index * step).view_as(weight)


FORMATS = (
    Format("bf16", 16, lambda w: w.bfloat16().to(w.dtype)),
    Format("int8", None, llm_int8),  # 8 + 32 / row length
    Format("nf4", 4 + SCALE, lambda w: bitsandbytes_4bit(w, "nf4", False)),
    Format("nf4, double", 4 + DOUBLE, lambda w: bitsandbytes_4bit(w, "nf4", True)),
    Format("fp4", 4 + SCALE, lambda w: bitsandbytes_4bit(w, "fp4", False)),
    Format("fp4, double", 4 + DOUBLE, lambda w: bitsandbytes_4bit(w, "fp4", True)),
    Format("e2m1, block 64", 4 + SCALE, e2m1),
    Format("int4 absmax, block 64", 4 + SCALE, int4_absmax),
    Format("int4 affine, block 32", 5, int4_affine),
    Format("int4 affine, block 64", 4.5, lambda w: int4_affine(w, 64)),
)


def error(weight: torch.Tensor, stored: torch.Tensor) -> tuple[float, float]:
    """Compute the (root mean square, largest) error, relative to the root mean square of the weights; summed in fp64."""
    gap = (stored - weight).double()
    size = weight.double().square().mean().sqrt()
    return float(gap.square().mean().sqrt() / size), float(gap.abs().max() / size)
