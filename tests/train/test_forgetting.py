"""Measure log-loss on held-out prose before and after training: which number it is, and that it survives what a run survives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.config.schema import Config
from src.files.errors import ConfigError
from src.model import models
from src.record.records import RunFolder, run_id
from src.sweep import packs, plan
from src.sweep.plan import Job
from src.train.final import Forgetting
from tests.conftest import TINY, Run, TrainPack, written
from tests.train.test_worker import interrupt, poison, told

QUICK = ("eval.generate=false",)
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 3
ROW = 32  # tokens, which are bytes to the tiny model
BEFORE, AFTER = "forgetting/before", "forgetting/after"


@pytest.fixture
def text(folder: Path) -> Path:
    path = folder / "mine.txt"
    path.write_text(TEXT)
    return path


def log_loss_of(config: Config, tokens: int) -> float:
    """Of the base model alone, row by row, with transformers and nothing of ours."""
    network, _ = models.load(config.model, torch.float32, torch.device("cpu"))
    ids = [byte + 3 for byte in TEXT.encode()][:tokens]  # ByT5's first three ids are special
    losses = []
    for at in range(0, len(ids), ROW):
        row = torch.tensor([ids[at : at + ROW]])
        with torch.no_grad():
            log_p = network(row).logits[0, :-1].log_softmax(-1)
        losses += (-log_p.gather(1, row[0, 1:, None])).flatten().tolist()
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("engine", ["packed", "peft"])
@pytest.mark.parametrize("variant", ["lora", "dora", "full", "frozen"])
def test_before_is_the_log_loss_of_the_base(run: Run, text: Path, variant: str, engine: str) -> None:
    settings = [*QUICK, f"variant={variant}", "variant.base_precision=fp32", f"engine={engine}", f"dataset.max_length={ROW}"]
    tokens = 3 * ROW + 10
    record, result = run(*settings, f"forgetting.path={text}", f"forgetting.tokens={tokens}", "train.lr=0.01")
    assert result["status"] == "ok", result["reason"]
    metrics = result["metrics"]
    assert metrics[BEFORE] == pytest.approx(log_loss_of(record.read_config(), tokens), rel=1e-6)
    assert (metrics[AFTER] == metrics[BEFORE]) == (variant == "frozen")
    assert [line for line in record.logged() if BEFORE in line] == [{"step": 0, BEFORE: metrics[BEFORE]}]
    provenance = record.provenance()
    assert provenance and provenance["prose_fingerprint"] == result["prose"]["fingerprint"]
    assert result["prose"]["source"] == str(text) and result["prose"]["tokens"] == tokens - 4  # first tokens are only read


def test_the_runs_of_a_pack_begin_alike_and_forget_each_their_own(train_pack: TrainPack) -> None:
    settings = [*QUICK, "variant.base_precision=fp32", "train.lr=0.01", "forgetting.tokens=200"]
    trained = train_pack(*([*settings, f"variant={variant}", f"seed={seed}"] for seed, variant in enumerate(["lora", "dora"])))
    lora, dora = [result["metrics"] for result in trained.results]
    assert lora[BEFORE] == pytest.approx(dora[BEFORE], rel=1e-6)
    assert len({lora[AFTER], dora[AFTER], lora[BEFORE]}) == 3


def test_a_run_that_learns_nothing_has_forgotten_nothing(run: Run) -> None:
    _, result = run(*QUICK, "train.lr=1e-12", "forgetting.tokens=200")
    assert result["metrics"][AFTER] == pytest.approx(result["metrics"][BEFORE], abs=1e-6)


@pytest.mark.parametrize("engine", ["packed", "peft"])
def test_a_run_that_goes_on_keeps_what_it_began_with(train_pack: TrainPack, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*QUICK, f"engine={engine}", "train.checkpoint_every=2", "train.lr=0.01", "forgetting.tokens=200"]
    (whole,) = train_pack(settings).results
    RunFolder(run_id(compose([*TINY, *settings]))).clear_progress()
    for step in (1, 2):  # before the checkpoint, and after it
        with monkeypatch.context() as patch:
            interrupt(patch, engine, step)
            with pytest.raises(KeyboardInterrupt):
                train_pack(settings)
    again = train_pack(settings)
    assert again.results[0]["metrics"] == whole["metrics"]
    assert [line["step"] for line in again.records[0].logged() if BEFORE in line] == [0]
    # Scored once: its adapter is not fresh any more.
    (rows,) = {event["total"] for event in told(again, "scoring") if event["what"] == "scoring held-out prose"}
    assert sum(event["what"] == "scoring held-out prose" for event in told(again, "scoring")) == rows + 1


def test_a_run_begun_without_the_first_number_has_no_second(train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*QUICK, "train.checkpoint_every=1"]
    with monkeypatch.context() as patch:
        interrupt(patch, "packed", 2)
        patch.setattr(Forgetting, "before", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            train_pack(settings)
    (result,) = train_pack(settings).results
    assert result["status"] == "ok" and not {BEFORE, AFTER} & set(result["metrics"])


def test_a_run_that_diverged_has_only_the_first(train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (1,), step=1)
    good, diverged = train_pack([*QUICK, "lora.r=4"], [*QUICK, "lora.r=8"]).results
    assert {BEFORE, AFTER} < set(good["metrics"])
    assert diverged["status"] == "diverged" and set(diverged["metrics"]) == {BEFORE}


def test_a_trained_loss_that_is_not_finite_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Forgetting._losses

    def spoiled(self: Forgetting, runs: dict[int, Any]) -> dict[int, float]:
        return dict.fromkeys(runs, math.inf) if any(run.progress.step for run in runs.values()) else losses(self, runs)

    monkeypatch.setattr(Forgetting, "_losses", spoiled)
    _, result = run(*QUICK)
    assert result["status"] == "ok" and BEFORE in result["metrics"] and AFTER not in result["metrics"]


def test_it_can_be_switched_off(run: Run) -> None:
    record, result = run(*QUICK, "forgetting.tokens=0")
    assert result["status"] == "ok" and result["prose"] is None
    assert not {BEFORE, AFTER} & set(result["metrics"]) and next(record.logged())["step"] == 1
    provenance = record.provenance()
    assert provenance and provenance["prose_fingerprint"] is None


def job(*overrides: str) -> Job:
    config = compose([*TINY, *overrides])
    return Job(run_id(config), config)


def test_a_text_that_cannot_be_read_is_refused_before_anything_starts(text: Path) -> None:
    plan.refuse([job(f"forgetting.path={text}"), job()])
    with pytest.raises(ConfigError, match=r"^forgetting\.path=nosuch\.txt: no such file$"):
        plan.refuse([job(f"forgetting.path={text}"), job("forgetting.path=nosuch.txt")])
    plan.refuse([job("forgetting.path=nosuch.txt", "forgetting.tokens=0")])  # never read


def test_a_text_that_changed_is_not_compared_with_what_it_was(run: Run, text: Path) -> None:
    overrides = [*QUICK, f"forgetting.path={text}"]
    run(*overrides)
    plan.refuse([job(*overrides)])
    text.write_text(TEXT.upper())
    with pytest.raises(
        ConfigError, match=r"^forgetting\.path: run \w+ has read other contents of the same files; use force=true"
    ):
        plan.refuse([job(*overrides)])
    plan.refuse([job(*overrides, "force=true")])


def test_runs_of_a_pack_read_the_same_text(text: Path) -> None:
    for overrides in ([f"forgetting.path={text}"], ["forgetting.tokens=64"]):
        written(compose([*TINY, *overrides]))
        assert packs.agreement(job("seed=1").config) == packs.agreement(job().config) != packs.agreement(job(*overrides).config)
