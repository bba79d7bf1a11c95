"""Measure the cost of checkpoints at the default interval on this machine. Long form only: it takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ENVIRONMENT

CUDA = torch.cuda.is_available()
# Minutes of steps: a checkpoint a minute.
STEPS, SEEDS = (2000, 16) if CUDA else (60, 1)
SWEEP = [
    *("model=smollm2_135m", "model.weights=random", "lora.r=16", f"train.steps={STEPS}", "eval.every=10000"),
    *("eval.val_examples=4", "eval.test_examples=4", "eval.generate=false", "forgetting.tokens=0", "tracking=disabled"),
    f"seed={','.join(map(str, range(SEEDS)))}",
]


def test_checkpoints_take_under_two_percent_of_the_time(folder: Path, size: Any, figure: Any) -> None:
    if not size(0, 1):
        pytest.skip("takes minutes: in the long form")
    done = subprocess.run([sys.executable, "-m", "src.train", "-m", *SWEEP], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    assert len(results) == SEEDS and {result["pack_size"] for result in results} == {SEEDS}
    spent, trained = results[0]["checkpoint_seconds"], results[0]["train_seconds"]
    assert spent > 0, "too short for a checkpoint"
    assert spent / (spent + trained) < 0.02
    figure(
        "Checkpoints",
        f"{results[0]['device']}: {SEEDS} run{'s' * (SEEDS > 1)} of SmolLM2-135M, r=16: {spent:.2f} s of {spent + trained:.0f} s,"
        f" {100 * spent / (spent + trained):.2f} %",
    )
