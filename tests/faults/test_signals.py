"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 in every phase: a checkpoint, one line, the exit code a shell expects, no process left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.record.records import RunFolder
from src.sweep.locks import Claims
from tests.conftest import CODE
from tests.faults import sweep
from tests.faults.commands import Command, left, wait_until_none_is_left
from tests.faults.moments import steps_taken
from tests.faults.sweep import ONE_PACK, Reference

pytestmark = pytest.mark.usefixtures("no_survivors")

ROW = "SIGINT, SIGTERM, SIGHUP, SIGUSR1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LIMIT = 10.0  # seconds from the signal to the end
PHASES = ("training", "training", "loading", "evaluating", "waiting")
# No regular checkpoint, so that what is there was saved because of the signal.
ONLY_THEN = "train.checkpoint_every=1000"

# The command with a worker that does not stop when it is asked to.
STUBBORN = """
import signal, sys, time
from pathlib import Path
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
Path("stubborn").touch()
time.sleep(60)
"""
WITH_STAND_IN = """
import sys
sys.path.insert(0, {code!r})
from src.command import cli
from src.train import __main__, child
child.WORKER = [sys.executable, "worker.py"]
cli.run(__main__.main)
"""


@dataclass(frozen=True)
class Case:
    number: signal.Signals
    phase: str
    to_group: bool  # as a terminal sends it; otherwise to the parent alone, as kill does

    def __str__(self) -> str:
        return f"{self.number.name} to {'the group' if self.to_group else 'the parent'} while {self.phase}"


CASES = [
    Case(number, phase, to_group=(at + shift) % 2 == 0) for at, number in enumerate(SIGNALS) for shift, phase in enumerate(PHASES)
]
FEW = [Case(signal.SIGINT, "training", to_group=True), Case(signal.SIGTERM, "loading", to_group=False)]


def play(case: Case, folder: Path, reference: Reference) -> tuple[float, list[str]]:
    """Seconds from the signal to the end, and what was wrong."""
    sweep.prepare(folder)
    with ExitStack() as stack:
        if case.phase == "waiting":
            held = stack.enter_context(Claims())
            for run in reference.records:
                assert held.take(RunFolder(run, folder / "runs"))
        command = sweep.start(folder, ONE_PACK, ONLY_THEN)
        come(case.phase, command)
        before = command.phase()
        seconds = end(command, case)
    wrong = refuse_bad_end(command, case)
    if case.phase == "training" and not any(checkpoints(folder)):
        wrong.append(f"no checkpoint ({before}, {steps_taken(folder)} steps taken)")
    if case.phase == "training" and steps_taken(folder) == len(reference.records) * sweep.STEPS:
        wrong.append("it trained to its end")
    again = sweep.start(folder, ONE_PACK, ONLY_THEN)
    if again.wait() != 0:
        wrong.append(f"the same command: {again.errors()}")
    wrong += sweep.judge(folder, reference).wrong
    return seconds, wrong


def come(phase: str, command: Command) -> None:
    """Wait until the command does what the phase says."""
    folder = command.folder
    happens: dict[str, Callable[[], bool]] = {
        "loading": lambda: command.worker() is not None,
        "training": lambda: steps_taken(folder) >= 20,
        "evaluating": lambda: any(folder.glob("runs/*/adapter")),
        "waiting": lambda: "waiting for" in command.errors(),
    }
    until = time.monotonic() + 120
    while not happens[phase]():
        assert not command.ended and time.monotonic() < until, f"{phase} never came: {command.errors()}"
        time.sleep(0.005)
    if phase == "loading":
        time.sleep(2)  # in the middle of its imports


def end(command: Command, case: Case) -> float:
    started = time.monotonic()
    if case.to_group:
        os.killpg(command.process.pid, case.number)
    else:
        command.process.send_signal(case.number)
    command.wait(60)
    return time.monotonic() - started


def refuse_bad_end(command: Command, case: Case) -> list[str]:
    wrong, said = [], command.errors()
    code = 128 + case.number
    if command.process.returncode != code:
        wrong.append(f"exit code {command.process.returncode}, not {code}")
    lines = [line for line in said.splitlines() if "waiting for" not in line]
    if len(lines) != 1 or "interrupted" not in lines[0]:
        wrong.append(f"it said {said!r}")
    if remaining := wait_until_none_is_left(command.folder, 1):
        wrong.append(f"{remaining} are left")
    return wrong


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("runs/*/checkpoint*/*.safetensors"))


