"""Stop a worker on a signal: while it trains, save and stop between two steps; elsewhere stop at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A scheduler kills ten seconds after its signal, or later. A step that takes longer than this is not waited for, and the
# checkpoint before it is what the run goes on from.
PATIENCE = 5.0  # seconds


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop."""


class Stop:
    """The state of being asked to stop: ``asked`` is the number of the first signal, None as long as there was none."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._waits = False  # for the end of a step

    def listen(self) -> None:
        """Take the signals from now on; one that is ignored, as after nohup, stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.asked is None
        if first:
            self.asked = number
        if not (first and self._waits):
            raise Interrupted
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Let the first signal only set ``asked``; a second, or the end of patience, raises Interrupted."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            if self.asked is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
        if self.asked is not None:
            raise Interrupted
