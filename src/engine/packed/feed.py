"""Turn the rows of a pack's steps into tensors: token ids, places of tokens, labels and their weights in the loss.

Rows of uneven length share sequences (packed by first-fit decreasing, each run's rows by themselves) where that saves
padding; a mask then keeps each row to itself. The results of a row do not depend on its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.batches import Item, micro_batches
from ...data.layout import MULTIPLE, choose, share, up
from .members import Member

SURVEYED = 128  # steps whose rows choose the layout


@dataclass(frozen=True)
class Inputs:
    """The tensors of one optimizer step: M micro-batches, K runs, n sequences of W tokens a run, L labeled tokens at most.

    ``labeled`` index the ``n * W`` tokens of a run; ``targets`` are the tokens after them. Entries beyond a run's
    labeled tokens have weight 0. The weights of a run's step sum to 1.
    """

    ids: torch.Tensor  # [M, K * n, W]
    rows: torch.Tensor  # [M, K * n, W], the number of the token's row in its run's step; -1 is padding
    positions: torch.Tensor  # [M, K * n, W], the token's place in its row
    labeled: torch.Tensor  # [M, K, L]
    targets: torch.Tensor  # [M, K, L]
    weights: torch.Tensor  # [M, K, L]
    tokens: list[int]  # of each run, without padding

    @property
    def shape(self) -> tuple[int, ...]:
        """(sequences, tokens of each, labeled tokens): all that may differ between two steps of a pack."""
        return self.ids.shape[1], self.ids.shape[2], self.labeled.shape[2]


class Feed:
    """Makes the inputs of each step. Where ``static``, in very few shapes, because each shape is compiled and captured once."""

    def __init__(self, items: Sequence[Item], pad: int, members: Sequence[Member], steps: int, static: bool) -> None:
        self.items = items
        self.pad = pad
        self.members = members
        self.size = members[0].train.batch_size
        self.micro_batches = members[0].train.grad_accum
        self.static = static
        self.orders = sorted({member.data_seed for member in members})
        self.of_run = torch.tensor([self.orders.index(member.data_seed) for member in members])
        self.ids = [np.array(item.prompt + item.target) for item in items]
        self.places = [np.concatenate([np.arange(*span) for span in item.spans()]) for item in items]  # tokens that carry loss
        surveyed = [rows for step in range(min(steps, SURVEYED)) for rows in self._rows(step)]
        layout = choose([[len(items[row]) for row in rows] for rows in surveyed])
        self.shared, self.width, self.sequences = layout.shared, layout.width, layout.sequences
        counts = [sum(items[row].labeled for row in rows) for rows in surveyed]
        self.labeled = up(max(counts), 32)

    def _rows(self, step: int) -> list[list[int]]:
        """List the rows of each micro-batch of each order of data: [micro-batches * orders], rows."""
        orders = [micro_batches(step, self.members[0].train, len(self.items), seed) for seed in self.orders]
        return [rows for of_orders in zip(*orders, strict=True) for rows in of_orders]

    def inputs(self, step: int) -> Inputs:
        """Build the inputs of a 0-based step."""
        batches = self._rows(step)
        layouts = [self._layout([len(self.items[row]) for row in rows]) for rows in batches]
        sequences, width = self._size(layouts, batches)
        labeled = max(sum(self.items[row].labeled for row in rows) for rows in batches)
        if self.static:
            labeled = self.labeled * -(-labeled // self.labeled)
        shape = (len(batches), sequences, width)
        ids, rows, positions = np.full(shape, self.pad), np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        carrying = np.zeros((len(batches), labeled), dtype=np.int64)
        targets, counts = np.zeros_like(carrying), np.zeros(len(batches), dtype=np.int64)
        for index, (batch, layout) in enumerate(zip(batches, layouts, strict=True)):
            first_row = index // len(self.orders) * self.size
            for sequence, members in enumerate(layout):
                start = 0
                for place in members:
                    tokens, labeled_places = self.ids[batch[place]], self.places[batch[place]]
                    end = start + len(tokens)
                    ids[index, sequence, start:end] = tokens
                    rows[index, sequence, start:end] = first_row + place
                    positions[index, sequence, start:end] = np.arange(len(tokens))
                    count, more = int(counts[index]), len(labeled_places)
                    # The token before each labeled one predicts it.
                    carrying[index, count : count + more] = sequence * width + start + labeled_places - 1
                    targets[index, count : count + more] = tokens[labeled_places]
                    counts[index] += more
                    start = end
        return self._spread(ids, rows, positions, carrying, targets, counts)

    def _layout(self, lengths: list[int]) -> list[list[int]]:
        if self.shared:
            return share(lengths, max(self.width, *lengths))
        return [[place] for place in range(len(lengths))]

    def _size(self, layouts: list[list[list[int]]], batches: list[list[int]]) -> tuple[int, int]:
        """Choose (sequences, width): where shapes are static, the layout's unless a batch needs more."""
        needed = max(len(layout) for layout in layouts)
        used = max(
            sum(len(self.items[batch[place]]) for place in members)
            for batch, layout in zip(batches, layouts, strict=True)
            for members in layout
        )
        if self.static:
            return max(self.sequences, needed), max(self.width, up(used, MULTIPLE))
        return needed, used

    def _spread(self, *of_orders: np.ndarray[Any, np.dtype[np.int64]]) -> Inputs:
        """Give each run the arrays of its order of data, and weigh its labeled tokens."""
        ids, rows, positions, carrying, targets, counts = (
            torch.from_numpy(array).unflatten(0, (self.micro_batches, len(self.orders)))[:, self.of_run] for array in of_orders
        )
        tokens = (rows >= 0).sum((0, 2, 3)).tolist()
        inside = torch.arange(carrying.shape[-1]) < counts[..., None]
        weights = inside / counts.sum(0).double()[None, :, None]
        return Inputs(ids.flatten(1, 2), rows.flatten(1, 2), positions.flatten(1, 2), carrying, targets, weights, tokens)
