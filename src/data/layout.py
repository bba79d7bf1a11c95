"""How rows of uneven length share sequences: the layout of a pack's steps, without torch, for the plan as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 1024  # of a sequence that rows share, unless a row is longer: its attention looks at all of it
WORTH = 0.85  # of the padded tokens of one row for each sequence: rows share where less than this share is left
MULTIPLE = 16  # kernels want sizes of it
# A sequence of so many tokens costs twice what its tokens cost apart: each looks at all, masked or not. By the FLOPs of a model
# of 135M; a larger one has this later, and loses little by short sequences.
DOUBLE = 2000
MOST = 8  # sequences that are tried, beside multiples of the longest row


@dataclass(frozen=True)
class Layout:
    """Of one micro-batch of a run: ``sequences`` of ``width`` tokens, which rows share or have for themselves."""

    shared: bool
    width: int
    sequences: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.width

    @property
    def cost(self) -> float:
        """In tokens of short sequences."""
        return self.tokens * (1 + self.width / DOUBLE)


def choose(batches: Sequence[Sequence[int]]) -> Layout:
    """The layout that holds each of these micro-batches of equally many rows, which are lengths: rows apart, or if it is worth it
    the cheapest in which they share.
    """
    longest = up(max(max(lengths) for lengths in batches), MULTIPLE)
    total = max(sum(lengths) for lengths in batches)
    apart = Layout(False, longest, len(batches[0]))
    even = (up(-(-total // sequences), MULTIPLE) for sequences in range(1, MOST + 1))
    widths = sorted(width for width in {longest, 2 * longest, 4 * longest, *even} if longest <= width <= max(LONGEST, longest))
    shared = [Layout(True, width, max(len(share(lengths, width)) for lengths in batches)) for width in widths]
    worth = [layout for layout in shared if layout.tokens < WORTH * apart.tokens]
    return min(worth, key=lambda layout: layout.cost, default=apart)


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
