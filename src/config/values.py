"""Check the values of a config, each by itself, before anything is loaded.

Nothing here imports torch, so that a refusal is immediate. ``resolve`` is the only way from Hydra's types to the schema.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..files import credentials
from ..files.errors import ConfigError
from ..variants.methods.point import ADAPTERS, AXES, default
from ..variants.methods.precision import QUANTIZED
from .schema import ALL_LINEAR, Config, DatasetConfig, Shape, is_packed, variant_name

BYT5_TOKENS = 384  # of the byte tokenizer that comes with random weights
MODULE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,199}")
RESOLVER = "only another key can be referred to, as in ${seed}; nothing else is expanded"
REFERENCE = re.compile(r"\$\{[\w.]+\}")  # to another key, such as ${seed}; with a colon it would call a resolver
CHOICES: dict[str, tuple[str, ...]] = {
    "model.source": ("embedded", "hub", "path", "shape"),
    "model.weights": ("pretrained", "random"),
    **{f"variant.{axis}": tuple(values) for axis, values in AXES.items()},
    "lora.init": ("kaiming", "gaussian"),
    "dataset.source": ("cldr_names", "jsonl", "hub", "task"),
    "dataset.format": ("pairs", "gsm8k", "commonsense", "banking77", "e2e"),
    "dataset.turns": ("last", "all"),
    "dataset.answer": ("text", "label", "number", "choice", "tags", "overlap", "bleu"),
    "dataset.leaks": ("near", "exact", "off"),
    "train.schedule": ("linear", "cosine", "constant"),
    "train.optimizer": ("adamw", "adamw_bnb_8bit", "paged_adamw_8bit"),
    "tracking.mode": ("offline", "online", "disabled"),
    "engine": ("packed", "peft"),
    "device": ("auto", "cpu", "cuda"),
}

# key: (lowest, highest, highest is allowed). The upper ends only catch slips that would allocate without bound.
RANGES: dict[str, tuple[float, float, bool]] = {
    "model.shape.vocab_size": (1, 10**8, True),
    "model.shape.hidden_size": (1, 10**6, True),
    "model.shape.intermediate_size": (1, 10**7, True),
    "model.shape.num_hidden_layers": (1, 10**4, True),
    "model.shape.num_attention_heads": (1, 10**5, True),
    "model.shape.num_key_value_heads": (0, 10**5, True),  # 0: as many as there are query heads
    "model.shape.head_dim": (1, 10**5, True),
    "model.shape.max_position_embeddings": (1, 10**9, True),
    "lora.r": (1, 65536, True),
    "lora.alpha": (1e-6, 1e6, True),
    "lora.dropout": (0, 1, False),
    "dataset.version": (1, 10**6, True),
    "dataset.max_length": (8, 1_048_576, True),
    "dataset.val_share": (0, 1, False),
    "dataset.test_share": (0, 1, False),
    "dataset.train_examples": (1, 10**9, True),
    "train.steps": (1, 10**8, True),
    "train.epochs": (1e-6, 10**6, True),
    "train.batch_size": (1, 65536, True),
    "train.grad_accum": (1, 65536, True),
    "train.lr": (1e-12, 100, True),
    "train.warmup": (0, 1, False),
    "train.warmup_steps": (0, 10**8, True),
    "train.weight_decay": (0, 100, True),
    "train.clip": (0, 1e9, True),
    "train.checkpoint_every": (1, 10**8, True),
    "eval.every": (1, 10**8, True),
    "eval.val_examples": (1, 10**9, True),
    "eval.test_examples": (1, 10**9, True),
    "eval.batch_size": (1, 65536, True),
    "eval.max_new_tokens": (1, 65536, True),
    "forgetting.tokens": (0, 10**9, True),
    "pack.max_runs": (1, 65536, True),
    "pack.memory_share": (0.01, 1, True),
    "pack.silence": (1, 1e7, True),
    "seed": (0, 2**31 - 1, True),
    "data_seed": (0, 2**31 - 1, True),
}


def value_at(config: Config, key: str) -> Any:
    """Read the value of a dotted key; None where a parent of it is None, as ``model.shape`` may be."""
    node: Any = config
    for part in key.split("."):
        node = None if node is None else getattr(node, part)
    return node


def resolve(node: DictConfig) -> Config:
    """Turn Hydra's composed node into a checked ``Config``.

    Raises:
        ConfigError: a value is impossible; the message names the key and what is allowed.
    """
    _refuse_other_keys(node)
    refuse_texts(OmegaConf.to_container(node))
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    if config.variant.name:
        raise ConfigError("variant.name: is derived from the other fields of variant; leave it out")
    config.lora.target_modules = _target_modules(config.lora.target_modules)
    config.variant.name = variant_name(config.variant)
    config.dataset.columns = config.dataset.columns or None  # an empty map is none: the same run
    check(config)
    return config


def _refuse_other_keys(node: DictConfig) -> None:
    """Refuse keys that Hydra's ``+key`` added to the schema, which nothing reads, and those that ``~key`` removed."""
    _compare_keys(OmegaConf.to_container(node), Config(), "")


