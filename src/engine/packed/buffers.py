"""Lay out the trained numbers of a pack: one buffer [decoder layers, runs, parameters] for each bucket of runs.

The last dimension holds one part of each adapted module of a decoder layer after another: ``A [R, in]`` of each, then
``B [out, R]`` of each and, for DoRA, ``m [out]`` of each. So one tensor per decoder layer is trained, modules that read the same
input have their A side by side, and work over all layers of a module is one batched product over a strided view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from ...variants.methods.part import LOW_RANK, Part
from .members import Member, padded_rank

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
        """Group the kinds by the input they read, in order."""
        groups: list[list[Kind]] = []
        for kind in self.kinds:
            if groups and {groups[-1][0].leaf, kind.leaf} <= next((g for g in SAME_INPUT if kind.leaf in g), set()):
                groups[-1].append(kind)
            else:
                groups.append([kind])
        return groups

    @property
    def modules(self) -> list[tuple[str, int, Kind]]:
        """List (name, decoder layer, kind) of each adapted module, in PEFT's order of initialization."""
        return [(f"{prefix}.{kind.name}", layer, kind) for layer, prefix in enumerate(self.prefixes) for kind in self.kinds]


@dataclass(frozen=True)
class Stretch:
    """A stretch of a run's trained numbers that learn at one rate, ``start`` to ``end``.

    ``rate`` [runs, 1]: their learning rate over the run's own; None where it is that of every run.
    """

    start: int
    end: int
    rate: torch.Tensor | None


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
        self.blocks = blocks
        same = {tuple(replace(part, rate=1.0) for part in member.parts) for member in members}
        if len(same) > 1 or len({member.gradients for member in members}) > 1:
            raise ValueError("a bucket's runs need the same parts and the same transform of gradients")
        if other := [part.name for part in members[0].parts if part.term == LOW_RANK and part.name not in ("A", "B")]:
            raise ValueError(f"low-rank parts are A and B; {', '.join(other)} needs a term of its own (terms.py)")
        # What stands still comes first, so that what trains is one stretch; of both, what A x and B need before the rest.
        self.parts = sorted(members[0].parts, key=lambda part: (part.trained, part.term != LOW_RANK))
        self._part = {part.name: part for part in self.parts}
        order = [(kind, part) for part in self.parts for kind in blocks.kinds]
        sizes = [math.prod(self._shape(kind, part)) for kind, part in order]
        starts = accumulate(sizes[:-1], initial=0)
        self._start = {(kind, part.name): start for (kind, part), start in zip(order, starts, strict=True)}
        self.still = sum(size for (_, part), size in zip(order, sizes, strict=True) if not part.trained)
        shape = (len(blocks.prefixes), self.runs, sum(sizes))
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.grads = torch.zeros_like(self.values[..., self.still :], memory_format=torch.contiguous_format)
        self.exp_avg = torch.zeros_like(self.grads)
        self.exp_avg_sq = torch.zeros_like(self.grads)
        self.scale = torch.tensor([member.scale for member in members], dtype=dtype, device=device)
        self.gradients = members[0].gradients
        self._multipliers: dict[tuple[str, ...], torch.Tensor] = {}

    def _shape(self, kind: Kind, part: Part) -> tuple[int, ...]:
        return part.shape(self.rank, kind.out_features, kind.in_features)

    def size(self, part: Part) -> int:
        """Count the numbers of a part in one decoder layer of one run."""
        return sum(math.prod(self._shape(kind, part)) for kind in self.blocks.kinds)

    def multiplier(self, parts: Sequence[Part]) -> torch.Tensor:
        """Return the factors of the numbers of ``parts``, [runs, numbers]: the scale where a part carries it, else 1.

        A number for each run would do for B; one for each entry keeps the pass over all parts a single kernel. All decoder layers
        share the tensor: a pack's adapters may be gigabytes.
        """
        key = tuple(part.name for part in parts)
        if key not in self._multipliers:
            ones = torch.ones_like(self.scale)
            rows = [(self.scale if part.scaled else ones)[:, None].expand(-1, self.size(part)) for part in parts]
            self._multipliers[key] = torch.cat(rows, dim=1)
        return self._multipliers[key]

    def stretches(self) -> list[Stretch]:
        """Cut the trained numbers by learning rate: one stretch wherever all parts of all runs learn at their run's rate."""
        cuts: list[tuple[int, int, tuple[float, ...]]] = []
        end = 0
        for part in self.parts:
            if not part.trained:
                continue
            start, end = end, end + self.size(part)
            rates = tuple(next(own.rate for own in member.parts if own.name == part.name) for member in self.members)
            if cuts and cuts[-1][2] == rates:
                start = cuts.pop()[0]
            cuts.append((start, end, rates))
        return [
            Stretch(start, end, None if set(rates) == {1.0} else self.scale.new_tensor(rates)[:, None])
            for start, end, rates in cuts
        ]

    def all_layers(self, buffer: torch.Tensor, kind: Kind, part: str) -> torch.Tensor:
        """Return a view [layers, runs, ...] of one part of one module of all decoder layers.

        ``buffer`` is ``values``, or one of those that only hold what trains.
        """
        shape, start = self._shape(kind, self._part[part]), self._start_in(buffer, kind, part)
        return buffer[:, :, start : start + math.prod(shape)].unflatten(2, shape)

    def of_run(self, row: torch.Tensor, run: int, layer: int, kind: Kind, part: str) -> torch.Tensor:
        """Return a view of one run's own part of a module, without padding: A [r, in], B [out, r], m [out].

        ``row`` [layers, parameters] is ``buffer[:, run]``, or a copy of it.
        """
        shape, start = self._shape(kind, self._part[part]), self._start_in(row, kind, part)
        own = row[layer, start : start + math.prod(shape)].unflatten(0, shape)
        dimension = self._part[part].rank_dimension
        return own if dimension is None else own.narrow(dimension, 0, self.members[run].r)

    def _start_in(self, buffer: torch.Tensor, kind: Kind, part: str) -> int:
        return self._start[kind, part] - (self.values.shape[-1] - buffer.shape[-1])


def buckets_of(
    members: Sequence[Member], blocks: Blocks, multiple: int, dtype: torch.dtype, device: torch.device
) -> list[Bucket]:
    """Build the buckets of ``members``, which are in slot order."""
    buckets: list[Bucket] = []
    first = 0
    while first < len(members):
        last = first
        while last < len(members) and members[last].bucket == members[first].bucket:
            last += 1
        buckets.append(Bucket(first, members[first:last], blocks, multiple, dtype, device))
        first = last
    return buckets
