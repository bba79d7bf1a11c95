"""Engine ``peft``: PEFT's own modules, one run at a time. The reference that other engines must equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from src.batches import Batch
from src.config import TrainConfig
from src.device import Numerics
from src.losses import target_losses
from src.train.schedule import lr_factor


@dataclass(frozen=True)
class StepResult:
    """``loss`` is the mean log-loss per target token of the step's rows, before the update."""

    loss: float
    grad_norm: float
    lr: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class PeftEngine:
    """Advances one run: AdamW on fp32 master weights, products in the run's compute format."""

    def __init__(self, model: nn.Module, train: TrainConfig, steps: int, seed: int, numerics: Numerics) -> None:
        self.model = model
        self.train = train
        self.steps = steps
        self.seed = seed
        self.numerics = numerics
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=train.lr, weight_decay=train.weight_decay, fused=numerics.device.type == "cuda"
        )

    def step(self, step: int, micro_batches: Sequence[Batch]) -> StepResult:
        """One optimizer step, 0-based, over ``micro_batches``. An update that is not finite is not applied."""
        self.model.train()
        torch.manual_seed(hash((self.seed, step)) & 0x7FFF_FFFF)  # dropout depends on the seed and the step alone
        targets = sum(batch.target_tokens for batch in micro_batches)
        total = torch.zeros((), device=self.numerics.device)
        for batch in micro_batches:
            with self.numerics.autocast():
                loss = target_losses(self.model, batch)[0].sum() / targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        parameters = list(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(parameters, self.train.clip or math.inf)
        lr = self.train.lr * lr_factor(self.train.schedule, step, self.steps, self.train.warmup)
        result = StepResult(total.item(), norm.item(), lr)
        if result.finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint needs: trained tensors and AdamW's moments, by parameter name."""
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                self.optimizer.state[parameter] = {
                    "step": tensors[f"step/{name}"].clone(),
                    "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
                }
                if self.numerics.device.type == "cuda":  # the fused optimizer keeps its step count on the device
                    self.optimizer.state[parameter]["step"] = tensors[f"step/{name}"].to(parameter.device)

    def finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.parameters.values())
