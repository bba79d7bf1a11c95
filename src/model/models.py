"""Load a base model and its tokenizer: the embedded SmolLM2, a hub id with its revision, a local folder, or a bare shape.

Everything above ``load`` reads the config alone, so that a refusal needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ModelConfig, Shape
from ..config.values import RANGES, refuse_outside
from ..files.errors import ConfigError
from . import configs, embedded
from .configs import called
from .pretrained import NO_CODE, load_tokenizer, load_whole, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Placing = Callable[[nn.Linear], nn.Module]

# Families whose linear layers and parameter count can be computed from Shape (src/variants/counts.py).
FAMILIES = ("llama", "qwen2", "mistral")
GENERATION = "generation_config.json"


def find_shape(model: ModelConfig) -> Shape | None:
    """Find the model's dimensions without loading it; None where its family is not in ``FAMILIES``, or only the hub knows it."""
    if model.source != "path" or model.path is None or model.weights == "random":
        return model.shape
    values = configs.known(model) or {}
    if values.get("model_type") not in FAMILIES:
        return None
    return Shape(**{entry.name: _dimension(model.path, values, entry.name) for entry in fields(Shape) if entry.name in values})


def _dimension(folder: str, values: dict[str, Any], name: str) -> Any:
    value, key = values[name], f"model.shape.{name}"
    if key in RANGES and value is not None:
        if type(value) is not int:
            raise ConfigError(f"model.path={folder}: config.json: {name} needs a whole number")
        refuse_outside(key, value, f"model.path={folder}: config.json: {name}")
    return value


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


def load(
    model: ModelConfig, dtype: torch.dtype, device: torch.device, placing: Placing | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base model, frozen and in ``dtype``, and its tokenizer.

    Pretrained weights stay on the CPU, memory-mapped: the caller moves or quantizes them layer by layer. Random weights
    are drawn on ``device`` from a fixed seed, so that all runs share one base; with ``placing`` (``quantization.placing``)
    each linear layer of the decoder is quantized as soon as it is drawn, from the same numbers.

    Raises:
        ConfigError: tensors are missing or left over, the tokenizer does not fit, or a file cannot be read; one line.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer, GenerationConfig, PreTrainedConfig

    if model.weights == "random":
        assert model.shape is not None
        values: dict[str, Any] = {k: v for k, v in asdict(model.shape).items() if v is not None}
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            network = _draw(config, dtype, device, placing) if placing else AutoModelForCausalLM.from_config(config, dtype=dtype)
        tokenizer = ByT5Tokenizer()  # type: ignore[no-untyped-call]
    else:
        source, where = location(model), called(model)
        options = {"revision": model.revision} if model.source == "hub" and model.revision else {}
        if model.source == "hub":  # what a folder's files told while planning
            with one_line(where):
                values = PreTrainedConfig.get_config_dict(source, **options)[0]
            configs.refuse_kernels(values, where)
            configs.refuse_quantized(values, where)
        network = load_whole(source, where, dtype, **options)
        tokenizer = load_tokenizer(source, where, **options)
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
