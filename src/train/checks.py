"""Live checks: proof, in every record, that the variant a run was asked for is the variant that trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from src.config import LoraSettings, VariantConfig
from src.variants.quantization import BITS, quantised_layers
from src.variants.scaling import effective_scale

Check = dict[str, Any]  # {"ok": bool, "detail": str}


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """A hash of the tensors' bytes, computed where they are: XOR and sum of their 64-bit words, per tensor."""
    digest = []
    for tensor in tensors:
        raw = tensor.detach().contiguous().flatten().view(torch.uint8)
        words = torch.cat([raw, raw.new_zeros(-raw.numel() % 8)]).view(torch.int64)
        digest.append(hash((int(words.sum()), int(torch.hash_tensor(words).view(torch.int64)))))
    return f"{hash(tuple(digest)) & (2**64 - 1):016x}"


def frozen_tensors(model: nn.Module) -> list[torch.Tensor]:
    return [p for p in model.parameters() if not p.requires_grad]


class LiveChecks:
    """Takes what must not change, or must, before training; judges after."""

    def __init__(self, model: nn.Module, variant: VariantConfig, lora: LoraSettings, trainable: int, linears: int) -> None:
        self.model = model
        self.variant = variant
        self.lora = lora
        self.expected_trainable = trainable
        self.linears = linears
        self.base_before = fingerprint(self._base_tensors())
        self.magnitudes_before = {name: p.detach().clone() for name, p in self._named("lora_magnitude_vector")}

    def _base_tensors(self) -> list[torch.Tensor]:
        return list(self.model.parameters()) if self.variant.trains == "all" else frozen_tensors(self.model)

    def _named(self, part: str) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if part in name]

    def judge(self) -> dict[str, Check]:
        checks = {"trainable_parameters": self._trainable(), "quantised_layers": self._layers()}
        checks["weights_moved" if self.variant.trains == "all" else "base_unchanged"] = self._base()
        if self.variant.trains == "adapter":
            checks["effective_scale"] = self._scale()
            checks["adapter_moved"] = self._moved()
            checks["magnitude"] = self._magnitude()
        return checks

    def _trainable(self) -> Check:
        found = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return _check(
            found == self.expected_trainable, f"{found:,} parameters train; the closed form says {self.expected_trainable:,}"
        )

    def _base(self) -> Check:
        after = fingerprint(self._base_tensors())
        same, meant = after == self.base_before, self.variant.trains != "all"
        return _check(same == meant, f"base weights {self.base_before} before, {after} after")

    def _layers(self) -> Check:
        found = quantised_layers(self.model) if self.variant.base_precision in BITS else {"nf4": 0, "int8": 0}
        wanted = {kind: self.linears if kind == self.variant.base_precision else 0 for kind in BITS}
        return _check(found == wanted, ", ".join(f"{found[kind]} of {wanted[kind]} {kind} layers" for kind in BITS))

    def _scale(self) -> Check:
        from peft.tuners.lora import LoraLayer

        wanted = effective_scale(self.variant.scaling, self.lora.alpha, self.lora.r)
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        found = {value for layer in layers for value in layer.scaling.values()}
        ok = bool(found) and all(math.isclose(value, wanted, rel_tol=1e-12) for value in found)
        return _check(ok, f"scale {sorted(found)}; the formula says {wanted}")

    def _moved(self) -> Check:
        moved = [bool(p.detach().any()) for _, p in self._named("lora_B")]
        return _check(bool(moved) and all(moved), f"{sum(moved)} of {len(moved)} B matrices are no longer zero")

    def _magnitude(self) -> Check:
        now = self._named("lora_magnitude_vector")
        if self.variant.magnitude == "none":
            return _check(not now, f"{len(now)} magnitude vectors, none wanted")
        fp32 = sum(p.dtype == torch.float32 for _, p in now)
        moved = sum(bool((p.detach() != self.magnitudes_before[name]).any()) for name, p in now)
        return _check(len(now) > 0 and fp32 == moved == len(now), f"{len(now)} magnitude vectors, {fp32} in fp32, {moved} moved")


def _check(ok: bool, detail: str) -> Check:
    return {"ok": ok, "detail": detail}
