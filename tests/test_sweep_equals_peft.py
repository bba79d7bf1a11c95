"""The default sweep trains as two packs and gives the table that PEFT's engine gives, one run at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from src.command.cli import compose
from src.record.records import RunFolder, run_id
from tests.conftest import TINY, Run

VARIANTS, RANKS, SEEDS = ("lora", "rslora", "dora", "qlora"), (4, 8, 16, 256), (0, 1)
SETTINGS = ["train.steps=3", "train.lr=0.003", "eval.test_examples=4", "eval.generate=false"]
# Both engines multiply in bf16, whose numbers are 2^-9 = 0.002 apart relatively, and round in different places. A loss of
# about 6 nats, averaged over some hundred tokens, agrees far better than one of its logits.
TOLERANCE = 0.005


def test_the_default_sweep(command: Callable[..., subprocess.CompletedProcess[str]], run: Run, folder: Path) -> None:
    axes = [f"variant={','.join(VARIANTS)}", f"lora.r={','.join(map(str, RANKS))}", f"seed={','.join(map(str, SEEDS))}"]
    done = command("src.train", "-m", *TINY, *SETTINGS, *axes, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "2 packs, 32 runs: tiny on cldr_names, 3 steps of 4 rows"
    assert [line.split()[1:4] for line in lines[1:3]] == [["bf16", "24", "runs"], ["nf4", "8", "runs"]]

    packed = {}
    for path in (folder / "runs").glob("*/result.json"):
        result = RunFolder(path.parent.name, folder / "runs").result()
        assert result is not None and result["status"] == "ok", result
        assert (result["engine"], result["pack_size"]) == ("packed", 8 if result["variant"] == "qlora" else 24)
        packed[result["variant"], result["r"], result["seed"]] = result
    assert len(packed) == len(VARIANTS) * len(RANKS) * len(SEEDS)
    for (variant, r, seed), ours in packed.items():
        overrides = [*SETTINGS, "engine=peft", f"variant={variant}", f"lora.r={r}", f"seed={seed}"]
        assert run_id(compose([*TINY, *overrides])) != ours["run_id"]
        _, theirs = run(*overrides)
        assert theirs["status"] == "ok" and theirs["engine"] == "peft"
        for name in ("trainable_parameters", "effective_scale", "learning_rate", "adapter_bytes", "train_tokens", "steps"):
            assert ours[name] == theirs[name], (variant, r, seed, name)
        for name in ("train/loss", "val/loss", "test/loss"):
            assert ours["metrics"][name] == pytest.approx(theirs["metrics"][name], abs=TOLERANCE), (variant, r, seed, name)
        moved = abs(theirs["metrics"]["test/loss"] - packed["lora", 4, seed]["metrics"]["test/loss"])
        if variant == "rslora" and r == 256:
            assert moved > 4 * TOLERANCE  # the tolerance tells variants apart
