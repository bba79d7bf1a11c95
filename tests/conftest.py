"""Shared fixtures: a working folder of its own for every test, and runs of the tiny model without a child process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.command import cli
from src.command.cli import compose
from src.config.schema import Config
from src.record.records import RunFolder, run_id

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

CODE = Path(__file__).resolve().parents[1]
# Of the commands that tests run. They may use all cores; the tiny model in this process is faster with one, above all
# where other processes want the cores too.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))}
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The tiny model on a handful of rows: a whole run takes a few seconds.
TINY = [
    *("model=tiny", "tracking=disabled", "dataset.train_examples=64", "train.steps=3", "train.batch_size=4"),
    *("eval.val_examples=4", "eval.test_examples=4"),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long form of tests/faults")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none. torch is imported for these tests alone, and not to collect them."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


SIGMAS = 6


def rounding(terms: int, chained: int = 1) -> float:
    """How far apart, relatively, two orders of the same fp32 sums may come: ``chained`` sums of ``terms`` one after the other.

    Each operation is off by 2^-24 at most, with a sign of its own, so n of them are off by sqrt(n) units; ``SIGMAS`` times
    that is passed once in 10^7 (Higham and Mary 2019, A new approach to probabilistic rounding error analysis, theorem 2.4).
    Both orders round: twice the variance. No processor's order of the sums comes into it.
    """
    return SIGMAS * math.sqrt(2 * terms * chained) * 2**-24


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(config: Config) -> RunFolder:
    """The folder of a run that a worker is about to train."""
    record = RunFolder(run_id(config))
    record.path.mkdir(parents=True, exist_ok=True)
    record.drop_links()
    record.write_config(config)
    return record


Run = Callable[..., tuple[RunFolder, dict[str, Any]]]


@pytest.fixture
def run(folder: Path) -> Run:
    """Train the tiny model with these overrides in this process; (its folder, its result)."""

    def go(*overrides: str, config: Config | None = None) -> tuple[RunFolder, dict[str, Any]]:
        from src.sweep.events import Events
        from src.train import worker  # torch is imported only by the tests that train

        record = written(config or compose([*TINY, *overrides]))
        assert worker.run([record.path], Events(None)) == 0
        result = record.result()
        assert result is not None
        return record, result

    return go


@dataclass(frozen=True)
class Trained:
    """What a worker made of the runs it was given: ``code`` is its exit code, ``records`` stand in the order asked for."""

    code: int
    records: list[RunFolder]
    events: list[dict[str, Any]]

    @property
    def results(self) -> list[Any]:
        """A result for each run, None where it has none."""
        return [record.result() for record in self.records]


TrainPack = Callable[..., Trained]


@pytest.fixture
def train_pack(folder: Path) -> TrainPack:
    """Train runs of the tiny model, each with its own overrides, as one worker does, in this process."""

    def go(*runs: Sequence[str], halved_from: int | None = None) -> Trained:
        from src.sweep.events import Events
        from src.train import worker

        records = [written(compose([*TINY, *overrides])) for overrides in runs]
        with open("events.jsonl", "w+b") as file:
            code = worker.run([record.path for record in records], Events(file.fileno()), halved_from)
            file.seek(0)
            return Trained(code, records, [json.loads(line) for line in file])

    return go


def evaluate(words: Sequence[str]) -> int:
    """Run ``python -m src.eval WORDS`` in this process, and return its exit code."""
    from src.eval.__main__ import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    stderr = sys.stderr
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(lambda: main(list(words)), resumes=False)
    finally:
        sys.stderr = stderr
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def command(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m MODULE ARGUMENTS`` as a user would, in the test's own folder."""

    def call(module: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=ENVIRONMENT,
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


def shown_on(terminal: int) -> str:
    """What was written to a pseudo-terminal until its other side was closed; closes this side."""
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    return shown.decode()
