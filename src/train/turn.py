"""Whose turn it is to train on a GPU: packs of several commands train on it one after another, and load and score beside that.

Processes that share a GPU each get a part of its time, whatever they make of it. So packs whose recorded steps fill it gain
nothing by training side by side, and lose what the changes cost; what is no step is another matter.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from src.durable import writing

LOOK = 0.05  # seconds between two looks whether the turn is ours
SAY = 30.0  # and between two signs of life


@contextmanager
def turn(lock: Path, waiting: Callable[[], None], stopping: Callable[[], bool]) -> Iterator[None]:
    """Hold the file ``lock``, which the system gives up when the process ends, however it does.

    ``waiting`` is called at once and every ``SAY`` seconds until it is free. Where ``stopping`` says so, it is waited for no
    longer and not held: there is nothing to train any more.

    Raises:
        CannotWrite: no such file can be made or locked.
    """
    with writing(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        said = -math.inf
        while not _taken(descriptor, lock) and not stopping():
            if time.monotonic() - said >= SAY:
                waiting()
                said = time.monotonic()
            time.sleep(LOOK)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int, lock: Path) -> bool:
    with writing(lock):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
