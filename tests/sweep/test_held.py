"""A run's folder that was removed, moved away or given another lock is not written to, and not made anew."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from src.command.cli import compose
from src.files.durable import CannotWrite, write_atomically
from src.record.metrics_log import MetricsLog
from src.record.records import RunFolder
from src.sweep.child import CANNOT_WRITE
from src.sweep.held import LOCK, holding
from src.sweep.locks import Claims
from tests.conftest import ENVIRONMENT, TINY, written
from tests.faults.commands import Command, wait_until_none_is_left

LIMIT = 120.0  # seconds; a worker imports for some of them


def remove(run: Path) -> None:
    shutil.rmtree(run)


def remove_all(run: Path) -> None:
    shutil.rmtree(run.parent)


def move_away(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def make_another(run: Path) -> None:
    move_away(run)
    shutil.copytree(run.with_name("elsewhere"), run)


def replace_lock(run: Path) -> None:
    (run / LOCK).rename(run / "old")
    (run / LOCK).touch()


LOSSES = {
    remove: "{run}: is gone, so ",
    remove_all: "{run}: is gone, so ",
    move_away: "{run}: is gone, so ",
    make_another: "{run}: is not the folder that the run began in, so ",
    replace_lock: "{run}/.lock: is not the lock that the run holds, so ",
}
EVERY = pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def claimed(run: Path) -> Iterator[TextIO]:
    with open(run / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@EVERY
def test_nothing_is_written_any_more(folder: Path, lose: Callable[[Path], None]) -> None:
    run = RunFolder("a" * 10)
    with Claims() as claims:
        assert claims.take(run)
        run.write_provenance({"commit": None})
        log = MetricsLog(run.metrics)
        log.append({"step": 1})
        lose(run.path)
        before = contents(folder)
        writes: list[Callable[[], object]] = [
            lambda: run.write_result({"status": "ok"}), lambda: run.write_predictions([]), lambda: log.append({"step": 2}),
            run.clear_results, lambda: write_atomically(run.error, "text"),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(CannotWrite, match=LOSSES[lose].format(run=run.path)):
                write()
        assert contents(folder) == before
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_result({"status": "ok"})  # whoever holds no run is not held up


def test_a_folder_that_is_whole_is_written_to(folder: Path) -> None:
    run = RunFolder("a" * 10)
    with Claims() as claims:
        assert claims.take(run)
        with holding([run.path], claims.locks):
            run.write_result({"status": "ok"})
        run.write_result({"status": "ok"})
        claims.give_up(run)
        replace_lock(run.path)
        run.write_result({"status": "ok"})


def test_a_folder_that_went_between_claim_and_worker_is_noticed(folder: Path) -> None:
    """The imports take seconds, in which another command may have made the folder anew and taken its lock."""
    run = RunFolder("a" * 10).path
    run.mkdir(parents=True)
    with claimed(run) as lock:
        replace_lock(run)
        with pytest.raises(CannotWrite, match="is not the lock"), holding([run], [lock.fileno()]):
            pass
        remove(run)
        with pytest.raises(CannotWrite, match="is gone"), holding([run], [lock.fileno()]):
            pass


def test_a_link_in_the_place_of_a_lock_is_not_followed(folder: Path) -> None:
    run = RunFolder("a" * 10)
    run.path.mkdir(parents=True)
    (folder / "precious").write_text("kept")
    (run.path / LOCK).symlink_to(folder / "precious")
    with Claims() as claims:
        assert claims.take(run)
        run.drop_links()
        run.write_result({"status": "ok"})
    assert (folder / "precious").read_text() == "kept" and not (run.path / LOCK).is_symlink()


@pytest.mark.parametrize("lose", [remove, make_another, replace_lock], ids=lambda lose: lose.__name__)
def test_a_worker_that_lost_its_folder_stops(folder: Path, lose: Callable[[Path], None]) -> None:
    """A real worker, which nobody listens to. It has hours of steps before it, and none of a checkpoint."""
    record = written(compose([*TINY, "variant=lora", "train.steps=1000000", "eval.every=1000000", "forgetting.tokens=0"]))
    with claimed(record.path) as lock:
        command = [sys.executable, "-m", "src.train.worker", "--locks", str(lock.fileno()), str(record.path)]
        worker = subprocess.Popen(
            command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, pass_fds=[lock.fileno()], stderr=subprocess.PIPE, text=True
        )
    try:
        wait_for(lambda: worker.poll() is not None or (record.metrics.exists() and record.metrics.stat().st_size > 2000))
        assert worker.poll() is None
        lose(record.path)
        before = contents(folder)
        _, errors = worker.communicate(timeout=20)
    finally:
        worker.kill()
        worker.wait()
    assert worker.returncode == CANNOT_WRITE
    (line,) = errors.splitlines()
    assert line == f"error: {LOSSES[lose].format(run=record.path)}nothing more is written and the run stops"
    after = contents(folder)
    assert after.keys() == before.keys()
    # Only what the worker still wrote before it was lost may be more than was seen: a line that was under way.
    assert {name for name in after if after[name] != before[name]} <= {"runs/elsewhere/metrics.jsonl"}


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("lose", [None, remove_all])
def test_a_worker_whose_command_was_killed_goes_on_where_its_folder_is_whole(
    tmp_path: Path, lose: Callable[[Path], None] | None
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    steps = 300 if lose is None else 1_000_000
    tracking = "disabled" if lose is None else "wandb_offline"  # its files lie in the folder too
    words = [*(word for word in TINY if "tracking" not in word), f"tracking={tracking}", "variant=lora", f"train.steps={steps}"]
    words += ["eval.every=1000000", "forgetting.tokens=0", "eval.generate=false"]
    command = Command(place, *words)
    try:
        logs = lambda: list(place.glob("runs/*/metrics.jsonl"))  # noqa: E731
        wait_for(lambda: command.ended or any(path.stat().st_size > 2000 for path in logs()))
        if lose is not None:  # what W&B does while it sets itself up is not ours to stop
            wait_for(lambda: command.ended or any(path.stat().st_size for path in place.glob("runs/*/wandb/*/run-*.wandb")))
        assert not command.ended, command.errors()
        command.kill("parent")
        command.wait()
        if lose is not None:
            lose(logs()[0].parent)
        assert wait_until_none_is_left(place, LIMIT) == []
    finally:
        command.kill("all")
    results = list(place.glob("runs/*/result.json"))
    if lose is None:
        assert len(results) == 1 and '"status": "ok"' in results[0].read_text()
    else:
        assert os.listdir(place) == [] and command.errors().endswith(": is gone, so nothing more is written and the run stops\n")


def test_a_folder_of_runs_that_cannot_be_made_is_one_clear_line(command, folder: Path) -> None:
    (folder / "runs").write_text("no folder")
    done = command("src.train", *TINY, "variant=frozen")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: runs/") and "Not a directory; what is done stays" in line and "Errno" not in line
