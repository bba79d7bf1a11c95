"""Take turns on a GPU: one pack trains at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.files.durable import CannotWrite
from src.sweep import locks as module
from src.sweep.locks import turn
from src.train import session
from tests.conftest import ENVIRONMENT, TrainPack


def never() -> bool:
    return False


def test_who_has_no_turn_waits_for_the_end_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, waited = tmp_path / ".turn", []
    first = turn(lock, lambda: waited.append("first"), never)
    first.__enter__()
    looks = iter(range(3))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: next(looks, None) is None and first.__exit__(None, None, None))
    with turn(lock, lambda: waited.append("second"), never):
        assert next(looks, "none left") == "none left"  # it has looked again and again until the first was over
    assert waited == ["second"]  # a sign of life at once, the next half a minute later
    with turn(lock, lambda: waited.append("third"), never):
        pass
    assert waited == ["second"]


def test_who_is_asked_to_stop_waits_no_longer(tmp_path: Path) -> None:
    with turn(tmp_path / ".turn", never, never), turn(tmp_path / ".turn", never, lambda: True):
        pass


def test_a_process_that_is_killed_leaves_its_turn(tmp_path: Path) -> None:
    lock = tmp_path / ".turn"
    code = (
        "import sys, time, pathlib; from src.sweep.locks import turn\n"
        "with turn(pathlib.Path(sys.argv[1]), print, bool): print('mine', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, env=ENVIRONMENT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"mine\n"
        with turn(lock, lambda: other.send_signal(signal.SIGKILL), never):
            assert other.wait() == -signal.SIGKILL


def test_a_lock_that_cannot_be_written_is_said_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match=r"none/\.turn"), turn(tmp_path / "none" / ".turn", never, never):
        pass


def test_a_pack_that_fills_its_device_takes_its_first_steps_and_then_waits(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_of = session.engine_of

    def full(*arguments: Any) -> Any:
        engine = engine_of(*arguments)
        engine.fills_device = True
        return engine

    monkeypatch.setattr(session, "engine_of", full)
    lock = Path("runs") / ".turn-cpu"
    lock.parent.mkdir(exist_ok=True)
    others = turn(lock, lambda: None, never)
    others.__enter__()
    seen = []

    def sleep(seconds: float) -> None:
        seen.append(sum(path.read_text().count("train/loss") for path in Path("runs").glob("*/metrics.jsonl")))
        if len(seen) == 3:
            others.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", sleep)
    trained = train_pack(["train.steps=4"], ["train.steps=4", "seed=1"])
    assert seen == [2, 2, 2]  # a step of each run, and no more
    assert [(record.result() or {})["status"] for record in trained.records] == ["ok", "ok"]
    assert "waiting for the pack that trains" in [event.get("what") for event in trained.events]
    with turn(lock, lambda: pytest.fail("the turn was not given back"), never):
        pass
