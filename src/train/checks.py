"""Live checks: proof, in every record, that the variant a run was asked for is the variant that trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch

from ..config.schema import Config
from ..engine.protocol import Engine
from ..model.fingerprint import fingerprint, frozen_tensors
from ..variants.quantization import BITS, quantised_layers
from ..variants.scaling import effective_scale

Check = dict[str, Any]  # {"ok": bool, "detail": str}
Tensors = dict[str, torch.Tensor]


class LiveChecks:
    """Takes what must not change, or must, before training; judges each run of the pack after."""

    def __init__(self, engine: Engine, configs: Sequence[Config], trainable: Sequence[int], linears: int) -> None:
        self.engine = engine
        self.configs = configs
        self.expected_trainable = trainable
        self.linears = linears
        self.all_train = configs[0].variant.trains == "all"
        self.base_before = fingerprint(self._base_tensors())
        self.magnitudes_before = [
            {name: tensor.clone() for name, tensor in _parts(engine.trained(run), "lora_magnitude_vector").items()}
            for run in range(len(configs))
        ]

    @cached_property
    def base_after(self) -> str:
        """Taken at the first verdict: the runs of a pack share their base."""
        return fingerprint(self._base_tensors())

    def _base_tensors(self) -> list[torch.Tensor]:
        network = self.engine.network
        return list(network.parameters()) if self.all_train else frozen_tensors(network)

    def judge(self, run: int) -> dict[str, Check]:
        variant, trained = self.configs[run].variant, self.engine.trained(run)
        checks = {"trainable_parameters": self._trainable(run, trained), "quantised_layers": self._layers(run)}
        checks["weights_moved" if self.all_train else "base_unchanged"] = self._base()
        if variant.trains == "adapter":
            checks["effective_scale"] = self._scale(run)
            checks["adapter_moved"] = self._moved(trained)
            checks["magnitude"] = self._magnitude(run, trained)
        return checks

    def _trainable(self, run: int, trained: Tensors) -> Check:
        found = sum(tensor.numel() for tensor in trained.values())
        wanted = self.expected_trainable[run]
        return _check(found == wanted, f"{found:,} parameters train; the closed form says {wanted:,}")

    def _base(self) -> Check:
        same = self.base_after == self.base_before
        return _check(same != self.all_train, f"base weights {self.base_before} before, {self.base_after} after")

    def _layers(self, run: int) -> Check:
        precision = self.configs[run].variant.base_precision
        found = quantised_layers(self.engine.network)  # on a 16-bit base too: there it must be none
        wanted = {kind: self.linears if kind == precision else 0 for kind in BITS}
        return _check(found == wanted, ", ".join(f"{found[kind]} of {wanted[kind]} {kind} layers" for kind in BITS))

    def _scale(self, run: int) -> Check:
        config = self.configs[run]
        wanted = effective_scale(config.variant.scaling, config.lora.alpha, config.lora.r)
        found = self.engine.scales(run)
        # The packed engine holds its scales in fp32, as it holds everything that trains.
        ok = bool(found) and all(math.isclose(value, wanted, rel_tol=1e-7) for value in found)
        return _check(ok, f"scale {sorted(found)}; the formula says {wanted}")

    def _moved(self, trained: Tensors) -> Check:
        moved = _each(tensor.any() for tensor in _parts(trained, "lora_B").values())
        return _check(bool(moved) and all(moved), f"{sum(moved)} of {len(moved)} B matrices are no longer zero")

    def _magnitude(self, run: int, trained: Tensors) -> Check:
        now, before = _parts(trained, "lora_magnitude_vector"), self.magnitudes_before[run]
        if self.configs[run].variant.magnitude == "none":
            return _check(not now, f"{len(now)} magnitude vectors, none wanted")
        fp32 = sum(tensor.dtype == torch.float32 for tensor in now.values())
        moved = sum(_each((tensor != before[name]).any() for name, tensor in now.items()))
        return _check(len(now) > 0 and fp32 == moved == len(now), f"{len(now)} magnitude vectors, {fp32} in fp32, {moved} moved")


def _parts(trained: Tensors, part: str) -> Tensors:
    return {name: tensor for name, tensor in trained.items() if part in name}


def _each(found: Iterable[torch.Tensor]) -> list[bool]:
    """The truth of each; a GPU, where they are computed, is waited for once."""
    known = list(found)
    return torch.stack(known).tolist() if known else []


def _check(ok: bool, detail: str) -> Check:
    return {"ok": ok, "detail": detail}
