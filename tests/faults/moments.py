"""When to strike: at a random time, or as soon as a random event has shown itself in the files."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
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


def by_an_event(command: Command, kind: str, rng: random.Random) -> Moment:
    """The moment for a command that has just been started; what its folder holds already does not count."""
    folder = command.folder

    def count(pattern: str) -> int:
        return sum(1 for _ in folder.glob(pattern))

    steps = steps_taken(folder) + rng.randint(1, 120)
    results = count("runs/*/result.json") + rng.randint(1, 4)
    happens: dict[str, Callable[[], bool]] = {
        "a worker": lambda: command.worker() is not None,
        "steps": lambda: steps_taken(folder) >= steps,
        "a temporary file": lambda: bool(_temporary(folder)),
        "a result": lambda: count("runs/*/result.json") >= results,
        "an adapter": lambda: _has(command, "adapter"),
        "predictions": lambda: _has(command, "predictions.jsonl"),
    }
    longest = {"a worker": 6.0, "a temporary file": 0.0, "a result": 0.02, "an adapter": 0.3, "predictions": 0.02}
    return Moment(kind, happens[kind], rng.uniform(0, longest.get(kind, 0.1)))


EVENTS = ("a worker", "steps", "a temporary file", "a result", "an adapter", "predictions")


def steps_taken(folder: Path) -> int:
    """Steps in all metrics.jsonl together."""
    return sum(_read(path).count(STEPS) for path in folder.glob("runs/*/metrics.jsonl"))


def _temporary(folder: Path) -> list[Path]:
    return [path for path in _walk(folder / "runs", 3) if path.name.startswith(".") and path.name != ".lock"]


def temporary_files(folder: Path) -> list[str]:
    """Files that were being written and are not whole."""
    return [str(path.relative_to(folder)) for path in _temporary(folder)]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    with suppress(OSError):
        for path in folder.iterdir():
            yield path
            if depth > 1 and path.is_dir() and path.name != "wandb":
                yield from _walk(path, depth - 1)


def _has(command: Command, name: str) -> bool:
    """Whether a run of the worker that is at work now has this file; an earlier attempt's is removed before it starts."""
    worker = command.worker()
    with suppress(Exception):
        return worker is not None and any((run / name).exists() for run in runs_of(worker))
    return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
