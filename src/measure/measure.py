"""Measure models on test examples: log-losses, choices and answers. For the runs of a pack, or for one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config.schema import DatasetConfig, EvalConfig
from ..data.batches import Item, tokenize
from ..data.datasets import Example
from ..data.ending import without_end
from . import answers
from .scorer import Advance, Scorer, per_token

Row = dict[str, Any]  # of predictions.jsonl
Progress = Callable[[str, int], Advance]  # (name of the task, rows in all) -> a function that counts rows


@dataclass
class Measured:
    """The measurements of one model. ``metrics`` has no ``loss`` where that was not finite; ``rows`` has one for each example."""

    metrics: dict[str, float]
    rows: list[Row]


def measure(
    scorer: Scorer,
    tokenizer: Any,
    stop: Sequence[int],
    items: Sequence[Item],
    dataset: DatasetConfig,
    labels: Sequence[str],
    evaluation: EvalConfig,
    progress: Progress,
) -> list[Measured]:
    """Score all models of ``scorer`` on ``items``, as ``dataset.answer`` says. ``labels`` are those of a label task.

    stop: the ids at which answers end (src/data/ending.py).
    """
    measured = []
    for losses in scorer.losses(items, progress("scoring the test split", len(items))):
        rows = [
            {"id": item.example.id, "target": item.example.target, "log_loss": loss.nats, "tokens": loss.tokens}
            for item, loss in zip(items, losses, strict=True)
        ]
        loss = per_token(losses)
        measured.append(Measured({"loss": loss} if math.isfinite(loss) else {}, rows))
    if any(model.metrics for model in measured):
        if answers.kind(dataset) == "choice":
            _choose(measured, scorer, tokenizer, items, dataset, progress)
        if evaluation.generate:
            labels = without_end(labels, tokenizer, stop)
            longest = evaluation.max_new_tokens or max(len(item.target) for item in items)
            _answer(measured, scorer, tokenizer, stop, items, longest, answers.kind(dataset), labels, progress)
    return measured


def _choose(
    measured: list[Measured], scorer: Scorer, tokenizer: Any, items: Sequence[Item], dataset: DatasetConfig, progress: Progress
) -> None:
    """Choose for each model the likeliest choice of each example, by the summed log-loss of its text after the same prompt."""
    examples = [item.example for item in items]
    options = [replace(example, target=choice) for example in examples for choice in example.choices]
    tokens = _with_equal_prompts(tokenize(options, tokenizer, dataset.max_length, dataset.chat_template), examples)
    for model, losses in zip(measured, scorer.losses(tokens, progress("scoring the choices", len(options))), strict=True):
        chosen = answers.chosen([loss.nats for loss in losses], examples)
        judged = answers.judge_chosen(chosen, examples)
        model.metrics |= judged.metrics
        for row, choice, good in zip(model.rows, chosen, judged.correct, strict=True):
            row |= {"choice": choice, "choice_correct": good}


def _with_equal_prompts(options: list[Item], examples: Sequence[Example]) -> list[Item]:
    """Cut the prompts of an example's choices to one length: a row that was cut lost more of it before a longer choice."""
    aligned: list[Item] = []
    for example in examples:
        own = options[len(aligned) : len(aligned) + len(example.choices)]
        kept = min(len(item.prompt) for item in own)
        aligned += [replace(item, prompt=item.prompt[-kept:]) for item in own]
    return aligned


def _answer(
    measured: list[Measured],
    scorer: Scorer,
    tokenizer: Any,
    stop: Sequence[int],
    items: Sequence[Item],
    longest: int,
    kind: str,
    labels: Sequence[str],
    progress: Progress,
) -> None:
    """Generate an answer to each prompt, at most ``longest`` tokens, judge it, and add both to the rows."""
    ids = scorer.generate(items, stop, longest, progress("generating answers", len(items)))
    for model, output in zip(measured, ids, strict=True):
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        judged = answers.judge(kind, texts, [item.example for item in items], labels)
        model.metrics |= judged.metrics
        for row, text, right in zip(model.rows, texts, judged.correct, strict=True):
            row |= {"prediction": text, "correct": right}
