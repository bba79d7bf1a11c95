"""The typed schema of everything in conf/, and the checks that one value can be given by itself.

Defaults stand here once; a YAML in conf/ holds only what differs from them. Nothing here imports torch, so that a
refusal is immediate. ``resolve`` is the only door from Hydra's types to these dataclasses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import II, DictConfig, OmegaConf

from src import credentials

CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"
ALL_LINEAR = "all-linear"
REFERENCE = re.compile(r"\$\{[\w.]+\}")  # to another key, such as ${seed}; with a colon it would call a resolver
RESOLVER = "only another key can be referred to, as in ${seed}; nothing else is expanded"
MODULE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,199}")
BYT5_TOKENS = 384  # of the byte tokenizer that comes with random weights


class ConfigError(ValueError):
    """The user's input cannot be run. The message is one line that names the key and what is allowed."""


@dataclass
class Shape:
    """Dimensions of a decoder-only transformer of the Llama family, under the names of its ``config.json``."""

    model_type: str = "llama"
    vocab_size: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int | None = None
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False


@dataclass
class ModelConfig:
    name: str = ""
    source: str = "hub"  # embedded | hub | path | shape
    weights: str = "pretrained"  # pretrained | random
    id: str | None = None
    revision: str | None = None
    path: str | None = None
    shape: Shape | None = None
    note: str | None = None  # what a reader of a table must know about these weights
    hold_dequantised: bool = False  # nf4: keep the dequantised weights too: same numbers, less time, more memory


@dataclass
class VariantConfig:
    """The three axes of a variant, and which weights train. The file's name in conf/variant is the point's name."""

    trains: str = "adapter"  # adapter | all | none
    scaling: str = "alpha_over_r"  # alpha_over_r | alpha_over_sqrt_r
    magnitude: str = "none"  # none | dora
    base_precision: str = "bf16"  # bf16 | fp32 | int8 | nf4
    double_quant: bool = True  # nf4 only: quantise the block scales too (QLoRA, arXiv 2305.14314, section 3)
    name: str = ""  # derived from the axes by resolve(); not to be set


@dataclass
class LoraSettings:
    r: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Any = ALL_LINEAR  # all-linear, or a list of module names
    init: str = "kaiming"  # initialiser of A: kaiming (PEFT's default) | gaussian; B starts at zero


@dataclass
class DatasetConfig:
    name: str = ""
    source: str = "jsonl"  # cldr_names | jsonl | hub
    path: str | None = None  # training rows; without val_path/test_path the file is split by prompt
    val_path: str | None = None
    test_path: str | None = None
    id: str | None = None
    revision: str | None = None
    subset: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = None
    prompt_column: str = "prompt"
    target_column: str = "target"
    labels: list[str] | None = None  # a label task: macro-F1 and parse failures are reported
    chat_template: bool = False
    max_length: int = 512
    val_share: float = 0.05
    test_share: float = 0.1
    train_examples: int | None = None


@dataclass
class TrainConfig:
    steps: int = 100
    epochs: float | None = None  # if set, it decides the number of steps
    batch_size: int = 16
    grad_accum: int = 1
    lr: float = 1e-3
    schedule: str = "linear"  # linear | cosine | constant
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0  # maximum gradient norm; 0 switches clipping off
    checkpoint_every: int | None = None  # steps; default: about once a minute


@dataclass
class EvalConfig:
    every: int = 50
    val_examples: int = 128
    test_examples: int | None = None  # default: all
    batch_size: int | None = None  # rows at once; default: 64, or on a GPU as many as memory holds
    generate: bool = True
    max_new_tokens: int | None = None  # default: the longest target of the test split


@dataclass
class ForgettingConfig:
    """Held-out prose whose log-loss is measured before and after training (Biderman et al., arXiv 2405.09673)."""

    path: str | None = None  # a text in UTF-8; default: documentation that scikit-learn ships
    tokens: int = 4096  # that are scored, at most; 0: nothing is measured


@dataclass
class PackConfig:
    """How runs train together over one base. It decides time and memory, and no result beyond rounding.

    The layers of speed are null for "where they pay": on a GPU.
    """

    max_runs: int | None = None  # runs in one pack at most; default: as many as memory holds
    compile: bool | None = None  # torch.compile, one decoder layer for all
    cuda_graph: bool | None = None  # one graph over forward, backward and optimizer
    kernels: bool | None = None  # our Triton kernels
    silence: float = 3600.0  # seconds without a sign of life after which a pack's process is stopped


