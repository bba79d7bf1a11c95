"""The typed schema of everything in conf/, and the names of the variants in it.

Defaults are written here once; a YAML in conf/ holds only what differs. ``values.py`` checks which values are possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import II, OmegaConf

from ..variants.methods.point import LATER, Point, VariantConfig, axes, default

CONF_FOLDER = Path(__file__).resolve().parents[2] / "conf"
ALL_LINEAR = "all-linear"


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
    hold_dequantised: bool = False  # nf4, fp4: keep the dequantized weights too: same numbers, less time, more memory


@dataclass
class LoraSettings:
    r: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Any = ALL_LINEAR  # all-linear, or a list of module names
    init: str = "kaiming"  # initializer of A: kaiming (PEFT's default) | gaussian; B starts at zero


@dataclass
class DatasetConfig:
    name: str = ""
    source: str = "jsonl"  # cldr_names | jsonl | hub | task: from ``path`` where it is set, else from the hub
    version: int | None = None  # of a named dataset: raised when its rows, its prompt or its judging change
    format: str = "pairs"  # how a row is read: src/data/formats.py
    answer: str = "text"  # how an answer is scored: text | label | number | choice | tags | overlap | bleu
    path: str | None = None  # training rows; without val_path/test_path the file is split by prompt
    val_path: str | None = None
    test_path: str | None = None
    train_files: list[str] | None = None  # what is read where ``path`` is a folder or a .zip
    val_files: list[str] | None = None
    test_files: list[str] | None = None
    files_from: str | None = None  # where these files are from, for who does not have them
    id: str | None = None
    revision: str | None = None
    subset: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = None
    prompt_column: str = "prompt"  # short for columns={prompt: ...}
    target_column: str = "target"
    columns: Any = None  # {key that the format reads: the name that these rows have for it}
    ignore_columns: list[str] | None = None  # keys of the rows that are left unread on purpose
    labels: list[str] | None = None  # a label task: macro-F1 and parse failures are reported; answer=label alone collects them
    chat_template: bool = False
    turns: str = "last"  # of a chat, the assistant's turns that carry loss: last | all
    max_length: int = 512
    val_share: float = 0.05
    test_share: float = 0.1
    leaks: str = (
        "near"  # training rows left out whose question is held out: near (but for case, space, Unicode form) | exact | off
    )
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
    warmup_steps: int | None = None  # if set, it decides instead of warmup
    optimizer: str = "adamw"  # adamw | adamw_bnb_8bit | paged_adamw_8bit; the latter two (bitsandbytes) need engine=peft
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
    """Held-out prose for measuring forgetting: its log-loss before and after training (Biderman et al., arXiv 2405.09673)."""

    path: str | None = None  # a text in UTF-8; default: documentation that scikit-learn ships
    tokens: int = 4096  # scored at most; 0: nothing is measured


@dataclass
class PackConfig:
    """Settings of runs that train together over one base. They decide time and memory, and no result beyond rounding.

    ``compile``, ``cuda_graph`` and ``kernels`` are on where they pay, on a GPU, unless they are set.
    """

    max_runs: int | None = None  # runs in one pack at most; default: as many as memory holds
    # Share of the GPU's memory that this command plans with; on a CPU, of the memory that is available when it plans. Set it
    # to 0.5 where two commands share the machine. A pack that starts looks only at what is free by then.
    memory_share: float = 1.0
    compile: bool | None = None  # torch.compile, one decoder layer for all
    cuda_graph: bool | None = None  # one graph over forward, backward and optimizer
    kernels: bool | None = None  # our Triton kernels
    silence: float = 3600.0  # seconds without an event after which a pack's process is stopped


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
    keep_weights: bool = True  # adapter/ or model/ in a finished run's folder: 0.3 GB each at r=256 over 135M
    force: bool = False


def is_packed(config: Config) -> bool:
    """Tell whether the packed engine trains this run: it has an adapter and does not ask for PEFT's engine."""
    return config.engine == "packed" and config.variant.trains == "adapter"


@cache
def named_variants() -> dict[Point, str]:
    """The points of the variant product that have a name: the files of conf/variant."""
    points = {}
    for file in sorted((CONF_FOLDER / "variant").glob("*.yaml")):
        node = OmegaConf.merge(OmegaConf.structured(VariantConfig), OmegaConf.load(file))
        variant = OmegaConf.to_object(node)
        assert isinstance(variant, VariantConfig)
        points[axes(variant)] = file.stem
    return points


def variant_name(variant: VariantConfig) -> str:
    """The name of the point that the axes describe, however it was written on the command line."""
    names = named_variants()
    if axes(variant) in names:
        return names[axes(variant)]
    # A point without a name is called after its neighbor with LoRA's value on one axis: ``loraplus_nf4``, ``dora_loraplus``.
    for axis in ("base_precision", *LATER):
        if (value := getattr(variant, axis)) != default(axis):
            neighbor = replace(variant)
            setattr(neighbor, axis, default(axis))
            return f"{variant_name(neighbor)}_{value}"
    return "custom"
