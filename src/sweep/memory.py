"""What a pack needs and what the machine has, without torch: an estimate that the worker refines before it trains."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config.schema import Config, DatasetConfig, is_packed
from ..data import datasets, layout
from ..data.datasets import Example
from ..model import models
from ..variants import counts
from ..variants.counts import Linear
from ..variants.methods.precision import FOUR_BIT
from .plan import Job

USABLE = 0.85  # of the memory there is: the rest is for the allocator's slack and what the estimate leaves out
BYTES_PER_TOKEN = 3  # of text in UTF-8; a tokenizer that knows the language makes fewer tokens
SPECIAL_TOKENS = 8
NARROWEST = 16
SURVEYED = 1024  # micro-batches that are drawn to see how many tokens one may come to


@dataclass(frozen=True)
class Machine:
    """Where a run with this ``device`` will compute."""

    gpu: str | None  # its name
    total: int | None  # bytes of the GPU, or those that the system says it can still give; None if unknown

    @property
    def usable(self) -> float:
        return float("inf") if self.total is None else USABLE * self.total


@dataclass(frozen=True)
class Tokens:
    """Of one run in one micro-batch."""

    padded: int  # each row as long as the longest
    laid: int  # as a pack lays them: end to end, where that saves much


def tokens_of(lengths: Sequence[int], rows: int) -> Tokens:
    """What micro-batches of ``rows`` rows come to, from a survey of drawn ones; the engine surveys those it will see."""
    draw = random.Random(0)  # noqa: S311  # a survey, not a secret
    batches = [[draw.choice(lengths) for _ in range(rows)] for _ in range(SURVEYED)]
    batches[0][0] = max(lengths)  # which some step will see
    return Tokens(rows * max(lengths), min(rows * max(lengths), layout.choose(batches).tokens))


class Memory:
    """Estimates for one command: each dataset is read once, and each device asked once."""

    def __init__(self) -> None:
        self._machines: dict[str, Machine] = {}
        self._tokens: dict[str, Tokens] = {}

    def machine(self, device: str) -> Machine:
        if device not in self._machines:
            self._machines[device] = (None if device == "cpu" else _gpu()) or Machine(None, free_memory())
        return self._machines[device]

    def need(self, jobs: Sequence[Job]) -> int | None:
        """Bytes of a training step of these jobs together, which agree on all but their adapters; None if unknown."""
        config = jobs[0].config
        shape = models.find_shape(config.model)
        if shape is None:
            return None
        layers = counts.targets(counts.linears(shape), config.lora.target_modules, config.model.name)
        return estimate([job.config for job in jobs], layers, self._tokens_of(config))

    def _tokens_of(self, config: Config) -> Tokens:
        key = json.dumps([asdict(config.dataset), config.train.batch_size])
        if key not in self._tokens:
            splits = datasets.refuse_impossible(config.dataset, config.train.batch_size)
            found = [config.dataset.max_length] if splits is None else [length(row, config.dataset) for row in splits.train]
            self._tokens[key] = tokens_of(found, config.train.batch_size)
        return self._tokens[key]


def estimate(configs: Sequence[Config], targets: Sequence[Linear], tokens: Tokens) -> int | None:
    """Bytes of a training step of these runs together; None where the shape is unknown."""
    config = configs[0]
    shape = models.find_shape(config.model)
    if shape is None:
        return None
    if not is_packed(config):
        return counts.training_bytes(shape, config.variant, config.lora, targets, tokens.padded).total
    members = [(each.variant, each.lora) for each in configs]
    held = config.model.hold_dequantised and config.variant.base_precision in FOUR_BIT
    return counts.pack_bytes(shape, members, targets, tokens.laid, held).total


def length(row: Example, dataset: DatasetConfig) -> int:
    """Tokens of a row, from its text."""
    return min(max(NARROWEST, len(_text(row).encode()) // BYTES_PER_TOKEN + SPECIAL_TOKENS), dataset.max_length)


def _text(row: Example) -> str:
    prompt = row.prompt if isinstance(row.prompt, str) else "".join(message["content"] for message in row.prompt)
    return prompt + row.target


def _gpu() -> Machine | None:
    """The first GPU that CUDA shows to this process, as nvidia-smi knows it; None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = None if visible is None else visible.split(",")[0].strip()
    if first in ("", "-1"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*command, *(["-i", first] if first else [])], capture_output=True, text=True, timeout=20)
        total, name = done.stdout.splitlines()[0].split(",", 1)
        return Machine(name.strip(), int(total) * 2**20)
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def free_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that the system can still give; None where it does not say."""
    kibibytes = _stated(path, "MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def oom_kills(path: Path = Path("/proc/vmstat")) -> int | None:
    """How many processes the kernel has killed for memory since it started; None where it does not say."""
    return _stated(path, "oom_kill")


def _stated(path: Path, name: str) -> int | None:
    """The number behind ``name`` in one of the kernel's lists; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [int(words[1]) for words in map(str.split, lines) if words[:1] == [name]]
    return found[0] if found else None
