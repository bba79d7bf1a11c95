"""A variant as a PEFT adapter on a base model: the one place where the axes become PEFT's options."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.schema import LoraSettings
from .counts import Linear
from .methods.point import VariantConfig, parts_of, peft_options
from .methods.scaling import SCALINGS, effective_scale
from .quantization import linear_layers

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

INITIALIZERS: dict[str, bool | str] = {"kaiming": True, "gaussian": "gaussian"}


def lora_config(variant: VariantConfig, lora: LoraSettings) -> LoraConfig:
    """PEFT's config of the adapter. Where PEFT lacks the scaling rule, its alpha is the one that gives the same scale."""
    from peft import LoraConfig

    known = SCALINGS[variant.scaling].peft is not None
    alpha = lora.alpha if known else effective_scale(variant.scaling, lora.alpha, lora.r) * lora.r
    return LoraConfig(
        r=lora.r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int and accepts any number
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        init_lora_weights=INITIALIZERS[lora.init],  # type: ignore[arg-type]
        task_type="CAUSAL_LM",
        **peft_options(variant),  # type: ignore[arg-type]
    )


def attach(model: PreTrainedModel, variant: VariantConfig, lora: LoraSettings, seed: int) -> PeftModel:
    """PEFT's model with a fresh adapter, initialized by PEFT under ``seed``. Adapter weights are fp32; parts that do not train
    ask for no gradient."""
    adapted = attach_as(model, lora_config(variant, lora), seed)
    still = tuple(part.parameter for part in parts_of(variant) if not part.trained)
    for name, parameter in adapted.named_parameters():
        if name.endswith(still):
            parameter.requires_grad_(False)
    return adapted


def attach_as(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """The same for an adapter that PEFT's own config describes."""
    from peft import get_peft_model

    if config.use_dora and getattr(model, "is_loaded_in_8bit", False):
        _keep_int8_scales(model)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    for name, parameter in adapted.named_parameters():
        # PEFT leaves DoRA's m in the base's format on some paths; in bf16 its updates would be rounded away.
        # Biases and whole modules, which an adapter of others may train too, stay in its format, as PEFT loads them.
        if "lora_" in name and parameter.requires_grad and parameter.dtype != torch.float32:
            adapted.get_parameter(name).data = parameter.data.float()
    return adapted  # type: ignore[return-value]


def _keep_int8_scales(model: nn.Module) -> None:
    """Let PEFT's DoRA dequantize int8 layers on a CPU more than once.

    PEFT moves the dequantized weight with ``.to("cpu")``, upon which bitsandbytes drops the row scales of a layer that is
    on the CPU already; the second forward then fails. Clearing the half-moved copy makes the layer use its own state.
    """
    import bitsandbytes as bnb

    def restore(module: Any, _: Any) -> None:
        weight = module.weight
        if weight.CB is not None and weight.SCB is None and module.state.SCB is not None:
            weight.CB = None

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt) and module.weight.device.type == "cpu":
            module.register_forward_pre_hook(restore)


def linears_of(model: PreTrainedModel) -> list[Linear]:
    """The loaded model's adaptable layers, in the terms of the closed formulas. Call it before quantizing."""
    kinds = Counter(
        (name.rpartition(".")[2], layer.out_features, layer.in_features, layer.bias is not None)
        for name, layer in linear_layers(model)
    )
    return [Linear(*kind, count=count) for kind, count in kinds.items()]
