"""Score the test split and held-out prose, for all runs of a pack together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..data.batches import Item
from ..measure.measure import measure
from ..measure.scorer import Scored, Scorer, per_token
from ..sweep.events import Events
from .run import Run

BEFORE, AFTER = "forgetting/before", "forgetting/after"


def test(
    runs: dict[int, Run],
    scorer: Scorer,
    tokenizer: Any,
    stop: Sequence[int],
    items: list[Item],
    events: Events,
    labels: Sequence[str] = (),
) -> None:
    """Score ``runs``, by their place in the pack, and write their predictions.

    stop: the ids at which answers end. labels: those of a label task.
    """
    config = next(iter(runs.values())).config  # for what the runs of a pack agree on
    measured = measure(scorer, tokenizer, stop, items, config.dataset, labels, config.eval, events.scoring)
    for place, run in runs.items():
        if "loss" not in measured[place].metrics:
            run.outcome.status, run.outcome.reason = "diverged", "the test loss was not finite"
            continue
        run.outcome.metrics |= {f"test/{name}": value for name, value in measured[place].metrics.items()}
        run.folder.write_predictions(measured[place].rows)


class Forgetting:
    """Mean log-loss per token of held-out prose, in nats, with the fresh adapters and with the trained ones.

    A fresh adapter adds nothing, so ``BEFORE`` is the frozen base's. Every run scores it by itself all the same: where
    both numbers come from the same kernels, a run that learned nothing has forgotten exactly nothing.
    """

    def __init__(self, scored: Scored, items: list[Item], pad: int, events: Events) -> None:
        # A row at a time: every token of it has logits, and what they take must stay below the peak of training.
        self.scorer = Scorer(scored, 1, pad)
        self.items = items  # none: nothing is measured
        self.events = events

    def before(self, runs: Sequence[Run]) -> None:
        """Measure runs that stand at step 0, before their first step. A later one has it in its metrics.jsonl."""
        fresh = {place: run for place, run in enumerate(runs) if run.progress.step == 0}
        for place, loss in self._losses(fresh).items():
            fresh[place].log({"step": 0, BEFORE: loss})
        for run in runs:
            logged = [line[BEFORE] for line in run.folder.logged() if line.get(BEFORE) is not None]
            if self.items and logged:
                run.outcome.metrics[BEFORE] = logged[-1]

    def after(self, runs: dict[int, Run]) -> None:
        """Measure ``runs``, by their place in the pack, as they are now; what trains nothing is what it was."""
        untrained = [run for run in runs.values() if run.config.variant.trains == "none"]
        self.before(untrained)  # only now, for its peak memory is that of loading; it is a pack of its own
        for run in untrained:
            if BEFORE in run.outcome.metrics:
                run.outcome.metrics[AFTER] = run.outcome.metrics[BEFORE]
        # A record that was begun without the first number has nothing to compare the second with.
        trained = {place: run for place, run in runs.items() if run not in untrained and BEFORE in run.outcome.metrics}
        for place, loss in self._losses(trained).items():
            if math.isfinite(loss):
                trained[place].outcome.metrics[AFTER] = loss

    def _losses(self, runs: dict[int, Run]) -> dict[int, float]:
        if not self.items or not runs:
            return {}
        losses = self.scorer.losses(self.items, self.events.scoring("scoring held-out prose", len(self.items)))
        return {place: per_token(losses[place]) for place in runs}
