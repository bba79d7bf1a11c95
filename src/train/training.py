"""Train an opened pack from its first step to its last: log, validate, checkpoint, and wait for the GPU's turn."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from ..model import device
from ..sweep.locks import turn
from .loop import Divergence, Hooks, train
from .pack import Pack
from .run import Run
from .session import Session
from .stop import Stop

CHECKPOINT_WRITERS = 8  # threads; each holds a copy of one run's state


@dataclass(frozen=True)
class Training:
    """Connect the loop, which only knows places in the pack, with the runs' records and the parent's events."""

    pack: Pack
    session: Session
    fingerprints: dict[str, str]  # of base weights and tokens: on others a checkpoint would be another run's
    stop: Stop

    def train(self) -> None:
        """Take all steps. Raises Interrupted after a checkpoint where a signal asks to stop."""
        pack, engine = self.pack, self.session.engine
        for place, run in enumerate(pack.runs):
            if run.tensors is not None:
                engine.load_state(place, run.tensors)
                run.tensors = None
        pack.events.phase("warming up")
        before = [replace(run.progress) for run in pack.runs]
        with self.stop.between_steps():
            train(engine, pack.config, [run.progress for run in pack.runs], self._hooks())
        tokens = sum(run.progress.rated_tokens - old.rated_tokens for run, old in zip(pack.runs, before, strict=True))
        seconds = max(run.progress.rated_seconds - old.rated_seconds for run, old in zip(pack.runs, before, strict=True))
        for run in pack.runs:
            if run.outcome.status == "ok":
                run.trained()
            run.outcome.measured["pack_tokens_per_second"] = tokens / seconds if seconds else None

    def _hooks(self) -> Hooks:
        return Hooks(
            log=lambda place, line: self.pack.runs[place].log(line),
            validate=lambda: self.session.losses("val"),
            checkpoint=self._checkpoint,
            advance=self._advance,
            diverged=self._diverged,
            stopping=lambda: self.stop.asked is not None,
            checkpoint_bytes=sum(12 * run.outcome.measured["trainable_parameters"] for run in self.pack.runs),
            turn=self._turn,
        )

    def _turn(self) -> AbstractContextManager[None]:
        """Wait until no other pack trains on this GPU, where this one leaves it no gap."""
        if not self.session.engine.fills_device:
            return nullcontext()
        folder = self.pack.runs[0].folder.path.parent
        lock = folder / f".turn-{device.identity(self.session.engine.numerics.device)}"
        signs = itertools.count(1)

        def waiting() -> None:
            self.pack.events.phase("waiting for the pack that trains")
            if next(signs) == 2:  # between short packs the first wait is over by then
                print("waiting: another pack trains on this GPU", file=sys.stderr)

        return turn(lock, waiting, lambda: self.stop.asked is not None)

    def _checkpoint(self, places: Sequence[int]) -> None:
        """Write checkpoints side by side, since each waits for the disk, then for a checksum."""
        states = {place: self.session.engine.state(place) for place in places}
        with ThreadPoolExecutor(CHECKPOINT_WRITERS) as writers:
            list(writers.map(lambda place: self.pack.runs[place].save(states[place], self.fingerprints), places))

    def save_trained(self) -> None:
        """Write checkpoints of the runs that have taken all their steps and have no result yet."""
        last = self.session.engine.steps
        trained = [place for place, run in enumerate(self.pack.runs) if not run.ended and run.progress.step == last]
        self._checkpoint([place for place in trained if last not in self.pack.runs[place].checkpoints()])

    def measure_peak(self, runs: Sequence[Run]) -> None:
        peak, kind = device.peak_memory(self.session.engine.numerics.device)
        for run in runs:
            run.outcome.measured |= {"peak_memory_bytes": peak, "peak_memory_kind": kind}

    def _advance(self, done: int, losses: list[float | None], tokens_per_second: float | None) -> None:
        by_run = {run.folder.run_id: loss for run, loss in zip(self.pack.runs, losses, strict=True)}
        self.pack.events.step(done, self.session.engine.steps, by_run, tokens_per_second)

    def _diverged(self, place: int, divergence: Divergence) -> None:
        """Write the record of a run that has ended at once: whatever happens to the others, it is not trained again."""
        run = self.pack.runs[place]
        run.diverged(divergence)
        self.measure_peak([run])
        self.pack.finish(run)
