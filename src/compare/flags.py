"""Flag single rows of a comparison with what is wrong about them, or to be known, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..files.text import counted
from ..variants.methods.precision import QUANTIZED
from .comparison import Comparison
from .contrasts import View
from .frame import MISSING
from .notes import ENOUGH_SEEDS
from .selection import Selection

EXPLANATIONS = {
    "best rate on the grid's edge": "A better rate may lie beyond the grid: extend it, for all variants alike.",
    "one learning rate": "The rate was not tuned: a difference may be the rate's and not the variant's.",
    "unequal grids": "Rows were tuned over different learning rates: the larger grid has the advantage.",
    "incomplete grid": "Not every rate has a finished run for every tuning seed; only the best covered rates were candidates.",
    "tuned and reported on the same seeds": "There were too few seeds to keep them apart, so the mean flatters.",
    "no number": "No report seed has a finished run at the chosen rate.",
    f"fewer than {ENOUGH_SEEDS} seeds": "Differences are descriptive: no significance is claimed, whatever the p-value.",
    "unpaired seeds": "Some of its report seeds have no partner in the reference row; differences use the common ones.",
    "runs that did not finish": "Diverged, failed or missing runs, over all rates and seeds of the row; means are of the others.",
    "scale confounded with variant": (
        "Its effective scale differs from the reference's at the same rank, so the difference is of variant and scale "
        "together; rsLoRA at one rank is LoRA at another alpha, to the bit."
    ),
    "base already quantised": "The base's weights were quantised before, so this precision costs less here than on other bases.",
    "dirty commit": "The code had uncommitted changes, so nobody else can run the same.",
}


@dataclass(frozen=True)
class Flag:
    """A flag of one row: ``flag`` is a key of ``EXPLANATIONS``, ``words`` say it of the row."""

    flag: str
    words: str


def flags(comparison: Comparison, selection: Selection, numbers: Sequence[int], same_rank: View) -> list[list[Flag]]:
    """Raise the flags of each row of a comparison of ``selection.reported()``; ``numbers`` are the rows' conditions."""
    grids = {selection.conditions[n].rates for n in numbers if selection.conditions[n].rates}
    by_condition = {int(n): group for n, group in selection.runs.groupby("condition")}
    by_row = {int(row): group for row, group in comparison.runs.groupby("row")}
    flags_by_row = []
    for row, number in enumerate(numbers):
        condition, all_runs, runs = selection.conditions[number], by_condition[number], by_row[row]
        trained = runs["trains"].iloc[0] != "none"
        raised = _tuning(condition, grids, selection) if trained else []
        raised += _seeds(comparison.table, row, trained)
        contrast = same_rank.of(row)
        if contrast is not None:
            seeds = comparison.table["n_seeds"][row]
            if contrast.test.n < seeds:
                raised.append(Flag("unpaired seeds", f"{seeds - contrast.test.n} of {seeds} seeds unpaired"))
            scales = [comparison.table["effective_scale"][index] for index in (row, contrast.reference)]
            if not any(map(pd.isna, scales)) and not math.isclose(*scales, rel_tol=1e-9):
                words = f"scale {scales[0]:.3g} against {scales[1]:.3g}: confounded with variant"
                raised.append(Flag("scale confounded with variant", words))
        raised += _runs(all_runs, runs)
        flags_by_row.append(raised)
    return flags_by_row


def _tuning(condition: Any, grids: set[tuple[float, ...]], selection: Selection) -> list[Flag]:
    raised = []
    if condition.edge:
        raised.append(Flag("best rate on the grid's edge", f"best rate on the grid's {condition.edge} edge"))
    if len(condition.rates) == 1:
        raised.append(Flag("one learning rate", "one learning rate"))
    elif not selection.split.disjoint:
        raised.append(Flag("tuned and reported on the same seeds", "tuned and reported on the same seeds"))
    if len(grids) > 1:
        raised.append(Flag("unequal grids", f"grid of {counted(len(condition.rates), 'rate')}, unequal to others"))
    if not condition.complete:
        raised.append(Flag("incomplete grid", "incomplete grid"))
    return raised


def _seeds(table: pd.DataFrame, row: int, trained: bool) -> list[Flag]:
    n = int(table["n_seeds"][row])
    if n == 0:
        return [Flag("no number", "no finished report run")]
    if n < ENOUGH_SEEDS and trained:
        return [Flag(f"fewer than {ENOUGH_SEEDS} seeds", f"only {counted(n, 'seed')}")]
    return []


def _runs(all_runs: pd.DataFrame, runs: pd.DataFrame) -> list[Flag]:
    raised = []
    bad = all_runs["status"].value_counts().drop("ok", errors="ignore")
    if len(bad):
        words = ", ".join(f"{count} {status}" for status, count in bad.items())
        raised.append(Flag("runs that did not finish", f"{words} of {len(all_runs)} runs"))
    precision, note = runs["base_precision"].iloc[0], runs["model_note"].dropna()
    if precision in QUANTIZED and len(note) and re.search(r"\b\d-bit\b|quanti", note.iloc[0]):
        raised.append(Flag("base already quantised", "base already quantised"))
    if (runs["dirty"].where(runs["status"] != MISSING) == True).any():  # noqa: E712 - a column of objects
        raised.append(Flag("dirty commit", "dirty commit"))
    return raised


def by_flag(raised: Sequence[Sequence[Flag]], labels: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Group rows by flag: (flag, explanation, the rows that have it), in the order of ``EXPLANATIONS``."""
    return [
        (name, explanation, rows)
        for name, explanation in EXPLANATIONS.items()
        if (rows := [labels[row] for row, of_row in enumerate(raised) if any(flag.flag == name for flag in of_row)])
    ]
