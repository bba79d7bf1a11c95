"""Shared fixtures: a working folder of its own for every test, and runs of the tiny model without a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.cli import compose
from src.config import Config
from src.records import RunFolder, run_id

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

CODE = Path(__file__).resolve().parents[1]

# The tiny model on a handful of rows: a whole run takes a few seconds.
TINY = [
    *("model=tiny", "tracking=disabled", "dataset.train_examples=64", "train.steps=3", "train.batch_size=4"),
    *("eval.val_examples=4", "eval.test_examples=4"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


Run = Callable[..., tuple[RunFolder, dict[str, Any]]]


@pytest.fixture
def run(folder: Path) -> Run:
    """Train the tiny model with these overrides in this process; (its folder, its result)."""

    def go(*overrides: str, config: Config | None = None) -> tuple[RunFolder, dict[str, Any]]:
        from src.train import worker  # torch is imported only by the tests that train

        config = config or compose([*TINY, *overrides])
        record = RunFolder(run_id(config))
        record.write_config(config)
        worker.run(record.path)
        result = record.result()
        assert result is not None
        return record, result

    return go


@pytest.fixture
def command(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m MODULE ARGUMENTS`` as a user would, in the test's own folder."""

    def call(module: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(CODE)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call


@pytest.fixture
def rows(folder: Path) -> Path:
    """A JSONL file of forty rows in FinLoRA's format."""
    path = folder / "rows.jsonl"
    path.write_text("".join(f'{{"context": "What is {n} plus one? ", "target": "{n + 1}"}}\n' for n in range(40)))
    return path
