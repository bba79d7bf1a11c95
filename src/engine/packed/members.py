"""Reduce a run's config to the numbers that a pack needs, and give each run its slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...config.schema import Config, LoraSettings, TrainConfig
from ...files.errors import ConfigError
from ...variants.methods.factors import FACTORS
from ...variants.methods.part import GradientTransform, Part
from ...variants.methods.point import parts_of
from ...variants.methods.scaling import effective_scale

# Ranks up to an edge share a bucket; above the last one, ranks within a factor of 4 do.
RANK_EDGES = (16, 64, 256, 1024, 4096, 16384, 65536)

BucketKey = tuple[int, tuple[str, ...], tuple[bool, ...], str]  # rank edge, parts, which of them train, gradient transform


@dataclass(frozen=True)
class Member:
    """One run of a pack, reduced to numbers."""

    r: int
    scale: float
    parts: tuple[Part, ...]
    gradients: GradientTransform | None
    gradients_of: str  # the value of the factors axis that brings the transform; "" where there is none
    seed: int
    data_seed: int
    lora: LoraSettings
    train: TrainConfig

    @property
    def bucket(self) -> BucketKey:
        """Runs with equal keys are multiplied together: they have the same parts, of which the same train, and near ranks."""
        edge = next(edge for edge in RANK_EDGES if self.r <= edge)
        return edge, tuple(part.name for part in self.parts), tuple(part.trained for part in self.parts), self.gradients_of


def member(config: Config) -> Member:
    variant, lora = config.variant, config.lora
    if variant.trains != "adapter":
        raise ConfigError(f"engine=packed: variant={variant.name} has no adapter to pack")
    scale = effective_scale(variant.scaling, lora.alpha, lora.r)
    gradients = FACTORS[variant.factors].gradients
    gradients_of = "" if gradients is None else variant.factors
    return Member(lora.r, scale, parts_of(variant), gradients, gradients_of, config.seed, config.data_seed, lora, config.train)


def rank_multiple(gpu: bool) -> int:
    """Give what a bucket's rank is a multiple of: 8 on a GPU, whose tensor cores multiply by 8; 1 on a processor."""
    return 8 if gpu else 1


def padded_rank(ranks: Iterable[int], multiple: int) -> int:
    """Give the rank that a bucket of runs of these ranks holds: the largest of them, rounded up to ``multiple``."""
    return -(-max(ranks) // multiple) * multiple


def held_ranks(members: Sequence[Member], multiple: int) -> list[int]:
    """Give the rank that each run takes up in a pack of all of them: its bucket's. Plan, fit and buffers agree by this."""
    ranks: dict[BucketKey, list[int]] = {}
    for each in members:
        ranks.setdefault(each.bucket, []).append(each.r)
    held = {bucket: padded_rank(of_bucket, multiple) for bucket, of_bucket in ranks.items()}
    return [held[each.bucket] for each in members]


def slot_order(members: Sequence[Member]) -> list[int]:
    """Order the indices of ``members`` by their slots: the runs of a bucket stand side by side."""
    return sorted(range(len(members)), key=lambda index: (members[index].bucket, index))
