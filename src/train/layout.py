"""How rows of uneven length share sequences: the layout of a pack's steps, without torch, for the plan as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 1024  # of a sequence that rows share, unless a row is longer: its attention looks at all of it
WORTH = 0.85  # of the padded tokens of one row for each sequence: rows share where less than this share is left
MULTIPLE = 16  # kernels want sizes of it


@dataclass(frozen=True)
class Layout:
    """Of one micro-batch of a run: ``sequences`` of ``width`` tokens, which rows share or have for themselves."""

    shared: bool
    width: int
    sequences: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.width


def choose(batches: Sequence[Sequence[int]]) -> Layout:
    """The layout of the fewest tokens that holds each of these micro-batches of equally many rows; they are lengths."""
    rows = len(batches[0])
    longest = up(max(max(lengths) for lengths in batches), MULTIPLE)
    best = Layout(False, longest, rows)
    tokens = WORTH * best.tokens
    total = up(max(sum(lengths) for lengths in batches), MULTIPLE)
    for width in sorted({longest, 2 * longest, 4 * longest, *(up(-(-total // n), MULTIPLE) for n in (1, 2, 3, 4))}):
        if longest <= width <= max(LONGEST, longest):
            sequences = max(len(share(lengths, width)) for lengths in batches)
            if sequences * width < tokens:
                best, tokens = Layout(True, width, sequences), sequences * width
    return best


def share(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which rows share a sequence of at most ``capacity`` tokens: first-fit decreasing."""
    sequences: list[list[int]] = []
    left: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        fitting = next((at for at, room in enumerate(left) if room >= lengths[place]), None)
        if fitting is None:
            sequences.append([place])
            left.append(capacity - lengths[place])
        else:
            sequences[fitting].append(place)
            left[fitting] -= lengths[place]
    return sequences


def up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
