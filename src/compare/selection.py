"""Choose the learning rate of each condition on some seeds, and report on the others.

A condition is everything about a run but its seeds and its learning rate, what it read included. The rate is chosen on
validation over the tuning seeds, from the rates that were tried, and the test metric is reported on the other seeds: the best of
several numbers on the same seeds would flatter whoever tried more rates (Dodge et al. 2019, arXiv 1909.03004).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from . import contents
from .comparison import split_by_facts
from .contents import Content

RATE = "train.lr"
CHOSEN_BY = "val/loss"
Seed = tuple[int, int]  # (seed, data_seed)
NOT_REPORTED = "not reported"  # finished, but its row has no number to report
TUNING, REPORT, BOTH = "tuning", "report", "both"


@dataclass(frozen=True)
class Split:
    """The seeds of a comparison. ``disjoint`` is False where there are too few to keep them apart."""

    tuning: frozenset[Seed]
    report: frozenset[Seed]
    disjoint: bool

    def role(self, seed: Seed) -> str:
        if not self.disjoint:
            return BOTH
        return TUNING if seed in self.tuning else REPORT


@dataclass(frozen=True)
class Condition:
    """The learning rates that were tried for one condition, and the one it gets.

    rates: all that were tried, ascending; chosen: None where no rate has a validation loss; validation: mean over the
    tuning seeds, for the candidates; edge: ``lowest`` or ``highest`` where the chosen rate ends the grid; tuning_runs: the
    runs that were spent on choosing; complete: every rate has a finished run for every tuning seed.
    """

    rates: tuple[float, ...]
    chosen: float | None
    validation: dict[float, float]
    edge: str | None
    tuning_runs: int
    complete: bool


@dataclass(frozen=True)
class Selection:
    """Conditions with their rates. runs: the frame with ``condition`` (a number), ``role`` and ``chosen``; conditions: by it."""

    runs: pd.DataFrame
    conditions: dict[int, Condition]
    split: Split

    def reported(self) -> pd.DataFrame:
        """Take the runs that the comparison is made of: those of the chosen rate and the report seeds.

        A condition without one keeps a row: its other runs stand in for it, without their numbers.
        """
        report = self.runs["chosen"] & (self.runs["role"] != TUNING)
        empty = set(self.conditions) - set(self.runs.loc[report, "condition"])
        runs = self.runs[report | self.runs["condition"].isin(empty)].copy()
        stand_in = runs["condition"].isin(empty)
        lost = stand_in & (runs["status"] == "ok")
        unchosen = runs["condition"].map(lambda condition: self.conditions[condition].chosen is None)
        runs.loc[lost, "reason"] = "no report seed has run at the chosen rate"
        runs.loc[lost & unchosen, "reason"] = f"no tuning seed has a {CHOSEN_BY} to choose a rate by"
        runs.loc[lost, "status"] = NOT_REPORTED
        # A stand-in may be of any rate: one group, and no rate of its own.
        runs.loc[stand_in, "group"] = runs.loc[stand_in, "condition"].map(lambda condition: f"condition {condition}")
        several = runs["condition"].map(lambda condition: len(self.conditions[condition].rates) > 1)
        runs.loc[stand_in & several, "learning_rate"] = float("nan")
        return runs


def select(
    runs: pd.DataFrame, tuning_seeds: Collection[int] | None = None, read: tuple[Content, ...] = contents.ALWAYS
) -> Selection:
    """Give each condition of the runs its rate. Runs that read other contents are of another condition.

    Args:
        runs: of ``Gathered.frame``.
        tuning_seeds: the seeds that choose; without it a third of those that trained, rounded down, the lowest first.
        read: the contents that the reported metric depends on.
    """
    runs = split_by_facts(runs, read)
    runs["condition"] = _conditions(runs)
    trained = runs[runs["trains"] != "none"]
    several = trained.groupby("condition")["learning_rate"].nunique().gt(1)
    split = split_seeds(sorted(set(zip(trained["seed"], trained["data_seed"], strict=True))), tuning_seeds, bool(several.any()))
    runs["role"] = [split.role(seed) for seed in zip(runs["seed"], runs["data_seed"], strict=True)]
    runs.loc[runs["trains"] == "none", "role"] = REPORT  # nothing was chosen for it, and it is the same for every seed
    conditions = {int(number): _condition(group, split) for number, group in runs.groupby("condition", sort=True)}
    chosen = runs["condition"].map(lambda number: conditions[number].chosen).astype(float)
    runs["chosen"] = (runs["learning_rate"] == chosen) | (runs["trains"] == "none")
    return Selection(runs, conditions, split)


def split_seeds(seeds: Sequence[Seed], tuning: Collection[int] | None, needed: bool) -> Split:
    """Split seeds into those that tune and those that report; where nothing has to be chosen (not ``needed``) all report."""
    if tuning is not None:
        chosen = [seed for seed in seeds if seed[0] in tuning]
    elif not needed:
        chosen = []
    else:
        chosen = list(seeds[: max(1, len(seeds) // 3)])
    rest = [seed for seed in seeds if seed not in chosen]
    if needed and (not rest or not chosen):
        return Split(frozenset(seeds), frozenset(seeds), disjoint=False)
    return Split(frozenset(chosen), frozenset(rest), disjoint=True)


def _conditions(runs: pd.DataFrame) -> pd.Series:
    """Number the conditions of the runs, in the order of their first runs."""
    firsts = runs.drop_duplicates("group")
    keys: dict[str, str] = {}
    for group, fields, facts in zip(firsts["group"], firsts["fields"], firsts["facts"], strict=True):
        keys[group] = json.dumps([{k: v for k, v in fields.items() if k != RATE}, facts], sort_keys=True)
    return pd.Series(pd.factorize(runs["group"].map(keys))[0], index=runs.index)


def _condition(runs: pd.DataFrame, split: Split) -> Condition:
    rates = tuple(sorted(float(rate) for rate in runs["learning_rate"].dropna().unique()))
    if len(rates) < 2:
        return Condition(rates, rates[0] if rates else None, {}, None, 0, True)
    tuning = runs[runs["role"] != REPORT]
    known = tuning.reindex(columns=["learning_rate", CHOSEN_BY])[tuning["status"] == "ok"].dropna()
    by_rate = known.groupby("learning_rate")[CHOSEN_BY].agg(["mean", "count"])
    # A rate at which a tuning seed diverged is no candidate while another rate has them all.
    best_covered = by_rate[by_rate["count"] == by_rate["count"].max()] if len(by_rate) else by_rate
    validation = {float(rate): float(mean) for rate, mean in best_covered["mean"].items()}
    chosen = min(validation, key=lambda rate: (validation[rate], rate)) if validation else None
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(chosen) if chosen is not None else None
    complete = len(by_rate) == len(rates) and bool((by_rate["count"] == len(split.tuning)).all())
    return Condition(rates, chosen, validation, edge, len(tuning), complete)


def row_conditions(runs: pd.DataFrame) -> list[int]:
    """Return the condition of each row of a comparison of ``Selection.reported``."""
    firsts: Any = runs.groupby("row", sort=True)["condition"].first()
    return [int(condition) for condition in firsts]
