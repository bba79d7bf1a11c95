"""Read what a worker says; nothing happens to it where nobody listens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from src.sweep.events import Events


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def say_all(events: Events) -> None:
    events.phase("loading tiny")
    events.taken(["a", "b"], None, "memory holds")
    events.step(1, 2, {"a": 3.5, "b": None}, None)
    advance = events.scoring("the test split", 5)
    advance(2)
    advance(3)
    events.ended("a")


def test_every_event_is_one_line_of_json(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    say_all(Events(theirs))
    found: list[dict[str, Any]] = [json.loads(line) for line in os.read(ours, 1 << 16).splitlines()]
    assert found == [
        {"event": "phase", "what": "loading tiny"},
        {"event": "taken", "runs": ["a", "b"], "memory_bytes": None, "why": "memory holds"},
        {"event": "step", "step": 1, "steps": 2, "losses": {"a": 3.5, "b": None}, "tokens_per_second": None},
        *({"event": "scoring", "what": "the test split", "done": done, "total": 5} for done in (0, 2, 5)),
        {"event": "ended", "run": "a"},
    ]


def test_a_pipe_that_nobody_reads_any_more_is_left_alone(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pipe
    events = Events(theirs)
    os.close(ours)
    tried = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: tried.append(descriptor) or write(descriptor, data))
    say_all(events)
    assert tried == [theirs]  # its number may be another file's by the next event


def test_a_worker_started_by_hand_has_nobody_to_tell() -> None:
    say_all(Events(None))
