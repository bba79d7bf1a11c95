"""Scores of a model on examples: log-loss of each target, greedy generation, exact match, macro-F1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from src.batches import Item, collate
from src.device import Numerics
from src.losses import target_losses

UNPARSED = "<unparsed>"
Advance = Callable[[int], None]


@dataclass(frozen=True)
class TargetLoss:
    """Summed log-loss of one example's target, in nats, and its number of tokens."""

    nats: float
    tokens: int


def per_token(losses: Sequence[TargetLoss]) -> float:
    """Mean log-loss per target token over all examples, in nats."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


class Scorer:
    """Scores with one model. Rows are batched by length, which changes speed and not results."""

    def __init__(self, model: nn.Module, numerics: Numerics, batch_size: int, pad: int) -> None:
        self.model = model
        self.numerics = numerics
        self.batch_size = batch_size
        self.pad = pad

    def _evaluating(self) -> ExitStack:
        """Evaluation mode, no gradients, autocast; DoRA's norms are computed once, since no weight changes here."""
        from peft.helpers import DoraCaching

        stack = ExitStack()
        self.model.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(self.numerics.autocast())
        stack.enter_context(DoraCaching())
        return stack

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def losses(self, items: Sequence[Item], advance: Advance = lambda rows: None) -> list[TargetLoss]:
        """Log-loss of each target, in the order of ``items``."""
        found: list[TargetLoss | None] = [None] * len(items)
        with self._evaluating():
            for indices in self._batches([len(item) for item in items]):
                batch = collate([items[at] for at in indices], self.pad, self.numerics.device)
                losses, rows = target_losses(self.model, batch)
                sums = torch.zeros(len(indices), device=losses.device, dtype=torch.float64).index_add_(0, rows, losses.double())
                for at, nats in zip(indices, sums.tolist(), strict=True):
                    found[at] = TargetLoss(nats, len(items[at].target))
                advance(len(indices))
        return [loss for loss in found if loss is not None]

    def generate(
        self, items: Sequence[Item], eos: int, max_new_tokens: int, advance: Advance = lambda rows: None
    ) -> list[list[int]]:
        """Greedy continuations of the prompts as token ids, up to and without ``eos``, in the order of ``items``."""
        found: list[list[int]] = [[] for _ in items]
        with self._evaluating():
            for indices in self._batches([len(item.prompt) for item in items]):
                prompts = [items[at].prompt for at in indices]
                width = max(len(prompt) for prompt in prompts)
                ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.numerics.device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.numerics.device)
                output = self.model.generate(  # type: ignore[operator]
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=self.pad,
                    eos_token_id=eos,
                )
                for at, row in zip(indices, output[:, width:].tolist(), strict=True):
                    found[at] = row[: row.index(eos)] if eos in row else row
                advance(len(indices))
        return found


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> list[bool]:
    """Whether each prediction is its target, surrounding white space aside."""
    return [p.strip() == t.strip() for p, t in zip(predictions, targets, strict=True)]


def parse_label(prediction: str, labels: Sequence[str]) -> str:
    """The label that the answer is, letter case and surrounding white space aside, or ``UNPARSED``.

    An answer that merely contains a label is not parsed: "not negative" is no vote for "negative".
    """
    by_name = {label.strip().casefold(): label for label in labels}
    return by_name.get(prediction.strip().casefold(), UNPARSED)


def macro_f1(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over the labels of F1, where an unparsed answer is a class of its own and so always a miss."""
    from sklearn.metrics import f1_score

    return float(f1_score(list(targets), list(predictions), labels=list(labels), average="macro", zero_division=0.0))
