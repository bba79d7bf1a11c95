"""Score models on examples: log-loss of each target, greedy generation. src/measure/answers.py judges what was generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import torch

from ..data.batches import Batch, Item, collate
from ..model.device import Numerics
from ..model.losses import target_losses

Advance = Callable[[int], None]


class Scored(Protocol):
    """The models of ``runs`` runs, which are scored on the same rows."""

    runs: int
    numerics: Numerics

    def evaluating(self) -> AbstractContextManager[Any]:
        """Enter evaluation mode without gradients."""

    def target_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-losses [runs, target tokens] in fp32, and the row of the batch that each token belongs to."""

    def rows_at_once(self, tokens: int) -> int:
        """Return how many rows of ``tokens`` tokens may be scored together, if the config leaves it open."""

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Generate greedy continuations [runs, rows, new tokens] of left-padded prompts."""


@dataclass(frozen=True)
class TargetLoss:
    """The summed log-loss of one example's labeled tokens, in nats, and their number."""

    nats: float
    tokens: int


def per_token(losses: Sequence[TargetLoss]) -> float:
    """Average the log-loss per target token over all examples, in nats."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


class Scorer:
    """Score the runs of a pack together, on the same rows. Rows are batched by length, for speed alone."""

    def __init__(self, scored: Scored, batch_size: int | None, pad: int) -> None:
        self.scored = scored
        self.batch_size = batch_size
        self.pad = pad

    def _batches(self, lengths: list[int], new_tokens: int = 0) -> list[list[int]]:
        """Batch rows of similar length, by their indices; each row will grow by ``new_tokens``."""
        order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
        size = self.batch_size or self.scored.rows_at_once(max(lengths, default=0) + new_tokens)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def losses(self, items: Sequence[Item], advance: Advance = lambda rows: None) -> list[list[TargetLoss]]:
        """Return for each run the log-loss of each target, in the order of ``items``."""
        device, runs = self.scored.numerics.device, self.scored.runs
        by_run = [[TargetLoss(0.0, 0)] * len(items) for _ in range(runs)]
        with self.scored.evaluating():
            for indices in self._batches([len(item) for item in items]):
                losses, rows = self.scored.target_losses(collate([items[index] for index in indices], self.pad, device))
                sums = torch.zeros(runs, len(indices), device=device, dtype=torch.float64)
                for run, nats in enumerate(sums.index_add_(1, rows, losses.double()).tolist()):
                    for index, value in zip(indices, nats, strict=True):
                        by_run[run][index] = TargetLoss(value, items[index].labeled)
                advance(len(indices))
        return by_run

    def generate(
        self, items: Sequence[Item], eos: int | Sequence[int], max_new_tokens: int, advance: Advance = lambda rows: None
    ) -> list[list[list[int]]]:
        """Return for each run greedy continuations of the prompts as token ids, up to and without the first id of ``eos``."""
        device, stop = self.scored.numerics.device, [eos] if isinstance(eos, int) else list(eos)
        answers: list[list[list[int]]] = [[[] for _ in items] for _ in range(self.scored.runs)]
        with self.scored.evaluating():
            for indices in self._batches([len(item.prompt) for item in items], max_new_tokens):
                prompts = [items[index].prompt for index in indices]
                width = max(len(prompt) for prompt in prompts)
                ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
                output = self.scored.generate(ids, mask, max_new_tokens=max_new_tokens, pad_token_id=self.pad, eos_token_id=stop)
                for run, rows in enumerate(output.tolist()):
                    for index, row in zip(indices, rows, strict=True):
                        answers[run][index] = list(takewhile(lambda token: token not in stop, row))
                advance(len(indices))
        return answers


ROWS_AT_ONCE = 64


class Solo:
    """A pack of one: a model of PEFT's, or one without an adapter."""

    runs = 1

    def __init__(self, model: Any, numerics: Numerics) -> None:
        self.model = model
        self.numerics = numerics

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Enter evaluation mode under autocast. PEFT's DoRA norms are computed once, since no weight changes here."""
        from peft.helpers import DoraCaching

        self.model.eval()
        with torch.no_grad(), self.numerics.autocast(), DoraCaching():
            yield

    def rows_at_once(self, tokens: int) -> int:
        return ROWS_AT_ONCE

    def target_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses, rows = target_losses(self.model, batch)
        return losses[None], rows

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        output = self.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True, **options)
        answers: torch.Tensor = output[None, :, ids.shape[1] :]
        return answers
