"""Choose how rows of uneven length share sequences in a pack's steps. Without torch, so that the plan can use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_WIDTH = 1024  # tokens of a shared sequence, unless a row is longer: attention costs its square
WORTHWHILE = 0.85  # rows share sequences where that leaves less than this share of the padded tokens of one row per sequence
MULTIPLE = 16  # of a width, for the kernels
# At this width a token costs twice as much as in a short sequence: attention covers the whole width, masked or not. By the
# FLOPs of a model of 135M parameters; for a larger one the width is greater, and short sequences lose little.
DOUBLE_COST_WIDTH = 2000
MAX_SEQUENCES = 8  # numbers of sequences to try, beside multiples of the longest row


@dataclass(frozen=True)
class Layout:
    """The shape of one micro-batch of a run: ``sequences`` of ``width`` tokens; ``shared``: several rows may be in one."""

    shared: bool
    width: int
    sequences: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.width

    @property
    def cost(self) -> float:
        """Cost of a step in tokens of short sequences, attention included."""
        return self.tokens * (1 + self.width / DOUBLE_COST_WIDTH)


def choose(batches: Sequence[Sequence[int]]) -> Layout:
    """Choose one row per sequence, or packed sequences if they save at least 15 % of the padded tokens.

    batches: the row lengths of each micro-batch; all have equally many rows, and all fit the layout.
    """
    longest = up(max(max(lengths) for lengths in batches), MULTIPLE)
    total = max(sum(lengths) for lengths in batches)
    apart = Layout(False, longest, len(batches[0]))
    even = (up(-(-total // sequences), MULTIPLE) for sequences in range(1, MAX_SEQUENCES + 1))
    widths = sorted(width for width in {longest, 2 * longest, 4 * longest, *even} if longest <= width <= max(MAX_WIDTH, longest))
    shared = [Layout(True, width, max(len(share(lengths, width)) for lengths in batches)) for width in widths]
    worth = [layout for layout in shared if layout.tokens < WORTHWHILE * apart.tokens]
    return min(worth, key=lambda layout: layout.cost, default=apart)


def share(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack row indices into sequences of at most ``capacity`` tokens: first-fit decreasing."""
    sequences: list[list[int]] = []
    left: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fitting = next((index for index, free in enumerate(left) if free >= lengths[row]), None)
        if fitting is None:
            sequences.append([row])
            left.append(capacity - lengths[row])
        else:
            sequences[fitting].append(row)
            left[fitting] -= lengths[row]
    return sequences


def up(value: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-value // multiple) * multiple
