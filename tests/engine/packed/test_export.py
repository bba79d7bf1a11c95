"""An adapter on disk: stock PEFT reads it, and could have written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from src.config.schema import Config
from src.engine.packed.engine import PackedEngine
from src.engine.packed.frozen import Int8
from src.variants.adapters import _keep_int8_scales
from tests.engine.packed.conftest import BF16, EVEN, FP32, LOGITS, base_of, config_of, moved, pack_of, peft_of

VARIANTS = ["lora", "rslora", "dora", "dora_rs", "qlora", "qdora", "lora_8bit", "dora_8bit"]
IDS = torch.tensor([item.prompt + item.target for item in EVEN[:5]])


def configs_of(variant: str) -> list[Config]:
    return [
        config_of(variant, "lora.r=4", "seed=1"),
        config_of(variant, "lora.r=7", "seed=2", "lora.alpha=9", "lora.dropout=0.1"),
    ]


def pack_with_random_adapters(configs: list[Config]) -> PackedEngine:
    pack = pack_of(configs)
    for run in range(len(configs)):
        pack.load_state(run, moved(pack.state(run), seed=run))
    return pack


def packed_logits(pack: PackedEngine, dense: bool = False) -> torch.Tensor:
    """[runs, rows, positions, vocabulary]"""
    with pack.model.evaluating():
        if dense:
            multiply_densely(pack.network)
        logits = pack.network(input_ids=IDS.repeat(pack.model.runs, 1)).logits
    of_runs: torch.Tensor = logits.view(pack.model.runs, *IDS.shape, -1)
    return of_runs


def multiply_densely(network: torch.nn.Module) -> None:
    """Let int8 layers multiply with their dequantized weights, as in training on a CPU, and round no activation."""
    for module in network.modules():
        if isinstance(module, Int8 | bnb.nn.Linear8bitLt):
            module.train()


@pytest.mark.parametrize("variant", VARIANTS)
def test_stock_peft_loads_it_and_gives_the_same_logits(variant: str, folder: Path) -> None:
    """LLM.int8() rounds activations to 8 bits, where an fp32 rounding tips a value over by a whole step, and that one others.

    In one forward in six it does, on any processor, and the logits are then 1e-4 to 2e-3 apart. So they are compared without
    that rounding, which moves them by 2e-2. With it, what was tipped over stays in its row: one of five may be rounded afresh.
    """
    configs = configs_of(variant)
    pack = pack_with_random_adapters(configs)
    rounded, found = packed_logits(pack), packed_logits(pack, dense=True)
    for run, config in enumerate(configs):
        pack.save_adapter(run, config, folder / "adapter")
        stock = PeftModel.from_pretrained(base_of(config, FP32), folder / "adapter").eval()
        if variant == "dora_8bit":
            _keep_int8_scales(stock)  # stock PEFT cannot run DoRA on int8 twice on a CPU
        with torch.no_grad():
            stock_rounded = stock(input_ids=IDS).logits
            multiply_densely(stock)
            wanted = stock(input_ids=IDS).logits
            with stock.disable_adapter():
                base = stock(input_ids=IDS).logits
        assert (wanted - base).norm() > 0.1 * base.norm()
        assert (found[run] - wanted).norm() <= LOGITS * wanted.norm()
        noise = (stock_rounded - wanted).norm()
        assert bool(noise) == variant.endswith("_8bit")
        assert (rounded[run] - stock_rounded).norm() <= max((2 / len(IDS)) ** 0.5 * noise, LOGITS * wanted.norm())
        again = stock.load_adapter(folder / "adapter", "again")
        assert (again.missing_keys, again.unexpected_keys) == ([], [])


def test_what_trains_is_seen_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack's adapters may be gigabytes, and the live checks look at all of them twice."""
    pack = pack_with_random_adapters(configs_of("dora"))
    slots = pack.model.buckets[0].values.untyped_storage().data_ptr()
    pack._host.clear()
    for move in ("cpu", "to"):  # on a CPU these are no copies, on a GPU they are
        monkeypatch.setattr(torch.Tensor, move, lambda *_, **__: pytest.fail("a copy to the host"))
    assert {tensor.untyped_storage().data_ptr() for run in range(2) for tensor in pack.trained(run).values()} == {slots}
    assert not pack._host


FEW = ["lora.target_modules=[q_proj,v_proj]", "lora.init=gaussian"]


@pytest.mark.parametrize(("variant", "overrides"), [*((name, []) for name in VARIANTS), ("dora_rs", FEW)], ids=str)
def test_it_is_what_peft_would_have_written(variant: str, overrides: list[str], folder: Path) -> None:
    config = config_of(variant, "lora.r=7", "lora.alpha=9", "lora.dropout=0.1", *overrides)
    pack_of([config_of(variant, "lora.r=4", *overrides), config]).save_adapter(1, config, folder / "found")
    peft_of(config).save_adapter(0, config, folder / "wanted")
    assert {path.name for path in (folder / "found").iterdir()} == {path.name for path in (folder / "wanted").iterdir()}
    assert settings(folder / "found") == settings(folder / "wanted")
    found, wanted = (load_file(folder / name / "adapter_model.safetensors") for name in ("found", "wanted"))
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {name: (t.shape, t.dtype) for name, t in wanted.items()}


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    found["target_modules"].sort()  # PEFT keeps them in a set
    return found


def test_an_adapter_over_a_bf16_base_is_written_in_fp32(folder: Path) -> None:
    config = config_of("dora")
    pack_of([config], BF16).save_adapter(0, config, folder / "adapter")
    assert {tensor.dtype for tensor in load_file(folder / "adapter/adapter_model.safetensors").values()} == {torch.float32}
