"""The precision axis: a frozen base in 4-bit NF4 or FP4 (QLoRA, arXiv 2305.14314) or LLM.int8() (arXiv 2208.07339).

The layers are bitsandbytes'. Every linear layer of the decoder is quantized; embeddings, norms and the output head stay
as they are, for all variants alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..files.errors import ConfigError
from .methods.point import VariantConfig
from .methods.precision import FOUR_BIT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = {"nf4": 4, "int8": 8, "fp4": 4}


def quantised_layers(model: nn.Module) -> dict[str, int]:
    """Count the layers that really are in each quantized format, by precision."""
    counts = dict.fromkeys(BITS, 0)
    bnb = sys.modules.get("bitsandbytes")
    if bnb is None:  # a 16-bit base is counted without it: what was never imported has made no layer
        return counts
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            counts[module.weight.quant_type] += 1
        elif isinstance(module, bnb.nn.Linear8bitLt):
            counts["int8"] += module.weight.dtype == torch.int8
    return counts


def place(model: PreTrainedModel, variant: VariantConfig, device: torch.device, compute: torch.dtype | None) -> PreTrainedModel:
    """Move the base to ``device``, each linear layer in the variant's precision.

    Layer by layer, so that a quantized base never stands on the device in 16 bits as a whole.

    Raises:
        ConfigError: bitsandbytes cannot do this on this device; one line.
    """
    if variant.base_precision in BITS:
        _probe(variant, device, compute or torch.float32)
        # Names alone: a layer must go when its successor stands.
        for name in [name for name, layer in linear_layers(model) if type(layer) is nn.Linear]:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, leaf, _quantize(getattr(owner, leaf), variant, device, compute or torch.float32))
        # PEFT picks its layer classes by these flags; transformers sets them when it quantizes while loading.
        setattr(model, f"is_loaded_in_{BITS[variant.base_precision]}bit", True)
    model.to(device)
    return model


def placing(variant: VariantConfig, device: torch.device, compute: torch.dtype | None) -> Callable[[nn.Linear], nn.Module] | None:
    """Return the function that ``models.load`` applies to a linear layer once it is drawn; None where nothing is quantized."""
    if variant.base_precision not in BITS:
        return None
    return lambda linear: _quantize(linear, variant, device, compute or torch.float32)


def linear_layers(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """The layers that a quantized base quantizes and that all-linear adapts: every linear layer of the decoder that reads
    text, without the output head. No text reaches a model's towers for images or sound."""
    head, decoder = model.get_output_embeddings(), set(model.get_decoder().modules())
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head and m in decoder]


def _quantize(linear: nn.Linear, variant: VariantConfig, device: torch.device, compute: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    shape, bias = (linear.in_features, linear.out_features), linear.bias is not None
    if variant.base_precision in FOUR_BIT:
        layer = bnb.nn.Linear4bit(
            *shape, bias, compute, compress_statistics=variant.double_quant, quant_type=variant.base_precision, device="meta"
        )
        layer.weight = bnb.nn.Params4bit(
            linear.weight.data,
            requires_grad=False,
            quant_type=variant.base_precision,
            compress_statistics=variant.double_quant,
            module=layer,
        )
        # On a CPU, bitsandbytes repacks a 4-bit weight in place at its first evaluation. In bitsandbytes 0.50 no gradient
        # passes a repacked layer, and PEFT's DoRA dequantizes it wrongly, so training after a validation would be wrong.
        layer.support_avx512bf16_for_cpu = False
    else:
        layer = bnb.nn.Linear8bitLt(*shape, bias, has_fp16_weights=False, threshold=6.0, device="meta")
        # bitsandbytes quantizes to int8 when a weight leaves the CPU, so one that is on the GPU already has to come back.
        layer.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    if bias:
        layer.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    placed: nn.Module = layer.to(device)
    return placed


def _probe(variant: VariantConfig, device: torch.device, compute: torch.dtype) -> None:
    """Quantize, multiply and differentiate one small layer, so that a device that cannot says so before training."""
    try:
        layer = _quantize(nn.Linear(64, 64, bias=False, dtype=compute), variant, device, compute)
        x = torch.ones(2, 64, device=device, dtype=compute, requires_grad=True)
        layer(x).sum().backward()
    except (RuntimeError, NotImplementedError, ImportError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"variant.base_precision={variant.base_precision}: bitsandbytes cannot train on {device.type} here ({first})"
        ) from error
