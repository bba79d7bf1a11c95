"""A variant as a PEFT adapter on a base model: the one place where the axes become PEFT's options."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.schema import ALL_LINEAR, LoraSettings
from ..files.errors import ConfigError
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
    ask for no gradient.

    Raises:
        ConfigError: PEFT would adapt other layers of this family than those that are counted.
    """
    config = lora_config(variant, lora)
    names = _adaptable_names(model, lora.target_modules)
    # PEFT adapts towers that no text reaches, and in some families experts that are no layers, in a way of their own.
    experts = any(parameter.ndim > 2 for parameter in model.get_decoder().parameters())
    if experts or names != _names_by_peft(model, lora.target_modules):
        config.target_modules = names
    # PEFT finds out by itself that a Conv1D's weight is transposed, and warns.
    config.fan_in_fan_out = not any(isinstance(model.get_submodule(name), nn.Linear) for name in names)
    adapted = attach_as(model, config, seed)
    _refuse_others(adapted, names)
    still = tuple(part.parameter for part in parts_of(variant) if not part.trained)
    for name, parameter in adapted.named_parameters():
        if name.endswith(still):
            parameter.requires_grad_(False)
    return adapted


def _refuse_others(adapted: PeftModel, names: list[str]) -> None:
    from peft.tuners.lora import LoraLayer

    placed = sorted(name for name, module in adapted.get_base_model().named_modules() if isinstance(module, LoraLayer))
    if placed != names:
        other = sorted(set(placed) ^ set(names))[0]
        raise ConfigError(
            f"lora.target_modules: PEFT adapts {len(placed)} layers of this {adapted.config.model_type} where {len(names)} linear"
            f" ones are meant; {other} is the first that differs; name others, such as [q_proj,v_proj]"
        )


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
    kinds = Counter((name.rpartition(".")[2], *_sizes(layer), layer.bias is not None) for name, layer in adaptable_layers(model))
    return [Linear(*kind, count=count) for kind, count in kinds.items()]


def adaptable_layers(model: PreTrainedModel) -> list[tuple[str, Any]]:
    """List the layers that an adapter can sit on: the decoder's linear ones, and GPT-2's Conv1D, a linear layer transposed."""
    from transformers.pytorch_utils import Conv1D

    decoder = set(model.get_decoder().modules())
    linear = {name for name, _ in linear_layers(model)}
    return [(n, m) for n, m in model.named_modules() if n in linear or (isinstance(m, Conv1D) and m in decoder)]


def _sizes(layer: Any) -> tuple[int, int]:
    """Read (out, in) of a layer; a Conv1D holds its weight as [in, out]."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else (layer.nf, layer.nx)


def _adaptable_names(model: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Name the layers that get an adapter."""
    return sorted(n for n, _ in adaptable_layers(model) if wanted == ALL_LINEAR or n.rpartition(".")[2] in wanted)


def _names_by_peft(model: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Name the layers that PEFT would adapt: in all of the model, where a tower for images may have layers of these names too."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = [(n, m) for n, m in model.named_modules() if m is not head]
    if wanted == ALL_LINEAR:
        return sorted(n for n, m in layers if isinstance(m, nn.Linear | Conv1D))
    return sorted(n for n, _ in layers if n.rpartition(".")[2] in wanted)
