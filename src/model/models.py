"""Load a base model and its tokenizer: the embedded SmolLM2, a hub id with its revision, a local folder, or a bare shape.

Everything above ``load`` reads the config alone, so that a refusal needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ModelConfig, Shape
from ..config.values import RANGES, refuse_outside
from ..files.errors import ConfigError
from . import embedded

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Placing = Callable[[nn.Linear], nn.Module]

# Families whose linear layers and parameter count can be computed from Shape (src/variants/counts.py).
FAMILIES = ("llama", "qwen2", "mistral")
GENERATION = "generation_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CONFIG_BYTES = 10_000_000  # no model's config.json is larger
# Passed to transformers each time: without it, it asks on the terminal where a model brings its own code.
NO_CODE = {"trust_remote_code": False}


def find_shape(model: ModelConfig) -> Shape | None:
    """Find the model's dimensions without loading it; None where its family is not in ``FAMILIES``."""
    if model.source == "path" and model.path is not None:
        values = _read_json(model.path, "config.json")
        if values.get("model_type") not in FAMILIES:
            return None
        return Shape(
            **{entry.name: _dimension(model.path, values, entry.name) for entry in fields(Shape) if entry.name in values}
        )
    return model.shape


def _dimension(folder: str, values: dict[str, Any], name: str) -> Any:
    value, key = values[name], f"model.shape.{name}"
    if key in RANGES and value is not None:
        if type(value) is not int:
            raise ConfigError(f"model.path={folder}: config.json: {name} needs a whole number")
        refuse_outside(key, value, f"model.path={folder}: config.json: {name}")
    return value


def _read_json(folder: str, name: str) -> dict[str, Any]:
    try:
        path = Path(folder).expanduser() / name
        if not path.is_file():
            raise ConfigError(f"model.path={folder}: no model there ({name} is missing)")
        if path.stat().st_size > CONFIG_BYTES:
            raise ConfigError(f"model.path={folder}: {name} needs at most {CONFIG_BYTES:,} bytes")
        text = path.read_bytes()
    except (OSError, RuntimeError) as error:  # a name too long, no permission, ~NAME without such a user
        raise ConfigError(f"model.path={folder}: no model there ({getattr(error, 'strerror', error)})") from error
    try:
        values = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # json's own errors, and Python's for 5,000 digits or 1,000 brackets
        raise ConfigError(f"model.path={folder}: {name} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.path={folder}: {name} is not a model's config")
    return values


def _refuse_kernels(values: dict[str, Any], where: str) -> None:
    """Raise ConfigError where a model's config names a compiled kernel, which transformers would download and run."""
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in str(values.get(key)):
            raise ConfigError(f"{where} names a kernel to download ({key}), which is never run")


def _refuse_folder(folder: str) -> None:
    """Raise ConfigError for a local folder that is no model, names Python code, or has its weights only as a pickle."""
    _refuse_kernels(_read_json(folder, "config.json"), f"model.path={folder}: config.json")
    place = Path(folder).expanduser()
    for name in ("config.json", "tokenizer_config.json"):
        if (place / name).exists() and "auto_map" in _read_json(folder, name):
            raise ConfigError(
                f"model.path={folder}: {name} names code of its own (auto_map), which is never run; without that entry"
                " transformers takes the classes that it has"
            )
    if not any((place / name).is_file() for name in WEIGHTS) and any(place.glob("*.bin")):
        raise ConfigError(f"model.path={folder}: has no model.safetensors; a pickle (pytorch_model.bin) is never loaded")


def location(model: ModelConfig) -> str:
    """Find the folder or hub id that transformers loads from."""
    if model.source == "embedded":
        return str(embedded.convert())
    return str(Path(model.path).expanduser()) if model.source == "path" and model.path else str(model.id)


