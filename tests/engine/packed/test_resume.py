"""A run's state goes into another pack and goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.config.schema import Config
from src.record import checkpoint
from src.record.checkpoint import CheckpointState, Progress
from tests.engine.packed.conftest import EVEN, FP32, FP64, ITEMS, Tensors, config_of, pack_of, trace

STEPS, BREAK = 12, 5
RUN = ["lora.r=5", "seed=3", "lora.dropout=0.2", "train.weight_decay=0.05", "train.schedule=cosine", "train.warmup=0.5"]


def stored(state: Tensors, folder: Path) -> Tensors:
    """Through a file, as a checkpoint goes."""
    checkpoint.save(folder / "checkpoints", state, CheckpointState(Progress(step=BREAK)))
    tensors, loaded = checkpoint.load(checkpoint.steps(folder / "checkpoints")[BREAK])
    assert loaded.progress.step == BREAK and tensors.keys() == state.keys()
    return tensors


@pytest.mark.parametrize("variant", ["rslora", "dora_rs", "loraplus", "lora_frozen_a"])
@pytest.mark.usefixtures("exact_norms")
def test_in_other_company_and_another_padding(variant: str, folder: Path) -> None:
    """The run was padded from 5 to 12; it goes on in the last slot, padded to 16, and not at all."""
    run = config_of(variant, *RUN)
    first = [run, config_of(variant, "lora.r=12", "seed=1")]
    whole = trace(pack_of(first, FP64, STEPS))[0]
    started = pack_of(first, FP64, STEPS)
    trace(started, 0, BREAK)
    state = stored(started.state(0), folder)
    companies: list[tuple[list[Config], int]] = [
        ([config_of(variant, "lora.r=16", "seed=9", "data_seed=4"), config_of(variant, "lora.r=2"), run], 2),
        ([run], 0),
    ]
    for configs, slot in companies:
        pack = pack_of(configs, FP64, STEPS)
        pack.load_state(slot, state)
        found = trace(pack, BREAK)[slot]
        assert (found.losses - whole.losses[BREAK:]).abs().max() <= 1e-12
        assert max(float((found.trained[name] - tensor).abs().max()) for name, tensor in whole.trained.items()) <= 1e-12


@pytest.mark.parametrize("variant", ["lora", "dora", "qdora", "lora_8bit"])
def test_in_the_same_pack_to_the_bit(variant: str, folder: Path) -> None:
    configs = [config_of(variant, *RUN), config_of(variant, "lora.r=9", "lora.dropout=0.1", "seed=4", "train.clip=0.2")]
    items = EVEN if variant == "lora_8bit" else ITEMS
    whole = trace(pack_of(configs, FP32, STEPS, items))
    started, resumed = pack_of(configs, FP32, STEPS, items), pack_of(configs, FP32, STEPS, items)
    trace(started, 0, BREAK)
    for run in range(2):
        resumed.load_state(run, stored(started.state(run), folder))
    for found, wanted in zip(trace(resumed, BREAK), whole, strict=True):
        assert torch.equal(found.losses, wanted.losses[BREAK:]) and torch.equal(found.norms, wanted.norms[BREAK:])
        assert all(torch.equal(tensor, wanted.trained[name]) for name, tensor in found.trained.items())


def test_a_state_holds_the_run_without_padding_and_comes_back_as_it_was() -> None:
    pack = pack_of([config_of("dora", "lora.r=3"), config_of("dora", "lora.r=16", "seed=1")])
    pack.advance(0, 3)
    before = [{name: tensor.clone() for name, tensor in pack.state(run).items()} for run in range(2)]
    assert {min(tensor.shape) for name, tensor in before[0].items() if "lora_A" in name} == {3}
    assert all(tensor.any() for tensor in before[0].values())
    other = pack_of([config_of("dora", "lora.r=3"), config_of("dora", "lora.r=4"), config_of("dora", "lora.r=16", "seed=1")])
    for slot, state in ((0, before[0]), (2, before[1])):
        other.load_state(slot, state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state(slot).items())


def test_another_runs_state_is_refused() -> None:
    lora, other, dora = (pack_of([config_of(variant, f"lora.r={r}")]) for variant, r in (("lora", 4), ("lora", 5), ("dora", 4)))
    with pytest.raises(RuntimeError):
        lora.load_state(0, other.state(0))
    with pytest.raises(KeyError):
        dora.load_state(0, lora.state(0))
