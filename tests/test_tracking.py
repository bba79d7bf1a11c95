"""The W&B mirror holds what the record holds, and never stops a run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from src import tracking
from src.cli import compose
from src.records import RunFolder
from src.tracking import Mirror
from tests.conftest import TINY, Run, TrainPack


def mirrored(run: Run, *overrides: str) -> tuple[RunFolder, dict[str, Any]]:
    config = compose([*TINY, "tracking=wandb_offline", *overrides])
    config.sweep = "my-sweep"
    return run(config=config)


def read(record: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The offline file's records by type, read with W&B's own inspector."""
    (path,) = record.path.glob("wandb/offline-run-*/run-*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        found.setdefault(entry["type"], []).append(entry.get(entry["type"]) or {})
    return found


def test_the_offline_file_holds_every_metric_and_count_of_the_record(run: Run) -> None:
    record, result = mirrored(run, "variant=dora", "lora.r=4", "eval.every=2", "train.steps=4")
    entries = read(record)
    (run,) = entries["run"]
    assert (run["run_id"], run["run_group"], run["job_type"], run["tags"]) == (record.run_id, "my-sweep", "train", ["dora"])
    config = run["config"]["update"]
    assert config["lora"]["r"] == 4 and config["variant"]["magnitude"] == "dora" and config["run_id"] == record.run_id

    history: dict[int, dict[str, Any]] = {}
    for line in record.logged():
        history.setdefault(line["step"], {}).update(line)
    steps = {item["item"]["step"]: item["item"] for item in entries["history"]}
    assert set(steps) == set(history) == {0, 1, 2, 3, 4}
    for step, line in history.items():
        for key, value in line.items():
            assert steps[step][key] == pytest.approx(value, rel=1e-6), (step, key)

    summary: dict[str, Any] = {}
    for update in entries["summary"]:
        summary.update(update["update"])
    assert summary["trainable_parameters"] == result["trainable_parameters"] == 9216  # by hand: 2 layers of (4 x 1024 + 512)
    assert summary["total_parameters"] == result["total_parameters"]
    for name, value in result["metrics"].items():
        assert summary[name] == pytest.approx(value, rel=1e-6), name
    assert entries["exit"][0].get("exit_code", 0) == 0


def test_each_run_of_a_pack_has_a_mirror_of_its_own(train_pack: TrainPack) -> None:
    trained = train_pack(*(["tracking=wandb_offline", "lora.r=4", f"train.lr={lr}"] for lr in (0.01, 0.001)))
    assert [result["status"] for result in trained.results] == ["ok", "ok"]
    for record, result in zip(trained.records, trained.results, strict=True):
        entries = read(record)
        assert entries["run"][0]["run_id"] == record.run_id
        rates = [item["item"]["train/lr"] for item in entries["history"] if "train/lr" in item["item"]]
        assert rates == pytest.approx([line["train/lr"] for line in record.logged() if "train/lr" in line])
        summary = {key: value for update in entries["summary"] for key, value in update["update"].items()}
        assert summary["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-6)
        assert summary["learning_rate"] == result["learning_rate"] == max(rates)


def test_a_diverged_run_is_no_success_in_wandb(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.train.engine import Step
    from src.train.peft_engine import PeftEngine

    monkeypatch.setattr(PeftEngine, "step", lambda *_: Step([float("nan")], [1.0], [0.1], [8]))
    record, result = mirrored(run, "seed=5", "engine=peft")
    assert result["status"] == "diverged"
    entries = read(record)
    assert entries["exit"][0]["exit_code"] == 1
    assert not any("train/loss" in item["item"] for item in entries["history"])  # absent, never 0


def test_a_broken_mirror_never_stops_a_run(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import wandb

    def fail(**_: object) -> None:
        raise wandb.errors.CommError("no network\nat all")

    monkeypatch.setattr(wandb, "init", fail)
    _, result = mirrored(run, "seed=6")
    assert result["status"] == "ok"
    assert capsys.readouterr().err.splitlines() == ["W&B: offline: no network"]


def test_a_mirror_that_breaks_on_the_way_is_switched_off_once(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def log(self, *_: object, **__: object) -> None:
            raise OSError("disk full")

    monkeypatch.setattr("src.tracking._start", lambda *_: Broken())
    for tracked in ("disabled", "wandb_offline"):
        mirror = Mirror(compose([*TINY, f"tracking={tracked}"]), "id", folder)
        mirror.log({"step": 1, "train/loss": 2.0})
        mirror.log({"step": 2, "train/loss": 2.0})
        mirror.finish({}, ok=True)
        tracking.flush()
        assert capsys.readouterr().err.splitlines() == ["W&B: switched off: disk full"] * (tracked != "disabled")


def test_training_does_not_wait_for_the_mirror_and_nothing_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, told = threading.Event(), []

    class Slow:
        summary: dict[str, Any] = {}  # noqa: RUF012

        def log(self, values: dict[str, Any], step: int) -> None:
            told.append((step, values))

        def finish(self, exit_code: int) -> None:
            told.append(("finished", exit_code, dict(self.summary)))

    def start(*_: object) -> Slow:
        assert reached.wait(30)
        return Slow()

    monkeypatch.setattr("src.tracking._start", start)
    mirror = Mirror(compose([*TINY, "tracking=wandb_offline"]), "id", folder)
    mirror.log({"step": 1, "train/loss": 2.0})
    mirror.log({"step": 1, "val/loss": float("nan")})
    mirror.finish({"seed": 3}, ok=False)
    assert told == []
    reached.set()
    tracking.flush()
    assert told == [(1, {"step": 1, "train/loss": 2.0}), (1, {"step": 1}), ("finished", 1, {"seed": 3})]


def test_online_without_a_key_falls_back_to_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    modes = []
    monkeypatch.setattr("src.tracking._start", lambda config, run_id, folder, mode: modes.append(mode))
    Mirror(compose([*TINY, "tracking=wandb_online"]), "id", folder)
    tracking.flush()
    assert modes == ["offline"]
    assert "mirroring offline" in capsys.readouterr().err
