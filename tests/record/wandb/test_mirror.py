"""The W&B mirror holds what the record holds, and never stops a run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from src.command.cli import compose
from src.record.metrics_log import MetricsLog
from src.record.records import RunFolder
from src.record.wandb import mirror as mirroring
from src.record.wandb.mirror import Mirror
from tests.conftest import TINY, Run, TrainPack


def mirrored(run: Run, *overrides: str) -> tuple[RunFolder, dict[str, Any]]:
    config = compose([*TINY, "tracking=wandb_offline", *overrides])
    config.sweep = "my-sweep"
    return run(config=config)


def read(record: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The offline file's records by type, read with W&B's own inspector."""
    (path,) = record.path.glob("wandb/offline-run-*/run-*.wandb")
    return inspected(path)


def inspected(path: Path) -> dict[str, list[dict[str, Any]]]:
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True, timeout=60)
    records: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        records.setdefault(entry["type"], []).append(entry.get(entry["type"]) or {})
    return records


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
    from src.engine.peft import PeftEngine
    from src.engine.protocol import Step

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
    record, result = mirrored(run, "seed=6")
    assert result["status"] == "ok"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"W&B: no network; no complete mirror of {record.path} (no network); its record is complete"


def test_a_mirror_that_breaks_on_the_way_is_made_again_once(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def log(self, *_: object, **__: object) -> None:
            raise OSError("disk full")

    begun = []
    monkeypatch.setattr("src.record.wandb.client.start", lambda *_: begun.append(1) or Broken())
    for tracked in ("disabled", "wandb_offline"):
        record = RunFolder("id")
        record.path.mkdir(parents=True, exist_ok=True)
        mirror = Mirror(compose([*TINY, f"tracking={tracked}"]), record.run_id, record.path)
        for step in (1, 2):
            MetricsLog(record.metrics).append({"step": step, "train/loss": 2.0})
            mirror.log({"step": step, "train/loss": 2.0})
        mirror.finish({}, ok=True)
        mirroring.flush()
        messages = ["W&B: disk full; no complete mirror of runs/id (disk full); its record is complete"]
        assert capsys.readouterr().err.splitlines() == messages * (tracked != "disabled")
        assert len(begun) == 2 * (tracked != "disabled")


class Held:
    """A W&B run that begins when it is told to."""

    def __init__(self, path: Path, begin: threading.Event) -> None:
        self.told: list[Any] = []
        self.summary: dict[str, Any] = {}
        self.dir, self.id, self.begin = str(path / "files"), "id", begin

    def start(self, *_: object) -> Held:
        assert self.begin.wait(30)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.told.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.told.append(("finished", exit_code, dict(self.summary)))


@pytest.fixture
def held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(folder, threading.Event())
    monkeypatch.setattr("src.record.wandb.client.start", held.start)
    monkeypatch.setattr("src.record.wandb.mirror.closed_with", lambda _: {1})
    return held


def test_training_does_not_wait_for_the_mirror_and_nothing_is_lost(folder: Path, held: Held) -> None:
    mirror = Mirror(compose([*TINY, "tracking=wandb_offline"]), "id", folder)
    mirror.log({"step": 1, "train/loss": 2.0})
    mirror.log({"step": 1, "val/loss": float("nan")})
    mirror.finish({"seed": 3}, ok=False)
    assert held.told == []
    held.begin.set()
    mirroring.flush()
    assert held.told == [(1, {"step": 1, "train/loss": 2.0}), (1, {"step": 1}), ("finished", 1, {"seed": 3})]


def test_a_mirror_that_hangs_is_left_after_a_time_with_one_line(
    folder: Path, held: Held, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrors = [Mirror(compose([*TINY, "tracking=wandb_offline"]), "id", Path("runs") / name) for name in ("a", "b", "c")]
    for mirror in mirrors[:2]:
        mirror.log({"step": 1})
        mirror.finish({}, ok=True)
    started = time.monotonic()
    mirroring.flush(0.3)
    assert 0.3 <= time.monotonic() - started < 5
    message = "W&B: left after 0 s, with complete records: runs/a, runs/b; later: wandb sync FOLDER/wandb/*run-*"
    assert capsys.readouterr().err.splitlines() == [message]  # c goes on
    held.begin.set()
    mirrors[2].log({"step": 1})
    mirrors[2].finish({"seed": 3}, ok=True)
    mirroring.flush()
    assert ("finished", 0, {"seed": 3}) in held.told and capsys.readouterr().err == ""


def test_online_without_a_key_falls_back_to_offline_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, held: Held
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    monkeypatch.setattr("src.record.wandb.mirror._online", True)
    modes = []
    held.begin.set()
    monkeypatch.setattr("src.record.wandb.client.start", lambda config, run_id, folder, mode, say: modes.append(mode) or held)
    for _ in range(2):
        mirror = Mirror(compose([*TINY, "tracking=wandb_online"]), "id", folder)
        mirror.log({"step": 1})
        mirror.finish({}, ok=True)
    mirroring.flush()
    assert modes == ["offline", "offline"]
    assert capsys.readouterr().err == "W&B: online: no API key (WANDB_API_KEY or wandb login); mirroring offline\n"
