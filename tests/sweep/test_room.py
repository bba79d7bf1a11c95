"""How many runs of a pack fit into memory, with the numbers of the tiny model worked out by hand.

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
from src.sweep import room
from src.sweep.memory import Tokens
from src.train.run import Run
from src.variants import counts
from tests.conftest import TINY, written

CPU = torch.device("cpu")
WIDTH = 16
TOKENS = 4 * WIDTH
ALL = Tokens(TOKENS, TOKENS)
HEAD = 4096 * 6 * 384  # logits of 4,096 labelled tokens, in bf16 and fp32
BASE = 2 * 98_624 + HEAD


def lora(r: int) -> int:
    """What a run adds: 18 bytes a trained number; bf16 of what a layer keeps for the backward pass."""
    return 18 * r * 2 * 1024 + TOKENS * 2 * 2 * ((4 * 64 + 2 * 64 + 2 * 32 + 3 * 128) + 7 * r)


def dora(r: int) -> int:
    """It also trains, and keeps the input of, each output's magnitude."""
    return lora(r) + 18 * 2 * 512 + TOKENS * 2 * 2 * 512


def config(*overrides: str) -> Config:
    return compose([*TINY, *overrides])


def fitting(configs: Sequence[Config], free: float | None, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int | None]:
    monkeypatch.setattr(room, "_free", lambda device: free)
    shape = configs[0].model.shape
    return room.fitting(configs, [] if shape is None else counts.linears(shape), ALL, CPU)


def test_runs_are_left_out_from_the_last_until_the_others_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [config("lora.r=4"), config("lora.r=8"), config("variant=dora", "lora.r=6"), config("lora.r=32")]
    # In one bucket with rank 8, rank 4 takes as much room; DoRA has a bucket of its own, and so has rank 32.
    needs = [BASE + lora(4), BASE + 2 * lora(8), BASE + 2 * lora(8) + dora(6), BASE + 2 * lora(8) + dora(6) + lora(32)]
    for runs, need in enumerate(needs, start=1):
        assert fitting(configs, need / 0.92 + 2, monkeypatch) == (runs, need)
        if runs > 1:
            assert fitting(configs, need / 0.92 - 2, monkeypatch) == (runs - 1, needs[runs - 2])
    assert fitting(configs, 0, monkeypatch) == (1, needs[0])  # alone it has to try
    assert fitting(configs, None, monkeypatch) == (4, needs[3])


def test_a_held_copy_of_the_base_takes_room_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def need(*overrides: str) -> int:
        found = fitting([config(*overrides)], None, monkeypatch)[1]
        assert found is not None
        return found

    held = "model.hold_dequantised=true"
    assert need("variant=qlora", held) - need("variant=qlora") == 2 * 2 * 36_864
    assert need("variant=lora", held) == need("variant=lora")
    linears = counts.linears(config().model.shape)  # type: ignore[arg-type]
    assert room.alone(config("variant=qlora", held), linears, ALL) == need("variant=qlora")


def test_what_a_run_would_take_by_itself() -> None:
    linears = counts.linears(config().model.shape)  # type: ignore[arg-type]
    assert room.alone(config("lora.r=4"), linears, ALL) == BASE + lora(4)
    assert room.alone(config("variant=dora", "lora.r=4"), linears, ALL) == BASE + dora(4)
    # PEFT's: no bf16 copy of what trains, and logits of every token.
    peft = 2 * 98_624 + 16 * 4 * 2 * 1024 + TOKENS * (2 * 2 * (832 + 7 * 4) + 6 * 384)
    assert room.alone(config("lora.r=4", "engine=peft"), linears, ALL) == peft
    assert room.alone(config("variant=frozen"), linears, ALL) == 2 * 98_624


def test_a_model_of_unknown_shape_has_to_be_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text('{"model_type": "nosuch"}')
    configs = [config("model=path", f"model.path={folder}", f"seed={seed}") for seed in range(3)]
    assert fitting(configs, 0, monkeypatch) == (3, None)
    assert room.alone(configs[0], [], ALL) is None


def test_the_memory_of_a_gpu_that_this_process_holds_already_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    assert room._free(torch.device("cuda")) == 1300


def test_runs_that_are_multiplied_together_stand_side_by_side(folder: Path) -> None:
    given = [("lora", 64), ("lora", 4), ("dora", 16), ("rslora", 8), ("dora", 2)]
    runs = [Run(written(config(f"variant={variant}", f"lora.r={r}")).path) for variant, r in given]
    found = [(run.config.variant.name, run.config.lora.r) for run in room.in_slot_order(runs)]
    assert found == [("lora", 4), ("rslora", 8), ("dora", 16), ("dora", 2), ("lora", 64)]
    alone = Run(written(replace(runs[0].config, variant=config("variant=full").variant)).path)
    assert room.in_slot_order([alone]) == [alone]
