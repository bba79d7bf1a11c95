"""Choose the moment to strike: a random time, or as soon as the files show a random event."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.faults.commands import STEPS, TIMEOUT, Command, runs_of

POLL = 0.003  # seconds


class Moment:
    """``name`` says what it waits for; ``come`` returns once it is there, or once the command has ended."""

    def __init__(self, name: str, happens: Callable[[], bool], delay: float) -> None:
        self.name = name
        self.happens = happens
        self.delay = delay

    def come(self, command: Command) -> None:
        until = time.monotonic() + TIMEOUT
        while not command.ended and not self.happens():
            assert time.monotonic() < until, f"{self.name} has not come: {command.errors()}"
            time.sleep(POLL)
        # A delay in small steps, so that a command that ends meanwhile is not waited for.
        until = time.monotonic() + self.delay
        while not command.ended and time.monotonic() < until:
            time.sleep(POLL)


def by_the_clock(seconds: float) -> Moment:
    return Moment("the clock", lambda: True, seconds)


# What it waits for: seconds that it waits beyond, at most.
EVENTS = {
    "a worker": 6.0,
    "some steps": 0.1,
    "more steps": 0.1,
    "a checkpoint half written": 0.0,
    "an adapter half written": 0.0,
    "an adapter": 0.3,
    "predictions": 0.02,
    "a result half written": 0.0,
    "a result": 0.02,
    "the end of a pack": 2.0,
}


def by_an_event(command: Command, kind: str, rng: random.Random) -> Moment:
    """The moment for a command that has just been started; what its folder holds already does not count."""
    folder = command.folder

    def count(pattern: str) -> int:
        return sum(1 for _ in folder.glob(pattern))

    steps = steps_taken(folder) + rng.randint(1, 48)
    results = count("runs/*/result.json") + (4 if kind == "the end of a pack" else rng.randint(1, 4))
    happens: dict[str, Callable[[], bool]] = {
        "a worker": lambda: command.worker() is not None,
        "some steps": lambda: steps_taken(folder) >= steps,
        "more steps": lambda: steps_taken(folder) >= steps + 48,
        "a checkpoint half written": lambda: count("runs/*/checkpoints/.*") > 0,
        "an adapter half written": lambda: count("runs/*/.adapter.*") > 0,
        "an adapter": lambda: _has(command, "adapter"),
        "predictions": lambda: _has(command, "predictions.jsonl"),
        "a result half written": lambda: count("runs/*/.result.json.*") > 0,
        "a result": lambda: count("runs/*/result.json") >= results,
        "the end of a pack": lambda: count("runs/*/result.json") >= results,
    }
    return Moment(kind, happens[kind], rng.uniform(0, EVENTS[kind]))


def steps_taken(folder: Path) -> int:
    """Steps in all metrics.jsonl together."""
    return sum(_read(path).count(STEPS) for path in folder.glob("runs/*/metrics.jsonl"))


def half_written(folder: Path) -> list[Path]:
    """List the temporary files that a killed process was about to rename."""
    found = [*folder.glob("runs/*/.*"), *folder.glob("runs/*/checkpoints/.*"), *folder.glob("runs/sweeps/.*")]
    return [path for path in found if path.name != ".lock"]


def _has(command: Command, name: str) -> bool:
    """Tell whether a run of the current worker has this file; an earlier attempt's is removed before it starts."""
    worker = command.worker()
    with suppress(Exception):
        return worker is not None and any((run / name).exists() for run in runs_of(worker))
    return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
