"""Read adapter_config.json of any LoRA adapter in PEFT's format: what is loaded strictly, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.schema import ALL_LINEAR
from ..config.values import MODULE_NAME, refuse_outside
from ..data import inputs
from ..files.errors import ConfigError
from ..files.text import clean
from ..variants.methods.point import PEFT_OPTIONS
from .pattern import refuse_slow

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# Initializers that only say where A and B started. Others (PiSSA, OLoRA, LoftQ, CorDA) change the base's weights as well.
HARMLESS = (True, False, None, "gaussian", "orthogonal")
# What is handed to PEFT as it stands: which modules have an adapter, its size, and what else was trained.
USED = ("r", "lora_alpha", "target_modules", *PEFT_OPTIONS, "rank_pattern", "alpha_pattern", "layers_to_transform",
        "layers_pattern", "exclude_modules", "fan_in_fan_out", "bias", "modules_to_save")  # fmt: skip
# What changes nothing once the adapter is trained. A key that is in neither list may hold nothing: it could change the answers.
NOT_USED = ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
            "lora_dropout", "init_lora_weights", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
            "corda_config", "lora_ga_config")  # fmt: skip
BIAS = ("none", "all", "lora_only")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        ConfigError: it describes what cannot be loaded strictly or merged, or the weights are missing, or only there as a pickle.
    """
    where = folder / SETTINGS
    try:
        settings = json.loads(inputs.read(str(where), "adapter").decode())
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: is not JSON ({error})") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise ConfigError(f"{where}: is not a LoRA adapter's")
    for key, limits in (("r", "lora.r"), ("lora_alpha", "lora.alpha")):
        if type(settings.get(key)) not in ((int,) if key == "r" else (int, float)):
            raise ConfigError(f"{where}: {key} needs a number")
        refuse_outside(limits, settings[key], f"{where}: {key}")
    for key in PEFT_OPTIONS:
        if not isinstance(settings.get(key, False), bool):
            raise ConfigError(f"{where}: {key} needs true or false")
    if not isinstance(settings.get("base_model_name_or_path") or "", str):
        raise ConfigError(f"{where}: base_model_name_or_path needs a text")
    if beyond := [key for key, value in settings.items() if value and key not in (*USED, *NOT_USED)]:
        raise ConfigError(f"{where}: has {', '.join(map(clean, beyond))}, which is not supported here")
    if settings.get("init_lora_weights", True) not in HARMLESS:
        raise ConfigError(
            f"{where}: init_lora_weights={settings['init_lora_weights']} changes the base too; save it as plain LoRA"
        )
    _refuse_other_modules(settings, f"{where}")
    for key, limits in (("rank_pattern", "lora.r"), ("alpha_pattern", "lora.alpha")):
        values = settings.get(key) or {}
        if not isinstance(values, dict) or not all(
            MODULE_NAME.fullmatch(n) and type(v) in (int, float) for n, v in values.items()
        ):
            raise ConfigError(f"{where}: {key} needs numbers by module name; a pattern is not read")
        for name, value in values.items():
            refuse_outside(limits, value, f"{where}: {key}: {name}")
            if key == "rank_pattern" and type(value) is not int:
                raise ConfigError(f"{where}: {key}: {name} needs a whole number")
    if not (folder / WEIGHTS).is_file():
        pickled = "; a pickle (adapter_model.bin) is never loaded" if (folder / "adapter_model.bin").exists() else ""
        raise ConfigError(f"{folder}: has no {WEIGHTS}{pickled}")
    return settings


def _refuse_other_modules(settings: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError where what names modules is neither names nor a pattern that is quick, or PEFT would not read it."""
    targets = settings.get("target_modules")
    if isinstance(targets, str) and targets != ALL_LINEAR:
        refuse_slow(targets, f"{where}: target_modules")
    elif targets != ALL_LINEAR and not _are_names(targets):
        raise ConfigError(f"{where}: target_modules needs a list of module names, or a pattern")
    excluded = settings.get("exclude_modules")
    if isinstance(excluded, str):
        refuse_slow(excluded, f"{where}: exclude_modules")
    elif excluded and not _are_names(excluded):
        raise ConfigError(f"{where}: exclude_modules needs a list of module names, or a pattern")
    for key in ("modules_to_save", "layers_pattern"):
        names = settings.get(key)
        if names and not _are_names([names] if isinstance(names, str) and key == "layers_pattern" else names):
            raise ConfigError(f"{where}: {key} needs a list of module names")
    layers = settings.get("layers_to_transform")
    if layers is not None and not all(type(n) is int and n >= 0 for n in (layers if isinstance(layers, list) else [layers])):
        raise ConfigError(f"{where}: layers_to_transform needs the numbers of layers")
    if layers is None and settings.get("layers_pattern"):
        raise ConfigError(f"{where}: layers_pattern goes with layers_to_transform")
    if layers is not None and isinstance(targets, str):
        raise ConfigError(f"{where}: layers_to_transform goes with a list of target_modules")
    if not isinstance(settings.get("fan_in_fan_out", False), bool):
        raise ConfigError(f"{where}: fan_in_fan_out needs true or false")
    if settings.get("bias", "none") not in BIAS:
        raise ConfigError(f"{where}: bias={settings['bias']}: choose one of {', '.join(BIAS)}")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) and MODULE_NAME.fullmatch(n) for n in value)


def lora_config(settings: Mapping[str, Any]) -> Any:
    """Build PEFT's config of an adapter from its settings."""
    from peft import LoraConfig

    values = {key: settings[key] for key in USED if settings.get(key) is not None}
    return LoraConfig(**values, task_type="CAUSAL_LM")
