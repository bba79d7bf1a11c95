"""A base's formats are counted by its numbers, not by its layers; what a precision would leave in 16 bits is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.files.errors import ConfigError
from src.model.pretrained import load_whole
from src.variants import adapters, quantization, share
from tests.bases import GEMMA3, LLAMA, saved

CPU = torch.device("cpu")


def base(place: Path, family: str = "llama", **more: Any) -> Any:
    return load_whole(saved(place, family, **more), "x", torch.bfloat16).requires_grad_(False)


def placed(network: Any, precision: str) -> Any:
    variant = compose(["model=tiny", f"variant.base_precision={precision}"]).variant
    return quantization.place(network.requires_grad_(False), variant, CPU, torch.float32)


@pytest.mark.parametrize("precision", ["nf4", "fp4", "int8"])
def test_the_share_of_a_quantized_llama_is_that_of_its_linear_layers(folder: Path, precision: str) -> None:
    network = base(folder)
    total = sum(parameter.numel() for parameter in network.parameters())
    d, f = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    linear = LLAMA["num_hidden_layers"] * (3 * d * d + 3 * d * f)  # q, o, and k with v as wide as d together; gate, up, down
    share.refuse_left_out(network, precision)
    assert share.quantized_share(placed(network, precision), precision) == 1
    assert share.base_share(network) == {
        "bf16": round(1 - linear / total, 6), precision: pytest.approx(linear / total, abs=1e-6)
    }  # fmt: skip


def test_a_base_that_is_not_quantized(folder: Path) -> None:
    network = base(folder)
    assert share.base_share(network) == {"bf16": 1.0} and share.quantized_share(network, "nf4") == 0
    assert share.base_share(network.float()) == {"fp32": 1.0}
    share.refuse_left_out(network, "bf16")


def test_a_layer_that_stayed_in_16_bits_shows(folder: Path) -> None:
    network = placed(base(folder), "nf4")
    inner = network.model.layers[1].mlp
    inner.up_proj = torch.nn.Linear(LLAMA["hidden_size"], LLAMA["intermediate_size"], bias=False, dtype=torch.bfloat16)
    inner.up_proj.requires_grad_(False)
    assert share.quantized_share(network, "nf4") == pytest.approx(1 - 16 * 24 / (2 * (3 * 16 * 16 + 3 * 16 * 24)))


@pytest.mark.parametrize(("family", "kind"), [("mixtral", "fused experts"), ("gpt2", "a Conv1D")])
@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_matrices_that_are_no_linear_layers_are_refused(folder: Path, family: str, kind: str, precision: str) -> None:
    """On the meta device too, as planning does it; the experts are 4 of 4 of what a layer's MLP holds, not layers of it."""
    for options in ({}, {"device_map": {"": "meta"}}):
        network = load_whole(saved(folder, family), "x", torch.bfloat16, **options)
        with pytest.raises(ConfigError, match=f"variant.base_precision={precision}: .*% of {family}'s") as error:
            share.refuse_left_out(network, precision)
        assert kind in str(error.value) and "use a 16-bit variant" in str(error.value)
    if family == "mixtral":
        per_layer, attention = 4 * 3 * 16 * 24 + 4 * 16, 3 * 16 * 16  # experts and their router; q, o, k with v
        assert f"{per_layer / (per_layer + attention):.0%} of" in str(error.value)


def test_a_tower_for_images_is_neither_quantized_nor_adapted(folder: Path) -> None:
    network = base(folder, "gemma3")
    names = [name for name, _ in adapters.adaptable_layers(network)]
    assert len(names) == 7 * GEMMA3["text_config"]["num_hidden_layers"]
    assert all(name.startswith("model.language_model.") for name in names)
    placed(network, "nf4")
    assert share.quantized_share(network, "nf4") == 1
    assert not any("Linear4bit" in type(module).__name__ for module in network.model.vision_tower.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3"])
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_peft_adapts_the_layers_that_are_counted(folder: Path, family: str, variant: str) -> None:
    from src.variants import counts

    config = compose(["model=tiny", f"variant={variant}", "lora.r=4"])
    network = load_whole(saved(folder, family), "x", torch.float32)
    linears = adapters.linears_of(network)
    adapted = adapters.attach(network.requires_grad_(False), config.variant, config.lora, 0)
    trains = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trains == counts.trainable_parameters(config.variant, config.lora, linears, 0) > 0
    if family == "gpt2":  # c_attn, c_proj, c_fc, c_proj of a layer: r (in + out), and out for m
        d, layers = 16, 2
        sizes = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
        assert trains == layers * sum(4 * (a + b) + b * (variant == "dora") for a, b in sizes)


def test_what_peft_adapts_beyond_the_counted_layers_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=tiny", "lora.r=4"])
    network = load_whole(saved(folder, "gemma3"), "x", torch.float32)
    monkeypatch.setattr(adapters, "_names_by_peft", adapters._adaptable_names)  # as if it left the tower alone
    with pytest.raises(ConfigError, match=r"PEFT adapts \d+ layers of this gemma3 where 14 linear ones are meant"):
        adapters.attach(network, config.variant, config.lora, 0)
