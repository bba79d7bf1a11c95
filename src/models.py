"""A base model and its tokenizer: the embedded SmolLM2, a hub id with its revision, a local folder, or a bare shape.

Everything above ``load`` is light: it answers from the config alone, so that a refusal needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import embedded
from src.config import ConfigError, ModelConfig, Shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Families whose linear layers and parameter count follow from Shape (src/variants/counts.py).
FAMILIES = ("llama", "qwen2", "mistral")


def find_shape(model: ModelConfig) -> Shape | None:
    """The model's dimensions without loading it, or None where its family is not one of ``FAMILIES``."""
    if model.source == "path" and model.path is not None:
        values = _read_config(model.path)
        if values.get("model_type") not in FAMILIES:
            return None
        return Shape(**{entry.name: values[entry.name] for entry in fields(Shape) if entry.name in values})
    return model.shape


def _read_config(folder: str) -> dict[str, Any]:
    try:
        path = Path(folder).expanduser() / "config.json"
        text = path.read_bytes() if path.is_file() else None
    except (OSError, RuntimeError) as error:  # a name too long, no permission, ~NAME of nobody
        raise ConfigError(f"model.path={folder}: no model there ({getattr(error, 'strerror', error)})") from error
    if text is None:
        raise ConfigError(f"model.path={folder}: no model there (config.json is missing)")
    try:
        values = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # besides its own errors, Python's on 5,000 digits or 1,000 brackets
        raise ConfigError(f"model.path={folder}: config.json is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.path={folder}: config.json is not a model's config")
    return values


def _location(model: ModelConfig) -> str:
    """What transformers loads from: a folder, or a hub id."""
    if model.source == "embedded":
        return str(embedded.convert())
    return str(Path(model.path).expanduser()) if model.source == "path" and model.path else str(model.id)


def refuse_impossible(model: ModelConfig) -> None:
    """Raise ConfigError, in one line, where this model cannot be had."""
    if model.source == "path":
        if not model.path:
            raise ConfigError("model.path: model=path needs the folder of a model, model.path=DIR")
        _read_config(model.path)
    if model.source == "hub" and not model.id:
        raise ConfigError("model.id: a hub model needs its id")
    if model.weights == "random":
        if model.shape is None:
            raise ConfigError(f"model.weights=random: model={model.name} has no shape in its YAML")
        if model.shape.model_type not in FAMILIES:
            raise ConfigError(f"model.shape.model_type={model.shape.model_type}: choose one of {', '.join(FAMILIES)}")
    elif model.source == "shape":
        raise ConfigError(f"model.weights=pretrained: model={model.name} is a bare shape and has only random weights")
    elif model.source == "embedded":
        embedded.gguf_file()


def load(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model, in ``dtype`` and frozen, and its tokenizer.

    Pretrained weights stay on the CPU, memory-mapped: the caller moves or quantises them layer by layer. Random
    weights are drawn on ``device`` from one fixed seed, so that all runs share one base.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, GenerationConfig

    if model.weights == "random":
        assert model.shape is not None
        values: dict[str, Any] = {k: v for k, v in asdict(model.shape).items() if v is not None}
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(config, dtype=dtype)
        tokenizer = ByT5Tokenizer()  # type: ignore[no-untyped-call]
    else:
        source = _location(model)
        options = {"revision": model.revision} if model.source == "hub" and model.revision else {}
        network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Greedy means greedy: a model's own generation settings may hold a repetition penalty or a sampling temperature.
    network.generation_config = GenerationConfig()
    network.requires_grad_(False)
    network.config.use_cache = False
    return network, tokenizer
