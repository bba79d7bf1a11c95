"""A sweep of two tiny runs, trained once without a fault, and what has to hold after one that had some."""

from __future__ import annotations

import functools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.compare.frame import gather
from src.record.records import RunFolder
from tests.conftest import TINY
from tests.faults.forked import server
from tests.faults.shim import scratch

QUICK = [*TINY, "forgetting.tokens=0", "train.checkpoint_every=1"]
SWEEP = ["-m", *QUICK, "variant=lora,dora"]
EARLIER = [*QUICK, "variant=rslora"]
# Of a result: what a second run of the same would not measure again.
MEASURED_ANEW = re.compile(r"seconds|tokens_per_second|memory|sha256|files|pack_size|speed")
LOCK = ".lock"
ALONE = 1e-3  # nats: how far a run may end from itself in a pack of another size, whose products have other shapes

Files = dict[str, bytes]


def files(folder: Path) -> Files:
    """Relative name -> bytes of every file but the locks, which say nothing."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def outcome(runs: Path, run: str) -> dict[str, Any]:
    """Read the outcome of a run without its timings: bytes of its files, numbers of its result."""
    result = RunFolder(run, runs).result()
    assert result is not None, f"{run} has no result"
    kept = {key: value for key, value in result.items() if not MEASURED_ANEW.search(key)}
    own = files(runs / run)
    measured = ("result.json", "provenance.json")
    return {"result": kept} | {name: own[name] for name in own if name not in measured and not name.startswith("damaged/")}


@dataclass(frozen=True)
class Undisturbed:
    """The sweep without a fault.

    calls: where it writes; done: its working folder at the end; earlier: the files of a run that was done before.
    """

    work: Path
    calls: list[tuple[str, str]]
    earlier: Files
    done: Path
    sizes: dict[str, int]  # bytes, of all files in runs/
    outcomes: dict[str, dict[str, Any]]
    packs: dict[str, int]

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    @property
    def trained(self) -> int:
        """The first call after the last checkpoints are complete: the log goes on. Those of a pack are written side by side."""
        saved = max(at for at, (call, path) in enumerate(self.calls) if call == "rename" and "/checkpoints/" in path)
        return next(at for at, (_, path) in enumerate(self.calls, 1) if at > saved and path.endswith("metrics.jsonl"))

    def anew(self) -> None:
        """The working folder as before the sweep: with the run that was done."""
        shutil.rmtree(self.work, ignore_errors=True)
        for name, content in self.earlier.items():
            path = self.runs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@functools.cache
def undisturbed() -> Undisturbed:
    work = scratch("disk") / "work"
    work.mkdir()
    runs, shim = work / "runs", server().shim
    shim.set()
    assert server().run("src.train", *EARLIER, cwd=work).code == 0
    earlier = files(runs)
    shim.set(runs)
    done = server().run("src.train", *SWEEP, cwd=work)
    assert done.code == 0, done.stderr
    ids = sorted({Path(name).parts[0] for name in files(runs)} - {Path(name).parts[0] for name in earlier} - {"sweeps"})
    assert len(ids) == 2
    packs = {run: (RunFolder(run, runs).result() or {})["pack_size"] for run in ids}
    sizes = {name: len(content) for name, content in files(runs).items()}
    kept = work.with_name("done")
    shutil.copytree(work, kept)
    return Undisturbed(work, shim.calls(), earlier, kept, sizes, {run: outcome(runs, run) for run in ids}, packs)


def nothing_false_is_read(was: Undisturbed) -> None:
    """Check that finished runs are unchanged, and that newly finished ones equal the undisturbed."""
    now = files(was.runs)
    changed = [name for name, content in was.earlier.items() if now.get(name) != content]
    assert not changed, f"of what was done before, these changed: {changed}"
    rows = {row["run_id"]: row for row in gather(list(was.outcomes), was.runs).rows}
    for run, expected in was.outcomes.items():
        result = RunFolder(run, was.runs).result()
        status = rows[run]["status"] if run in rows else "missing"
        if result is None:
            assert status in ("missing", "unreadable"), f"{run} is shown as {status}"
        else:
            assert (result["status"], status) == ("ok", "ok"), result["reason"]
            assert not RunFolder(run, was.runs).damage(result)
            assert result["metrics"] == pytest.approx(expected["result"]["metrics"], abs=ALONE)


def goes_on(
    was: Undisturbed,
    environment: dict[str, str] | None = None,
    *,
    watched: bool = False,
    set_aside: bool = False,
    **clock: Any,
) -> int:
    """The same command without the fault: all is as if there had been none. How many runs have the very same bits.

    ``watched`` counts its calls; with ``set_aside`` there may be damaged files beside the good ones.
    """
    server().shim.set(was.runs if watched else None, **clock)
    done = server().run("src.train", *SWEEP, cwd=was.work, environment=environment)
    assert done.code == 0, done.stderr
    names = {name for name in files(was.runs) if not (set_aside and "/damaged/" in name)}
    before = was.sizes.keys()
    assert names == before, f"left over: {sorted(names - before)}, not there: {sorted(before - names)}"
    same = 0
    for run, expected in was.outcomes.items():
        result, found = RunFolder(run, was.runs).result(), outcome(was.runs, run)
        assert result is not None
        if result["pack_size"] == was.packs[run]:
            differ = [key for key in {*found, *expected} if found.get(key) != expected.get(key)]
            assert not differ, f"{run}: not the same bits: {differ}"
            same += 1
        else:
            assert found["result"]["metrics"] == pytest.approx(expected["result"]["metrics"], abs=ALONE)
    return same
