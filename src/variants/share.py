"""Count the base's numbers in each format, and refuse a precision that leaves some of the decoder's matrices in 16 bits.

Layers do not tell: in a mixture of experts, whose experts are one parameter each, all linear layers can be nf4 and most of
the model is not. bitsandbytes quantizes ``nn.Linear`` alone. Embeddings, norms and the output head stay 16-bit by design.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..files.errors import ConfigError
from .methods.point import all_parts
from .quantization import BITS

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


def base_share(network: Any) -> dict[str, float]:
    """The share of a placed base's parameters in each format, the largest first, such as ``{"nf4": 0.79, "bf16": 0.21}``."""
    counts = Counter[str]()
    for _, _, kind, numbers in _parameters(network):
        counts[kind] += numbers
    total = counts.total()
    return {kind: round(numbers / total, 6) for kind, numbers in counts.most_common()}


def quantized_share(network: Any, precision: str) -> float:
    """The share of the decoder's matrices, by their numbers, that a base or a model over it holds in ``precision``."""
    counts = Counter[str]()
    for name, module, kind, numbers in _matrices(network):
        if not module.get_parameter(name.rpartition(".")[2]).requires_grad:  # what trains is the adapter
            counts[kind] += numbers
    return counts[precision] / counts.total()


def refuse_left_out(network: Any, precision: str) -> None:
    """Raise ConfigError where a quantized ``precision`` would leave matrices of the base, not placed yet, in 16 bits."""
    if precision not in BITS:
        return
    left = {name: (module, numbers) for name, module, _, numbers in _matrices(network) if type(module) is not nn.Linear}
    if not left:
        return
    total = sum(numbers for _, _, _, numbers in _matrices(network))
    share = sum(numbers for _, numbers in left.values()) / total
    name = max(left, key=lambda entry: left[entry][1])
    module = left[name][0]
    parameter: torch.Tensor = module.get_parameter(name.rpartition(".")[2])
    kind = "fused experts" if parameter.ndim == 3 else f"a {type(module).__name__}"
    raise ConfigError(
        f"variant.base_precision={precision}: {_percent(share)} of {network.config.model_type}'s decoder weights are of a kind"
        f" that bitsandbytes does not quantize, such as {name} ({kind}); use a 16-bit variant"
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def _matrices(network: Any) -> Iterator[tuple[str, nn.Module, str, int]]:
    """List (name, module, format, numbers) of the decoder's weights that are no vectors, embeddings, output head or adapter."""
    head, decoder = network.get_output_embeddings(), set(network.get_decoder().modules())
    for name, module, kind, numbers in _parameters(network):
        parameter = module.get_parameter(name.rpartition(".")[2])
        packed = kind in BITS
        if module in decoder and module is not head and not isinstance(module, nn.Embedding) and (packed or parameter.ndim > 1):
            yield name, module, kind, numbers


def _parameters(network: Any) -> Iterator[tuple[str, nn.Module, str, int]]:
    """List (name, module, format, numbers) of the base's parameters, without those of PEFT's adapters."""
    adapters = tuple(part.parameter for part in all_parts().values())
    bnb = sys.modules.get("bitsandbytes")
    seen = set()
    for prefix, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if parameter in seen or name.endswith(adapters):
                continue
            seen.add(parameter)
            kind, numbers = NAMES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch.")), parameter.numel()
            if bnb is not None and leaf == "weight":
                if isinstance(module, bnb.nn.Linear4bit):  # packed: two numbers in a byte
                    kind, numbers = parameter.quant_type, module.in_features * module.out_features
                elif isinstance(module, bnb.nn.Linear8bitLt) and parameter.dtype == torch.int8:
                    kind = "int8"
            yield name, module, kind, numbers
