"""Group the runs that can train together: those that share base, data, batch shape and steps, as many as memory holds.

Written the safe way round: ``MAY_DIFFER`` lists what may differ within a pack, so a new field of the config keeps runs
apart until someone has made sure that a pack can hold both its values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..config.schema import Config, is_packed
from ..record import checkpoint
from ..record.records import run_id
from ..variants.methods.point import ADAPTERS
from .fit import Memory, fewest_parts
from .plan import Job

MAY_DIFFER = (
    *("model.name", "model.note", "dataset.name"),
    *("variant.name", *(f"variant.{axis}" for axis in ADAPTERS)),
    *("lora.r", "lora.alpha", "lora.dropout", "lora.init"),
    *("train.lr", "train.schedule", "train.warmup", "train.warmup_steps", "train.weight_decay", "train.clip"),
    *("seed", "data_seed", "tracking", "sweep", "keep_weights", "force"),
)


@dataclass(frozen=True)
class Pack:
    """Runs for one worker process, ordered by rank."""

    jobs: tuple[Job, ...]
    memory_bytes: int | None = None  # estimated; None where the model's shape is unknown

    @property
    def config(self) -> Config:
        """Give any of its configs, for what they agree on."""
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
        """List what varies beside the variant: ``r 4-256, 3 rates, 2 seeds``."""
        configs = [job.config for job in self.jobs]
        parts = []
        if self.config.variant.trains == "adapter":
            ranks = [config.lora.r for config in configs]
            parts.append(f"r {min(ranks)}" + (f"-{max(ranks)}" if max(ranks) > min(ranks) else ""))
        for name, values in (("rates", {c.train.lr for c in configs}), ("seeds", {c.seed for c in configs})):
            if len(values) > 1:
                parts.append(f"{len(values)} {name}")
        return ", ".join(parts)

    def describe(self) -> str:
        return f"{self.precision}, {self.size}: {', '.join(filter(None, [self.variants, self.settings]))}"


def group(jobs: Sequence[Job], memory: Memory, limit: int | None = None) -> list[Pack]:
    """Group the jobs in packs of at most ``limit`` runs, in the order in which each kind first appears.

    Runs of a pack take every step together, so they also go on from checkpoints of one step.
    """
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(agreement(job.config), []).append(job)
    packs = []
    for kind in kinds.values():
        for _, places in checkpoint.together([resumable_steps(job) for job in kind]):
            parts = fewest_parts([kind[place] for place in places], memory, limit)
            packs += [Pack(tuple(part), memory.need(part)) for part in parts]
    return packs


def agreement(config: Config) -> str:
    """Make a text that is equal for runs that can train together, if their checkpoints let them."""
    if not is_packed(config):
        return run_id(config)
    fields = asdict(config)
    for key in MAY_DIFFER:
        *path, last = key.split(".")
        node = fields
        for part in path:
            node = node[part]
        del node[last]
    return json.dumps(fields, sort_keys=True)


def resumable_steps(job: Job) -> set[int]:
    """List the steps that the run can resume from."""
    return set() if job.config.force else set(checkpoint.steps(job.folder.checkpoints))
