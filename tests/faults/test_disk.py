"""Every call that writes, failing in turn: a full disk, a read-only folder, a lost permission, a kill between two bytes."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.forked import Done, server
from tests.faults.shim import ERRORS, Mode
from tests.faults.tiny_sweep import SWEEP, Undisturbed, goes_on, nothing_false_is_read, outcome, undisturbed

Figure = Callable[[str, str], None]
Size = Callable[[int, int], int]
TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")
PAGE = 4096  # bytes
FULL = "Disk full, read-only folder, permission lost"


def points(was: Undisturbed, mode: Mode, count: int) -> list[int]:
    """So many of the calls at which this mode makes a difference, evenly: where it cuts, those that write."""
    cuts = mode in (Mode.SHORT, Mode.HALF, Mode.HALF_KILL)
    among = [at for at, (call, _) in enumerate(was.calls, start=1) if not cuts or "write" in call]
    count = min(count, len(among))
    return [among[int((turn + 0.6) * len(among) / count)] for turn in range(count)]


def run_with(was: Undisturbed, mode: Mode, at: int, error: int) -> Done:
    server().shim.set(was.runs, mode, at, error)
    return server().run("src.train", *SWEEP, cwd=was.work)


def named(path: str) -> str:
    """Name a file as a user does, not by its temporary name."""
    parts = [part for part in Path(path).parts if not part.startswith(".tmp")]
    aside = [match[1] for part in parts if (match := TEMPORARY.fullmatch(part))]
    return aside[0] if aside else parts[-1].split(".")[0]


def folder_of(path: str) -> str:
    """Name the folder of a file in the same way."""
    name = Path(path).parent.name
    aside = TEMPORARY.fullmatch(name)
    return aside[1] if aside else name


def in_one_line(done: Done, failed: Sequence[tuple[str, str]], error: int) -> None:
    """One line says which of the files at which these calls failed could not be written, and why."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert os.strerror(error) in lines[0], lines[0]
    # Of what could not be taken away or synced, its folder says enough.
    names = [folder_of(path) if call in (*FREES, "fsync") else named(path) for call, path in failed]
    assert not failed or any(name in lines[0] for name in names), f"{failed[0]} is not named: {lines[0]}"


MANY = 10_000  # more than there are
HOW = {Mode.ONLY: "each once", Mode.FROM: "with all after it", Mode.HALF: "half done, with all after it"}
FREES = ("unlink", "unlinkat", "rmdir", "chmod", "fchmod")  # which a full disk still does


def error_at(was: Undisturbed, at: int, turn: int) -> int:
    errors = ERRORS if was.calls[at - 1][0] not in FREES else [one for one in ERRORS if one not in (errno.ENOSPC, errno.EDQUOT)]
    return errors[turn % len(errors)]


@pytest.mark.parametrize("mode", [Mode.ONLY, Mode.FROM, Mode.HALF], ids=lambda mode: mode.name)
def test_a_call_that_fails_ends_the_command_in_one_line_and_the_same_command_goes_on(
    mode: Mode, size: Size, figure: Figure
) -> None:
    was = undisturbed()
    codes, same = Counter[int](), 0
    tried = points(was, mode, size(1, MANY))
    for turn, at in enumerate(tried):
        error = error_at(was, at, turn)
        was.anew()
        done = run_with(was, mode, at, error)
        failed = server().shim.calls()[at - 1 : at if mode is Mode.ONLY else None]
        try:
            nothing_false_is_read(was)
            if done.code:
                assert done.code == 1
                in_one_line(done, failed, error)
            codes[done.code] += 1
            same += goes_on(was)
        except AssertionError as wrong:
            raise AssertionError(f"{mode.name} {errno.errorcode[error]} at {at}, {was.calls[at - 1]}: {wrong}") from wrong
    figure(
        FULL,
        f"{len(tried)} of {len(was.calls)} calls that write failed, {HOW[mode]} ({len(ERRORS)} errors in turn):"
        f" {codes[1]} commands ended in one line, {codes[0]} could do without; all went on, {same} of {2 * len(tried)} runs"
        " with the same bits (the others in a smaller pack)",
    )


