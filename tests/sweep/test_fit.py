"""Count the runs of a pack that fit into memory, with the numbers of the tiny model worked out by hand.

It has 98,624 weights, a vocabulary of 384, and two decoder layers whose seven linear layers have 36,864 weights, 1,024 in
and out features together, and 512 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.command.cli import compose
from src.config.schema import Config
from src.engine.packed.buffers import Blocks, Kind, buckets_of
from src.engine.packed.members import held_ranks, member
from src.model import device
from src.sweep import fit
from src.sweep.events import Events
from src.sweep.fit import Fit, Tokens
from src.train import session
from src.train.pack import Pack
from src.train.run import Run
from src.variants import counts
from src.variants.counts import Linear
from tests.conftest import TINY, written

CPU = torch.device("cpu")
WIDTH = 16
TOKENS = 4 * WIDTH
ALL = Tokens(TOKENS, TOKENS)
HEAD = 4096 * 6 * 384  # logits of 4,096 labeled tokens, in bf16 and fp32
BASE = 2 * 98_624 + HEAD


def lora(r: int) -> int:
    """Count what a run adds: 18 bytes a trained number; bf16 of what a layer keeps for the backward pass."""
    return 18 * r * 2 * 1024 + TOKENS * 2 * 2 * ((4 * 64 + 2 * 64 + 2 * 32 + 3 * 128) + 7 * r)


def dora(r: int) -> int:
    """It also trains, and keeps the input of, each output's magnitude."""
    return lora(r) + 18 * 2 * 512 + TOKENS * 2 * 2 * 512


def config(*overrides: str) -> Config:
    return compose([*TINY, *overrides])


def fitting(configs: Sequence[Config], free: float | None, multiple: int = 1) -> tuple[int, int | None]:
    shape = configs[0].model.shape
    result: Fit = fit.fitting(configs, [] if shape is None else counts.linears(shape), ALL, multiple, free)
    return result.count, result.bytes


def alone(run: Config, linears: Sequence[Linear]) -> int | None:
    return fit.alone(run, linears, ALL, 1)


def test_runs_are_left_out_from_the_last_until_the_others_fit() -> None:
    configs = [config("lora.r=4"), config("lora.r=8"), config("variant=dora", "lora.r=6"), config("lora.r=32")]
    # In one bucket with rank 8, rank 4 takes as much room; DoRA has a bucket of its own, and so has rank 32.
    needs = [BASE + lora(4), BASE + 2 * lora(8), BASE + 2 * lora(8) + dora(6), BASE + 2 * lora(8) + dora(6) + lora(32)]
    for runs, need in enumerate(needs, start=1):
        assert fitting(configs, need / 0.92 + 2) == (runs, need)
        if runs > 1:
            assert fitting(configs, need / 0.92 - 2) == (runs - 1, needs[runs - 2])
    assert fitting(configs, 0) == (1, needs[0])  # alone it has to try
    assert fitting(configs, None) == (4, needs[3])


def test_a_held_copy_of_the_base_takes_room_where_there_is_one() -> None:
    def need(*overrides: str) -> int:
        found = fitting([config(*overrides)], None)[1]
        assert found is not None
        return found

    held = "model.hold_dequantised=true"
    assert need("variant=qlora", held) - need("variant=qlora") == 2 * 2 * 36_864
    assert need("variant=lora", held) == need("variant=lora")
    linears = counts.linears(config().model.shape)  # type: ignore[arg-type]
    assert alone(config("variant=qlora", held), linears) == need("variant=qlora")


def test_what_a_run_would_take_by_itself() -> None:
    linears = counts.linears(config().model.shape)  # type: ignore[arg-type]
    assert alone(config("lora.r=4"), linears) == BASE + lora(4)
    assert alone(config("variant=dora", "lora.r=4"), linears) == BASE + dora(4)
    # PEFT's: no bf16 copy of what trains, and logits of every token.
    peft = 2 * 98_624 + 16 * 4 * 2 * 1024 + TOKENS * (2 * 2 * (832 + 7 * 4) + 6 * 384)
    assert alone(config("lora.r=4", "engine=peft"), linears) == peft
    assert alone(config("variant=frozen"), linears) == 2 * 98_624


def test_a_model_of_unknown_shape_has_to_be_tried(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nosuch"}')
    configs = [config("model=path", f"model.path={folder}", f"seed={seed}") for seed in range(3)]
    assert fitting(configs, 0) == (3, None)
    assert alone(configs[0], []) is None


def test_the_memory_of_a_gpu_that_this_process_holds_already_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    assert device.gpu_memory(torch.device("cuda")) == (1300, 5000)


def test_runs_that_are_multiplied_together_stand_side_by_side(folder: Path) -> None:
    given = [("lora", 64), ("lora", 4), ("dora", 16), ("rslora", 8), ("dora", 2)]
    runs = [Run(written(config(f"variant={variant}", f"lora.r={r}")).path) for variant, r in given]
    found = [(run.config.variant.name, run.config.lora.r) for run in Pack(runs, Events(None)).runs]
    assert found == [("lora", 4), ("rslora", 8), ("dora", 16), ("dora", 2), ("lora", 64)]
    alone = Run(written(replace(runs[0].config, variant=config("variant=full").variant)).path)
    assert session.slot_order([alone.config]) == [0] and Pack([alone], Events(None)).runs == [alone]


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_estimates_ranks_are_those_of_the_buckets(multiple: int) -> None:
    """Against the buffers that the engine allocates, which on a GPU hold r=4 as 8: what trains, counted in bytes."""
    runs = [("lora", 4), ("rslora", 9), ("dora", 2), ("lora", 20), ("dora", 100)]
    configs = [config(f"variant={variant}", f"lora.r={r}") for variant, r in runs]
    configs = [configs[index] for index in session.slot_order(configs)]
    linears = counts.linears(config().model.shape)  # type: ignore[arg-type]
    blocks = Blocks(("layers.0", "layers.1"), tuple(Kind(each.name, each.in_features, each.out_features) for each in linears))
    members = [member(each) for each in configs]
    buckets = buckets_of(members, blocks, multiple, torch.float32, CPU)
    assert held_ranks(members, multiple) == [bucket.rank for bucket in buckets for _ in range(bucket.runs)]
    trained = sum(bucket.values.numel() for bucket in buckets)
    kept = sum(bucket.runs * (7 * bucket.rank + (512 if len(bucket.parts) == 3 else 0)) for bucket in buckets)
    activations = TOKENS * 2 * 2 * (5 * (4 * 64 + 2 * 64 + 2 * 32 + 3 * 128) + kept)
    assert fitting(configs, None, multiple) == (5, BASE + 18 * trained + activations)


def test_a_pack_that_was_planned_for_a_gpu_is_taken_whole_where_little_of_it_is_used() -> None:
    """By the shares' reason: 7 % of the memory may be the driver's, the context's and other processes'."""
    configs = [config(f"lora.r={r}") for r in (8, 16)]
    _, need = fitting(configs, None, 8)
    assert need is not None
    total = need / fit.PLANNED  # the smallest GPU that it is planned for
    assert fitting(configs, 0.93 * total, 8)[0] == 2 and fitting(configs, 0.91 * total, 8)[0] == 1
