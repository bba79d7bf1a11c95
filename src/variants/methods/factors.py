"""The factors axis: which of A and B train, and at which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .part import NOTHING, A, B, GradientTransform, Part, Proof, Seen, Verdict


@dataclass(frozen=True)
class Factors:
    """A value of the axis: its parts, the proof, and what is done to their gradients before they are clipped.

    ``note`` tells a reader of the adapter's card what is not as in LoRA.
    """

    parts: tuple[Part, ...]
    proof: Proof
    gradients: GradientTransform | None = None
    note: str | None = None


def _b_moved(seen: Seen) -> Verdict:
    b = seen.parts.get(B.name, NOTHING)
    return 0 < b.count == b.moved, f"{b.moved} of {b.count} B matrices are no longer zero"


def _rates(seen: Seen) -> frozenset[float]:
    """Divide B's learning rates by A's; one number where all layers agree."""
    a, b = (seen.parts.get(part.name, NOTHING).rates for part in (A, B))
    return frozenset(of_b / of_a for of_b in b for of_a in a)


def _at_ratio(ratio: float) -> Proof:
    def proof(seen: Seen) -> Verdict:
        moved, detail = _b_moved(seen)
        rates = _rates(seen)
        shown = "" if rates == {1.0} and ratio == 1 else f"; B learns {sorted(rates)} times as fast as A, {ratio:g} wanted"
        # The packed engine holds rates in fp32, whose rounding is 6e-8; dividing two of them rounds twice.
        held = bool(rates) and all(math.isclose(rate, ratio, rel_tol=2e-7) for rate in rates)
        return moved and held, detail + shown

    return proof


def _a_stands(seen: Seen) -> Verdict:
    moved, detail = _b_moved(seen)
    a = seen.parts.get(A.name, NOTHING)
    return moved and a.count > 0 and a.moved == 0, f"{detail}; {a.moved} of {a.count} A matrices changed, none wanted"


FACTORS: dict[str, Factors] = {
    # LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1: both factors train alike.
    "both": Factors((A, B), _at_ratio(1)),
    # LoRA+, Hayou et al. 2024, arXiv 2402.12354: B learns faster than A, 16 times by its authors' advice. The proof says so once
    # more, so that a wrong entry does not prove itself.
    "loraplus": Factors((A, replace(B, rate=16.0)), _at_ratio(16), note="B learns at 16 times this learning rate"),
    # A stays as it was drawn, B trains: Zhang et al. 2023, arXiv 2308.03303, without its correction of B's gradient.
    "frozen_a": Factors((replace(A, trained=False), B), _a_stands, note="B alone trains; A is saved as it was drawn"),
}
