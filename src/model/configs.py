"""Read a base's config.json, from its folder or the hub's cache, and refuse what no run can train over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config.schema import ModelConfig
from ..files.errors import ConfigError

CONFIG_BYTES = 10_000_000  # no model's config.json is larger
QUANTIZED = ("quantization_config", "compression_config")  # where a config names the format of weights that are no plain numbers
# Dimensions under the names of other families, and the parts of a model that hold the text decoder's own.
POSITIONS = ("max_position_embeddings", "n_positions")
PARTS = ("text_config", "language_config", "llm_config")


def folder_of(model: ModelConfig) -> Path | None:
    """Find the local folder of a base that a user names: model.path, or a hub model's snapshot where the cache has it."""
    if model.weights != "pretrained":
        return None
    if model.source == "path" and model.path:
        return Path(model.path).expanduser()
    if model.source == "hub" and model.id:
        from huggingface_hub import try_to_load_from_cache

        try:
            known = try_to_load_from_cache(model.id, "config.json", revision=model.revision)
        except ValueError:  # an id that the hub cannot have; transformers words that
            return None
        return Path(known).parent if isinstance(known, str) else None
    return None


def called(model: ModelConfig) -> str:
    """Write how a user names this base, to begin a refusal with."""
    return f"model.path={model.path}" if model.source == "path" else f"model.id={model.id}"


def read_json(folder: Path, name: str, where: str) -> dict[str, Any]:
    """Read a JSON file of a model's folder, which messages call ``where``. Raises ConfigError where it is none."""
    try:
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{where}: no model there ({name} is missing)")
        if path.stat().st_size > CONFIG_BYTES:
            raise ConfigError(f"{where}: {name} needs at most {CONFIG_BYTES:,} bytes")
        text = path.read_bytes()
    except (OSError, RuntimeError) as error:  # a name too long, no permission, ~NAME without such a user
        raise ConfigError(f"{where}: no model there ({getattr(error, 'strerror', error)})") from error
    return parsed(text, name, where)


def parsed(text: bytes, name: str, where: str) -> dict[str, Any]:
    """Read the text of a JSON file as the object that it has to be."""
    try:
        values = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # json's own errors, and Python's for 5,000 digits or 1,000 brackets
        raise ConfigError(f"{where}: {name} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {name} is not a model's config")
    return values


def known(model: ModelConfig) -> dict[str, Any] | None:
    """Read the config.json of a base without a network; None where only the hub has it, or where there is no file."""
    try:
        folder = folder_of(model)
    except RuntimeError as error:  # ~NAME without such a user
        raise ConfigError(f"{called(model)}: no model there ({error})") from error
    return None if folder is None else read_json(folder, "config.json", called(model))


def dimension(values: dict[str, Any], *names: str) -> int | None:
    """Look up a whole number by the first of ``names`` that the config, or its text decoder's part, has."""
    for part in (values, *(values[name] for name in PARTS if isinstance(values.get(name), dict))):
        for name in names:
            if type(part.get(name)) is int:
                return int(part[name])
    return None


def refuse_kernels(values: dict[str, Any], where: str) -> None:
    """Raise ConfigError where a model's config names a compiled kernel, which transformers would download and run."""
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in str(values.get(key)):
            raise ConfigError(f"{where}: config.json names a kernel to download ({key}), which is never run")


def refuse_quantized(values: dict[str, Any], where: str) -> None:
    """Raise ConfigError where the weights are not plain numbers: a run's precision would be recorded over another one."""
    for part in (values, *(values[name] for name in PARTS if isinstance(values.get(name), dict))):
        for key in QUANTIZED:
            if part.get(key):
                raise ConfigError(
                    f"{where}: its weights are quantized already ({_method(part[key])}, {key} in config.json);"
                    " take the 16-bit original, which variant.base_precision quantizes"
                )


def _method(settings: Any) -> str:
    """Name a quantization as its config does: ``bitsandbytes 4-bit nf4``, ``gptq 4-bit``, ``fp8``."""
    if not isinstance(settings, dict):
        return "an unknown method"
    bits = "4-bit" if settings.get("load_in_4bit") else "8-bit" if settings.get("load_in_8bit") else None
    if bits is None and type(settings.get("bits")) is int:
        bits = f"{settings['bits']}-bit"
    kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else None
    return " ".join(str(word)[:40] for word in (settings.get("quant_method", "an unknown method"), bits, kind) if word)
