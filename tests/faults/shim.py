"""shim.c from Python: compiled once, and what it shall do, written into the file that it maps.

It sees what goes through the C library, Rust's standard library included. What makes system calls of its own (Go, as in
W&B's service; the crate rustix, by which safetensors renames its file) needs a real full disk.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from enum import IntEnum
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")
LAYOUT = struct.Struct("@8q4096s")
LIMIT = 120  # seconds for the compiler
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)


class Mode(IntEnum):
    """The fault at the Nth counted call; the numbers are those of shim.c."""

    COUNT = 0  # nothing
    ONLY = 1  # it fails
    FROM = 2  # it and all after it fail
    SHORT = 3  # if it writes, half is written and the caller told so, as POSIX allows; nothing fails
    HALF = 4  # the same, and all after it fail: a disk that runs full
    KILL = 5  # SIGKILL before it
    HALF_KILL = 6  # SIGKILL after half of it is written


def scratch(name: str) -> Path:
    """A new folder that is gone when the session ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def library() -> Path:
    """The shim, compiled. Skips the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc), which the fault-injecting shim is built with")
    built = scratch("shim") / "shim.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", built, SOURCE, "-ldl"], capture_output=True, text=True, timeout=LIMIT
    )
    if done.returncode:
        pytest.skip(f"the fault-injecting shim does not compile here: {done.stderr.strip().splitlines()[:1]}")
    return built


class Shim:
    """The state that processes under the shim share. ``path`` must lie outside of what is watched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_name(f"{path.name}.log")
        self.set()

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to be started under the shim."""
        return {"LD_PRELOAD": str(library()), "FAULT_STATE": str(self.path)}

    def set(
        self,
        below: Path | None = None,
        mode: Mode = Mode.COUNT,
        at: int = 0,
        error: int = 0,
        *,
        jump: int = 0,
        after: int = 0,
        swing: bool = False,
    ) -> None:
        """Count from 0 again: calls that write below this folder, and what happens at which of them.

        The wall clock is off by ``jump`` seconds after so many reads of it; with ``swing`` it jumps there and back for ever.
        """
        prefix = b"" if below is None else os.fsencode(below)
        self.path.write_bytes(LAYOUT.pack(0, at, mode, error, 0, after, jump, swing, prefix))
        self.log.unlink(missing_ok=True)

    @property
    def count(self) -> int:
        """Calls counted so far."""
        return int(LAYOUT.unpack(self.path.read_bytes())[0])

    @property
    def clock_reads(self) -> int:
        return int(LAYOUT.unpack(self.path.read_bytes())[4])

    def calls(self) -> list[tuple[str, str]]:
        """(name, path) of every counted call, the first at index 0."""
        if not self.log.exists():
            return []
        lines = (line.split(" ", 2) for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines())
        return [(call, path) for _, call, path in sorted(lines, key=lambda line: int(line[0]))]
