"""Adapt a linear module for K runs at once: one frozen product for all, one pair of batched products per bucket."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...variants.methods.part import LOW_RANK, Part
from .buffers import Bucket, Kind
from .dropout import drop, layer_key
from .frozen import Frozen
from .terms import Term, terms_of


@dataclass
class StepContext:
    """The inputs of a step that all layers share; ``keys`` stays where it is."""

    runs: int
    keys: torch.Tensor  # [runs] of the dropout
    rows: torch.Tensor  # [runs, tokens], the token's row in its run's step; -1 is padding
    positions: torch.Tensor  # [runs, tokens], the token's place in its row


class Slots(nn.Module):
    """Hold the adapters of one bucket in one decoder layer: a single trained tensor, cut into its pieces for each pass.

    The scale is multiplied in before rounding: by itself a factor such as 16/sqrt(8) is inexact in bf16.
    """

    p: torch.Tensor
    A: list[torch.Tensor]  # of each group [runs, modules * R, in]
    B: dict[str, torch.Tensor]  # of each module [runs, out, R]
    vectors: dict[str, dict[str, torch.Tensor]]  # of each module the other parts by name, [runs, ...]
    shrunk: dict[int, tuple[torch.Tensor, torch.Tensor]]  # an input and its product with A of a group

    def __init__(self, bucket: Bucket, layer: int) -> None:
        super().__init__()
        self.first, self.runs, self.rank = bucket.first, bucket.runs, bucket.rank
        self.register_buffer("still", bucket.values[layer][:, : bucket.still], persistent=False)
        self.trained = nn.Parameter(bucket.values[layer][:, bucket.still :])
        self.trained.grad = bucket.grads[layer]  # gradients are summed where the optimizer reads them
        kinds, device, dtype = bucket.blocks.kinds, bucket.values.device, bucket.values.dtype
        self.groups = {
            kind.name: (number, place) for number, group in enumerate(bucket.blocks.groups) for place, kind in enumerate(group)
        }
        self.group_shapes = [(len(group) * bucket.rank, group[0].in_features) for group in bucket.blocks.groups]
        self.names = [kind.name for kind in kinds]
        self.shapes = {
            part.name: [part.shape(bucket.rank, k.out_features, k.in_features) for k in kinds] for part in bucket.parts
        }
        self.shapes["A"] = [tuple(shape) for shape in self.group_shapes]
        self.stored = [
            self._stored(bucket, name, [part for part in bucket.parts if part.trained == (name == "trained")])
            for name in ("still", "trained")
        ]
        dropout_p = [member.lora.dropout for member in bucket.members]
        self.dropout = any(dropout_p)
        self.register_buffer("p", torch.tensor(dropout_p, device=device, dtype=dtype), persistent=False)
        self.close()

    def _stored(self, bucket: Bucket, name: str, parts: Sequence[Part]) -> tuple[str, list[str], list[str]]:
        """(the tensor's name, the low-rank parts in it, the others); keeps what the former are multiplied with."""
        low_rank = [part for part in parts if part.term == LOW_RANK]
        if low_rank:
            self.register_buffer(f"{name}_multiplier", bucket.multiplier(low_rank), persistent=False)
        return name, [part.name for part in low_rank], [part.name for part in parts if part.term != LOW_RANK]

    def open(self, dtype: torch.dtype) -> None:
        """Cut the stored tensors into the parts of each module."""
        # A dict made here and not one from before: a compiler would keep what an older one holds as further outputs.
        self.shrunk = {}
        self.vectors = {name: {} for name in self.names}
        for name, low_rank, others in self.stored:
            stored = getattr(self, name)
            if low_rank:
                multiplier = getattr(self, f"{name}_multiplier")
                products, stored = torch.split(stored, [multiplier.shape[1], stored.shape[1] - multiplier.shape[1]], dim=1)
                for part, pieces in self._cut((products * multiplier).to(dtype), low_rank):
                    if part == "A":
                        self.A = pieces
                    else:
                        self.B = dict(zip(self.names, pieces, strict=True))
            for part, pieces in self._cut(stored, others):
                for module, piece in zip(self.names, pieces, strict=True):
                    self.vectors[module][part] = piece

    def _cut(self, stored: torch.Tensor, parts: Sequence[str]) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Cut ``stored`` [runs, numbers], which holds ``parts`` one after another, into the modules' pieces."""
        shapes = [shape for part in parts for shape in self.shapes[part]]
        pieces = iter(torch.split(stored, [math.prod(shape) for shape in shapes], dim=1) if shapes else ())
        for part in parts:
            yield part, [next(pieces).unflatten(1, shape) for shape in self.shapes[part]]

    def close(self) -> None:
        self.A, self.B, self.vectors, self.shrunk = [], {}, {}, {}

    def shrink(self, name: str, x: torch.Tensor, x_KTi: torch.Tensor) -> torch.Tensor:
        """Return ``x A^T`` [runs, tokens, R] of a module. Modules that read the same ``x`` share one product."""
        group, place = self.groups[name]
        if group not in self.shrunk or self.shrunk[group][0] is not x:
            self.shrunk[group] = (x, torch.bmm(x_KTi, self.A[group].transpose(1, 2)))
        return self.shrunk[group][1].narrow(2, place * self.rank, self.rank)

    def shrink_alone(self, name: str, x_KTi: torch.Tensor) -> torch.Tensor:
        """Return the same for an ``x`` that only this module sees, as after dropout."""
        group, place = self.groups[name]
        return torch.bmm(x_KTi, self.A[group].narrow(1, place * self.rank, self.rank).transpose(1, 2))


class PackedBlock(nn.Module):
    """Take a decoder layer's place, and hold what its adapted modules share."""

    def __init__(self, layer: nn.Module, buckets: Sequence[Bucket], index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.slots = [Slots(bucket, index) for bucket in buckets]
        self.owned = nn.ModuleList(self.slots)
        self.joints = nn.ModuleList()
        self.dtype = dtype

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        for slots in self.slots:
            slots.open(self.dtype)
        y: torch.Tensor = self.layer(x, **options)
        for shared in (*self.slots, *self.joints):
            shared.close()
        return y

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # the decoder asks its layers for their kind


class FrozenLinear(nn.Module):
    """Take the place of a quantized linear module without an adapter, so that it too multiplies each run as alone."""

    def __init__(self, base_layer: Any, frozen: Frozen, context: StepContext) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.frozen = frozen
        self.context = context
        self.bias: torch.Tensor | None = base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_KTi = x.reshape(self.context.runs, -1, x.shape[-1])
        y = self._adapt(x, x_KTi, self.frozen(x_KTi, self.context.rows if self.training else None, x))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _adapt(self, x: torch.Tensor, x_KTi: torch.Tensor, y_KTo: torch.Tensor) -> torch.Tensor:
        """Add the adapters to ``y_KTo``, the frozen product of ``x``; ``x_KTi`` is the same ``x`` run by run."""
        return y_KTo


class PackedLinear(FrozenLinear):
    """Take a linear module's place: ``y + s B A x``, then the terms of its runs: for DoRA ``m / ||W + s B A||`` times that.

    Rows are run-major: x [runs * rows, positions, in]. LoRA: Hu et al. 2021, arXiv 2106.09685, equation 3. DoRA: Liu et
    al. 2024, arXiv 2402.09353, equation 5; dropout acts on the low-rank branch alone.
    """

    key: torch.Tensor

    def __init__(
        self, base_layer: Any, frozen: Frozen, block: PackedBlock, kind: Kind, name: str, layer: int, terms: Mapping[str, Term],
        buckets: Sequence[Bucket], context: StepContext,
    ) -> None:  # fmt: skip
        super().__init__(base_layer, frozen, context)
        self.shared = block.slots  # a plain list: the block owns them
        self.kind = kind.name
        self.terms = [[(terms[term], terms[term].held(bucket, kind, layer)) for term in terms_of(bucket)] for bucket in buckets]
        self.sizes = [bucket.runs for bucket in buckets]
        self.register_buffer("key", torch.tensor(layer_key(name), device=buckets[0].values.device), persistent=False)

    def _adapt(self, x: torch.Tensor, x_KTi: torch.Tensor, y_KTo: torch.Tensor) -> torch.Tensor:
        parts = [
            self._adapt_bucket(x, x_part, y_part, slots, terms)
            for x_part, y_part, slots, terms in zip(
                torch.split(x_KTi, self.sizes), torch.split(y_KTo, self.sizes), self.shared, self.terms, strict=True
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _adapt_bucket(
        self, x: torch.Tensor, x_KTi: torch.Tensor, y_KTo: torch.Tensor, slots: Slots, terms: Sequence[tuple[Term, torch.Tensor]]
    ) -> torch.Tensor:
        if slots.dropout and self.training:
            runs, context = slice(slots.first, slots.first + slots.runs), self.context
            dropped = drop(x_KTi, slots.p, context.keys[runs], self.key, context.rows[runs], context.positions[runs])
            low_KTR = slots.shrink_alone(self.kind, dropped)
        else:
            low_KTR = slots.shrink(self.kind, x, x_KTi)
        # Not baddbmm: as an addition of its own it disappears into whatever reads y next.
        y_KTo = y_KTo + torch.bmm(low_KTR, slots.B[self.kind].transpose(1, 2))
        for term, held in terms:
            y_KTo = term.apply(y_KTo, slots.vectors[self.kind], held)
        return y_KTo
