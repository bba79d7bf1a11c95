"""The scaling axis: the factor gamma(r) in ``W + gamma(r) B A``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...files.errors import ConfigError
from .part import Proof, Seen, Verdict


@dataclass(frozen=True)
class Scaling:
    """A rule. ``scale`` takes (alpha, r). ``proof`` states the rule once more, in other words, for the live check.

    ``peft`` holds PEFT's options for it, None where PEFT has none: then an adapter is saved with the alpha that gives it.
    """

    scale: Callable[[float, int], float]
    proof: Proof
    peft: Mapping[str, bool] | None = None


def _times(power: float) -> Proof:
    """Prove ``scale * r^power = alpha``. The engines hold scales in fp32, whose rounding is 6e-8."""

    def proof(seen: Seen) -> Verdict:
        holds = [math.isclose(scale * seen.r**power, seen.alpha, rel_tol=1e-7) for scale in seen.scales]
        wanted = seen.alpha / seen.r**power
        return bool(holds) and all(holds), f"scale {sorted(seen.scales)}; the formula says {wanted}"

    return proof


SCALINGS: dict[str, Scaling] = {
    # LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1: "we then scale dW x by alpha/r".
    "alpha_over_r": Scaling(lambda alpha, r: alpha / r, _times(1), {"use_rslora": False}),
    # rsLoRA, Kalajdzievski 2023, arXiv 2312.03732: the rank-stable adapter, gamma_r = alpha / sqrt(r).
    "alpha_over_sqrt_r": Scaling(lambda alpha, r: alpha / math.sqrt(r), _times(0.5), {"use_rslora": True}),
}


def effective_scale(scaling: str, alpha: float, r: int) -> float:
    """Compute the dimensionless factor on ``B A``. At one rank the two rules differ only by another alpha:
    ``alpha_over_sqrt_r`` at alpha is ``alpha_over_r`` at ``alpha sqrt(r)``.

    Raises:
        ConfigError: the rule is unknown, or the rank is below 1.
    """
    if scaling not in SCALINGS:
        raise ConfigError(f"variant.scaling={scaling}: choose one of {', '.join(SCALINGS)}")
    if r < 1:
        raise ConfigError(f"lora.r={r}: needs a whole number from 1")
    return SCALINGS[scaling].scale(alpha, r)
