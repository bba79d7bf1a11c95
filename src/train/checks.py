"""Live checks: proof, in every record, that the variant a run was asked for is the variant that trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from ..config.schema import Config
from ..engine.protocol import Engine
from ..model.fingerprint import fingerprint, frozen_tensors
from ..variants.methods.part import PartSeen, Seen
from ..variants.methods.point import all_parts, proofs_of
from ..variants.quantization import BITS, quantised_layers
from ..variants.share import quantized_share

Check = dict[str, Any]  # {"ok": bool, "detail": str}


class LiveChecks:
    """Takes what must not change, or must, before training; judges each run of the pack after."""

    def __init__(
        self, engine: Engine, configs: Sequence[Config], trainable: Sequence[int], linears: int, closed_form: bool = True
    ) -> None:
        """``trainable``: parameters that shall train in each run, ``closed_form``: by a formula of the model's dimensions and not
        counted from its modules. ``linears``: how many layers a quantized base quantizes."""
        self.engine = engine
        self.configs = configs
        self.expected_trainable = trainable
        self.linears = linears
        self.closed_form = closed_form
        self.all_train = configs[0].variant.trains == "all"
        self.base_before = fingerprint(self._base_tensors())
        self.before = engine.digests()

    @cached_property
    def base_after(self) -> str:
        """Taken at the first verdict: the runs of a pack share their base."""
        return fingerprint(self._base_tensors())

    @cached_property
    def after(self) -> list[dict[str, list[int]]]:
        """Taken at the first verdict."""
        return self.engine.digests()

    def _base_tensors(self) -> list[torch.Tensor]:
        network = self.engine.network
        return list(network.parameters()) if self.all_train else frozen_tensors(network)

    def judge(self, run: int) -> dict[str, Check]:
        variant = self.configs[run].variant
        checks = {"trainable_parameters": self._trainable(run), "quantised_layers": self._layers(run)}
        checks["weights_moved" if self.all_train else "base_unchanged"] = self._base()
        if variant.trains == "adapter":
            seen = self._seen(run)
            checks |= {name: _check(*proof(seen)) for name, proof in proofs_of(variant).items()}
        return checks

    def _seen(self, run: int) -> Seen:
        config, rates = self.configs[run], self.engine.rates_of_parts(run)
        trained = self.engine.trained(run)
        parts = {
            part.name: PartSeen(
                count=len(digests),
                moved=sum(now != before for now, before in zip(digests, self.before[run][part.name], strict=True)),
                fp32=sum(name.endswith(part.parameter) and tensor.dtype == torch.float32 for name, tensor in trained.items()),
                rates=frozenset(rates.get(part.name, ())),
            )
            for part in all_parts().values()
            if (digests := self.after[run].get(part.name))
        }
        return Seen(frozenset(self.engine.scales(run)), config.lora.alpha, config.lora.r, parts)

    def _trainable(self, run: int) -> Check:
        trains = sum(tensor.numel() for tensor in self.engine.trained(run).values())
        wanted = self.expected_trainable[run]
        source = "the closed form says" if self.closed_form else "counted from the modules it is"
        return _check(trains == wanted, f"{trains:,} parameters train; {source} {wanted:,}")

    def _base(self) -> Check:
        same = self.base_after == self.base_before
        return _check(same != self.all_train, f"base weights {self.base_before} before, {self.base_after} after")

    def _layers(self, run: int) -> Check:
        precision = self.configs[run].variant.base_precision
        counted = quantised_layers(self.engine.network)  # on a 16-bit base too: there it must be none
        wanted = {kind: self.linears if kind == precision else 0 for kind in BITS}
        detail = ", ".join(f"{counted[kind]} of {wanted[kind]} {kind} layers" for kind in BITS)
        if precision not in BITS:
            return _check(counted == wanted, detail)
        share = quantized_share(self.engine.network, precision)  # layers alone do not show experts that are no layers
        return _check(counted == wanted and share == 1, f"{detail}; {share:.1%} of the decoder's weights are {precision}")


def _check(ok: bool, detail: str) -> Check:
    return {"ok": ok, "detail": detail}