def test_a_signal_ends_the_command_with_a_checkpoint_and_the_next_one_goes_on(
    folder: Path, size: Callable[[int, int], int], undisturbed: Reference, figure: Callable[[str, str], None]
) -> None:
    cases = FEW if size(0, 1) == 0 else CASES
    reference = undisturbed.of_one_pack()

    def one(at: int) -> tuple[float, list[str]]:
        seconds, wrong = play(cases[at], folder / f"case{at}", reference)
        print(f"{cases[at]}: {seconds:.2f} s", *wrong, sep="\n  ")
        if not wrong:
            shutil.rmtree(folder / f"case{at}")
        return seconds, [f"{cases[at]}: {text}" for text in wrong]

    with ThreadPoolExecutor(max_workers=2) as two:
        ends = list(two.map(one, range(len(cases))))
    assert not [text for _, wrong in ends for text in wrong]
    longest = max(seconds for seconds, _ in ends)
    assert longest < LIMIT
    figure(
        ROW,
        f"{len(cases)} signals ({', '.join(dict.fromkeys(case.phase for case in cases))}; to the process group or the parent"
        f" alone): {len(cases)} of {len(cases)} ended with 128 + the signal's number and no process left, the slowest after"
        f" {longest:.1f} s; {len(cases)} of {len(cases)} went on to bit-identical records",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_a_command_whose_worker_does_not_stop(
    number: signal.Signals, folder: Path, figure: Callable[[str, str], None]
) -> None:
    command = stubborn(folder / "stubborn")
    os.killpg(command.process.pid, number)
    time.sleep(1)
    assert not command.ended, command.errors()
    seconds = end(command, Case(number, "waiting for its worker", to_group=True))
    assert command.process.returncode == 128 + number and "Traceback" not in command.errors()
    assert seconds < 1 and not wait_until_none_is_left(command.folder, 0.5)
    figure(ROW, f"a second {number.name}, where the worker ignores the first: the end after {seconds:.2f} s")


def test_a_signal_ends_within_ten_seconds_a_command_whose_worker_does_not_stop(
    folder: Path, size: Callable[[int, int], int], figure: Callable[[str, str], None]
) -> None:
    if size(0, 1) == 0:
        pytest.skip("takes ten seconds")
    command = stubborn(folder / "stubborn")
    seconds = end(command, Case(signal.SIGTERM, "waiting for its worker", to_group=False))
    assert command.process.returncode == 143 and seconds < LIMIT and not wait_until_none_is_left(command.folder, 0.5)
    figure(ROW, f"a worker that ignores SIGTERM: the end after {seconds:.1f} s")


def stubborn(folder: Path) -> Command:
    """A command whose worker has been started and ignores signals."""
    sweep.prepare(folder)
    (folder / "worker.py").write_text(STUBBORN)
    (folder / "command.py").write_text(WITH_STAND_IN.format(code=str(CODE)))
    command = Command(folder, "model=tiny", "tracking=disabled", "train.batch_size=4", program=("command.py",))
    until = time.monotonic() + 60
    while not (folder / "stubborn").exists():
        assert not command.ended and time.monotonic() < until, command.errors()
        time.sleep(0.01)
    return command


def test_what_nohup_ignores_stays_ignored(folder: Path, size: Callable[[int, int], int], undisturbed: Reference) -> None:
    """``nohup`` starts a command with SIGHUP ignored, so that it outlives its terminal."""
    if size(0, 1) == 0:
        pytest.skip("trains a sweep")
    place = folder / "nohup"
    sweep.prepare(place)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command = sweep.start(place, ONE_PACK)
    finally:
        signal.signal(signal.SIGHUP, before)
    come("training", command)
    for process in left(place):
        process.send_signal(signal.SIGHUP)
    assert command.wait() == 0, command.errors()
    assert sweep.judge(place, undisturbed.of_one_pack()).wrong == []
