"""Describe one tensor that an adapter adds to a layer, and what was seen of it after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOW_RANK = "low_rank"

# (gradients, values, scales): by part's name [layers, runs, *shape], and [runs]. Changes the gradients in place, before they
# are clipped.
GradientTransform = Callable[[Mapping[str, "torch.Tensor"], Mapping[str, "torch.Tensor"], "torch.Tensor"], None]


@dataclass(frozen=True)
class Part:
    """One tensor of an adapted layer, whose frozen weight is [out, in].

    ``name`` is its letter in the papers, ``peft`` PEFT's name for it below the layer. ``shape`` takes (r, out, in); the rank is
    its dimension ``rank_dimension``, None where it has none. ``term`` names the term of the forward pass that reads it.
    ``scaled``: the effective scale is multiplied into it. ``rate``: its learning rate over the run's own.
    """

    name: str
    peft: str
    shape: Callable[[int, int, int], tuple[int, ...]]
    rank_dimension: int | None
    term: str = LOW_RANK
    scaled: bool = False
    trained: bool = True
    rate: float = 1.0

    @property
    def parameter(self) -> str:
        """PEFT's name of the parameter below the layer."""
        return f"{self.peft}.default.weight"


A = Part("A", "lora_A", lambda r, out, into: (r, into), 0)
B = Part("B", "lora_B", lambda r, out, into: (out, r), 1, scaled=True)
M = Part("m", "lora_magnitude_vector", lambda r, out, into: (out,), None, term="gain")


@dataclass(frozen=True)
class PartSeen:
    """One part of a run, as the live checks saw it: its tensors, how many changed since the start, how many are fp32.

    ``rates``: the learning rates over the run's own at which the optimizer updates it; empty where it does not.
    """

    count: int
    moved: int
    fp32: int
    rates: frozenset[float]


@dataclass(frozen=True)
class Seen:
    """One run, as the live checks saw it: the factors that multiplied ``B A``, and its parts by name."""

    scales: frozenset[float]
    alpha: float
    r: int
    parts: Mapping[str, PartSeen]


Verdict = tuple[bool, str]  # (whether the proof holds, what was seen)
Proof = Callable[[Seen], Verdict]
NOTHING = PartSeen(0, 0, 0, frozenset())
