"""Answer "does it fit": estimate what runs need together, and take as many as memory holds. Light: no torch.

The command asks first, to plan its packs: of the whole device, with tokens guessed from text. The worker asks again, of
what is free by then, with the rows' real tokens. Both ask the same ``estimate``, with the ranks that the engine's buckets
really hold (engine/packed/members.py).
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import accumulate

from ..config.schema import Config, DatasetConfig, is_packed
from ..data import datasets, layout
from ..data.datasets import Example
from ..engine.packed.members import held_ranks, member, rank_multiple
from ..model import models
from ..variants import counts
from ..variants.counts import Linear
from ..variants.methods.point import Point, axes
from ..variants.methods.precision import FOUR_BIT
from . import split
from .machine import Machine, machine_of
from .plan import Job

# Two shares, because two questions. PLANNED is of all memory that a device has: what the driver, the CUDA context and other
# processes hold is inside it, and so is the error of guessed tokens. USABLE is of what is free once these are known, so only
# the allocator's slack is left to leave room for. A pack that was planned is taken whole where PLANNED / USABLE = 92 % is free.
PLANNED = 0.85
USABLE = 0.92
BYTES_PER_TOKEN = 3  # of text in UTF-8; a tokenizer that knows the language makes fewer tokens
SPECIAL_TOKENS = 8
NARROWEST = 16
SURVEYED = 1024  # micro-batches that are drawn to see how many tokens one may come to
# A pack saves a GPU from idling between small kernels. A processor is busy with a few runs already, and more of them
# only make each wait longer for its result.
RUNS_ON_A_CPU = 32


@dataclass(frozen=True)
class Tokens:
    """The tokens of one run in one micro-batch."""

    padded: int  # each row as long as the longest
    laid: int  # as a pack lays them: end to end, where that saves much


@dataclass(frozen=True)
class Fit:
    """The number of runs that fit, from the first on, and the memory that says so."""

    count: int
    bytes: int | None  # estimated need of these together; None if unknown
    usable: float  # bytes that they may take; infinite if unknown


def tokens_of(lengths: Sequence[int], rows: int) -> Tokens:
    """Survey micro-batches of ``rows`` rows of these lengths, drawn at random; the engine surveys those it will see."""
    draw = random.Random(0)  # noqa: S311  # a survey, not a secret
    batches = [[draw.choice(lengths) for _ in range(rows)] for _ in range(SURVEYED)]
    batches[0][0] = max(lengths)  # which some step will see
    return Tokens(rows * max(lengths), min(rows * max(lengths), layout.choose(batches).tokens))


def estimate(configs: Sequence[Config], targets: Sequence[Linear], tokens: Tokens, multiple: int) -> int | None:
    """Bytes of a training step of these runs together; None where the model's shape is unknown.

    ``multiple``: what a bucket's rank is padded to on the device (``members.rank_multiple``).
    """
    config = configs[0]
    shape = models.find_shape(config.model)
    if shape is None:
        return None
    if not is_packed(config):
        return counts.training_bytes(shape, config.variant, config.lora, targets, tokens.padded).total
    ranks = held_ranks([member(each) for each in configs], multiple)
    held = [(each.variant, replace(each.lora, r=r)) for each, r in zip(configs, ranks, strict=True)]
    dequantised = config.model.hold_dequantised and config.variant.base_precision in FOUR_BIT
    return counts.pack_bytes(shape, held, targets, tokens.laid, dequantised).total


def fitting(configs: Sequence[Config], targets: Sequence[Linear], tokens: Tokens, multiple: int, free: float | None) -> Fit:
    """Take runs, from the first on, as long as they fit into ``free`` bytes together; None: all of them.

    ``configs`` stand in slot order. The first run is always taken: alone it has to try. So has a model of unknown shape.
    """

    def need(count: int) -> int:
        return estimate(configs[:count], targets, tokens, multiple) or 0

    usable = math.inf if free is None else USABLE * free
    count = max(1, bisect.bisect_right(range(1, len(configs) + 1), usable, key=need))
    return Fit(count, need(count) or None, usable)


def alone(config: Config, targets: Sequence[Linear], tokens: Tokens, multiple: int) -> int | None:
    """Estimate a run by itself, without a held copy of its base: what its variant costs. None if unknown."""
    return estimate([replace(config, model=replace(config.model, hold_dequantised=False))], targets, tokens, multiple)


class Memory:
    """Estimates for one command: each dataset is read once, and each device asked once."""

    def __init__(self) -> None:
        self._machines: dict[str, Machine] = {}
        self._tokens: dict[str, Tokens] = {}

    def machine(self, device: str) -> Machine:
        if device not in self._machines:
            self._machines[device] = machine_of(device)
        return self._machines[device]

    def need(self, jobs: Sequence[Job]) -> int | None:
        """Bytes of a training step of these jobs together, which agree on all but their adapters; None if unknown."""
        config = jobs[0].config
        shape = models.find_shape(config.model)
        if shape is None:
            return None
        layers = counts.targets(counts.linears(shape), config.lora.target_modules, config.model.name)
        multiple = rank_multiple(self.machine(config.device).gpu is not None)
        return estimate([job.config for job in jobs], layers, self._tokens_of(config), multiple)

    def _tokens_of(self, config: Config) -> Tokens:
        key = json.dumps([asdict(config.dataset), config.train.batch_size])
        if key not in self._tokens:
            splits = datasets.refuse_impossible(config.dataset, config.train.batch_size)
            lengths = [config.dataset.max_length] if splits is None else [length(row, config.dataset) for row in splits.train]
            self._tokens[key] = tokens_of(lengths, config.train.batch_size)
        return self._tokens[key]


def length(row: Example, dataset: DatasetConfig) -> int:
    """Guess the tokens of a row from its text."""
    return min(max(NARROWEST, len(_text(row).encode()) // BYTES_PER_TOKEN + SPECIAL_TOKENS), dataset.max_length)


def _text(row: Example) -> str:
    if isinstance(row.prompt, str):
        return row.prompt + row.target
    texts = [str(value) for message in row.prompt for key, value in message.items() if key != "role" and value]
    return "".join(texts) + (str(row.tools) if row.tools else "") + row.target


def fewest_parts(jobs: Sequence[Job], memory: Memory, limit: int | None) -> list[list[Job]]:
    """Split jobs of one kind into the fewest parts that memory holds, each of about the same need: the higher the ranks, the
    fewer runs. A run too big even alone stands alone. No part has more than ``limit`` runs.
    """
    if len(jobs) == 1:
        return [list(jobs)]
    jobs = sorted(jobs, key=lambda job: job.config.lora.r)
    config = jobs[0].config
    machine = memory.machine(config.device)
    usable = math.inf if machine.total is None else PLANNED * machine.total * config.pack.memory_share
    cap = config.pack.max_runs or (len(jobs) if machine.gpu else RUNS_ON_A_CPU)
    most = min(cap, limit or cap, len(jobs))
    cumulative = list(accumulate(_added_bytes(jobs, memory)))

    @cache
    def fits(start: int, end: int) -> bool:
        return end - start == 1 or (memory.need(jobs[start:end]) or 0) <= usable

    # Jobs whose part did not fit at some count. They are looked at first: where thousands of counts are too few, this tells
    # nearly all of them without making their parts.
    misfits: list[int] = []
    for count in itertools.count(max(1, math.floor(cumulative[-1] / usable))):
        around = (split.part_around(index, cumulative, count) for index in misfits)
        if not all(fits(*part) for whole in around for part in split.at_most(whole, most)):
            continue
        parts = [part for whole in split.equal_weights(cumulative, count) for part in split.at_most(whole, most)]
        # The last part has the highest ranks, so it is the one that most likely does not fit.
        misfit = next((start for start, end in reversed(parts) if not fits(start, end)), None)
        if misfit is None:
            break
        misfits.insert(0, misfit)
    return [jobs[start:end] for start, end in parts]


def _added_bytes(jobs: Sequence[Job], memory: Memory) -> list[float]:
    """Count the bytes that each of these jobs, alike but for their adapters, adds to a pack's need; 1 where unknown."""
    known: dict[tuple[int, Point], float] = {}
    for job in jobs:
        key = (job.config.lora.r, axes(job.config.variant))
        if key not in known:
            known[key] = float((memory.need([job, job]) or 1) - (memory.need([job]) or 0))
    return [known[job.config.lora.r, axes(job.config.variant)] for job in jobs]
