"""Which runs train together: those that share base, data, batch shape and steps, as many as memory holds.

Written the safe way round: ``MAY_DIFFER`` lists what may differ within a pack, so a new field of the config keeps runs
apart until someone has made sure that a pack can hold both its values.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate, pairwise

from ..config.schema import Config, is_packed
from ..record import checkpoint
from ..variants.methods.point import ADAPTERS, Point, axes
from .memory import Memory
from .plan import Job

MAY_DIFFER = (
    *("model.name", "model.note", "dataset.name"),
    *("variant.name", *(f"variant.{axis}" for axis in ADAPTERS)),
    *("lora.r", "lora.alpha", "lora.dropout", "lora.init"),
    *("train.lr", "train.schedule", "train.warmup", "train.warmup_steps", "train.weight_decay", "train.clip"),
    *("seed", "data_seed", "tracking", "sweep", "keep_weights", "force"),
)
# A pack saves a GPU from idling between small kernels. A processor is busy with a few runs already, and more of them
# only make each wait longer for its result.
RUNS_ON_A_CPU = 32


@dataclass(frozen=True)
class Pack:
    """Runs for one worker process, ordered by rank."""

    jobs: tuple[Job, ...]
    memory_bytes: int | None = None  # estimated; None where the model's shape is unknown

    @property
    def config(self) -> Config:
        """Any of its configs, for what they agree on."""
        return self.jobs[0].config

    @property
    def precision(self) -> str:
        return self.config.variant.base_precision

    @property
    def size(self) -> str:
        return f"{len(self.jobs)} run{'s' * (len(self.jobs) > 1)}"

    @property
    def variants(self) -> str:
        return ", ".join(dict.fromkeys(job.config.variant.name for job in self.jobs))

    @property
    def settings(self) -> str:
        """What varies beside the variant: ``r 4-256, 3 rates, 2 seeds``."""
        configs = [job.config for job in self.jobs]
        parts = []
        if self.config.variant.trains == "adapter":
            ranks = [config.lora.r for config in configs]
            parts.append(f"r {min(ranks)}" + (f"-{max(ranks)}" if max(ranks) > min(ranks) else ""))
        for name, found in (("rates", {c.train.lr for c in configs}), ("seeds", {c.seed for c in configs})):
            if len(found) > 1:
                parts.append(f"{len(found)} {name}")
        return ", ".join(parts)

    def describe(self) -> str:
        return f"{self.precision}, {self.size}: {', '.join(filter(None, [self.variants, self.settings]))}"


def group(jobs: Sequence[Job], memory: Memory, limit: int | None = None) -> list[Pack]:
    """The jobs in packs of at most ``limit`` runs, in the order in which each kind first appears.

    Runs of a pack take every step together, so they also go on from checkpoints of one step.
    """
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(agreement(job), []).append(job)
    packs = []
    for kind in kinds.values():
        for _, places in checkpoint.together([steps_of(job) for job in kind]):
            packs += _fit([kind[at] for at in places], memory, limit)
    return packs


def agreement(job: Job) -> str:
    """Equal for jobs that can train together, if their checkpoints let them."""
    config = job.config
    if not is_packed(config):
        return job.run_id
    fields = asdict(config)
    for key in MAY_DIFFER:
        *path, last = key.split(".")
        node = fields
        for part in path:
            node = node[part]
        del node[last]
    return json.dumps(fields, sort_keys=True)


def steps_of(job: Job) -> set[int]:
    """The steps that the run can go on from."""
    return set() if job.config.force else set(checkpoint.steps(job.folder.checkpoints))


def _fit(jobs: list[Job], memory: Memory, limit: int | None) -> list[Pack]:
    """Jobs of one kind in the fewest packs that memory holds, each of about the same need: the higher the ranks, the
    fewer runs. A run too big even alone stands alone."""
    if len(jobs) == 1:
        return [Pack(tuple(jobs), memory.need(jobs))]
    jobs = sorted(jobs, key=lambda job: job.config.lora.r)
    config = jobs[0].config
    machine = memory.machine(config.device)
    usable = machine.usable * config.pack.memory_share
    cap = config.pack.max_runs or (len(jobs) if machine.gpu else RUNS_ON_A_CPU)
    most = min(cap, limit or cap, len(jobs))
    more = _more(jobs, memory)
    until = list(accumulate(more))

    @cache
    def fits(start: int, end: int) -> bool:
        return end - start == 1 or (memory.need(jobs[start:end]) or 0) <= usable

    # Jobs whose part did not fit at some count. They are looked at first: where thousands of counts are too few, this tells
    # nearly all of them without making their parts.
    stuck: list[int] = []
    for count in itertools.count(max(1, math.floor(until[-1] / usable))):
        if not all(fits(*part) for at in stuck for part in _chopped(*_around(at, until, count), most)):
            continue
        ends = _ends(until, count)
        parts = [part for start, end in pairwise(ends) if start < end for part in _chopped(start, end, most)]
        # The last part has the highest ranks, so it is the one that most likely does not fit.
        wrong = next((start for start, end in reversed(parts) if not fits(start, end)), None)
        if wrong is None:
            break
        stuck.insert(0, wrong)
    return [Pack(tuple(jobs[start:end]), memory.need(jobs[start:end])) for start, end in parts]


def _more(jobs: Sequence[Job], memory: Memory) -> list[float]:
    """What each of these jobs, which agree on all but their adapters, adds to a pack's need; 1 where that is unknown."""
    known: dict[tuple[int, Point], float] = {}
    for job in jobs:
        key = (job.config.lora.r, axes(job.config.variant))
        if key not in known:
            known[key] = float((memory.need([job, job]) or 1) - (memory.need([job]) or 0))
    return [known[job.config.lora.r, axes(job.config.variant)] for job in jobs]


def split(jobs: Sequence[Job], weights: Sequence[float], count: int) -> list[list[Job]]:
    """At most ``count`` parts in order, none empty, of about the same weight; among equal ones the first are the larger."""
    return [list(jobs[start:end]) for start, end in pairwise(_ends(list(accumulate(weights)), count)) if start < end]


def _ends(until: Sequence[float], count: int) -> list[int]:
    """Where the parts of a split end, the start of the first before them; ``until``: the weight of each job and all before."""
    return [_end(until, part, count) for part in range(count + 1)]


def _end(until: Sequence[float], part: int, count: int) -> int:
    if part in (0, count):
        return len(until) if part else 0
    return bisect.bisect_left(until, _bound(until, part, count)) + 1


def _bound(until: Sequence[float], part: int, count: int) -> float:
    return until[-1] * part / count * (1 - 1e-12)


def _around(at: int, until: Sequence[float], count: int) -> tuple[int, int]:
    """(start, end) of the part of a split that the job ``at`` is in."""
    before = bisect.bisect_right(range(1, count), until[at - 1], key=lambda part: _bound(until, part, count)) if at else 0
    return _end(until, before, count), _end(until, before + 1, count)


def _chopped(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """A part in the fewest of at most ``most`` jobs, of about the same number; the first are the larger."""
    count = -(-(end - start) // most)
    return pairwise(start - (start - end) * part // count for part in range(count + 1))
