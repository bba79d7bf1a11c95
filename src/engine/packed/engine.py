"""Engine ``packed``: advances K runs by optimizer steps, each as it would advance alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...config.schema import Config
from ...data.batches import Item
from ...files.errors import ConfigError
from ...model import models
from ...model.device import Numerics
from ...variants import counts
from ..protocol import Step
from ..schedule import learning_rate
from . import exchange, head, kernels, optimizer
from .buffers import Bucket
from .decode import GreedyDecoder
from .dropout import step_keys
from .feed import Feed, Inputs
from .members import member, slot_order
from .model import PackedModel
from .speed import Graphs, Speed, choose_speed

BUFFERS = {"parameter": "values", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


class PackedEngine:
    """K runs over ``network``, which it adapts. ``configs`` stand in slot order (``members.slot_order``)."""

    name = "packed"

    def __init__(
        self, network: Any, configs: Sequence[Config], items: Sequence[Item], pad: int, steps: int, numerics: Numerics
    ) -> None:
        self.config = configs[0]
        self.members = [member(config) for config in configs]
        assert slot_order(self.members) == list(range(len(self.members)))
        self.steps = steps
        self.numerics = numerics
        # On a GPU few shapes, or every new one would be recorded and perhaps compiled by itself.
        self.feed = Feed(items, pad, self.members, steps, static=numerics.device.type == "cuda")
        self.speed: Speed = choose_speed(configs[0], numerics, self._work())
        self.speed_layers = str(self.speed)
        self.fills_device = self.speed.cuda_graph
        self.model = PackedModel(network, configs[0], self.members, numerics, fused=self.speed.kernels)
        longest = max(len(item) for item in items)
        if not self.model.backbone.in_window(longest):
            raise ConfigError(
                f"engine=packed: a training row has {longest} tokens, more than the sliding window of"
                f" {self.model.backbone.config.sliding_window}; use engine=peft or a lower dataset.max_length"
            )
        self.scored = self.model
        exchange.fill(self.model)
        self.network = network.train()
        self.chunk = 1 if numerics.device.type == "cpu" else 10
        device, dtype = numerics.device, self.model.buckets[0].values.dtype
        self.alive = torch.ones(len(configs), dtype=torch.bool, device=device)
        self.rates = torch.zeros(len(configs), dtype=dtype, device=device)
        self.corrections = torch.ones(2, dtype=dtype, device=device)
        self.decay = torch.tensor([m.train.weight_decay for m in self.members], dtype=dtype, device=device)
        self.clip = torch.tensor([m.train.clip or math.inf for m in self.members], dtype=dtype, device=device)
        self.loss = torch.zeros(len(configs), dtype=dtype, device=device)
        self.norm = torch.zeros_like(self.loss)
        self.stretches = [bucket.stretches() for bucket in self.model.buckets]
        self.softmax = kernels.softmax_losses if self.speed.kernels else head.softmax_losses
        self.update = kernels.adamw if self.speed.kernels else optimizer.update
        if self.speed.compile:
            self.model.backbone.compile()
        if self.speed.cuda_graph:  # eagerly, a token costs the launches of a whole forward pass
            self.model.greedy = GreedyDecoder(self.model.backbone, len(configs), recorded=True)
        self.graphs = Graphs(self._compute, enabled=self.speed.cuda_graph)
        self._host: dict[tuple[int, str], torch.Tensor] = {}

    def advance(self, first: int, last: int) -> list[Step]:
        """Steps ``first`` to ``last``, 0-based and without ``last``. A run whose numbers are not finite stands still."""
        self._host.clear()
        device, dtype = self.numerics.device, self.loss.dtype
        losses = torch.empty(last - first, len(self.members), dtype=dtype, device=device)
        norms = torch.empty_like(losses)
        done = []
        for step in range(first, last):
            inputs = self.feed.inputs(step)
            rates = [learning_rate(m.train, step, self.steps) for m in self.members]
            self._place(step, rates)
            self.graphs.run(inputs.shape, self._on_device(inputs))
            losses[step - first].copy_(self.loss)
            norms[step - first].copy_(self.norm)
            done.append((rates, inputs.tokens))
        return [
            Step(loss, norm, rates, tokens)
            for loss, norm, (rates, tokens) in zip(losses.tolist(), norms.tolist(), done, strict=True)
        ]

    def _work(self) -> float:
        """FLOPs of the whole training, padding included; infinite where the model's shape is unknown."""
        shape = models.find_shape(self.config.model)
        if shape is None:
            return math.inf
        targets = counts.targets(counts.linears(shape), self.config.lora.target_modules, self.config.model.name)
        tokens = self.feed.sequences * self.feed.width * self.feed.micro_batches * self.steps
        each = [counts.flops_per_token(shape, self.config.variant, m.lora, targets, self.feed.width).total for m in self.members]
        return tokens * sum(each)

    def _place(self, step: int, rates: list[float]) -> None:
        """Write what the step reads beside its rows to where it reads it."""
        self.rates.copy_(self._sent(torch.tensor(rates, dtype=self.rates.dtype)))
        t = step + 1
        corrections = [1 - optimizer.BETA1**t, math.sqrt(1 - optimizer.BETA2**t)]
        self.corrections.copy_(self._sent(torch.tensor(corrections, dtype=self.corrections.dtype)))
        self.model.context.keys.copy_(self._sent(step_keys([m.seed for m in self.members], step)))

    def _on_device(self, inputs: Inputs) -> tuple[torch.Tensor, ...]:
        weights = inputs.weights.to(self.loss.dtype)
        tensors = (inputs.ids, inputs.rows, inputs.positions, inputs.labeled, inputs.targets, weights)
        return tuple(self._sent(tensor) for tensor in tensors)

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device, from pinned memory: a copy from other memory would wait for the steps before it."""
        if self.numerics.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.numerics.device, non_blocking=True)

    def _compute(
        self, ids: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, labeled: torch.Tensor, targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:  # fmt: skip
        """Forward, backward and update of one optimizer step; leaves ``loss`` and ``norm``. Shapes as in ``Inputs``."""
        model = self.model
        for bucket in model.buckets:
            bucket.grads.zero_()
        self.loss.zero_()
        for micro in range(len(ids)):
            losses = model.training_losses(
                ids[micro], rows[micro], positions[micro], labeled[micro], targets[micro], weights[micro], self.feed.shared,
                self.softmax,
            )  # fmt: skip
            per_run = losses.sum(1)
            # The sum over runs of their means: each run's gradient is that of its own loss, whatever K is.
            per_run.sum().backward()  # type: ignore[no-untyped-call]
            self.loss += per_run.detach()
        with torch.no_grad():
            self._transform_gradients()
            self._update()

    def _transform_gradients(self) -> None:
        """Let methods that correct their gradients do so, one module of all layers at a time."""
        for bucket in self.model.buckets:
            if bucket.gradients is None:
                continue
            for kind in self.model.blocks.kinds:
                trained = {p.name: bucket.all_layers(bucket.grads, kind, p.name) for p in bucket.parts if p.trained}
                values = {p.name: bucket.all_layers(bucket.values, kind, p.name) for p in bucket.parts}
                bucket.gradients(trained, values, bucket.scale)

    def _update(self) -> None:
        self.norm.copy_(optimizer.gradient_norms(self.model.buckets))
        self.alive &= torch.isfinite(self.loss) & torch.isfinite(self.norm)
        clip = (self.clip / (self.norm + 1e-6)).clamp(max=1.0)  # torch.nn.utils.clip_grad_norm_
        first, second = self.corrections
        for bucket, stretches in zip(self.model.buckets, self.stretches, strict=True):
            runs = slice(bucket.first, bucket.first + bucket.runs)
            values = bucket.values[..., bucket.still :]
            for stretch in stretches:
                numbers = (..., slice(stretch.start, stretch.end))
                lr = self.rates[runs, None] if stretch.rate is None else self.rates[runs, None] * stretch.rate
                self.update(
                    values[numbers], bucket.grads[numbers], bucket.exp_avg[numbers], bucket.exp_avg_sq[numbers],
                    clip[runs, None], lr, self.decay[runs, None], first, second, self.alive[runs, None],
                )  # fmt: skip
        self.model.refresh()

    def state(self, run: int) -> dict[str, torch.Tensor]:
        """Copy what a run's checkpoint needs to the CPU, by PEFT's names: its adapter, and AdamW's moments of what trains."""
        return {
            f"{kind}/{name}": tensor
            for kind, buffer in BUFFERS.items()
            for name, tensor in exchange.named(self.model, run, self._on_host(run, buffer), kind != "parameter").items()
        }

    def _on_host(self, run: int, buffer: str) -> torch.Tensor:
        """A run's row of a buffer. All rows are kept until the next step: a pack's runs are asked for one after another."""
        bucket, row = self.model.bucket_of(run)
        key = (bucket.first, buffer)
        if key not in self._host:
            self._host[key] = getattr(bucket, buffer).cpu()
        return self._host[key][:, row]

    @torch.no_grad()
    def load_state(self, run: int, tensors: dict[str, torch.Tensor]) -> None:
        bucket, row = self.model.bucket_of(run)
        for kind, buffer in BUFFERS.items():
            place = getattr(bucket, buffer)[:, row]
            host = place.cpu()
            for name, layer, module in self.model.blocks.modules:
                for part in bucket.parts:
                    if part.trained or kind == "parameter":
                        stored = tensors[f"{kind}/{exchange.parameter_name(name, part)}"]
                        bucket.of_run(host, row, layer, module, part.name).copy_(stored)
            place.copy_(host)
        self.model.refresh()
        self._host.clear()

    def trained(self, run: int) -> dict[str, torch.Tensor]:
        """Name what trains of a run's adapter, fp32, as PEFT does: views of its slot, as a pack's adapters may be gigabytes."""
        bucket, row = self.model.bucket_of(run)
        return exchange.named(self.model, run, bucket.values[:, row])

    def scales(self, run: int) -> set[float]:
        """The factors that really multiply ``B A`` in a run's layers."""
        bucket, row = self.model.bucket_of(run)
        return {float(bucket.scale[row])}

    def rates_of_parts(self, run: int) -> dict[str, set[float]]:
        """Return the learning rates over the run's own that its trained parts are updated with, by the part's name."""
        bucket, row = self.model.bucket_of(run)
        stretches = self.stretches[self.model.buckets.index(bucket)]
        rates, end = {}, 0
        for part in bucket.parts:
            if part.trained:
                start, end = end, end + bucket.size(part)
                over = [stretch.rate for stretch in stretches if stretch.start < end and start < stretch.end]
                rates[part.name] = {1.0 if rate is None else float(rate[row]) for rate in over}
        return rates

    def digests(self) -> list[dict[str, list[int]]]:
        """Sum the bits of each tensor of each run's adapter, by the part's name, in the model's order of modules."""
        digests: list[dict[str, list[int]]] = []
        for bucket in self.model.buckets:
            parts = {part.name: self._digest(bucket, part.name) for part in bucket.parts}
            digests += [{name: rows[run] for name, rows in parts.items()} for run in range(bucket.runs)]
        return digests

    def _digest(self, bucket: Bucket, part: str) -> list[list[int]]:
        """Sum the bits of one part, [runs, modules]; the device is waited for once."""
        words = torch.int32 if bucket.values.element_size() == 4 else torch.int64
        sums = [
            bucket.all_layers(bucket.values, kind, part).view(words).flatten(2).sum(2, dtype=torch.int64)
            for kind in self.model.blocks.kinds
        ]
        rows: list[list[int]] = torch.stack(sums, dim=2).transpose(0, 1).flatten(1).tolist()
        return rows

    def finite(self) -> list[bool]:
        finite: list[bool] = torch.cat([torch.isfinite(b.values).all(dim=2).all(dim=0) for b in self.model.buckets]).tolist()
        return finite

    def finish(self) -> None:
        self.graphs.release()

    def save_adapter(self, run: int, config: Config, folder: Path) -> None:
        bucket, row = self.model.bucket_of(run)
        # Layer by layer: a run's row is spread over the buffer, and the device would gather all of it first, in memory that
        # the scoring beside this has counted as its own.
        host = torch.stack([layer.cpu() for layer in bucket.values[:, row]])
        self.exporter.save(config, exchange.named(self.model, run, host, only_trained=False), folder)

    @cached_property
    def exporter(self) -> exchange.Exporter:
        return exchange.Exporter(self.model, self.config)
