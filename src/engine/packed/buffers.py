"""Where the trained numbers of a pack lie: one buffer [decoder layers, runs, parameters] for each bucket of runs.

The last dimension holds ``A [R, in]`` of each adapted module of a decoder layer, then ``B [out, R]`` of each and, for
DoRA, ``m [out]`` of each. So one contiguous tensor per decoder layer is trained, modules that read the same input have
their A side by side, and work over all layers of a module is one batched product over a strided view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from .members import Member, padded_rank

PARTS = ("A", "B", "m")
# Modules of a decoder layer, in every family of src.model.models.FAMILIES, that are called on one and the same tensor.
SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


@dataclass(frozen=True)
class Kind:
    """A linear module that every decoder layer has, such as ``self_attn.q_proj``."""

    name: str
    in_features: int
    out_features: int

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Blocks:
    """The adapted modules of a model: ``kinds``, in the order of the model, in each of ``prefixes``."""

    prefixes: tuple[str, ...]  # "model.layers.0", ...
    kinds: tuple[Kind, ...]

    @property
    def groups(self) -> list[list[Kind]]:
        """The kinds by the input they read, in order."""
        found: list[list[Kind]] = []
        for kind in self.kinds:
            if found and {found[-1][0].leaf, kind.leaf} <= next((g for g in SAME_INPUT if kind.leaf in g), set()):
                found[-1].append(kind)
            else:
                found.append([kind])
        return found

    @property
    def modules(self) -> list[tuple[str, int, Kind]]:
        """(name, decoder layer, kind) of each adapted module, in PEFT's order of initialisation."""
        return [(f"{prefix}.{kind.name}", at, kind) for at, prefix in enumerate(self.prefixes) for kind in self.kinds]


class Bucket:
    """Runs ``first`` to ``first + runs`` of a pack, their ranks zero-padded to ``rank``.

    Padding is exact: a padded row of A meets a padded column of B, both zero, so both get zero gradients and stay zero.
    """

    def __init__(
        self, first: int, members: Sequence[Member], blocks: Blocks, multiple: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.first = first
        self.members = list(members)
        self.runs = len(members)
        self.rank = padded_rank((member.r for member in members), multiple)
        self.magnitude = members[0].magnitude
        self.blocks = blocks
        self.parts = PARTS if self.magnitude else PARTS[:2]
        order = [(kind, part) for part in self.parts for kind in blocks.kinds]
        sizes = [math.prod(self._shape(kind, part)) for kind, part in order]
        starts = accumulate(sizes[:-1], initial=0)
        self._start = dict(zip(order, starts, strict=True))
        shape = (len(blocks.prefixes), self.runs, sum(sizes))
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.grads = torch.zeros_like(self.values)
        self.exp_avg = torch.zeros_like(self.values)
        self.exp_avg_sq = torch.zeros_like(self.values)
        self.scale = torch.tensor([member.scale for member in members], dtype=dtype, device=device)
        # What a layer's A and B are multiplied with before use. A number for each run would do for B; one for each entry
        # keeps the pass over both a single kernel.
        rows = [
            (self.scale if part == "B" else torch.ones_like(self.scale))[:, None].expand(-1, size)
            for (_, part), size in zip(order, sizes, strict=True)
            if part != "m"
        ]
        self.factor = torch.cat(rows, dim=1)

    def _shape(self, kind: Kind, part: str) -> tuple[int, ...]:
        return {"A": (self.rank, kind.in_features), "B": (kind.out_features, self.rank), "m": (kind.out_features,)}[part]

    def all_layers(self, buffer: torch.Tensor, kind: Kind, part: str) -> torch.Tensor:
        """A view [layers, runs, ...] of one part of one module of all decoder layers."""
        shape, start = self._shape(kind, part), self._start[kind, part]
        return buffer[:, :, start : start + math.prod(shape)].unflatten(2, shape)

    def of_run(self, row: torch.Tensor, run: int, at: int, kind: Kind, part: str) -> torch.Tensor:
        """A view of one run's own part of a module, without padding: A [r, in], B [out, r], m [out].

        ``row`` [layers, parameters] is ``buffer[:, run]``, or a copy of it.
        """
        start = self._start[kind, part]
        shape = self._shape(kind, part)
        own = row[at, start : start + math.prod(shape)].unflatten(0, shape)
        r = self.members[run].r
        return {"A": own[:r], "B": own[..., :r], "m": own}[part]


def buckets_of(
    members: Sequence[Member], blocks: Blocks, multiple: int, dtype: torch.dtype, device: torch.device
) -> list[Bucket]:
    """The buckets of ``members``, which stand in slot order."""
    found: list[Bucket] = []
    first = 0
    while first < len(members):
        last = first
        while last < len(members) and members[last].bucket == members[first].bucket:
            last += 1
        found.append(Bucket(first, members[first:last], blocks, multiple, dtype, device))
        first = last
    return found
