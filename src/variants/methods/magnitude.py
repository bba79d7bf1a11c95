"""The magnitude axis: whether a trained vector m sets the length of each output row (DoRA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .part import NOTHING, M, Part, Proof, Seen, Verdict

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Magnitude:
    """A value of the axis: its parts, PEFT's options, the proof, and what it makes of a merged weight.

    ``merged`` takes the weight [out, in] that already holds ``s B A``, fp32, and the axis's parts by name.
    ``onto_original`` warns where the merge goes onto other base weights than those of training.
    """

    parts: tuple[Part, ...]
    peft: Mapping[str, bool]
    proof: Proof
    merged: Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor] = lambda weight, parts: weight
    onto_original: str | None = None
    tags: tuple[str, ...] = ()


def _none(seen: Seen) -> Verdict:
    count = seen.parts.get(M.name, NOTHING).count
    return count == 0, f"{count} magnitude vectors, none wanted"


def _moved(seen: Seen) -> Verdict:
    m = seen.parts.get(M.name, NOTHING)
    detail = f"{m.count} magnitude vectors, {m.fp32} in fp32, {m.moved} moved"
    return 0 < m.count == m.fp32 == m.moved, detail


def _rows_of_length_m(weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``m (W + s B A) / ||W + s B A||``, the norm of each output row: its length is m whichever base it is merged onto."""
    lengths: torch.Tensor = weight.norm(dim=1)  # type: ignore[no-untyped-call]
    return weight * (parts[M.name].float() / lengths)[:, None]


MAGNITUDES: dict[str, Magnitude] = {
    "none": Magnitude((), {"use_dora": False}, _none),
    # DoRA, Liu et al. 2024, arXiv 2402.09353, equation 5: the magnitude of each output row is trained apart from its direction.
    "dora": Magnitude(
        (M,),
        {"use_dora": True},
        _moved,
        _rows_of_length_m,
        "DoRA's magnitudes were trained against the norms of the dequantised weights; each merged row keeps its trained norm"
        " and takes its direction from the 16-bit weights, as PEFT computes where the adapter is loaded over them",
        ("dora",),
    ),
}
