"""Every file of a record and of a checkpointed run: cut, flipped, zeroed, deleted, swapped. None is taken for good."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.compare.frame import gather
from src.compare.logs import curves
from src.compare.pair import compare_pair
from src.files.durable import Damaged
from src.files.errors import ConfigError
from src.record import checkpoint
from src.record.records import RUNS, RunFolder, read_sweep, write_sweep
from src.sweep.display import Display
from src.sweep.fit import Memory
from src.sweep.launch import Launch
from src.sweep.plan import Job
from tests.faults.forked import server
from tests.faults.shim import Mode, scratch
from tests.faults.tiny_sweep import SWEEP, goes_on, undisturbed

Figure = Callable[[str, str], None]
Size = Callable[[int, int], int]
RECORD = "Truncated or flipped bytes in a record"
CHECKPOINT = "Truncated or flipped bytes in a checkpoint"
FILES = (
    *("result.json", "config.yaml", "provenance.json", "metrics.jsonl", "predictions.jsonl"),
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
)
GONE = None


@dataclass(frozen=True)
class Damage:
    what: str
    content: bytes | None  # None where the file is deleted


def damages(data: bytes, other: bytes, cuts: int, flips: int, seed: str) -> Iterator[Damage]:
    """``data`` cut at every 1/``cuts``, with a bit flipped, with a tail of zeros, emptied, gone, or in its place ``other``."""
    dice = random.Random(seed)
    made = [Damage("deleted", GONE), Damage("swapped", other), Damage("a byte more", data + b"\n")]
    made += [Damage(f"cut at {part}/{cuts}", data[: len(data) * part // cuts]) for part in range(cuts)]
    for _ in range(flips):
        at, bit = dice.randrange(len(data)), dice.randrange(8)
        made.append(Damage(f"bit {bit} of byte {at} flipped", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]))
    for length in (1, 16, 512, 4096, len(data)):
        kept = max(0, len(data) - length)
        made.append(Damage(f"its last {length} bytes zero", data[:kept] + bytes(len(data) - kept)))
    return (damage for damage in made if damage.content != data)


def put(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@functools.cache
def interrupted() -> Path:
    """A working folder with the sweep ended by a full disk after its last checkpoints."""
    was = undisturbed()
    was.anew()
    server().shim.set(was.runs, Mode.FROM, was.trained, errno.ENOSPC)
    assert server().run("src.train", *SWEEP, cwd=was.work).code == 1
    kept = scratch("damage") / "interrupted"
    shutil.copytree(was.work, kept)
    return kept


def start_from(kept: Path) -> None:
    """Make the sweep's working folder a copy of that one."""
    work = undisturbed().work
    shutil.rmtree(work)
    shutil.copytree(kept, work)


@dataclass
class Readers:
    """All that reads a record, asked about one run and what it said before any damage. Works in the current folder."""

    run: str
    other: str
    config: Any
    row: Any
    lines: Any

    @classmethod
    def of(cls, run: str, other: str) -> Readers:
        readers = cls(run, other, RunFolder(run).read_config(), gather([run]).rows, curves([run]).frame)
        assert readers.taken_by() == ["the same command", "gather", "curves", "pair"], readers.taken_by()
        return readers

    def taken_by(self) -> list[str]:
        """List the readers that accept the record without a warning."""
        found = []
        with contextlib.redirect_stdout(io.StringIO()):
            if Launch(Display(1), Memory()).is_done(Job(self.run, self.config)):
                found.append("the same command")
            gathered = gather([self.run])
            if not gathered.problems and any(row["status"] == "ok" for row in gathered.rows):
                found.append("gather")
            read = curves([self.run])
            if not read.problems and not read.frame.empty:
                found.append("curves")
            with contextlib.suppress(ConfigError):
                compare_pair(self.run, self.other)
                found.append("pair")
        return found


# Which reader reads which file. "The same command" reads all of them.
READ_BY = {
    "result.json": {"gather", "curves", "pair"},
    "provenance.json": {"gather"},
    "metrics.jsonl": {"curves"},
    "predictions.jsonl": {"pair"},
}


