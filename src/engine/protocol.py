"""What the loop, the scorer and the live checks ask of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config.schema import Config
from ..measure.scorer import Scored
from ..model.device import Numerics


@dataclass(frozen=True)
class Step:
    """One optimizer step of all runs of a pack, a value for each run.

    ``loss`` is the mean log-loss per target token of the step's rows, before the update. ``tokens`` is without padding.
    """

    loss: list[float]
    grad_norm: list[float]
    lr: list[float]
    tokens: list[int]


class Engine(Protocol):
    """Advances the runs of a pack; a run's index is its place in the pack."""

    name: str
    network: Any
    numerics: Numerics
    steps: int
    speed_layers: str  # which layers of speed are on
    chunk: int  # steps that are best asked for at once
    fills_device: bool  # whether its steps leave a GPU no gap that another process could use

    @property
    def scored(self) -> Scored:
        """The runs' models, for scoring."""

    def advance(self, first: int, last: int) -> list[Step]:
        """Steps ``first`` to ``last``, 0-based and without ``last``. An update that is not finite is not applied."""

    def finite(self) -> list[bool]:
        """Whether each run's trained numbers are."""

    def state(self, run: int) -> dict[str, torch.Tensor]:
        """What a run's checkpoint needs: trained tensors and AdamW's moments."""

    def load_state(self, run: int, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of ``state``. Raises KeyError or RuntimeError where the tensors are another run's."""

    def trained(self, run: int) -> dict[str, torch.Tensor]:
        """What trains, where it trains, without padding, by PEFT's parameter names. A step may change it: clone to keep."""

    def scales(self, run: int) -> set[float]:
        """The factors that really multiply ``B A``."""

    def rates_of_parts(self, run: int) -> dict[str, set[float]]:
        """The learning rates over the run's own that its trained parts are updated with, by the part's name."""

    def digests(self) -> list[dict[str, list[int]]]:
        """A digest of each tensor of each run's adapter, trained or not, by the part's name, in the model's order."""

    def finish(self) -> None:
        """Give back what only training needs."""

    def save_adapter(self, run: int, config: Config, folder: Path) -> None:
        """Write a run's adapter in PEFT's format, by PEFT's own code."""