def _compare_keys(values: Any, wanted: Any, prefix: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.')}={values}: holds keys of its own, such as {prefix}{fields(wanted)[0].name}")
    known = {entry.name: getattr(wanted, entry.name) for entry in fields(wanted)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: no such key")
    for key, value in known.items():
        if key not in values:
            raise ConfigError(f"{prefix}{key}: cannot be removed")
        if is_dataclass(value):
            _compare_keys(values[key], value, f"{prefix}{key}.")


def refuse_texts(value: Any, key: str = "") -> None:
    """Raise ConfigError where a text, not resolved yet, is a secret or would call a resolver such as ``${oc.env:X}``.

    A record holds the config, and no secret or environment variable may get into it.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            refuse_texts(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for part in value:
            refuse_texts(part, key)
    elif isinstance(value, str):
        if kind := credentials.secret_kind(value, key):
            raise ConfigError(f"{key}: looks like {kind}; secrets stay in the environment, as a config is written to records")
        if calls_resolver(value):
            raise ConfigError(f"{key}: {RESOLVER}")


def calls_resolver(text: str) -> bool:
    return "${" in REFERENCE.sub("", text)


def refuse_outside(key: str, value: float, name: str = "") -> None:
    """Raise ConfigError where a value is outside ``RANGES[key]``; ``name`` is what the message calls it."""
    low, high, closed = RANGES[key]
    if not (low <= value and (value <= high if closed else value < high)):
        kind = "a whole number" if isinstance(low, int) and isinstance(value, int) else "a number"
        end = f"to {_plain(high)}" if closed else f"to below {_plain(high)}"
        raise ConfigError(f"{name or key}={value}: needs {kind} from {_plain(low)} {end}")


def check(config: Config) -> None:
    """Refuse impossible values, each with one line."""
    for key, allowed in CHOICES.items():
        if value_at(config, key) not in allowed:
            raise ConfigError(f"{key}={value_at(config, key)}: choose one of {', '.join(allowed)}")
    for key in RANGES:
        value = value_at(config, key)
        if value is not None:
            refuse_outside(key, value)
    if config.model.shape is not None:
        _check_shape(config.model.shape, config.model.weights)
    if config.variant.trains != "adapter" and any(getattr(config.variant, axis) != default(axis) for axis in ADAPTERS):
        raise ConfigError(f"variant.trains={config.variant.trains}: has no adapter, so leave {', '.join(ADAPTERS)} as they are")
    if config.variant.trains == "all" and config.variant.base_precision in QUANTIZED:
        raise ConfigError(
            f"variant.base_precision={config.variant.base_precision}: variant=full trains all weights, which needs bf16 or fp32"
        )
    if config.train.optimizer != "adamw" and is_packed(config):
        raise ConfigError(f"train.optimizer={config.train.optimizer}: needs engine=peft; the packed engine has AdamW in fp32")
    if config.model.hold_dequantised and config.variant.base_precision == "int8":
        raise ConfigError("model.hold_dequantised: LLM.int8() rounds its inputs too, so no held copy gives the same numbers")
    if config.sweep is not None and not _is_name(config.sweep):
        raise ConfigError(f"sweep={config.sweep!r}: use letters, digits, '.', '_' and '-', at most 100, not starting with '.'")
    _check_dataset(config.dataset)
    if config.dataset.val_share + config.dataset.test_share >= 1:
        raise ConfigError("dataset.val_share, dataset.test_share: together they must stay below 1")


def _check_dataset(dataset: DatasetConfig) -> None:
    # OmegaConf lets a list into a list of texts.
    files = ((f"{split}_files", "[a.jsonl]") for split in ("train", "val", "test"))
    for key, example in (("labels", "[yes,no]"), ("ignore_columns", "[id,meta]"), *files):
        value = getattr(dataset, key)
        if not all(isinstance(text, str) and text.strip() for text in value or []):
            raise ConfigError(f"dataset.{key}={value}: needs a list of texts such as {example}")
    columns = dataset.columns
    if columns is not None and not _are_named_texts(columns):
        raise ConfigError(f"dataset.columns={columns}: needs names of columns, such as {{prompt: question,target: answer}}")
    for key in ("prompt", "target"):
        if key in (columns or {}) and getattr(dataset, f"{key}_column") != key:
            raise ConfigError(f"dataset.{key}_column: dataset.columns names the {key} too; leave out one of them")
    if dataset.labels and dataset.answer not in ("text", "label"):
        raise ConfigError(f"dataset.labels: belong to dataset.answer=label, not to {dataset.answer}")
    if dataset.answer == "choice" and dataset.format != "commonsense":
        raise ConfigError(f"dataset.answer=choice: rows of dataset.format={dataset.format} name no choices; commonsense does")


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) and text.strip() for pair in value.items() for text in pair)


def _check_shape(shape: Shape, weights: str) -> None:
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    if shape.head_dim is None and shape.hidden_size % heads:
        raise ConfigError(f"model.shape.hidden_size={shape.hidden_size}: needs a multiple of num_attention_heads={heads}")
    if groups and heads % groups:
        raise ConfigError(f"model.shape.num_key_value_heads={groups}: needs a divisor of num_attention_heads={heads}")
    if weights == "random" and shape.vocab_size < BYT5_TOKENS:
        raise ConfigError(
            f"model.shape.vocab_size={shape.vocab_size}: needs {BYT5_TOKENS}, the bytes of random weights' tokenizer"
        )


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 100 and name[0] not in ".-" and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def _target_modules(value: Any) -> str | list[str]:
    if value in (ALL_LINEAR, "all_linear", [ALL_LINEAR]):
        return ALL_LINEAR
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"lora.target_modules={value}: needs {ALL_LINEAR} or a list of module names such as [q_proj,v_proj]")
    if len(names) > 1000 or not all(n == ALL_LINEAR or MODULE_NAME.fullmatch(n) for n in names):
        raise ConfigError("lora.target_modules: needs at most 1000 names of letters, digits, '.' and '_'; a pattern is none")
    if ALL_LINEAR in names:
        raise ConfigError(f"lora.target_modules={value}: {ALL_LINEAR} stands alone")
    if len(set(names)) != len(names):
        raise ConfigError(f"lora.target_modules={value}: names a module twice")
    return sorted(names)
