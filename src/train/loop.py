"""Train all runs of a pack: steps, validation, checkpoints, and a stop for a run whose numbers are not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..config.schema import Config
from ..engine.protocol import Engine, Step
from ..model import device
from ..record.checkpoint import Progress
from .stop import Interrupted

# Where train.checkpoint_every does not say: once a minute, or as rarely as keeps the writing to a fiftieth of the time.
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 1 / 50
BYTES_PER_SECOND = 5e8  # of a disk; only a guess until the first checkpoint has been timed

Line = dict[str, float | int | None]


@dataclass(frozen=True)
class Divergence:
    """A loss, gradient or weight that was not finite. ``step`` is 1-based."""

    step: int
    what: str
    last_finite_loss: float | None

    def reason(self) -> str:
        last = "no finite loss before" if self.last_finite_loss is None else f"last finite loss {self.last_finite_loss:.4f}"
        return f"{self.what} at step {self.step}; {last}"


@dataclass(frozen=True)
class Hooks:
    """The calls by which the loop reaches the world. A run is named by its place in the pack."""

    log: Callable[[int, Line], None]
    validate: Callable[[], Sequence[float]]  # the loss of every run
    checkpoint: Callable[[list[int]], None]  # of these runs
    advance: Callable[[int, list[float | None], float | None], None]  # steps done, losses, tokens per second of the pack
    diverged: Callable[[int, Divergence], None]
    stopping: Callable[[], bool] = lambda: False  # whether to save and stop here
    checkpoint_bytes: int = 0  # that ``checkpoint`` writes, about
    turn: Callable[[], AbstractContextManager[None]] = nullcontext  # entered before the device is used to the full


def steps_of(config: Config, rows: int) -> int:
    """Count the optimizer steps of a run: train.steps, or what train.epochs over ``rows`` examples come to."""
    if config.train.epochs is None:
        return config.train.steps
    return max(1, round(config.train.epochs * rows / (config.train.batch_size * config.train.grad_accum)))


def train(engine: Engine, config: Config, runs: Sequence[Progress], hooks: Hooks) -> None:
    """Train from ``runs``, which stand at the same step, to the last step, updating them in place.

    ``config`` is any run's: they agree on what is read here. Raises Interrupted where a hook asks to stop.
    """
    loop = _Loop(engine, config, runs, hooks)
    if loop.goes_on:
        loop.chunk()  # which compiles, work for the processor, so it needs no turn
    if loop.goes_on:
        asked = time.monotonic()
        with hooks.turn():
            loop.saved += time.monotonic() - asked  # a wait is no reason for a checkpoint
            loop.stop_if_asked()
            while loop.goes_on:
                loop.chunk()
    for run, finite in enumerate(engine.finite()):
        if run in loop.alive and not finite:
            hooks.diverged(run, Divergence(loop.step, "a trained weight was not finite", runs[run].loss))


class _Loop:
    def __init__(self, engine: Engine, config: Config, runs: Sequence[Progress], hooks: Hooks) -> None:
        self.engine = engine
        self.runs = runs
        self.hooks = hooks
        self.every = config.eval.every
        self.checkpoint_every = config.train.checkpoint_every
        self.step = self.first = runs[0].step
        self.alive = list(range(len(runs)))
        self.saved = time.monotonic()
        self.interval = _interval(hooks.checkpoint_bytes / BYTES_PER_SECOND)

    @property
    def goes_on(self) -> bool:
        return self.step < self.engine.steps and bool(self.alive)

    def chunk(self) -> None:
        """Take the steps up to the next event, or as many as the engine likes to do at once."""
        start, end = self.step, min(self.step + self.engine.chunk, self.engine.steps)
        for every in filter(None, (self.every, self.checkpoint_every)):
            end = min(end, (start // every + 1) * every)
        rated = start > self.first
        steps, seconds = self._advance(start, end)
        for step in steps:
            self._take(step, seconds / len(steps), rated)
        speed = sum(step.tokens[run] for step in steps for run in self.alive) / seconds if rated else None
        self.hooks.advance(self.step, [run.loss if place in self.alive else None for place, run in enumerate(self.runs)], speed)
        if not self.alive:
            return
        done = self.step == self.engine.steps
        if done or self.step % self.every == 0:
            losses = self.hooks.validate()
            for run in self.alive:
                self.hooks.log(run, {"step": self.step, "val/loss": losses[run]})
        self.stop_if_asked()
        if not done and self._checkpoint_is_due():
            self._checkpoint()

    def stop_if_asked(self) -> None:
        if self.hooks.stopping():
            self._checkpoint()
            raise Interrupted

    def _checkpoint(self) -> None:
        began = time.monotonic()
        self.hooks.checkpoint(self.alive)
        self.saved = time.monotonic()
        self.interval = _interval(self.saved - began)
        for run in self.alive:
            self.runs[run].checkpoint_seconds += self.saved - began

    def _advance(self, start: int, end: int) -> tuple[list[Step], float]:
        """Take steps; gives them, and the seconds that they took on the device."""
        device.synchronize(self.engine.numerics.device)
        started = time.perf_counter()
        steps = self.engine.advance(start, end)
        device.synchronize(self.engine.numerics.device)
        return steps, time.perf_counter() - started

    def _checkpoint_is_due(self) -> bool:
        if self.checkpoint_every is not None:
            return self.step % self.checkpoint_every == 0
        return time.monotonic() - self.saved >= self.interval

    def _take(self, step: Step, seconds: float, rated: bool) -> None:
        """Account for one step of every run that is alive."""
        self.step += 1
        for run in list(self.alive):
            progress, loss, norm = self.runs[run], step.loss[run], step.grad_norm[run]
            progress.step = self.step
            progress.tokens += step.tokens[run]
            progress.seconds += seconds
            if rated:
                progress.rated_tokens += step.tokens[run]
                progress.rated_seconds += seconds
            self.hooks.log(
                run,
                {
                    "step": self.step,
                    "train/loss": loss,
                    "train/grad_norm": norm,
                    "train/lr": step.lr[run],
                    "train/tokens": progress.tokens,
                },
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = "gradient norm" if math.isfinite(loss) else "loss"
                self.alive.remove(run)
                self.hooks.diverged(run, Divergence(self.step, f"{what} was not finite", progress.loss))
            else:
                progress.loss = loss


def _interval(seconds: float) -> float:
    """Choose the seconds between two checkpoints that take ``seconds`` each."""
    return max(CHECKPOINT_SECONDS, seconds / CHECKPOINT_SHARE)
