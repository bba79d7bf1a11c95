"""Pair rows with the reference variant, in two views: at the same rank, and at the same trainable parameters.

A pair shares its seed: the same order of data, the same stream of initial values, the same test items. The difference is
always row minus reference, in the unit of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from . import statistics
from .audit import differing
from .contents import ALWAYS, Content, Row, unlike
from .notes import ENOUGH_SEEDS
from .selection import Seed

SAME_RANK, SAME_PARAMETERS = "same rank", "same trainable parameters"
TOLERANCE = 0.05  # relative: trainable parameters that differ by less count as the same
ALPHA = 0.05

Values = Mapping[Seed, float]


@dataclass(frozen=True)
class Contrast:
    """One row against its reference.

    seeds: those that both have; test: of their differences; p_holm: the exact sign-flip p, adjusted over the view;
    bootstrap: over seeds and test items, where the predictions are there; unlike: the contents that the two read differently, so
    that no seed of theirs is a pair.
    """

    row: int
    reference: int
    seeds: tuple[Seed, ...]
    test: statistics.Paired
    p_holm: float = math.nan
    bootstrap: statistics.Resampled | None = None
    unlike: tuple[str, ...] = ()

    @property
    def marked(self) -> bool:
        """Tell whether the difference may be called significant: enough seeds, p < 0.05 after Holm, an interval without 0.

        The exact test asks about symmetry around 0 and the interval about the mean: a single odd seed can part them.
        """
        apart = self.test.low > 0 or self.test.high < 0
        return self.test.n >= ENOUGH_SEEDS and self.p_holm < ALPHA and apart

    @property
    def verdict(self) -> str:
        if self.unlike:
            return f"other {', '.join(self.unlike)}"
        if self.test.n == 0:
            return "no common seed"
        if self.test.n < ENOUGH_SEEDS:
            return "descriptive"
        if self.marked:
            return "differs, equivalent" if self.test.equivalent else "differs"
        return "equivalent" if self.test.equivalent else "undecided"


@dataclass(frozen=True)
class View:
    """The contrasts of one view. ``unmatched`` are the rows of other variants for which there is no reference row."""

    name: str
    contrasts: list[Contrast]
    unmatched: list[int]

    def of(self, row: int) -> Contrast | None:
        return next((contrast for contrast in self.contrasts if contrast.row == row), None)

    @property
    def smallest_p(self) -> float:
        """Compute the smallest adjusted p that the number of seeds and contrasts lets any of them reach."""
        n = max((contrast.test.n for contrast in self.contrasts), default=0)
        return min(1.0, statistics.smallest_p(n) * self.family) if self.family else math.nan

    @property
    def family(self) -> int:
        """Count the contrasts that are tested: those with at least two seeds."""
        return sum(contrast.test.n >= 2 for contrast in self.contrasts)


def by_seed(runs: pd.DataFrame, metric: str, keys: str | list[str]) -> dict[Any, dict[Seed, float]]:
    """Look up the metric by seed, in finished runs only, for each value of the column or columns ``keys``."""
    values: dict[Any, dict[Seed, float]] = {key: {} for key in runs.groupby(keys).groups}
    if metric in runs:
        ok = runs[(runs["status"] == "ok") & runs[metric].notna()]
        for key, group in ok.groupby(keys):
            seeds = zip(group["seed"], group["data_seed"], strict=True)
            values[key] = dict(zip(seeds, group[metric], strict=True))
    return values


def contrast(row: int, reference: int, values: Mapping[int, Values], margin: float, unlike: tuple[str, ...] = ()) -> Contrast:
    """Test the paired difference over the seeds that both rows have; over none where the two read ``unlike`` contents."""
    seeds = tuple(sorted(set(values[row]) & set(values[reference]))) if not unlike else ()
    differences = [values[row][seed] - values[reference][seed] for seed in seeds]
    return Contrast(row, reference, seeds, statistics.paired(np.array(differences), margin), unlike=unlike)


def views(
    table: pd.DataFrame, rows: Sequence[Row], values: Mapping[int, Values], reference: str, margin: float,
    read: Sequence[Content] = ALWAYS,
) -> list[View]:  # fmt: skip
    """Make both views of a comparison: at the same rank, at the same trainable parameters. A pair in both is tested once.

    Args:
        rows: ``contents.of_rows`` of the table.
        read: the contents that the metric of ``values`` depends on.
    """

    @cache
    def tested(row: int, other: int) -> Contrast:
        return contrast(row, other, values, margin, unlike(rows[row], rows[other], read))

    return [_view(name, table, rows, reference, tested) for name in (SAME_RANK, SAME_PARAMETERS)]


def _view(name: str, table: pd.DataFrame, rows: Sequence[Row], reference: str, tested: Callable[[int, int], Contrast]) -> View:
    """Pair each row of another variant with the reference row nearest to it; Holm over all of them.

    Args:
        name: ``SAME_RANK`` or ``SAME_PARAMETERS``.
        table: one row per condition, with variant, r and trainable_parameters.
        rows: what each row was ordered to be, and read; of several possible references one that read the same is taken before
            others, and of these the one that differs in the fewest fields.
    """
    references = [row for row in table.index if table["variant"][row] == reference]
    tests, unmatched = [], []
    for row in table.index:
        if table["variant"][row] == reference or pd.isna(table["r"][row]):
            continue
        candidates = [other for other in references if _distance(name, table, row, other) is not None]
        if not candidates:
            unmatched.append(int(row))
            continue
        nearest = min(
            candidates,
            key=lambda other: (
                len(tested(int(row), int(other)).unlike),
                len(differing(rows[row]["fields"], rows[other]["fields"])),
                _distance(name, table, row, other),
            ),
        )
        tests.append(tested(int(row), int(nearest)))
    adjusted = statistics.holm(np.array([contrast.test.p_flip for contrast in tests]))
    return View(name, [replace(contrast, p_holm=float(p)) for contrast, p in zip(tests, adjusted, strict=True)], unmatched)


def _distance(name: str, table: pd.DataFrame, row: int, other: int) -> float | None:
    """Measure how far a row is from a reference in what the view holds equal; None where that is too far."""
    if name == SAME_RANK:
        return 0.0 if table["r"][row] == table["r"][other] else None
    a, b = table["trainable_parameters"][row], table["trainable_parameters"][other]
    if pd.isna(a) or pd.isna(b) or not a or not b:
        return None
    distance = abs(math.log(a / b))
    return distance if distance <= math.log(1 + TOLERANCE) else None
