"""Clocks that jump, time zones that change, folders of odd names, homes that cannot be written, masks, and no git."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.record.records import RunFolder
from tests.conftest import ENVIRONMENT
from tests.faults.forked import Done, server
from tests.faults.shim import Mode
from tests.faults.tiny_sweep import QUICK, SWEEP, Undisturbed, goes_on, nothing_false_is_read, undisturbed

Figure = Callable[[str, str], None]
Size = Callable[[int, int], int]
ROW = "Clock, time zone, names and places"
DAY, QUARTER = 86400, 1000  # seconds
SWINGING = {"jump": DAY, "swing": True}
ROWS = "".join(f'{{"context": "What is {n} plus one? ", "target": "{n + 1}"}}\n' for n in range(40))


def in_one_line(done: Done | subprocess.CompletedProcess[str], says: str) -> bool:
    """Check the end of a command that cannot work: one line that says why, and no traceback."""
    lines = done.stderr.splitlines()
    return (
        "Traceback" not in done.stderr and len([line for line in lines if line.startswith("error: ")]) == 1 and says in lines[-1]
    )


def durations_are_sane(was: Undisturbed) -> None:
    for run in was.outcomes:
        result = RunFolder(run, was.runs).result() or {}
        durations = [result[key] for key in ("train_seconds", "wall_seconds", "tokens_per_second")]
        assert all(isinstance(value, float) and math.isfinite(value) and value > 0 for value in durations), durations
        assert result["wall_seconds"] < QUARTER, "the clock's jump is in it"


# Where the first command and the one that goes on believe to be, and how the clock misbehaves under both.
CLOCKS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("UTC+14, then UTC-10; a day forward and back at every reading", "Pacific/Kiritimati", "Pacific/Honolulu", SWINGING),
    ("UTC+14, then UTC-10", "Pacific/Kiritimati", "Pacific/Honolulu", {}),
    ("back 1000 s", "UTC", "UTC", {"jump": -QUARTER, "after": 20}),
    ("forward a day", "UTC", "UTC", {"jump": DAY, "after": 20}),
    ("a day forward and back at every reading", "UTC", "UTC", SWINGING),
]


def test_neither_zone_nor_clock_changes_a_bit_or_a_duration(size: Size, figure: Figure) -> None:
    was = undisturbed()
    reads, tried = 0, CLOCKS[: size(1, len(CLOCKS))]
    for name, before, after, clock in tried:
        was.anew()
        server().shim.set(was.runs, Mode.FROM, was.trained, errno.ENOSPC, **clock)
        assert server().run("src.train", *SWEEP, cwd=was.work, environment={"TZ": before}).code == 1
        nothing_false_is_read(was)
        reads += server().shim.clock_reads
        assert goes_on(was, {"TZ": after}, **clock) == len(was.outcomes), name
        durations_are_sane(was)
    assert reads > 0, "the commands never read the wall clock through the shim"
    figure(ROW, f"between a run's start and its resume: {'; '.join(name for name, *_ in tried)}: the same bits, sane durations")


NAMES = {
    "spaces": "a b  c",
    "unicode": "ünïcödé-Привет-數據",
    "emoji": "🧪🔬👩‍🔬",
    "200 characters": "n" * 200,
    "a newline": "two\nlines",
    "signs": "a=b,c'd\"e[f]{g}$h#i;j&k*?~",
    "a backslash": "a\\b",
    "no UTF-8": "\udcff\udcfe",
}


def test_odd_names_work_or_are_refused_in_one_line(tmp_path: Path, size: Size, figure: Figure) -> None:
    """Of the working folder and of the file that dataset.path names."""
    # All at once first: folders in folders, up to what a path may hold.
    places = [tmp_path.joinpath(*NAMES.values()), *(tmp_path / name for name in NAMES.values())][: size(1, 1 + len(NAMES))]
    worked, refused = [], []
    for folder, (kind, name) in zip(places, [("all at once", "rows ü"), *NAMES.items()], strict=False):
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / f"{name}.jsonl"
        rows.write_text(ROWS)
        quoted = "'" + rows.name.replace("'", "\\'") + "'"  # to Hydra, a backslash is one unless a quote follows
        server().shim.set()
        done = server().run("src.train", *QUICK, "dataset=jsonl", f"dataset.path={quoted}", cwd=folder)
        if done.code == 0:
            worked.append(kind)
            (run,) = (path.name for path in (folder / "runs").iterdir() if path.name != "sweeps")
            assert (RunFolder(run, folder / "runs").result() or {})["status"] == "ok"
            assert server().run("src.eval", cwd=folder).code == 0, kind
        else:
            assert in_one_line(done, "dataset.path"), f"{kind}: {done.stderr}"
            assert done.code == 2 and not (folder / "runs").exists(), kind
            refused.append(kind)
    figure(ROW, f"odd names of folders and files: {', '.join(worked)}: work; refused in one line: {', '.join(refused) or 'none'}")


def test_a_sweeps_name_may_have_100_characters_and_not_101(tmp_path: Path) -> None:
    server().shim.set()
    done = server().run("src.train", *QUICK, f"sweep={'s' * 101}", cwd=tmp_path)
    assert done.code == 2 and in_one_line(done, "at most 100")
    assert not any(tmp_path.iterdir())
    assert server().run("src.train", *QUICK, f"sweep={'s' * 100}", cwd=tmp_path).code == 0
    assert (tmp_path / "runs" / "sweeps" / f"{'s' * 100}.json").exists()


def test_runs_may_be_a_link_to_a_folder_and_nothing_else_that_is_none(tmp_path: Path, figure: Figure) -> None:
    runs = tmp_path / "runs"
    (tmp_path / "elsewhere").mkdir()
    server().shim.set()
    runs.symlink_to("elsewhere")
    assert server().run("src.train", *QUICK, cwd=tmp_path).code == 0
    assert list((tmp_path / "elsewhere").glob("*/result.json"))
    for make in (
        lambda: runs.symlink_to("nowhere"),
        lambda: runs.write_text("a file"),
        lambda: runs.symlink_to("runs"),
    ):
        runs.unlink()
        make()
        done = server().run("src.train", *QUICK, cwd=tmp_path)
        assert done.code in (1, 2) and in_one_line(done, "runs"), (
            os.readlink(runs) if runs.is_symlink() else "file",
            done.stderr,
        )
        assert not (tmp_path / "nowhere").exists()
    figure(ROW, "runs/ as a link to a folder works; as a dangling link, a loop or a file: one line")


HOMES = {
    "a home that cannot be written": {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache"},
    "no home and no git": {"PATH": ""},
    "a terminal of ASCII": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
}
MASKS = (0o077, 0o027)


def test_it_needs_no_home_no_git_and_no_locale_and_obeys_the_mask(tmp_path: Path, size: Size, figure: Figure) -> None:
    """Whole commands: what they read of their surroundings, they read at their start."""
    folder = tmp_path / "Größe"
    folder.mkdir()
    (folder / "übung.jsonl").write_text(ROWS)
    homes = HOMES if size(0, 1) else {"all at once": {key: value for home in HOMES.values() for key, value in home.items()}}
    for turn, (name, changed) in enumerate(homes.items()):
        shutil.rmtree(folder / "runs", ignore_errors=True)
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", **changed}
        unset = ["HF_HOME", "WANDB_DIR", *(() if "HOME" in changed else ("HOME", "XDG_CACHE_HOME"))]
        environment = {key: value for key, value in environment.items() if key not in unset}
        train = ["src.train", *QUICK, "dataset=jsonl", "dataset.path='übung.jsonl'"]
        for command in [train, ["src.eval"]][: size(1, 2)]:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=folder,
                env=environment,
                capture_output=True,
                timeout=240,
                umask=MASKS[turn % 2],
            )
            said = done.stderr.decode(errors="replace")
            assert done.returncode == 0 and "Traceback" not in said, (name, command, said)
        written = [path for path in (folder / "runs").rglob("*") if path.name != ".lock"]
        assert any(path.name == "adapter_model.safetensors" for path in written)
        for path in written:
            found, allowed = stat.S_IMODE(path.stat().st_mode), (0o777 if path.is_dir() else 0o666) & ~MASKS[turn % 2]
            assert found == allowed, f"{path}: {found:o} under the mask {MASKS[turn % 2]:o}"
    figure(ROW, f"{', '.join(HOMES)}: works, and files have the permissions that the umask leaves")
