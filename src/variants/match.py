"""The rank at which a variant trains as many parameters as another, so that two variants compare at one budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config.schema import LoraSettings
from ..config.values import RANGES
from ..files.errors import ConfigError
from .counts import Linear, trainable_parameters
from .methods.point import VariantConfig


@dataclass(frozen=True)
class Match:
    """The nearest rank. ``ratio`` is its trainable parameters over the budget."""

    r: int
    trainable_parameters: int
    ratio: float


def matching_rank(variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear], total: int, budget: int) -> Match:
    """The rank of ``variant`` whose trainable parameters are nearest to ``budget``, by the logarithm of their ratio.

    ``targets`` are the layers that get an adapter and ``total`` is the base model's count, as in
    ``counts.trainable_parameters``; the rank in ``lora`` is not read. Of two ranks equally near, the lower.

    Raises:
        ConfigError: the variant has no rank, or the budget is outside of what its lowest and highest rank train.
    """
    if variant.trains != "adapter":
        raise ConfigError(f"{variant.name} has no rank to choose")
    lowest, highest = int(RANGES["lora.r"][0]), int(RANGES["lora.r"][1])

    def trained(r: int) -> int:
        return trainable_parameters(variant, replace(lora, r=r), targets, total)

    if budget < trained(lowest):
        raise ConfigError(f"{variant.name} trains {trained(lowest):,} parameters at its lowest rank, {lowest}, already")
    if budget > trained(highest):
        raise ConfigError(f"{variant.name} trains only {trained(highest):,} parameters at its highest rank, {highest}")
    per_rank = trained(lowest + 1) - trained(lowest)  # parameters are linear in the rank
    below = lowest + (budget - trained(lowest)) // per_rank
    nearest = min((r for r in (below, below + 1) if r <= highest), key=lambda r: abs(math.log(trained(r) / budget)))
    return Match(nearest, trained(nearest), trained(nearest) / budget)