@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_of_a_record_is_taken_for_good(
    name: str, size: Size, figure: Figure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed().done, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    run, other = undisturbed().outcomes
    readers = Readers.of(run, other)
    path = RUNS / run / name
    good, swapped = path.read_bytes(), (RUNS / other / name).read_bytes()
    wrong, tried = [], 0
    for damage in damages(good, swapped, size(10, 50), size(10, 200), name):
        put(path, damage.content)
        tried += 1
        try:
            taken = {"the same command", *READ_BY.get(name, set())} & set(readers.taken_by())
            if taken:
                wrong.append(f"{damage.what}: taken for good by {sorted(taken)}")
        except Exception as error:
            wrong.append(f"{damage.what}: {error!r}")
    put(path, good)
    assert not wrong, f"{len(wrong)} of {tried}: {wrong[:10]}"
    figure(RECORD, f"{name}: {tried} damages, 0 read as good, 0 crashes")


def test_the_record_of_another_run_is_not_taken_for_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of its files in this run's folder: each is what was written, but not for this run."""
    shutil.copytree(undisturbed().done, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    run, other = undisturbed().outcomes
    readers = Readers.of(run, other)
    shutil.rmtree(RUNS / run)
    shutil.copytree(RUNS / other, RUNS / run)
    assert readers.taken_by() == []


def test_no_damaged_list_of_a_sweep_is_taken_for_good(
    size: Size, figure: Figure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed().done, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    (path,) = (RUNS / "sweeps").glob("*.json")
    good = path.read_bytes()
    assert set(read_sweep(path.stem) or []) == set(undisturbed().outcomes)
    write_sweep("another", ["0123456789"])
    another = (RUNS / "sweeps" / "another.json").read_bytes()
    wrong, tried = [], 0
    for damage in damages(good, another, size(10, 50), size(10, 200), "sweep"):
        put(path, damage.content)
        tried += 1
        try:
            if read_sweep(path.stem) is not None:
                wrong.append(f"{damage.what}: taken for good")
        except Damaged:
            pass
        except Exception as error:
            wrong.append(f"{damage.what}: {error!r}")
    assert not wrong, f"{len(wrong)} of {tried}: {wrong[:10]}"
    figure(RECORD, f"the list of a sweep: {tried} damages, 0 read as good, 0 crashes")


def test_no_damaged_checkpoint_is_loaded(size: Size, figure: Figure, tmp_path: Path) -> None:
    from src.train.run import Run

    shutil.copytree(interrupted(), tmp_path / "work")
    runs = tmp_path / "work" / "runs"
    run, other = undisturbed().outcomes
    standing, others = (checkpoint.steps(runs / one / "checkpoints") for one in (run, other))
    step, newest = max(standing.items())
    good = newest.read_bytes()
    wrong, tried = [], 0
    for damage in damages(good, others[step].read_bytes(), size(10, 50), size(30, 200), "checkpoint"):
        put(newest, damage.content)
        tried += 1
        try:
            checkpoint.load(newest)
            wrong.append(f"{damage.what}: loaded")
        except Damaged:
            pass
        except Exception as error:
            wrong.append(f"{damage.what}: {error!r}")
    assert not wrong, f"{len(wrong)} of {tried}: {wrong[:10]}"
    # Whole files in the wrong place: of another run, and of another step.
    before = standing[min(standing)]
    newest.unlink(missing_ok=True)
    for stranger, name in ((others[step], others[step].name), (before, f"{step:08d}{before.name[8:]}")):
        put(newest.parent / name, stranger.read_bytes())
        assert not Run(runs / run).resume_from(step), f"{stranger} was taken for {name}"
        tried += 1
    put(newest, good)
    assert Run(runs / run).resume_from(step)
    figure(CHECKPOINT, f"{tried} damages of a checkpoint: 0 loaded, 0 crashes")


def test_a_checkpoint_does_not_go_on_with_a_damaged_log(size: Size, figure: Figure, tmp_path: Path) -> None:
    from src.train.run import Run

    shutil.copytree(interrupted(), tmp_path / "work")
    run, other = undisturbed().outcomes
    runs = tmp_path / "work" / "runs"
    step = max(checkpoint.steps(runs / run / "checkpoints"))
    path = runs / run / "metrics.jsonl"
    whole = Run(runs / run)
    assert whole.resume_from(step)
    good = path.read_bytes()
    marked = good[: whole.resumed.log.bytes]
    aside = runs / run / "checkpoints"
    kept = {file.name: file.read_bytes() for file in aside.iterdir()}
    wrong, tried = [], 0
    for damage in damages(good, (runs / other / "metrics.jsonl").read_bytes(), size(10, 50), size(10, 200), "log"):
        put(path, damage.content)
        tried += 1
        try:
            # What came after the checkpoint is cut off anyway, whatever it says.
            if Run(runs / run).resume_from(step) and not (damage.content or b"").startswith(marked):
                wrong.append(f"{damage.what}: taken for good")
        except Exception as error:
            wrong.append(f"{damage.what}: {error!r}")
        aside.mkdir(exist_ok=True)
        for name, content in kept.items():
            put(aside / name, content)
    assert not wrong, f"{len(wrong)} of {tried}: {wrong[:10]}"
    figure(CHECKPOINT, f"{tried} damages of the log that a checkpoint rests on: 0 gone on with, 0 crashes")


HURT: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) // 3],
    "deleted": lambda data: GONE,
}


def test_a_damaged_record_is_set_aside_and_done_again(size: Size, figure: Figure) -> None:
    was = undisturbed()
    cases = [(name, how) for how in HURT for name in FILES]
    tried = [cases[at] for at in random.Random(5).sample(range(len(cases)), size(1, len(cases)))]
    run = next(iter(was.outcomes))
    for name, how in tried:
        start_from(was.done)
        put(was.runs / run / name, HURT[how]((was.runs / run / name).read_bytes()))
        shown = server().run("src.eval", cwd=was.work)
        assert "Traceback" not in shown.stderr, (name, how)
        assert shown.code == 0
        if name in READ_BY and name != "predictions.jsonl" and (name, how) != ("result.json", "deleted"):
            assert f"warning: runs/{run}/{name}" in shown.stderr, (name, how, shown.stderr)
        shutil.rmtree(was.work / "reports")
        goes_on(was, set_aside=True)
    figure(
        RECORD,
        f"{len(tried)} damaged records: the same command set them aside and trained these runs again, with the same numbers",
    )


def at_the_end(was: Any, which: Callable[[dict[int, Path]], list[Path]], how: str) -> list[int]:
    """Damage these checkpoints of an interrupted sweep; the steps at which the same command then writes some, in order."""
    start_from(interrupted())
    for run in was.outcomes:
        found = checkpoint.steps(was.runs / run / "checkpoints")
        for path in which(found):
            put(path, HURT[how](path.read_bytes()))
        for step, path in found.items():  # the newest looks the oldest, as after the clock was set back
            if path.exists():
                os.utime(path, (1e9 - step, 1e9 - step))
    same = goes_on(was, watched=True, set_aside=True)
    assert same == len(was.outcomes)
    written = [Path(path).name for call, path in server().shim.calls() if call == "rename" and "/checkpoints/" in path]
    return sorted({int(name.partition(".")[0]) for name in written})


def test_work_goes_on_from_the_checkpoint_before_or_from_nothing(size: Size, figure: Figure) -> None:
    was = undisturbed()
    tried = list(HURT)[: size(1, len(HURT))]
    for how in tried:
        if how == tried[0]:
            assert at_the_end(was, lambda found: [], how) == [], "from step 2: the last step writes none"
        assert at_the_end(was, lambda found: [found[max(found)]], how) == [2], "from step 1"
        assert at_the_end(was, lambda found: list(found.values()), how) == [1, 2], "from the beginning"
    figure(CHECKPOINT, f"the newest {', '.join(tried)}: on from the one before; both: from step 0; the same bits")


def test_an_interrupted_run_whose_other_files_are_damaged_ends_with_the_same_bits(size: Size, figure: Figure) -> None:
    was = undisturbed()
    cases = [(name, how) for how in HURT for name in ("metrics.jsonl", "config.yaml", "provenance.json")]
    for name, how in cases[: size(1, len(cases))]:
        start_from(interrupted())
        for run in was.outcomes:
            path = was.runs / run / name
            put(path, HURT[how](path.read_bytes()))
        assert goes_on(was, set_aside=True) == len(was.outcomes), (name, how)
    figure(CHECKPOINT, "log, config or provenance of an interrupted run damaged: the same bits in the end")
