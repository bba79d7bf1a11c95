"""Train by PEFT's own modules, one run at a time: engine ``peft``, the reference that the packed engine must equal.

It also trains without an adapter: full fine-tuning, and the frozen base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.schema import Config
from ..data.batches import Batch, Item, collate, micro_batches
from ..measure.scorer import Solo
from ..model.device import Numerics
from ..model.losses import target_losses
from ..variants.methods.factors import FACTORS
from ..variants.methods.point import all_parts, parts_of
from . import peft_optimizer
from .protocol import Step
from .schedule import learning_rate


class PeftEngine:
    """Advances one run: AdamW (train.optimizer) on fp32 master weights, products in the run's compute format."""

    name = "peft"
    speed_layers = "eager"
    chunk = 1
    fills_device = False  # a GPU waits for the next launch most of the time

    def __init__(self, model: nn.Module, config: Config, items: Sequence[Item], pad: int, steps: int, numerics: Numerics) -> None:
        self.network: Any = model
        self.config = config
        self.items = items
        self.pad = pad
        self.steps = steps
        self.numerics = numerics
        self.scored = Solo(model, numerics)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        still = tuple(part.parameter for part in parts_of(config.variant) if not part.trained)
        self.still = {n: p for n, p in model.named_parameters() if n.endswith(still)}  # parts of the adapter that do not train
        if self.parameters:
            self.optimizer = peft_optimizer.build(config.train, self._groups(), numerics.device)

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by their learning rate over the run's own."""
        rates = {part.parameter: part.rate for part in parts_of(self.config.variant)}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            rate = next((rate for ending, rate in rates.items() if name.endswith(ending)), 1.0)
            groups.setdefault(rate, []).append(parameter)
        return [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]

    def advance(self, first: int, last: int) -> list[Step]:
        """Take the steps ``first`` to ``last``, 0-based and without ``last``."""
        return [self.step(step, self._micro_batches(step)) for step in range(first, last)]

    def _micro_batches(self, step: int) -> list[Batch]:
        batches = micro_batches(step, self.config.train, len(self.items), self.config.data_seed)
        return [collate([self.items[row] for row in rows], self.pad, self.numerics.device) for rows in batches]

    def step(self, step: int, micro_batches: Sequence[Batch]) -> Step:
        """Take optimizer step ``step``, 0-based, over ``micro_batches``. An update that is not finite is not applied."""
        train = self.config.train
        self.network.train()
        torch.manual_seed(hash((self.config.seed, step)) & 0x7FFF_FFFF)  # dropout depends on the seed and the step alone
        targets = sum(batch.target_tokens for batch in micro_batches)
        total = torch.zeros((), device=self.numerics.device)
        for batch in micro_batches:
            with self.numerics.autocast():
                loss = target_losses(self.network, batch)[0].sum() / targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._transform_gradients()
        parameters = list(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(parameters, train.clip or math.inf)
        lr = learning_rate(train, step, self.steps)
        result = Step([total.item()], [norm.item()], [lr], [sum(batch.tokens for batch in micro_batches)])
        if math.isfinite(result.loss[0]) and math.isfinite(result.grad_norm[0]):
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["rate"]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def _transform_gradients(self) -> None:
        """Let a method that corrects its gradients do so, one module at a time."""
        transform = FACTORS[self.config.variant.factors].gradients
        if transform is None:
            return
        from peft.tuners.lora import LoraLayer

        of_name = dict(self.network.named_parameters())
        for name, layer in self.network.named_modules():
            if isinstance(layer, LoraLayer):
                parts = {part.name: of_name[f"{name}.{part.parameter}"] for part in parts_of(self.config.variant)}
                grads = {part: p.grad[None, None] for part, p in parts.items() if p.grad is not None}
                scales = next(iter(parts.values())).new_tensor(list(layer.scaling.values()))
                transform(grads, {part: p.detach()[None, None] for part, p in parts.items()}, scales)

    def state(self, run: int = 0) -> dict[str, torch.Tensor]:
        """Collect all that a checkpoint needs: trained tensors and the optimizer's moments, by parameter name."""
        adapter = self.parameters | self.still
        return {f"parameter/{name}": p.detach() for name, p in adapter.items()} | peft_optimizer.state(
            self.optimizer, self.parameters
        )

    def load_state(self, run: int, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in (self.parameters | self.still).items():
                parameter.copy_(tensors[f"parameter/{name}"])
        peft_optimizer.load_state(self.optimizer, self.parameters, tensors)

    def trained(self, run: int = 0) -> dict[str, torch.Tensor]:
        """Give the trained tensors by the names of the model's parameters."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def scales(self, run: int = 0) -> set[float]:
        """Read the scales by which PEFT's layers multiply ``B A``."""
        from peft.tuners.lora import LoraLayer

        layers = [module for module in self.network.modules() if isinstance(module, LoraLayer)]
        return {float(value) for layer in layers for value in layer.scaling.values()}

    def rates_of_parts(self, run: int = 0) -> dict[str, set[float]]:
        """The learning rates over the run's own of the optimizer's groups, by the part's name."""
        rate_of = {id(p): group["rate"] for group in self.optimizer.param_groups for p in group["params"]}
        rates = {
            part.name: {rate_of[id(p)] for name, p in self.parameters.items() if name.endswith(part.parameter)}
            for part in all_parts().values()
        }
        return {name: of_part for name, of_part in rates.items() if of_part}

    def digests(self) -> list[dict[str, list[int]]]:
        """A sum over the bits of each tensor of the adapter, by the part's name; nothing where there is no adapter."""
        model = dict(self.network.named_parameters())
        digests = {
            part.name: [_digest(p) for name, p in model.items() if name.endswith(part.parameter)] for part in all_parts().values()
        }
        return [{name: of_part for name, of_part in digests.items() if of_part}]

    def finite(self) -> list[bool]:
        return [all(bool(torch.isfinite(p).all()) for p in self.parameters.values())]

    def finish(self) -> None:
        """Do nothing: no memory is held that only training needs."""

    def save_adapter(self, run: int, config: Config, folder: Path) -> None:
        self.network.save_pretrained(folder)


def _digest(tensor: torch.Tensor) -> int:
    return int(tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64))
