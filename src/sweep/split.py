"""Split a row of weights into parts of about equal weight. A part is (start, end), without the end.

``cumulative`` is the sum of each weight and all before it. Rounding never moves a cut: each stands a hair early.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from itertools import pairwise

Span = tuple[int, int]


def equal_weights(cumulative: Sequence[float], count: int) -> list[Span]:
    """Split into at most ``count`` parts in order, none empty; among equal weights the first parts are the larger."""
    cuts = [_cut(cumulative, number, count) for number in range(count + 1)]
    return [(start, end) for start, end in pairwise(cuts) if start < end]


def part_around(index: int, cumulative: Sequence[float], count: int) -> Span:
    """Find the part of ``equal_weights`` that holds the weight at ``index``, without making the others."""
    before = cumulative[index - 1] if index else 0.0
    number = bisect.bisect_right(range(1, count), before, key=lambda cut: _weight_at(cumulative, cut, count)) if index else 0
    return _cut(cumulative, number, count), _cut(cumulative, number + 1, count)


def at_most(part: Span, most: int) -> Iterator[Span]:
    """Split a part into the fewest of at most ``most`` members, of about equal number; the first are the larger."""
    start, end = part
    count = -(-(end - start) // most)
    return pairwise(start - (start - end) * number // count for number in range(count + 1))


def _cut(cumulative: Sequence[float], number: int, count: int) -> int:
    """Find where part ``number`` of ``count`` begins: at the first weight, or after the one that reaches the parts before."""
    if number in (0, count):
        return len(cumulative) if number else 0
    return bisect.bisect_left(cumulative, _weight_at(cumulative, number, count)) + 1


def _weight_at(cumulative: Sequence[float], number: int, count: int) -> float:
    return cumulative[-1] * number / count * (1 - 1e-12)
