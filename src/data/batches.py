"""Put tokenized rows into padded batches, and fix the order in which training rows are used."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..config.schema import TrainConfig
from .tokens import Item as Item
from .tokens import fingerprint as fingerprint
from .tokens import tokenize as tokenize

IGNORE = -100  # label of a token that carries no loss, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: ``input_ids``, ``attention_mask``, ``labels``, each [rows, longest row]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())

    @property
    def target_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())


def collate(items: Sequence[Item], pad: int, device: torch.device) -> Batch:
    """Pad items on the right with the id ``pad`` to the longest of them; labels are ``IGNORE`` outside of targets."""
    width = max(len(item) for item in items)
    ids = torch.full((len(items), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, item in enumerate(items):
        ids[row, : len(item)] = torch.tensor(item.prompt + item.target)
        mask[row, : len(item)] = 1
        for start, end in item.spans():
            labels[row, start:end] = ids[row, start:end]
    return Batch(ids.to(device), mask.to(device), labels.to(device))


@lru_cache(maxsize=256)  # a pack asks for the orders of all its seeds at every step
def _permutation(rows: int, data_seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{data_seed}/{epoch}").shuffle(order)
    return tuple(order)


def rows_at(first: int, count: int, rows: int, data_seed: int) -> list[int]:
    """Look up rows ``first`` to ``first + count`` (excluded) of the endless stream of shuffled epochs.

    The order depends on the arguments alone: not on the variant, the rank, the run's other seed, or an interruption. Each
    epoch uses each row once; a batch may span two epochs.
    """
    return [_permutation(rows, data_seed, index // rows)[index % rows] for index in range(first, first + count)]


def micro_batches(step: int, train: TrainConfig, rows: int, data_seed: int) -> list[list[int]]:
    """List the rows of each micro-batch of an optimizer step; ``step`` counts from 0."""
    size = train.batch_size * train.grad_accum
    taken = rows_at(step * size, size, rows, data_seed)
    return [taken[start : start + train.batch_size] for start in range(0, size, train.batch_size)]