@dataclass
class TrackingConfig:
    mode: str = "offline"  # offline | online | disabled
    project: str = "lora-assay"
    entity: str | None = None


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    variant: VariantConfig = field(default_factory=VariantConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    engine: str = "packed"  # packed | peft; what has no adapter trains in the peft engine always
    seed: int = 0  # initial adapter and dropout
    data_seed: int = II("seed")  # order of the training rows
    device: str = "auto"  # auto | cpu | cuda
    sweep: str | None = None  # name of the sweep: the W&B group and the folder under reports/
    force: bool = False


CHOICES: dict[str, tuple[str, ...]] = {
    "model.source": ("embedded", "hub", "path", "shape"),
    "model.weights": ("pretrained", "random"),
    "variant.trains": ("adapter", "all", "none"),
    "variant.scaling": ("alpha_over_r", "alpha_over_sqrt_r"),
    "variant.magnitude": ("none", "dora"),
    "variant.base_precision": ("bf16", "fp32", "int8", "nf4"),
    "lora.init": ("kaiming", "gaussian"),
    "dataset.source": ("cldr_names", "jsonl", "hub"),
    "train.schedule": ("linear", "cosine", "constant"),
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
    "pack.silence": (1, 1e7, True),
    "seed": (0, 2**31 - 1, True),
    "data_seed": (0, 2**31 - 1, True),
}


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key; None where what would hold it is None, as ``model.shape`` may be."""
    node: Any = config
    for part in key.split("."):
        node = None if node is None else getattr(node, part)
    return node


def resolve(node: DictConfig) -> Config:
    """Hydra's composed node as a checked ``Config``.

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
    check(config)
    return config


def _refuse_other_keys(node: DictConfig) -> None:
    """Hydra's ``+key`` and ``~key`` can add to the schema and take from it; nothing here would read or survive that."""
    _compare_keys(OmegaConf.to_container(node), Config(), "")


def _compare_keys(found: Any, wanted: Any, prefix: str) -> None:
    if not isinstance(found, dict):
        raise ConfigError(f"{prefix.rstrip('.')}={found}: holds keys of its own, such as {prefix}{fields(wanted)[0].name}")
    known = {entry.name: getattr(wanted, entry.name) for entry in fields(wanted)}
    for key in found:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: no such key")
    for key, value in known.items():
        if key not in found:
            raise ConfigError(f"{prefix}{key}: cannot be removed")
        if is_dataclass(value):
            _compare_keys(found[key], value, f"{prefix}{key}.")


def refuse_texts(value: Any, key: str = "") -> None:
    """Raise ConfigError where a text, not resolved yet, is a secret or would call a resolver such as ``${oc.env:X}``.

    A record holds the config: neither a key nor a variable of the environment may get into it.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            refuse_texts(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for part in value:
            refuse_texts(part, key)
    elif isinstance(value, str):
        if kind := credentials.found(value, key):
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
    if config.variant.trains != "adapter" and (config.variant.scaling != "alpha_over_r" or config.variant.magnitude != "none"):
        raise ConfigError(f"variant.trains={config.variant.trains}: has no adapter, so leave scaling and magnitude as they are")
    if config.variant.trains == "all" and config.variant.base_precision in ("int8", "nf4"):
        raise ConfigError(
            f"variant.base_precision={config.variant.base_precision}: variant=full trains all weights, which needs bf16 or fp32"
        )
    if config.model.hold_dequantised and config.variant.base_precision == "int8":
        raise ConfigError("model.hold_dequantised: LLM.int8() rounds its inputs too, so no held copy gives the same numbers")
    if config.sweep is not None and not _is_name(config.sweep):
        raise ConfigError(f"sweep={config.sweep!r}: use letters, digits, '.', '_' and '-', at most 100, not starting with '.'")
    # OmegaConf lets a list into a list of texts.
    if not all(isinstance(label, str) and label.strip() for label in config.dataset.labels or []):
        raise ConfigError(f"dataset.labels={config.dataset.labels}: needs a list of texts such as [yes,no]")
    if config.dataset.val_share + config.dataset.test_share >= 1:
        raise ConfigError("dataset.val_share, dataset.test_share: together they must stay below 1")


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


def packs(config: Config) -> bool:
    """Whether the packed engine trains this run; what has no adapter, or asks for PEFT's engine, stands alone."""
    return config.engine == "packed" and config.variant.trains == "adapter"


Axes = tuple[str, str, str, str]


def axes(variant: VariantConfig) -> Axes:
    return (variant.trains, variant.scaling, variant.magnitude, variant.base_precision)


@cache
def named_variants() -> dict[Axes, str]:
    """The points of the variant product that have a name: the files of conf/variant."""
    points = {}
    for file in sorted((CONF_FOLDER / "variant").glob("*.yaml")):
        node = OmegaConf.merge(OmegaConf.structured(VariantConfig), OmegaConf.load(file))
        point = OmegaConf.to_object(node)
        assert isinstance(point, VariantConfig)
        points[axes(point)] = file.stem
    return points


def variant_name(variant: VariantConfig) -> str:
    """The name of the point that the axes describe, however it was written on the command line."""
    names = named_variants()
    if axes(variant) in names:
        return names[axes(variant)]
    in_bf16 = names.get((*axes(variant)[:3], "bf16"), "custom")
    return f"{in_bf16}_{variant.base_precision}"
