"""Refuse, from its files alone, a base that cannot be loaded: before the first job, and without torch."""

from __future__ import annotations

from pathlib import Path

from ..config.schema import ModelConfig
from ..files.errors import ConfigError
from . import configs, embedded, headers, tokenizer_files
from .configs import called
from .models import FAMILIES, find_shape

ADAPTER = "adapter_config.json"  # beside a model, transformers loads it over the weights


def refuse_impossible(model: ModelConfig) -> None:
    """Raise ConfigError, in one line, where this model cannot be loaded."""
    refuse_choice(model)
    values = None if model.source == "embedded" else configs.known(model)
    folder = configs.folder_of(model)
    if values is None or folder is None:
        return
    # What the cache holds of a hub model may be a part, which transformers completes.
    if model.source == "path":
        _refuse_folder(folder, called(model))
    if model.source == "path" or (folder / tokenizer_files.SETTINGS).is_file():
        tokenizer_files.refuse(folder, values, called(model))


def refuse_choice(model: ModelConfig) -> None:
    """Raise ConfigError where the choice of a model, or its config.json alone, tells that nothing can run over it."""
    if model.source == "path" and not model.path:
        raise ConfigError("model.path: model=path needs the folder of a model, model.path=DIR")
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
    elif (values := configs.known(model)) is not None:
        configs.refuse_kernels(values, called(model))
        configs.refuse_quantized(values, called(model))
        find_shape(model)


def _refuse_folder(folder: Path, where: str) -> None:
    """Raise ConfigError where a local folder names Python code, holds an adapter, or has no weights that can be read."""
    for name in ("config.json", tokenizer_files.SETTINGS):
        if (folder / name).exists() and "auto_map" in configs.read_json(folder, name, where):
            raise ConfigError(
                f"{where}: {name} names code of its own (auto_map), which is never run; without that entry"
                " transformers takes the classes that it has"
            )
    if (folder / ADAPTER).exists():
        raise ConfigError(f"{where}: holds an adapter ({ADAPTER}) that would be loaded over the base; merge it, or take it away")
    if headers.read(folder, where) is None:
        if any(folder.glob("*.bin")):
            raise ConfigError(f"{where}: has no {headers.SINGLE}; a pickle (pytorch_model.bin) is never loaded")
        raise ConfigError(f"{where}: has no weights ({headers.SINGLE} is missing)")
