"""The one training loop: batches in order, steps, validation, checkpoints, and a stop where a number is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src import device
from src.batches import Batch, Item, collate, rows_at
from src.config import Config
from src.train.checkpoint import Progress
from src.train.peft_engine import PeftEngine

Log = Callable[[dict[str, float | int | None]], None]


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
    """What the loop tells the world."""

    log: Log
    validate: Callable[[], float]
    checkpoint: Callable[[Progress], None]
    advance: Callable[[float], None]  # one more step is done, with this loss


def steps_of(config: Config, rows: int) -> int:
    """Optimizer steps of a run: train.steps, or what train.epochs over ``rows`` examples come to."""
    if config.train.epochs is None:
        return config.train.steps
    return max(1, round(config.train.epochs * rows / (config.train.batch_size * config.train.grad_accum)))


def train(
    engine: PeftEngine, config: Config, items: Sequence[Item], pad: int, progress: Progress, hooks: Hooks
) -> Divergence | None:
    """Train from ``progress`` to the last step, updating ``progress`` in place."""
    first_of_process = progress.step
    while progress.step < engine.steps:
        step = progress.step
        batches = _micro_batches(config, items, pad, step, engine)
        device.synchronise(engine.numerics.device)
        started = time.perf_counter()
        result = engine.step(step, batches)
        seconds = time.perf_counter() - started
        tokens = sum(batch.tokens for batch in batches)
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        if step > first_of_process:
            progress.rated_tokens += tokens
            progress.rated_seconds += seconds
        hooks.log(
            {
                "step": progress.step,
                "train/loss": result.loss,
                "train/grad_norm": result.grad_norm,
                "train/lr": result.lr,
                "train/tokens": progress.tokens,
            }
        )
        if not result.finite:
            what = "loss" if result.loss != result.loss or abs(result.loss) == float("inf") else "gradient norm"
            return Divergence(progress.step, f"{what} was not finite", progress.loss)
        progress.loss = result.loss
        hooks.advance(result.loss)
        last = progress.step == engine.steps
        if last or progress.step % config.eval.every == 0:
            hooks.log({"step": progress.step, "val/loss": hooks.validate()})
        if not last and progress.step % config.train.checkpoint_every == 0:
            hooks.checkpoint(progress)
    if not engine.finite():
        return Divergence(progress.step, "a trained weight was not finite", progress.loss)
    return None


def _micro_batches(config: Config, items: Sequence[Item], pad: int, step: int, engine: PeftEngine) -> list[Batch]:
    size, count = config.train.batch_size, config.train.grad_accum
    rows = rows_at(step * size * count, size * count, len(items), config.data_seed)
    return [
        collate([items[row] for row in rows[at : at + size]], pad, engine.numerics.device) for at in range(0, size * count, size)
    ]
