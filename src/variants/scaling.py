"""The scaling axis: the factor gamma(r) in ``W + gamma(r) B A``."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..files.errors import ConfigError

# A new rule is one entry here and its name in values.CHOICES.
RULES: dict[str, Callable[[float, int], float]] = {
    # LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1: "we then scale dW x by alpha/r".
    "alpha_over_r": lambda alpha, r: alpha / r,
    # rsLoRA, Kalajdzievski 2023, arXiv 2312.03732: the rank-stable adapter, gamma_r = alpha / sqrt(r).
    "alpha_over_sqrt_r": lambda alpha, r: alpha / math.sqrt(r),
}


def effective_scale(scaling: str, alpha: float, r: int) -> float:
    """The dimensionless factor on ``B A``. At one rank the two rules differ only by another alpha:
    ``alpha_over_sqrt_r`` at alpha is ``alpha_over_r`` at ``alpha sqrt(r)``.

    Raises:
        ConfigError: the rule is unknown, or the rank is below 1.
    """
    if scaling not in RULES:
        raise ConfigError(f"variant.scaling={scaling}: choose one of {', '.join(RULES)}")
    if r < 1:
        raise ConfigError(f"lora.r={r}: needs a whole number from 1")
    return RULES[scaling](alpha, r)
