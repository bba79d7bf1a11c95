"""Who trains a run: a lock on its folder, so that commands that want the same run train it once.

The worker inherits the lock, which the system gives up when the last of both ends, however it ends. A process blocks on
a lock only while it holds none, so no two can wait for each other.
"""

from __future__ import annotations

import fcntl
from types import TracebackType
from typing import TextIO

from src.records import RunFolder


class Claims:
    """The runs that this process holds, until the ``with`` ends."""

    def __init__(self) -> None:
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    @property
    def locks(self) -> list[int]:
        """File descriptors for the worker to inherit."""
        return [file.fileno() for file in self._files.values()]

    def take(self, folder: RunFolder) -> bool:
        """Hold a run, or say that another process has it."""
        if folder.run_id in self._files:
            return True
        file = _lock_file(folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._files[folder.run_id] = file
        return True

    def wait(self, folder: RunFolder) -> None:
        """Hold a run once no other process does."""
        assert not self._files
        file = self._files[folder.run_id] = _lock_file(folder)
        fcntl.flock(file, fcntl.LOCK_EX)

    def give_up(self, folder: RunFolder) -> None:
        """Let go of a run that will not be trained now, also where a worker has inherited the lock."""
        file = self._files.pop(folder.run_id)
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _lock_file(folder: RunFolder) -> TextIO:
    folder.path.mkdir(parents=True, exist_ok=True)
    return open(folder.path / ".lock", "w")
