"""Fold an adapter into the weights: W + s B A, then what the variant makes of that.

All arithmetic is fp32 whatever the base's format, on the device of the adapter, one layer at a time: the plain base may stand
elsewhere, as a pretrained one does, memory-mapped on the CPU. Each merged weight is rounded to the format of the result once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..files.errors import ConfigError
from ..variants.methods.point import VariantConfig, merged, parts_of
from ..variants.quantization import linear_layers

NAME = "default"  # PEFT's, of the only adapter


def merged_weight(weight: torch.Tensor, parts: Mapping[str, torch.Tensor], scale: float, variant: VariantConfig) -> torch.Tensor:
    """Return the merged weight [out, in] in fp32, of ``weight`` [out, in] and the adapter's parts by name.

    LoRA (arXiv 2106.09685, section 4.1): W + s B A. Then the terms of the variant, such as DoRA's.
    """
    return merged(variant, weight.float() + scale * (parts["B"].float() @ parts["A"].float()), parts)


@torch.no_grad()
def merge(adapted: Any, plain: Any, variant: VariantConfig, dequantised: bool, dtype: torch.dtype = torch.float32) -> None:
    """Fold the adapter of ``adapted``, PEFT's model, into ``plain``, its base in 16 bits or more, which stays on its device.

    ``dequantised``: every layer that is quantized in ``adapted`` first takes its dequantized weights, adapted or not. ``dtype``:
    the format that all of ``plain`` takes.

    Raises:
        ConfigError: the adapter changes something else, such as embeddings or the output head.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import AuxiliaryTrainingWrapper
    from peft.utils.integrations import dequantize_module_weight

    inner, linears = adapted.get_base_model(), dict(linear_layers(plain))
    outside = [name for name, layer in inner.named_modules() if isinstance(layer, LoraLayer) and name not in linears]
    outside += [name for name, module in inner.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    if outside:
        raise ConfigError(
            f"the adapter changes {outside[0]}, which is no linear layer of the decoder; only those are merged here"
        )
    for name, linear in linears.items():
        layer = inner.get_submodule(name)
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if not dequantised and not isinstance(layer, LoraLayer):
            continue
        weight = dequantize_module_weight(base) if dequantised else linear.weight.to(base.weight.device)
        if isinstance(layer, LoraLayer):
            parts = {part.name: layer.get_parameter(part.parameter) for part in parts_of(variant)}
            weight = merged_weight(weight, parts, layer.scaling[NAME], variant)
        linear.weight.data = weight.to(linear.weight.device, dtype)
    for name, bias in plain.named_parameters():
        if name.endswith(".bias"):  # those that trained, and those that did not
            owner = inner.get_submodule(name.rpartition(".")[0])
            base = owner.get_base_layer() if isinstance(owner, LoraLayer) else owner
            bias.data = base.bias.to(bias.device, dtype)
    plain.to(dtype)