def test_a_write_that_is_cut_short_is_completed(size: Size, figure: Figure) -> None:
    """POSIX lets a write do half of what it was asked, and say so; whoever does not look loses the rest."""
    was = undisturbed()
    tried = points(was, Mode.SHORT, size(1, MANY))
    for at in tried:
        was.anew()
        done = run_with(was, Mode.SHORT, at, 0)
        try:
            assert done.code == 0, done.stderr
            assert goes_on(was) == len(was.outcomes)
        except AssertionError as wrong:
            raise AssertionError(f"half a write at {at}, {was.calls[at - 1]}: {wrong}") from wrong
    figure(FULL, f"{len(tried)} writes that did half of what was asked: completed, same bits")


def _no_half_checkpoint_stays(calls: list[tuple[str, str]], killed_at: int) -> None:
    """Delete the leftovers of a killed checkpoint before the next is written: many would fill the disk."""
    call, half = calls[killed_at - 1]
    if call == "open":  # the kill came before it: there is no such file
        return
    after = [call for call in calls[killed_at:] if Path(call[1]).parent == Path(half).parent]
    if Path(half).name.startswith(".tmp") and any(name == "rename" for name, _ in after):
        assert ("unlink", half) in after, f"{half} was left beside the next checkpoint"


@pytest.mark.parametrize("mode", [Mode.KILL, Mode.HALF_KILL], ids=lambda mode: mode.name)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_and_the_same_command_goes_on(
    mode: Mode, size: Size, figure: Figure
) -> None:
    was = undisturbed()
    tried = points(was, mode, size(1, MANY))
    same = 0
    for at in tried:
        was.anew()
        done = run_with(was, mode, at, 0)
        try:
            assert done.code in (0, -9), done.stderr
            nothing_false_is_read(was)
            _no_half_checkpoint_stays(server().shim.calls(), at)
            same += goes_on(was)
        except AssertionError as wrong:
            raise AssertionError(f"killed at {at}, {was.calls[at - 1]}: {wrong}") from wrong
    how = "before the call" if mode is Mode.KILL else "in the middle of the write"
    figure(
        "SIGKILL at a random moment, then the same command",
        f"killed at {len(tried)} calls that write, {how}: no checkpoint or record lost;"
        f" {same} of {2 * len(tried)} runs with the same bits (the others in a smaller pack)",
    )


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own in memory, which can be small. Skips the test where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def pages(sizes: Iterable[int]) -> int:
    """Count the pages that files of these sizes take of a file system in memory."""
    return sum(-(-size // PAGE) for size in sizes)


def test_a_disk_that_is_full_for_real_and_is_made_larger(size: Size, figure: Figure) -> None:
    was = undisturbed()
    before, whole = pages(map(len, was.earlier.values())), pages(was.sizes.values())
    shares = [(part + 0.5) / size(1, 12) for part in range(size(1, 12))]
    same = 0
    for share in shares:
        room = before + round(share * (whole - before))
        with mounted(was.runs, f"size={room * PAGE}"):
            was.anew()
            done = run_with(was, Mode.COUNT, 0, 0)
            assert done.code == 1, f"{room} pages of {whole} were enough"
            nothing_false_is_read(was)
            in_one_line(done, [], errno.ENOSPC)
            subprocess.run(["mount", "-o", "remount,size=64m", was.runs], check=True)
            same += goes_on(was)
    runs = len(shares) * len(was.outcomes)
    figure(FULL, f"{len(shares)} sizes of a real full disk, made larger: one line, then {same} of {runs} runs with the same bits")


def test_a_read_only_disk_is_said_in_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "runs", "ro"):
        server().shim.set()
        done = server().run("src.train", *SWEEP, cwd=tmp_path)
        assert done.code == 1
        in_one_line(done, [("mkdir", "runs")], errno.EROFS)


def test_a_mirror_on_a_full_disk_changes_nothing(size: Size, figure: Figure) -> None:
    """W&B writes from a process of its own that no shim reaches: a real full disk, below its folder alone."""
    if not size(0, 1):
        pytest.skip("in the long form: it starts W&B's own process")
    was = undisturbed()
    was.anew()
    server().shim.set()
    with ExitStack() as disks:
        for run in was.outcomes:
            disks.enter_context(mounted(was.runs / run / "wandb", f"size={PAGE}"))
        done = server().run("src.train", *SWEEP, "tracking=wandb_offline", cwd=was.work)
        assert done.code == 0, done.stderr
        assert "Traceback" not in done.stderr
        for run, expected in was.outcomes.items():
            found = {name: value for name, value in outcome(was.runs, run).items() if not name.startswith("wandb/")}
            assert found.keys() == expected.keys()
            assert all(found[name] == expected[name] for name in found if name != "config.yaml")
    figure(FULL, "W&B's folder on a full disk: the records are the same")
