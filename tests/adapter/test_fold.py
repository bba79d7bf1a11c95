"""A fold computes on the adapter's device and leaves the plain base on its own, though no GPU is here to show it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from src.adapter import adapted, fidelity, fold, merge
from src.command.cli import compose
from src.config.schema import CONF_FOLDER, Config
from src.model.device import Numerics
from src.model.models import load
from src.variants import adapters

ADAPTERS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml") if path.stem not in ("full", "frozen"))
# A second processor stands for the GPU: torch refuses to mix the two as it does a CPU and a GPU, and needs no CUDA for it.
GPU, CPU = torch.device("cpu", 1), torch.device("cpu")


@pytest.fixture(autouse=True)
def _movable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``Module.to`` replace tensors without content, which torch cannot change in place."""

    def to(self: torch.nn.Module, *where: Any, **named: Any) -> torch.nn.Module:
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.data.to(*where, **named), requires_grad=False)
        return self

    monkeypatch.setattr(torch.nn.Module, "to", to)


def two_devices(variant: str) -> tuple[Config, Any, Any]:
    """A model with an adapter on a GPU, whose tensors have no content, and the plain base on the CPU, as ``load_base`` gives it.

    An operation that takes tensors of both raises as on a machine that has the GPU. Quantized layers are 16-bit ones here.
    """
    config = compose(["model=tiny", f"variant={variant}", "lora.r=4"])
    network = load(config.model, torch.bfloat16, CPU)[0].to(GPU)
    adapted_network = adapters.attach_as(network, adapters.lora_config(config.variant, config.lora), 0)
    plain, _ = load(config.model, torch.bfloat16, CPU)
    return config, adapted_network, plain


def devices(network: Any) -> set[torch.device]:
    return {tensor.device for tensor in network.parameters()}


@pytest.mark.parametrize("dequantised", [False, True])
@pytest.mark.parametrize("variant", ADAPTERS)
def test_an_adapter_on_a_gpu_folds_into_a_base_on_the_cpu(variant: str, dequantised: bool) -> None:
    with FakeTensorMode():
        config, network, plain = two_devices(variant)
        assert (devices(network), devices(plain)) == ({GPU}, {CPU})
        fold.merge(network, plain, config.variant, dequantised, torch.bfloat16)
    assert (devices(network), devices(plain)) == ({GPU}, {CPU})
    assert {tensor.dtype for tensor in plain.parameters()} == {torch.bfloat16}


def test_the_control_compares_two_models_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        config, network, plain = two_devices("dora")
        numerics = Numerics(GPU, torch.float32, None)
        places: list[set[torch.device]] = []

        def gap(*solos: Any) -> fidelity.Gap:
            places.extend(devices(solo.model) for solo in solos[:2])
            return fidelity.Gap(1, 1, 0, 0, 0, 0, 0, 0)

        monkeypatch.setattr(
            adapted,
            "open_source",
            lambda *_, **__: adapted.Adapted(network, load(config.model, torch.bfloat16, CPU)[1], numerics),
        )
        monkeypatch.setattr(adapted, "load_base", lambda *_, **__: (plain, None, numerics))
        monkeypatch.setattr(fidelity, "gap", gap)
        merge._control(adapted.Source("a run", config, None, None, {}), "base", [])
    assert places == [{GPU}, {GPU}]
