"""PEFT at both ends: its initialiser fills the slots, its saving code writes the adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.config import Config, LoraSettings, VariantConfig
from src.train.packed.model import PackedModel
from src.variants.adapters import lora_config

NAMES = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
Sizes = Sequence[tuple[int, int]]  # (in_features, out_features) of each adapted layer, in the model's order


def initial(lora: LoraSettings, seed: int, sizes: Sizes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(A [r, in], B [out, r]) of each layer, fp32: what ``get_peft_model`` gives under ``seed``.

    PEFT's layer is built on stand-ins without weights, in the same order, so it draws the same random numbers. DoRA's
    magnitude draws none: it starts as the norm of the frozen rows.
    """
    from peft.tuners.lora.layer import Linear

    config = lora_config(VariantConfig(), lora)
    found = []
    torch.manual_seed(seed)
    for in_features, out_features in sizes:
        stand_in = nn.Linear(in_features, out_features, bias=False, device="meta")
        stand_in.weight = nn.Parameter(torch.zeros(1).expand(out_features, in_features), requires_grad=False)
        layer = Linear(stand_in, "default", config=config, r=lora.r, lora_alpha=lora.alpha)  # type: ignore[arg-type]
        found.append((layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()))
    return found


@torch.no_grad()
def fill(model: PackedModel) -> None:
    """Give every run its fresh adapter."""
    modules = model.blocks.modules
    sizes = [(kind.in_features, kind.out_features) for _, _, kind in modules]
    known: dict[tuple[int, int, int, str], torch.Tensor] = {}
    for run, member in enumerate(model.members):
        bucket, row = model.bucket_of(run)
        key = (bucket.first, member.seed, member.r, member.lora.init)  # seeds are paired: a sweep has few different ones
        if key not in known:
            known[key] = torch.zeros_like(bucket.values[:, row])
            host = torch.zeros_like(known[key], device="cpu")
            for (_, at, kind), (a, b) in zip(modules, initial(member.lora, member.seed, sizes), strict=True):
                bucket.of_run(host, row, at, kind, "A").copy_(a)
                bucket.of_run(host, row, at, kind, "B").copy_(b)
            known[key].copy_(host)
        bucket.values[:, row].copy_(known[key])
    for bucket in model.norms.buckets:
        for kind in model.blocks.kinds:
            bucket.all_layers(bucket.values, kind, "m").copy_(model.norms.frozen[kind].sqrt()[:, None])
    model.norms.update()


def named(model: PackedModel, run: int, buffer: str, host: dict[tuple[int, str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """One run's tensors of ``buffer`` (values, exp_avg or exp_avg_sq) under PEFT's parameter names.

    ``host`` keeps the buffers' copies on the CPU between calls, since a pack's runs are asked for one after another.
    """
    bucket, row = model.bucket_of(run)
    key = (bucket.first, buffer)
    if key not in host:
        host[key] = getattr(bucket, buffer).cpu()
    return {
        parameter_name(name, part): bucket.of_run(host[key][:, row], row, at, kind, part)
        for name, at, kind in model.blocks.modules
        for part in bucket.parts
    }


def parameter_name(module: str, part: str) -> str:
    """What PEFT calls a part of a module's adapter."""
    return f"base_model.model.{module}.{NAMES[part]}"


class Exporter:
    """Writes adapters through a PEFT model of the same architecture without weights."""

    def __init__(self, model: PackedModel, config: Config) -> None:
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(model.network.config)
        shell.name_or_path = model.network.name_or_path
        small = copy.copy(config.lora)
        small.r = 1
        self.peft: Any = get_peft_model(shell, lora_config(VariantConfig(), small))
        self.targets = self.peft.peft_config["default"].target_modules

    def save(self, config: Config, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        known = self.peft.peft_config["default"]
        mine = lora_config(config.variant, config.lora)
        mine.target_modules = self.targets
        mine.base_model_name_or_path = known.base_model_name_or_path
        self.peft.peft_config["default"] = mine
        self.peft.save_pretrained(folder, state_dict=tensors)
