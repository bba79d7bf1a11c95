"""Level 1 of "equal": in fp64, a run in a mixed pack is the run alone, to rounding."""

from __future__ import annotations

import pytest

from src.engine.packed.engine import BUFFERS, PackedEngine
from tests.engine.packed.conftest import FP64, Trace, config_of, in_slots, pack_of, trace, train

pytestmark = pytest.mark.usefixtures("exact_norms")

STEPS = 20
# A few thousand roundings of 1e-16. A run whose rate is so high that its loss jumps doubles the gap at every step.
TOLERANCE = 1e-12

# Everything in which the runs of a pack may differ, differs. Ranks 4, 8, 16 share a bucket, and so do 20 and 64.
RUNS = {
    "lora-4": ("lora", "lora.r=4", "train.lr=0.01", "train.clip=0.05", "seed=0"),
    "lora-64": ("lora", "lora.r=64", "train.lr=0.003", "train.weight_decay=0.1", "lora.dropout=0.3", "seed=1", "data_seed=7"),
    "rslora-8": ("rslora", "lora.r=8", "lora.alpha=5", "train.schedule=cosine", "train.warmup=0.3", "lora.dropout=0.05"),
    "rslora-16": ("rslora", "lora.r=16", "train.lr=0.001", "train.schedule=constant", "train.clip=0", "lora.init=gaussian"),
    "dora-16": ("dora", "lora.r=16", "train.lr=0.004", "train.weight_decay=0.02", "lora.dropout=0.1", "data_seed=3"),
    "dora-20": ("dora", "lora.r=20", "lora.alpha=40", "train.warmup=0", "train.clip=0.1", "seed=5", "data_seed=3"),
    "dora_rs-4": ("dora_rs", "lora.r=4", "train.schedule=cosine", "lora.dropout=0.5", "seed=6"),
    "dora_rs-64": ("dora_rs", "lora.r=64", "train.lr=0.002", "train.schedule=constant", "lora.alpha=2", "seed=1"),
}
CONFIGS = {name: config_of(variant, "train.grad_accum=2", *more) for name, (variant, *more) in RUNS.items()}


def packed(*names: str) -> dict[str, Trace]:
    return dict(zip(names, train([CONFIGS[name] for name in names], FP64, STEPS), strict=True))


@pytest.fixture(scope="module")
def engine(exact_norms: None) -> PackedEngine:
    return pack_of(in_slots(list(CONFIGS.values())), FP64, STEPS)


@pytest.fixture(scope="module")
def together(engine: PackedEngine) -> dict[str, Trace]:
    """All runs in one pack."""
    traces = trace(engine)
    slots = in_slots(list(CONFIGS.values()))
    return {name: traces[slots.index(config)] for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_a_mixed_pack_is_the_run_alone(together: dict[str, Trace], name: str) -> None:
    alone = packed(name)[name]
    assert len(alone.losses) == STEPS and alone.losses[-1] < alone.losses[0]
    gap = together[name].gap(alone)
    print(f"level 1: {name}: {gap:.1e}")
    assert gap <= TOLERANCE


def test_another_order_and_another_company_change_nothing(together: dict[str, Trace]) -> None:
    """Other slots, other neighbors, and no rank above 20 to be padded to."""
    others = packed("dora-20", "dora-16", "dora_rs-4", "rslora-16", "lora-4")
    assert max(found.gap(together[name]) for name, found in others.items()) <= TOLERANCE


def test_padding_stays_zero(engine: PackedEngine, together: dict[str, Trace]) -> None:
    buffers = [*BUFFERS.values(), "grads"]
    assert [bucket.rank for bucket in engine.model.buckets] == [16, 16, 64, 64]
    padded = sum(padding(engine, name) for name in buffers)
    # Of each bucket's ranks, these many columns and rows belong to no run: 4, 8 of 16; 4 of 16; none, 20 of 64.
    width = sum(kind.in_features + kind.out_features for kind in engine.model.blocks.kinds)
    assert padded == len(buffers) * len(engine.model.blocks.prefixes) * width * (12 + 8 + 12 + 0 + 44)


def padding(engine: PackedEngine, buffer: str) -> int:
    """How many entries of A and B lie beyond their run's rank. They must be zero, and not all within it may be."""
    found = 0
    for bucket in engine.model.buckets:
        for run, member in enumerate(bucket.members):
            for kind in bucket.blocks.kinds:
                A, B = (bucket.all_layers(getattr(bucket, buffer), kind, part)[:, run] for part in ("A", "B"))
                outside = [A[:, member.r :], B[..., member.r :]]
                assert not any(tensor.any() for tensor in outside)
                assert A[:, : member.r].any() and B[..., : member.r].any()
                found += sum(tensor.numel() for tensor in outside)
    return found
