"""Tell the process that started this worker how it goes: one JSON object a line. If nobody listens, it trains all the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any


class Events:
    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor

    def _say(self, event: str, **values: Any) -> None:
        if self.descriptor is None:
            return
        try:
            os.write(self.descriptor, (json.dumps({"event": event, **values}) + "\n").encode())
        except OSError:  # the parent is gone
            self.descriptor = None

    def taken(self, run_ids: Sequence[str], memory_bytes: int | None, why: str) -> None:
        """Name the runs that this process takes; ``why`` begins a sentence on how many of the others follow."""
        self._say("taken", runs=list(run_ids), memory_bytes=memory_bytes, why=why)

    def phase(self, what: str) -> None:
        self._say("phase", what=what)

    def step(self, step: int, steps: int, losses: dict[str, float | None], tokens_per_second: float | None) -> None:
        self._say("step", step=step, steps=steps, losses=losses, tokens_per_second=tokens_per_second)

    def scoring(self, what: str, total: int) -> Callable[[int], None]:
        """Begin a count of rows: returns the function that adds to it."""
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            self._say("scoring", what=what, done=done, total=total)

        advance(0)
        return advance

    def cannot_write(self, why: str) -> bool:
        """Say that a record file could not be written; the process ends with it. False where nobody listens."""
        self._say("cannot_write", why=why)
        return self.descriptor is not None

    def ended(self, run_id: str) -> None:
        self._say("ended", run=run_id)