def public_name(model: ModelConfig) -> str | None:
    """Name this base for other people: its hub id, else the folder that it was read from; None for random weights."""
    if model.weights == "random":
        return None
    if model.source == "embedded":
        return embedded.HUB_ID
    return str(Path(model.path).expanduser()) if model.source == "path" and model.path else model.id


def refuse_impossible(model: ModelConfig) -> None:
    """Raise ConfigError, in one line, where this model cannot be loaded."""
    if model.source == "path":
        if not model.path:
            raise ConfigError("model.path: model=path needs the folder of a model, model.path=DIR")
        _refuse_folder(model.path)
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


def load(
    model: ModelConfig, dtype: torch.dtype, device: torch.device, placing: Placing | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base model, frozen and in ``dtype``, and its tokenizer.

    Pretrained weights stay on the CPU, memory-mapped: the caller moves or quantizes them layer by layer. Random weights
    are drawn on ``device`` from a fixed seed, so that all runs share one base; with ``placing`` (``quantization.placing``)
    each linear layer of the decoder is quantized as soon as it is drawn, from the same numbers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, GenerationConfig, PreTrainedConfig

    if model.weights == "random":
        assert model.shape is not None
        values: dict[str, Any] = {k: v for k, v in asdict(model.shape).items() if v is not None}
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            network = _draw(config, dtype, device, placing) if placing else AutoModelForCausalLM.from_config(config, dtype=dtype)
        tokenizer = ByT5Tokenizer()  # type: ignore[no-untyped-call]
    else:
        source = location(model)
        options = {"revision": model.revision} if model.source == "hub" and model.revision else {}
        if model.source == "hub":
            _refuse_kernels(PreTrainedConfig.get_config_dict(source, **options)[0], f"model.id={model.id}: config.json")
        network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **NO_CODE, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **NO_CODE, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Decoding is greedy, but a model's own generation settings may hold a repetition penalty or a sampling temperature.
    network.generation_config = GenerationConfig()
    network.requires_grad_(False)
    network.config.use_cache = False
    return network, tokenizer


def _draw(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, placing: Placing) -> PreTrainedModel:
    """Draw the same weights as ``from_config``, to the bit, with one layer at a time in ``dtype``.

    ``from_config`` draws each module twice: when torch constructs it, which is discarded, and by the family's rule; the
    decoder first, then the output head. Each draw advances the generator, so the discarded draws are repeated here.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    head = network.get_output_embeddings()
    tied = head.weight is network.get_input_embeddings().weight
    for part in (network.model, *([] if tied else [head])):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                deepcopy(module).to_empty(device=device).reset_parameters()
        # By name: a list of the modules would keep each of them, in 16 bits, until the last one is drawn.
        for name in [name for name, module in part.named_modules() if not list(module.children())]:
            module = part.get_submodule(name)
            network._initialize_weights(module.to_empty(device=device))
            if isinstance(module, nn.Linear) and module is not head:
                owner, _, leaf = name.rpartition(".")
                with torch.device("cpu"):  # the default device, under which ``place`` quantizes too
                    setattr(part.get_submodule(owner), leaf, placing(module.requires_grad_(False)))
                del module
    network.tie_weights()
    drawn: PreTrainedModel = network
    return drawn


def generation_config(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Load the base's own generation settings, which ``load`` replaces; where it has none, take what its config.json says.

    Random weights have neither: they end in the tokenizer's end token.

    Raises:
        ConfigError: there is a generation_config.json, but it cannot be read.
    """
    from transformers import AutoConfig, GenerationConfig

    if model.weights == "pretrained":
        source = location(model)
        options = {"revision": model.revision} if model.source == "hub" and model.revision else {}
        try:
            return GenerationConfig.from_pretrained(source, **NO_CODE, **options)
        except OSError as error:
            if (Path(source) / GENERATION).is_file():
                raise ConfigError(f"model.path={source}: {GENERATION} cannot be read: mend or remove it") from error
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(source, **NO_CODE, **options))
    return GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
