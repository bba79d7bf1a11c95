"""A worker that dies, once or each time, and one that hangs. The stand-ins die for 4-bit runs only; others really train."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import CODE
from tests.faults import sweep
from tests.faults.commands import Command, wait_until_none_is_left
from tests.faults.moments import steps_taken
from tests.faults.sweep import ONE_PACK, Reference

pytestmark = pytest.mark.usefixtures("no_survivors")

DEATH = "Death of a worker process"
SILENCE = "A worker that says nothing"
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
FAILING = 6  # jobs whose worker always dies
GROWTH = 20e6  # bytes

# A worker that writes down how it was called, and the resident memory of the process that called it.
WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

runs = [argument for argument in sys.argv if argument.startswith("runs/")]
if "base_precision: nf4" not in Path(runs[0], "config.yaml").read_text():
    os.execv(sys.executable, [sys.executable, "-m", "src.train.worker", *sys.argv[1:]])
status = Path(f"/proc/{os.getppid()}/status").read_text()
call = {"runs": runs, "pid": os.getpid(), "parent_bytes": int(status.split("VmRSS:")[1].split()[0]) * 1024}
"""
TELL = """
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\\n")
"""
DIES = f"""{WORKER}{TELL}
events = int(sys.argv[sys.argv.index("--events") + 1])
for _ in range(40):  # what a driver that kept it would grow by
    os.write(events, b"x" * 100_000 + b"\\n")
    sys.stderr.write("y" * 100_000 + "\\n")
sys.stderr.flush()
os.kill(os.getpid(), signal.SIGSEGV)
"""
HANGS = f"""{WORKER}
call["child"] = subprocess.Popen(["sleep", "300"]).pid
call["time"] = time.time()
{TELL}
time.sleep(300)
"""
COMMAND = """
import sys
sys.path.insert(0, {code!r})
from src.command import cli
from src.train import __main__, child
child.WORKER = [sys.executable, "worker.py"]
cli.run(__main__.main)
"""


def with_stand_in(folder: Path, worker: str, *overrides: str) -> Command:
    sweep.prepare(folder)
    (folder / "worker.py").write_text(worker)
    (folder / "command.py").write_text(COMMAND.format(code=str(CODE)))
    return Command(folder, "-m", *sweep.SETTINGS, *overrides, program=("command.py",))


def calls(folder: Path) -> list[dict[str, Any]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]


def test_a_worker_that_died_once_is_started_again_and_goes_on_to_the_same_bits(
    folder: Path, size: Callable[[int, int], int], undisturbed: Reference, figure: Callable[[str, str], None]
) -> None:
    reference, numbers = undisturbed.of_one_pack(), SIGNALS[: size(0, len(SIGNALS))]
    if not numbers:
        pytest.skip("test_kills.py kills a worker once")

    def one(number: signal.Signals) -> list[str]:
        place = folder / number.name
        sweep.prepare(place)
        command = sweep.start(place, ONE_PACK)
        while steps_taken(place) < 40:
            assert not command.ended, command.errors()
            time.sleep(0.005)
        worker = command.worker()
        assert worker is not None
        worker.send_signal(number)
        wrong = [] if command.wait() == 0 else [f"exit code {command.wait()}: {command.errors()}"]
        wrong += [] if number.name in command.errors() else [f"{number.name} is not in what it said: {command.errors()}"]
        return [f"{number.name}: {text}" for text in wrong + sweep.judge(place, reference).wrong]

    with ThreadPoolExecutor(max_workers=2) as two:
        assert [text for wrong in two.map(one, numbers) for text in wrong] == []
    figure(
        DEATH,
        f"ended once in training by {', '.join(number.name for number in numbers)}: the same command started it again, and all"
        f" {len(reference.records)} runs ended bit-identical, {len(numbers)} of {len(numbers)} times",
    )


def test_a_worker_that_dies_each_time_fails_its_own_runs_and_no_others(
    folder: Path, size: Callable[[int, int], int], figure: Callable[[str, str], None]
) -> None:
    place = folder / "place"
    # One pack of fp32 that trains, and packs of nf4 that die.
    precisions = "variant.base_precision=fp32,nf4" if size(0, 1) else "variant.base_precision=nf4"
    command = with_stand_in(place, DIES, precisions, f"lora.r=range(1,{FAILING + 1})", "variant=lora", "pack.max_runs=1")
    assert command.wait() == 1, command.errors()
    failed = [result for result in results(place) if result["status"] == "failed"]
    assert len(failed) == FAILING and all("SIGSEGV" in result["reason"] for result in failed)
    others = [result["status"] for result in results(place) if result["base_precision"] == "fp32"]
    assert others == ["ok"] * size(0, FAILING)
    called = [call["runs"] for call in calls(place)]
    assert sorted(called) == sorted(2 * [run for at, run in enumerate(called) if run not in called[:at]])
    assert len(called) == 2 * FAILING
    lines = command.output().splitlines()
    assert all(any(result["run_id"] in line and "SIGSEGV" in line for line in lines) for result in failed)
    assert "Traceback" not in command.errors() and wait_until_none_is_left(place, 2) == []
    memory = [call["parent_bytes"] for call in calls(place)]
    assert max(memory) - memory[0] < GROWTH
    figure(
        DEATH,
        f"{FAILING} runs whose worker dies by SIGSEGV each time: each was tried twice, all {FAILING} are `failed` and named with"
        f" the reason, {len(others)} others are ok; the command's memory grew by {(max(memory) - memory[0]) / 1e6:.1f} MB",
    )


def test_a_worker_that_hangs_is_killed_with_its_child(folder: Path, figure: Callable[[str, str], None]) -> None:
    place, silence = folder / "place", 2.0
    overrides = ["variant=lora", "lora.r=4", "variant.base_precision=nf4", f"pack.silence={silence:g}"]
    command = with_stand_in(place, HANGS, *overrides)
    lived = [watch(place, attempt, command) for attempt in range(2)]
    assert all(silence - 0.5 < seconds < silence + 2 for seconds in lived), lived
    assert command.wait(20) == 1 and len(calls(place)) == 2
    assert [result["status"] for result in results(place)] == ["failed"]
    assert wait_until_none_is_left(place, 0) == [] and "Traceback" not in command.errors()
    figure(SILENCE, f"with `pack.silence=2`: killed with its child after {max(lived):.1f} s, tried twice, then `failed`")


def watch(folder: Path, attempt: int, command: Command) -> float:
    """Seconds from a call of the stand-in until neither it nor its child runs."""
    while len(calls(folder)) <= attempt:
        assert not command.ended, command.errors()
        time.sleep(0.01)
    call = calls(folder)[attempt]
    until = call["time"] + 20
    while any(runs(call[who]) for who in ("pid", "child")):
        assert time.time() < until, f"attempt {attempt} goes on"
        time.sleep(0.01)
    return time.time() - float(call["time"])


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
