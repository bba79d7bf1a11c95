"""Two commands on one runs/: each run is trained once, whichever of them lives to see it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CODE
from tests.faults import sweep
from tests.faults.commands import Command, wait_until_none_is_left

pytestmark = pytest.mark.usefixtures("no_survivors")

ROW = "Two commands on one `runs/`"
THIRD = 15.0  # seconds for a command that finds everything done
SETTINGS = [
    *("model=tiny", "tracking=disabled", "dataset=jsonl", "dataset.path=rows.jsonl", "forgetting.tokens=0"),
    *("lora.r=4", "train.steps=2", "train.batch_size=4", "eval.generate=false"),
]
# Takes the part of a command that lists its runs, many times over.
LISTING = """
import sys, time
sys.path.insert(0, {code!r})
from src.record.records import write_sweep
while time.time() < {start!r}:
    pass
for seed in range(20):
    write_sweep("both", [f"{{sys.argv[1]}}-{{seed}}"], add=True)
"""


def start(folder: Path, runs: int, packs: int) -> Command:
    return Command(folder, "-m", *SETTINGS, f"seed=range({runs})", f"pack.max_runs={-(-runs // packs)}")


def statuses(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["status"] for path in folder.glob("runs/*/result.json")]


def trained(command: Command) -> list[str]:
    """The runs that the command says it has trained."""
    return re.findall(r"\] ([0-9a-f]{10}) .*: ok, ", command.output())


def found_done(command: Command) -> list[str]:
    return re.findall(r"\] ([0-9a-f]{10}) .*: already done, ok, ", command.output())


def third(folder: Path, runs: int, packs: int) -> float:
    """Seconds of a command that has nothing to do and nothing to wait for."""
    started = time.monotonic()
    command = start(folder, runs, packs)
    assert command.wait() == 0, command.errors()
    assert len(found_done(command)) == runs and trained(command) == [] and command.errors() == ""
    return time.monotonic() - started


def test_two_commands_train_each_run_of_a_sweep_once(
    folder: Path, size: Callable[[int, int], int], figure: Callable[[str, str], None]
) -> None:
    place, runs, packs = folder / "place", size(6, 50), size(2, 10)
    sweep.prepare(place)
    both = [start(place, runs, packs), start(place, runs, packs)]
    assert [command.wait() for command in both] == [0, 0], [command.errors() for command in both]
    assert statuses(place) == ["ok"] * runs
    one, other = (trained(command) for command in both)
    assert len({*one, *other}) == len(one) + len(other) == runs
    assert all(len({*trained(command), *found_done(command)}) == runs for command in both)
    assert wait_until_none_is_left(place, 5) == []
    seconds = third(place, runs, packs)
    assert seconds < THIRD
    figure(
        ROW,
        f"{runs} runs in {packs} packs: one command trained {len(one)}, the other {len(other)}, none twice; a third found all"
        f" done after {seconds:.1f} s",
    )


def test_what_a_killed_command_leaves_the_other_finishes(
    folder: Path, size: Callable[[int, int], int], figure: Callable[[str, str], None]
) -> None:
    if size(0, 1) == 0:
        pytest.skip("trains five packs")
    victims = ["all", "parent"]
    for victim in victims:
        place, runs, packs = folder / victim, 20, 5
        sweep.prepare(place)
        survivor, other = start(place, runs, packs), start(place, runs, packs)
        while not (other.worker() and other.phase() in ("training", "evaluating", "writing results")):
            assert not other.ended, other.errors()
            time.sleep(0.01)
        if victim == "all":
            other.kill("worker")
        other.kill("parent")
        other.wait()
        assert survivor.wait() == 0, survivor.errors()
        assert statuses(place) == ["ok"] * runs
        assert len({*trained(survivor), *found_done(survivor)}) == runs
        assert wait_until_none_is_left(place, 5) == []
        assert third(place, runs, packs) < THIRD
    figure(ROW, f"one of the two killed by SIGKILL ({len(victims)} times): the other finished all 20 runs")


def test_commands_that_add_to_one_sweep_at_once_lose_none_of_its_runs(folder: Path, figure: Callable[[str, str], None]) -> None:
    place = folder / "place"
    sweep.prepare(place)
    (place / "listing.py").write_text(LISTING.format(code=str(CODE), start=time.time() + 2))
    commands = [Command(place, f"c{number}", program=("listing.py",)) for number in range(8)]
    assert [command.wait() for command in commands] == [0] * 8, [command.errors() for command in commands]
    listed = json.loads((place / "runs" / "sweeps" / "both.json").read_text())["run_ids"]
    assert sorted(listed) == sorted(f"c{number}-{seed}" for number in range(8) for seed in range(20))
    assert set(os.listdir(place / "runs" / "sweeps")) <= {"both.json", ".lock"}
    figure(ROW, "8 processes that add 20 runs each to one sweep: all 160 are listed")
