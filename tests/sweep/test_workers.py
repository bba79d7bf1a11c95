"""Preload workers: all that is handed over arrives, and a sweep comes out as without them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from src.command.cli import compose
from src.record.records import RUNS, RunFolder, run_id
from src.sweep import child, handover
from src.sweep.fit import Memory
from src.sweep.launch import launch
from src.sweep.machine import Machine
from src.sweep.plan import Job, prepare
from tests.conftest import CODE, TINY


def test_a_command_line_and_many_files_go_through(tmp_path: Path) -> None:
    ours, theirs = handover.channel()
    received: list[Any] = []
    names = [f"runs/{number:010x}" for number in range(450)]
    opened = [os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT) for number in range(450)]
    with ours, theirs:
        taker = threading.Thread(target=lambda: received.append(handover.receive(theirs)))
        taker.start()
        handover.send(ours, names, opened)
        taker.join()
    ((arguments, found),) = received
    assert arguments == names and [os.fstat(one).st_ino for one in found] == [os.fstat(one).st_ino for one in opened]
    for one in (*opened, *found):
        os.close(one)


def test_a_lock_stays_with_whom_it_was_handed_to(tmp_path: Path) -> None:
    ours, theirs = handover.channel()
    received: list[Any] = []
    with ours, theirs, open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        taker = threading.Thread(target=lambda: received.append(handover.receive(theirs)))
        taker.start()
        handover.send(ours, [], [file.fileno()])
        taker.join()
    with open(tmp_path / "lock", "w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(received[0][1][0])
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_nothing_comes_from_a_sender_that_is_gone() -> None:
    ours, theirs = handover.channel()
    with theirs:
        ours.close()
        assert handover.receive(theirs) is None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of every worker process, in order; the machine has a GPU, as far as the launcher knows."""
    found: list[list[str]] = []
    popen = child.subprocess.Popen

    def watched(command: list[str], **options: Any) -> Any:
        if command[: len(child.WORKER)] == child.WORKER:
            found.append(command[len(child.WORKER) :])
        return popen(command, **options)

    monkeypatch.setattr(child.subprocess, "Popen", watched)
    monkeypatch.setattr(Memory, "machine", lambda self, device: Machine("a GPU", None))
    return found


def two_packs() -> list[Job]:
    """One on a 16-bit base and one on a 4-bit base, which share no process."""
    configs = [compose([*TINY, f"variant={variant}", "eval.generate=false"]) for variant in ("lora", "qlora")]
    return [Job(run_id(config), config) for config in configs]


def results() -> dict[str, Any]:
    return {path.parent.name: RunFolder(path.parent.name).result() for path in RUNS.glob("*/result.json")}


def test_the_next_worker_is_started_while_one_trains(
    folder: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = two_packs()
    prepare(jobs)
    launch(jobs)
    assert [arguments[0] for arguments in started] == ["--events", "--standby"]  # and none after the last pack
    ahead = results()
    assert sorted(ahead) == sorted(job.run_id for job in jobs) and all(one["status"] == "ok" for one in ahead.values())
    assert not [process for process in psutil.Process().children() if "--standby" in process.cmdline()]
    monkeypatch.setattr(Memory, "machine", lambda self, device: Machine(None, None))
    for job in jobs:
        RunFolder(job.run_id).clear_results()
    launch(two_packs())
    assert [arguments[0] for arguments in started[2:]] == ["--events", "--events"]
    alone = results()
    assert {name: one["metrics"] for name, one in ahead.items()} == {name: one["metrics"] for name, one in alone.items()}


@pytest.mark.parametrize("when", ["before it is needed", "while it is given its runs"])
def test_a_standby_that_dies_costs_nothing(
    folder: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    begin, send = child.Standby.__init__, handover.send

    def dies(standby: child.Standby) -> None:
        begin(standby)
        standby.process.send_signal(signal.SIGSTOP)  # so that it takes nothing
        if when == "before it is needed":
            standby.process.kill()
            standby.process.wait()
        monkeypatch.setattr(handover, "send", lambda *given: (standby.process.kill(), send(*given)))

    monkeypatch.setattr(child.Standby, "__init__", dies)
    jobs = two_packs()
    prepare(jobs)
    launch(jobs)
    assert [arguments[0] for arguments in started] == ["--events", "--standby", "--events"]
    assert [one["status"] for one in results().values()] == ["ok", "ok"]


def test_a_standby_that_cannot_be_started_costs_nothing(
    folder: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(standby: child.Standby) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(child.Standby, "__init__", refuses)
    jobs = two_packs()
    prepare(jobs)
    launch(jobs)
    assert [arguments[0] for arguments in started] == ["--events", "--events"]
    assert [one["status"] for one in results().values()] == ["ok", "ok"]


def test_locks_that_did_not_all_come_are_not_taken(tmp_path: Path) -> None:
    """The receiver may hold fewer files than it is sent; the sender then starts a worker as it would have."""
    ours, theirs = handover.channel()
    opened = [os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT) for number in range(50)]
    taker = f"""
import resource, socket
from src.sweep import handover
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
with socket.socket(fileno={theirs.fileno()}) as end:
    assert handover.receive(end) is None
"""
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", taker], pass_fds=[theirs.fileno()], cwd=CODE)
    with ours, pytest.raises(OSError):
        handover.send(ours, [], opened)
    assert process.wait() == 0
    for one in opened:
        os.close(one)


def test_a_signal_right_after_the_handover_ends_the_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WORKER", [sys.executable, "-c", "import time; time.sleep(60)"])
    start, found = child.Workers._start, []

    def interrupted(*given: Any) -> Any:
        found.append(start(*given))
        signal.raise_signal(signal.SIGINT)
        return found[0]

    monkeypatch.setattr(child.Workers, "_start", interrupted)
    before = set(os.listdir("/proc/self/fd"))
    with child.Workers() as workers, pytest.raises(KeyboardInterrupt):
        workers.run([], [], lambda event: None, None, 60.0)
    assert set(os.listdir("/proc/self/fd")) == before and found[0].returncode is not None


def test_a_standby_ends_by_itself_where_its_command_is_gone(folder: Path) -> None:
    standby = child.Standby()
    standby._channel.close()  # as the system does for a process that is killed
    assert standby.process.wait(timeout=60) == 0


def test_a_standby_that_nobody_needs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WORKER", [sys.executable, "-c", "import time; time.sleep(60)"])
    with child.Workers() as workers:
        workers.preload = True
        workers._on_event({"event": "phase", "what": "loading"}, lambda event: None)
        assert workers._standby is None
        workers._on_event({"event": "step"}, lambda event: None)
        standby = workers._standby
        workers._on_event({"event": "step"}, lambda event: None)
        assert workers._standby is standby and standby is not None and standby.process.poll() is None
    assert standby.process.poll() is not None
