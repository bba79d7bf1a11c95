"""Let PEFT begin and end a run: its initializer fills the slots, its saving code writes the adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...config.schema import Config, LoraSettings
from ...variants.adapters import lora_config
from ...variants.methods.part import Part
from ...variants.methods.point import VariantConfig
from .model import PackedModel

Sizes = Sequence[tuple[int, int]]  # (in_features, out_features) of each adapted layer, in the model's order
DRAWN_AT_ONCE = 8  # adapters, a thread each


def initial(lora: LoraSettings, seed: int, sizes: Sizes) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw (A [r, in], B [out, r]) of each layer in fp32, as ``get_peft_model`` does under ``seed``.

    PEFT's layer is built on stand-ins without weights, in the same order, so it draws the same random numbers. Other parts draw
    none: their terms start them. One layer at a time, so that the next one takes its memory.
    """
    from peft.tuners.lora.layer import Linear

    config, own = lora_config(VariantConfig(), lora), _OwnGenerator(seed)
    for in_features, out_features in sizes:
        stand_in = nn.Linear(in_features, out_features, bias=False, device="meta")
        stand_in.weight = nn.Parameter(torch.zeros(1).expand(out_features, in_features), requires_grad=False)
        with own:
            layer = Linear(stand_in, "default", config=config, r=lora.r, lora_alpha=lora.alpha)  # type: ignore[arg-type]
        yield layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


class _OwnGenerator(TorchFunctionMode):
    """Redirect initializers to a generator of our own, so that threads do not share torch's global one.

    In this block they draw what ``torch.manual_seed(seed)`` would have them draw. Only initializers that take a generator are
    redirected, as PEFT's are: a new ``lora.init`` has to be one of them.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return function(*args, **kwargs | {"generator": self.generator} if "generator" in kwargs else kwargs)


@torch.no_grad()
def fill(model: PackedModel) -> None:
    """Give every run its fresh adapter. Seeds are paired, so a sweep has few different ones, which are drawn side by side."""
    same_start: dict[tuple[int, int, int, str], list[int]] = {}
    for run, member in enumerate(model.members):
        key = (model.bucket_of(run)[0].first, member.seed, member.r, member.lora.init)
        same_start.setdefault(key, []).append(run)
    with ThreadPoolExecutor(DRAWN_AT_ONCE) as pool:
        list(pool.map(lambda runs: _start(model, runs), same_start.values()))
    for term in model.terms.values():
        term.start()
    model.refresh()


@torch.no_grad()  # in each thread by itself
def _start(model: PackedModel, runs: Sequence[int]) -> None:
    """Draw the A and B of the first of these runs, straight into its slot, and copy them to the others."""
    bucket, row = model.bucket_of(runs[0])
    values, member, modules = bucket.values[:, row], model.members[runs[0]], model.blocks.modules
    sizes = [(kind.in_features, kind.out_features) for _, _, kind in modules]
    for (_, layer, kind), (a, b) in zip(modules, initial(member.lora, member.seed, sizes), strict=True):
        bucket.of_run(values, row, layer, kind, "A").copy_(a)
        bucket.of_run(values, row, layer, kind, "B").copy_(b)
    for run in runs[1:]:
        bucket.values[:, run - bucket.first].copy_(values)


def named(model: PackedModel, run: int, row: torch.Tensor, only_trained: bool = True) -> dict[str, torch.Tensor]:
    """Name views of ``row``, a run's [layers, parameters] of one of its bucket's buffers or a copy of it, as PEFT does."""
    bucket, place = model.bucket_of(run)
    return {
        parameter_name(name, part): bucket.of_run(row, place, layer, kind, part.name)
        for name, layer, kind in model.blocks.modules
        for part in bucket.parts
        if part.trained or not only_trained
    }


def parameter_name(module: str, part: Part) -> str:
    """Return PEFT's name of a part of a module's adapter."""
    return f"base_model.model.{module}.{part.parameter}"


class Exporter:
    """Write adapters through a PEFT model of the same architecture without weights."""

    def __init__(self, model: PackedModel, config: Config) -> None:
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        # A copy: transformers writes to the config that it is given, and a thread may be running the model by it.
        settings = copy.deepcopy(model.network.config)
        settings._attn_implementation = model.backbone.attention
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(settings)
        shell.name_or_path = model.network.name_or_path
        small = copy.copy(config.lora)
        small.r = 1
        self.peft: Any = get_peft_model(shell, lora_config(VariantConfig(), small))
        self.targets = self.peft.peft_config["default"].target_modules

    def save(self, config: Config, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        known = self.peft.peft_config["default"]
        settings = lora_config(config.variant, config.lora)
        settings.target_modules = self.targets
        settings.base_model_name_or_path = known.base_model_name_or_path
        self.peft.peft_config["default"] = settings
        self.peft.save_pretrained(folder, state_dict=tensors)
