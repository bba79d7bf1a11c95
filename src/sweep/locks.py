"""Lock runs and the GPU between commands, so that a run trains once and packs use the GPU one after another.

A run's lock lets commands that want the same run train it once. The worker inherits it, and the system gives it up when the
last of both ends, however it ends. A process blocks on a lock only while it holds none, so no two can wait for each other.

A GPU's lock lets packs of several commands train one after another, and load and score meanwhile. The driver time-slices
processes, so two packs that each fill the GPU only slow each other down.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ..files.durable import writing
from ..record.records import RunFolder
from .held import LOCK, holding

LOOK = 0.05  # seconds between two looks at the lock
SIGN = 30.0  # and between two signs of life


class Claims:
    """The runs that this process holds, until the ``with`` ends."""

    def __init__(self) -> None:
        self._files: dict[str, TextIO] = {}
        self._guards: dict[str, ExitStack] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for guard in self._guards.values():
            guard.close()
        for file in self._files.values():
            file.close()

    @property
    def locks(self) -> list[int]:
        """File descriptors for the worker to inherit."""
        return [file.fileno() for file in self._files.values()]

    def take(self, folder: RunFolder) -> bool:
        """Hold a run; False where another process has it."""
        if folder.run_id in self._files:
            return True
        file = _lock_file(folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._files[folder.run_id] = file
        self._guard(folder)
        return True

    def wait(self, folder: RunFolder) -> None:
        """Hold a run once no other process does."""
        assert not self._files
        file = self._files[folder.run_id] = _lock_file(folder)
        fcntl.flock(file, fcntl.LOCK_EX)
        self._guard(folder)

    def _guard(self, folder: RunFolder) -> None:
        """Refuse to write in the folder once it is another one, or has another lock."""
        guard = self._guards[folder.run_id] = ExitStack()
        guard.enter_context(holding([folder.path], [self._files[folder.run_id].fileno()]))

    def give_up(self, folder: RunFolder) -> None:
        """Let go of a run that will not be trained now, also where a worker has inherited the lock."""
        self._guards.pop(folder.run_id).close()
        file = self._files.pop(folder.run_id)
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _lock_file(folder: RunFolder) -> TextIO:
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        if (folder.path / LOCK).is_symlink():
            (folder.path / LOCK).unlink()
        return open(folder.path / LOCK, "w")


@contextmanager
def turn(lock: Path, waiting: Callable[[], None], stopping: Callable[[], bool]) -> Iterator[None]:
    """Hold the file ``lock``, which the system gives up when the process ends, however it does.

    ``waiting`` is called at once and every ``SIGN`` seconds until it is free. Where ``stopping`` says so, it is waited for no
    longer and not held: there is nothing to train any more.

    Raises:
        CannotWrite: no such file can be made or locked.
    """
    with writing(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        last_sign = -math.inf
        while not _try_lock(descriptor, lock) and not stopping():
            if time.monotonic() - last_sign >= SIGN:
                waiting()
                last_sign = time.monotonic()
            time.sleep(LOOK)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, lock: Path) -> bool:
    with writing(lock):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
