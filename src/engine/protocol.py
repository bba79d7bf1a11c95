"""The interface of an engine, as the loop, the scorer and the live checks use it."""

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
    """The results of one optimizer step of a pack, a value for each run.

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
    speed_layers: str  # the layers of speed that are on
    chunk: int  # steps that one call of ``advance`` should take
    fills_device: bool  # its steps leave a GPU no gap that another process could use

    @property
    def scored(self) -> Scored:
        """The runs' models, for scoring."""

    def advance(self, first: int, last: int) -> list[Step]:
        """Take the steps ``first`` to ``last``, 0-based and without ``last``. Updates that are not finite are not applied."""

    def finite(self) -> list[bool]:
        """Tell for each run if all its trained numbers are finite."""

    def state(self, run: int) -> dict[str, torch.Tensor]:
        """Collect what a run's checkpoint needs: trained tensors and AdamW's moments."""

    def load_state(self, run: int, tensors: dict[str, torch.Tensor]) -> None:
        """Resume from what ``state`` gave. Raises KeyError or RuntimeError where the tensors are another run's."""

    def trained(self, run: int) -> dict[str, torch.Tensor]:
        """Give the trained tensors by PEFT's parameter names, without padding: views, which a step changes. Clone to keep."""

    def scales(self, run: int) -> set[float]:
        """Read the scales that really multiply ``B A``."""

    def rates_of_parts(self, run: int) -> dict[str, set[float]]:
        """The learning rates over the run's own that its trained parts are updated with, by the part's name."""

    def digests(self) -> list[dict[str, list[int]]]:
        """A digest of each tensor of each run's adapter, trained or not, by the part's name, in the model's order."""

    def finish(self) -> None:
        """Give back the memory that only training needs."""

    def save_adapter(self, run: int, config: Config, folder: Path) -> None:
        """Write a run's adapter in PEFT's format, by PEFT's own code."""
