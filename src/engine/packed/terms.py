"""The terms of an adapted layer's forward pass beyond ``s B A x``, by the name that a part says it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from ...variants.methods.part import LOW_RANK
from .buffers import Blocks, Bucket, Kind
from .gain import RowNorms


class Term(Protocol):
    """One term, for all buckets whose runs have its parts."""

    def start(self) -> None:
        """Fill its parts of fresh runs, once their A and B are there."""

    def update(self) -> None:
        """Follow a change of A and B."""

    def held(self, bucket: Bucket, kind: Kind, layer: int) -> torch.Tensor:
        """A tensor that ``apply`` needs in one module; it stays where it is."""

    def apply(self, y: torch.Tensor, vectors: Mapping[str, torch.Tensor], held: torch.Tensor, /) -> torch.Tensor:
        """``y`` [runs, tokens, out] with the term; ``vectors``: the term's parts of the module, by name, [runs, ...]."""


TERMS: dict[str, Callable[[Sequence[Bucket], Blocks, Callable[[str], torch.Tensor]], Term]] = {"gain": RowNorms}


def terms_of(bucket: Bucket) -> list[str]:
    return list(dict.fromkeys(part.term for part in bucket.parts if part.term != LOW_RANK))


def build(buckets: Sequence[Bucket], blocks: Blocks, dense: Callable[[str], torch.Tensor]) -> dict[str, Term]:
    """The terms that these buckets need. ``dense`` gives the frozen weight [out, in] of a layer by its name."""
    needed = dict.fromkeys(name for bucket in buckets for name in terms_of(bucket))
    return {name: TERMS[name]([b for b in buckets if name in terms_of(b)], blocks, dense) for name in needed}
