"""Fold an adapter into the weights: W + s B A, and for DoRA its magnitude times the direction of that.

All arithmetic is fp32 whatever the base's format; the caller rounds to the format of the result, once.
"""

from __future__ import annotations

from typing import Any

import torch

from ..files.errors import ConfigError
from ..variants.quantization import linear_layers

NAME = "default"  # PEFT's, of the only adapter


def merged_weight(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, m: torch.Tensor | None) -> torch.Tensor:
    """Return the merged weight [out, in] in fp32.

    ``weight`` [out, in]: the base's; ``a`` [r, in], ``b`` [out, r]: the adapter's; ``m`` [out]: DoRA's magnitude, or None.
    LoRA (arXiv 2106.09685, section 4.1): W + s B A. DoRA (arXiv 2402.09353, equation 5): m (W + s B A) / ||W + s B A||, the
    norm of each output row, so that the row's norm is m whichever base it is merged onto.
    """
    merged = weight.float() + scale * (b.float() @ a.float())
    return merged if m is None else merged * (m.float() / torch.linalg.norm(merged, dim=1))[:, None]


@torch.no_grad()
def merge(adapted: Any, plain: Any, dequantised: bool) -> None:
    """Fold the adapter of ``adapted``, PEFT's model, into ``plain``, its base in 16 bits or more, which becomes fp32.

    ``dequantised``: every layer that is quantised in ``adapted`` first takes its dequantised weights, adapted or not.

    Raises:
        ConfigError: the adapter changes something else, such as embeddings or the output head.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    inner, linears = adapted.get_base_model(), dict(linear_layers(plain))
    outside = [name for name, layer in inner.named_modules() if isinstance(layer, LoraLayer) and name not in linears]
    if outside:
        raise ConfigError(
            f"the adapter changes {outside[0]}, which is no linear layer of the decoder; only those are merged here"
        )
    plain.float()
    for name, linear in linears.items():
        layer = inner.get_submodule(name)
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if dequantised:
            linear.weight.data = dequantize_module_weight(base).to(linear.weight)
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            m = layer.lora_magnitude_vector[NAME].weight if NAME in layer.lora_magnitude_vector else None
            linear.weight.data = merged_weight(linear.weight, a, b, layer.scaling[NAME], m)
