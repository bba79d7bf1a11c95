"""What is scored beside validation, for all runs of a pack together: the test split, and held-out prose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from src.batches import Item, tokenise
from src.eval import answers
from src.eval.score import Scorer, TargetLoss, per_token
from src.train.engine import Scored
from src.train.events import Events
from src.train.run import Run

Row = dict[str, Any]  # of predictions.jsonl
BEFORE, AFTER = "forgetting/before", "forgetting/after"


def test(
    runs: dict[int, Run], scorer: Scorer, tokenizer: Any, items: list[Item], events: Events, labels: Sequence[str] = ()
) -> None:
    """Score ``runs``, by their place in the pack, and write their predictions. ``labels`` are those of a label task."""
    losses = scorer.losses(items, events.scoring("scoring the test split", len(items)))
    for at, run in runs.items():
        loss = per_token(losses[at])
        if math.isfinite(loss):
            run.outcome.metrics["test/loss"] = loss
        else:
            run.outcome.status, run.outcome.reason = "diverged", "the test loss was not finite"
    runs = {at: run for at, run in runs.items() if "test/loss" in run.outcome.metrics}
    rows = {at: _rows(items, losses[at]) for at in runs}
    if any(answers.kind(run.config.dataset) == "choice" for run in runs.values()):  # the runs of a pack agree on it
        _choose(runs, rows, scorer, tokenizer, items, events)
    if any(run.config.eval.generate for run in runs.values()):  # and on this
        _answer(runs, rows, scorer, tokenizer, items, events, labels)
    for at, run in runs.items():
        run.folder.write_predictions(rows[at])


def _choose(
    runs: dict[int, Run], rows: dict[int, list[Row]], scorer: Scorer, tokenizer: Any, items: list[Item], events: Events
) -> None:
    """Which choice each model finds likeliest, by the summed log-loss of its text after the same prompt."""
    dataset = next(iter(runs.values())).config.dataset
    examples = [item.example for item in items]
    options = [replace(example, target=choice) for example in examples for choice in example.choices]
    tokens = tokenise(options, tokenizer, dataset.max_length, dataset.chat_template)
    losses = scorer.losses(tokens, events.scoring("scoring the choices", len(options)))
    for at, run in runs.items():
        found = answers.chosen([loss.nats for loss in losses[at]], examples)
        right = [choice == example.target for choice, example in zip(found, examples, strict=True)]
        run.outcome.metrics["test/choice_accuracy"] = sum(right) / len(right)
        for row, choice, good in zip(rows[at], found, right, strict=True):
            row |= {"choice": choice, "choice_correct": good}


def _answer(
    runs: dict[int, Run],
    rows: dict[int, list[Row]],
    scorer: Scorer,
    tokenizer: Any,
    items: list[Item],
    events: Events,
    labels: Sequence[str],
) -> None:
    """Generate an answer to each prompt, judge it, and add both to ``rows``."""
    asked = next(iter(runs.values())).config.eval.max_new_tokens
    longest = asked or max(len(item.target) for item in items)
    ids = scorer.generate(items, tokenizer.eos_token_id, longest, events.scoring("generating answers", len(items)))
    for at, run in runs.items():
        texts = tokenizer.batch_decode(ids[at], skip_special_tokens=True)
        judged = answers.judge(answers.kind(run.config.dataset), texts, [item.example for item in items], labels)
        run.outcome.metrics |= {f"test/{name}": value for name, value in judged.metrics.items()}
        for row, text, right in zip(rows[at], texts, judged.correct, strict=True):
            row |= {"prediction": text, "correct": right}


def _rows(items: Sequence[Item], losses: Sequence[TargetLoss]) -> list[Row]:
    return [
        {"id": item.example.id, "target": item.example.target, "log_loss": loss.nats, "tokens": loss.tokens}
        for item, loss in zip(items, losses, strict=True)
    ]


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
        fresh = {at: run for at, run in enumerate(runs) if run.progress.step == 0}
        for at, loss in self._losses(fresh).items():
            fresh[at].log({"step": 0, BEFORE: loss})
        for run in runs:
            known = [line[BEFORE] for line in run.folder.logged() if line.get(BEFORE) is not None]
            if self.items and known:
                run.outcome.metrics[BEFORE] = known[-1]

    def after(self, runs: dict[int, Run]) -> None:
        """Measure ``runs``, by their place in the pack, as they are now; what trains nothing is what it was."""
        untrained = [run for run in runs.values() if run.config.variant.trains == "none"]
        self.before(untrained)  # only now, for its peak memory is that of loading; it is a pack of its own
        for run in untrained:
            if BEFORE in run.outcome.metrics:
                run.outcome.metrics[AFTER] = run.outcome.metrics[BEFORE]
        # A record that was begun without the first number has nothing to compare the second with.
        trained = {at: run for at, run in runs.items() if run not in untrained and BEFORE in run.outcome.metrics}
        for at, loss in self._losses(trained).items():
            if math.isfinite(loss):
                trained[at].outcome.metrics[AFTER] = loss

    def _losses(self, runs: dict[int, Run]) -> dict[int, float]:
        if not self.items or not runs:
            return {}
        found = self.scorer.losses(self.items, self.events.scoring("scoring held-out prose", len(self.items)))
        return {at: per_token(found[at]) for at in runs}
