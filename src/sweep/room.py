"""How many of a pack's runs fit into memory, now that their rows' lengths and the free memory are known."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch

from ..config.schema import Config
from ..engine.packed.members import member, slot_order
from ..variants.counts import Linear
from .memory import Tokens, estimate, free_memory


class HasConfig(Protocol):
    @property
    def config(self) -> Config: ...


R = TypeVar("R", bound=HasConfig)

USABLE = 0.92  # of the free memory: the allocator needs some room to move


def in_slot_order(runs: Sequence[R]) -> list[R]:
    """The runs as a pack holds them: those of a bucket side by side."""
    if len(runs) == 1:
        return list(runs)
    return [runs[at] for at in slot_order([member(run.config) for run in runs])]


def fitting(configs: Sequence[Config], targets: Sequence[Linear], tokens: Tokens, device: torch.device) -> tuple[int, int | None]:
    """(how many of these runs, from the first on, fit together; the estimate of what they need).

    ``configs`` are in slot order. The first run is always taken: alone it has to try.
    """

    def need(count: int) -> int:
        return estimate(_padded(configs[:count]), targets, tokens) or 0  # what is unknown has to be tried

    free, count = _free(device), len(configs)
    if free is not None:
        if device.type == "cuda":
            free = min(free, round(configs[0].pack.memory_share * torch.cuda.mem_get_info(device)[1]))
        count = max(1, bisect.bisect_right(range(1, count + 1), USABLE * free, key=need))
    return count, need(count) or None


def _padded(configs: Sequence[Config]) -> list[Config]:
    """The configs with the ranks that the pack really holds: each bucket's largest."""
    if len(configs) == 1:
        return list(configs)
    buckets = [member(config).bucket for config in configs]
    widest: dict[object, int] = {}
    for bucket, config in zip(buckets, configs, strict=True):
        widest[bucket] = max(widest.get(bucket, 0), config.lora.r)
    return [replace(config, lora=replace(config.lora, r=widest[bucket])) for bucket, config in zip(buckets, configs, strict=True)]


def alone(config: Config, targets: Sequence[Linear], tokens: Tokens) -> int | None:
    """The estimate for a run by itself, without a held copy of its base: what its variant costs; None if unknown."""
    return estimate([replace(config, model=replace(config.model, hold_dequantised=False))], targets, tokens)


def _free(device: torch.device) -> int | None:
    """Bytes for the pack and its base: also those that a base drawn on the device takes already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return free_memory()
