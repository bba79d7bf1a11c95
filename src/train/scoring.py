"""The test split, for all runs of a pack together: losses, generated answers, metrics, predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from src.batches import Item
from src.eval.score import UNPARSED, Scorer, TargetLoss, exact_match, macro_f1, parse_label, per_token
from src.train.events import Events
from src.train.run import Run

Row = dict[str, Any]  # of predictions.jsonl


def test(runs: dict[int, Run], scorer: Scorer, tokenizer: Any, items: list[Item], events: Events) -> None:
    """Score ``runs``, by their place in the pack, and write their predictions."""
    losses = scorer.losses(items, events.scoring("scoring the test split", len(items)))
    for at, run in runs.items():
        loss = per_token(losses[at])
        if math.isfinite(loss):
            run.outcome.metrics["test/loss"] = loss
        else:
            run.outcome.status, run.outcome.reason = "diverged", "the test loss was not finite"
    runs = {at: run for at, run in runs.items() if "test/loss" in run.outcome.metrics}
    rows = {at: _rows(items, losses[at]) for at in runs}
    if any(run.config.eval.generate for run in runs.values()):  # the runs of a pack agree on it
        _answer(runs, rows, scorer, tokenizer, items, events)
    for at, run in runs.items():
        run.folder.write_predictions(rows[at])


def _answer(
    runs: dict[int, Run], rows: dict[int, list[Row]], scorer: Scorer, tokenizer: Any, items: list[Item], events: Events
) -> None:
    """Generate an answer to each prompt, judge it, and add both to ``rows``."""
    asked = next(iter(runs.values())).config.eval.max_new_tokens
    longest = asked or max(len(item.target) for item in items)
    ids = scorer.generate(items, tokenizer.eos_token_id, longest, events.scoring("generating answers", len(items)))
    for at, run in runs.items():
        texts = tokenizer.batch_decode(ids[at], skip_special_tokens=True)
        for row, text, right in zip(rows[at], texts, _judge(run, items, texts), strict=True):
            row |= {"prediction": text, "correct": right}


def _rows(items: Sequence[Item], losses: Sequence[TargetLoss]) -> list[Row]:
    return [
        {"id": item.example.id, "target": item.example.target, "log_loss": loss.nats, "tokens": loss.tokens}
        for item, loss in zip(items, losses, strict=True)
    ]


def _judge(run: Run, items: Sequence[Item], texts: list[str]) -> list[bool]:
    """Whether each answer is right; leaves the metrics with the run."""
    metrics, labels = run.outcome.metrics, run.config.dataset.labels
    targets = [item.example.target for item in items]
    correct = exact_match(texts, targets)
    if labels:
        parsed = [parse_label(text, labels) for text in texts]
        gold = [parse_label(target, labels) for target in targets]
        correct = [p == g != UNPARSED for p, g in zip(parsed, gold, strict=True)]
        metrics["test/macro_f1"] = macro_f1(parsed, gold, labels)
        metrics["test/parse_failures"] = sum(p == UNPARSED for p in parsed) / len(parsed)
    metrics["test/exact_match"] = sum(correct) / len(correct)
    return correct
