"""Refuse to write a run's files once its folder or its lock is no longer the one that was taken.

A worker goes on when its command is killed. Where its folder was deleted or moved away meanwhile, or another command holds a new
lock there, its files would be written anew, half a record, or into the record of somebody else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..files.durable import CannotWrite, guarded, writing

LOCK = ".lock"  # in the folder of a run
STOPS = "nothing more is written and the run stops"
Inode = tuple[int, int]


def inode(file: int | Path) -> Inode | None:
    """Tell which file this is; None where there is none. An inode that is held open is given to no other file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Lost(CannotWrite):
    """The folder or the lock of a run is no longer the one that was taken."""


class Held:
    """A run's folder, and its lock where there is one; ``check`` compares what stands at their paths with them."""

    def __init__(self, folder: Path, lock: Inode | None) -> None:
        self.path, self.folder, self.lock = folder, inode(folder), lock

    def check(self) -> None:
        """Raise Lost where another folder or lock stands there, or none."""
        now = inode(self.path)
        if now is None:
            raise Lost(f"{self.path}: is gone, so {STOPS}")
        if now != self.folder:
            raise Lost(f"{self.path}: is not the folder that the run began in, so {STOPS}")
        if self.lock is not None and inode(self.path / LOCK) != self.lock:
            raise Lost(f"{self.path / LOCK}: is not the lock that the run holds, so {STOPS}")


@contextmanager
def holding(folders: Sequence[Path], locks: Sequence[int] = ()) -> Iterator[None]:
    """Guard the folders of runs while the ``with`` lasts; ``locks`` are the open lock files of these runs, in any order.

    Raises:
        Lost: a folder is gone, or its lock is none of ``locks``.
    """
    inherited = {inode(lock) for lock in locks}
    with ExitStack() as stack:
        for folder in folders:
            if not locks:  # an open lock keeps its inode from other files, and so does an open folder
                with writing(folder):
                    stack.callback(os.close, os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
            held = Held(folder, inode(folder / LOCK) if locks else None)
            if locks and held.lock not in inherited - {None}:
                held.lock = (-1, -1)  # none that stands there
                held.check()
            stack.enter_context(guarded(folder, held.check))
        yield
