"""Level 3 of "equal": whatever happens in the other slots, a run's bits stay as they are."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch

from src.config.schema import Config
from src.data.batches import Item
from src.engine.packed.engine import PackedEngine
from src.engine.packed.feed import Feed
from src.model.device import Numerics
from tests.engine.packed.conftest import EVEN, FP32, PAD, Tensors, config_of, in_slots, moved, pack_of, rows, trace

STEPS = 8
MIXED = ["lora", "rslora", "lora", "dora", "dora_rs", "dora"]
# The variants of the pack and the run that is watched: neither the first nor the last of its bucket where there are three.
PACKS = {
    "lora": (MIXED, 1),
    "dora": (MIXED, 4),
    "qlora": (["qlora", "qlora", "qdora", "qdora"], 1),
    "qdora": (["qlora", "qlora", "qdora", "qdora"], 2),
    "lora_8bit": (["lora_8bit", "lora_8bit", "dora_8bit"], 1),
    "dora_8bit": (["lora_8bit", "dora_8bit", "dora_8bit"], 1),
}
# Rows of one length, so that a step has one shape, whichever rows the runs draw.
SHARED, OF_THEIR_OWN = EVEN, rows(32, (11, 11), (4, 4))

CASES = [*((name, SHARED) for name in PACKS), ("dora", OF_THEIR_OWN)]


def configs_of(variants: Sequence[str]) -> list[Config]:
    return in_slots([config_of(name, f"seed={at}", f"lora.r={2 + at}", "lora.dropout=0.1") for at, name in enumerate(variants)])


def build(configs: Sequence[Config], items: Sequence[Item] = SHARED, numerics: Numerics = FP32) -> PackedEngine:
    engine = pack_of(configs, numerics, STEPS, items)
    engine.feed = Feed(items, PAD, engine.members, STEPS, static=True)  # with padding, as on a GPU
    return engine


def with_noise(
    configs: Sequence[Config], watched: int, items: Sequence[Item] = SHARED, numerics: Numerics = FP32
) -> PackedEngine:
    """Every other run gets other rows, other weights and another rate, and the first of them NaN for its weights."""
    others = [run for run in range(len(configs)) if run != watched]
    changed = [copy.deepcopy(config) for config in configs]
    for run in others:
        changed[run].data_seed += 100
        changed[run].train.lr = 0.3 / (run + 1)
    engine = build(changed, items, numerics)
    for run in others:
        engine.load_state(run, moved(engine.state(run), seed=run))
    bucket, row = engine.model.bucket_of(others[0])
    bucket.values[:, row] = math.nan
    engine.model.refresh()
    return engine


@pytest.mark.usefixtures("int8_as_on_a_gpu")
@pytest.mark.parametrize(("name", "items"), CASES, ids=[f"{name}-{len(items[0])}" for name, items in CASES])
def test_neighbors_leave_no_trace(name: str, items: list[Item]) -> None:
    variants, watched = PACKS[name]
    configs = configs_of(variants)
    engine = build(configs, items)
    assert engine.feed.shared == (items is SHARED)
    wanted, found = trace(engine), trace(with_noise(configs, watched, items))
    assert found[watched].losses.isfinite().all() and found[watched].losses[0] != found[watched].losses[-1]
    assert found[watched].same_bits(wanted[watched])
    poisoned, *noisy = [run for run in range(len(configs)) if run != watched]
    assert not found[poisoned].losses.isfinite().any()
    # At one step or another: the two losses of a run may cross.
    assert all(abs(found[run].losses - wanted[run].losses).max() > 0.1 for run in noisy)


@pytest.mark.usefixtures("int8_as_on_a_gpu")
@pytest.mark.parametrize("variant", ["lora_8bit", "dora_8bit"])
def test_padding_leaves_no_trace_in_int8(variant: str) -> None:
    """A column that is an outlier in padding alone must not be one.

    The shapes stay, so the bits must: in others a processor adds in another order, and a number between two 8-bit steps may
    then go to either.
    """
    configs = [config_of(variant, "lora.r=2", "lora.dropout=0.1", "model.shape.tie_word_embeddings=false")]
    plain, spiky = build(configs), build(configs)
    with torch.no_grad():
        spiky.network.get_input_embeddings().weight[PAD, 4:] = 0  # what is left is large once normed
    assert all((engine.feed.inputs(0).rows < 0).any() for engine in (plain, spiky))
    (wanted,), (found,) = trace(plain), trace(spiky)
    assert found.losses.isfinite().all() and found.losses[0] != found.losses[-1]
    assert found.same_bits(wanted)


def test_a_diverged_run_stands_still_and_its_neighbors_go_on() -> None:
    """Also when its numbers become finite again: what it was trained to by then is what it is."""
    configs = configs_of(["lora", "lora", "dora", "dora"])
    calm = trace(build(configs))
    engine = build(configs)
    engine.advance(0, 3)
    places = [bucket.values[-1, 0] for bucket in engine.model.buckets]  # of runs 0 and 2
    held = [place.clone() for place in places]
    for place in places:
        place.fill_(math.inf)
    before = [copied(engine.state(run)) for run in range(4)]
    spoilt = trace(engine, 3, 5)
    unchanged = [same(engine.state(run), before[run]) for run in range(4)]
    for place, values in zip(places, held, strict=True):
        place.copy_(values)
    engine.model.refresh()
    mended = [copied(state) for state in map(engine.state, range(4))]
    after = trace(engine, 5)
    assert unchanged == [True, False, True, False]
    for run in (0, 2):
        assert not spoilt[run].losses.isfinite().any() and after[run].losses.isfinite().all()
        assert same(engine.state(run), mended[run])
    for run in (1, 3):
        assert torch.equal(torch.cat([spoilt[run].losses, after[run].losses]), calm[run].losses[3:])
        assert same(after[run].trained, calm[run].trained)


def copied(state: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_weights_that_are_not_finite_are_named() -> None:
    engine = build(configs_of(["lora", "lora", "dora"]))
    bucket, row = engine.model.bucket_of(1)
    bucket.values[-1, row, 5] = math.inf
    assert engine.finite() == [True, False, True]


@pytest.mark.usefixtures("int8_as_on_a_gpu")
@pytest.mark.parametrize("variant", ["lora_8bit", "qlora"])
def test_quantized_layers_without_an_adapter_see_no_neighbor(variant: str) -> None:
    """LLM.int8() of a whole pack would find other outliers. Every quantized layer has to be multiplied run by run."""
    configs = [config_of(variant, f"seed={seed}", "lora.target_modules=[q_proj,v_proj]") for seed in range(3)]
    wanted = trace(build(configs))
    for watched in range(3):  # in the same shapes, so to the bit
        found = trace(with_noise(configs, watched))
        assert found[watched].losses.isfinite().all() and found[watched].same_bits(wanted[watched])
    kinds = {type(module).__name__ for module in pack_of(configs, FP32, STEPS).network.modules()}
    assert "FrozenLinear" in kinds
