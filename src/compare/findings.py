"""Write a comparison's findings as sentences: the best row, what tuning changed, and the method."""

from __future__ import annotations

import math

import pandas as pd

from ..files.text import counted, few
from ..measure import metrics
from . import contents
from .assay import Assay, of_pair
from .columns import decimals, interval, p_value, short, signed, with_interval
from .comparison import column
from .contrasts import ALPHA, SAME_RANK, TOLERANCE, Contrast, View
from .notes import ENOUGH_SEEDS, ended_badly
from .selection import CHOSEN_BY, Seed

MOST = 8  # contrasts that get a sentence; the tables have them all


def findings(result: Assay, fixed: pd.DataFrame) -> list[str]:
    """Write the headline sentences; ``fixed`` is ``assay.at_fixed_rates``."""
    missing = [] if (result.table["variant"] == result.reference).any() else [
        f"No run is of the reference {result.reference}, so nothing is tested; give reference= one of"
        f" {', '.join(dict.fromkeys(result.table['variant']))}."
    ]  # fmt: skip
    return [*_best(result), *missing, *_contrasts(result, fixed)]


def _best(result: Assay) -> list[str]:
    """Name the best row of each model and data set, and of each of its contents, and the rows whose intervals overlap with it."""
    groups = result.table.groupby(["model", "dataset", *contents.columns(result.table)], sort=False, dropna=False)
    return [sentence for _, rows in groups for sentence in _best_of(result, rows)]


def _best_of(result: Assay, table: pd.DataFrame) -> list[str]:
    main = column(result.metric)
    means = table[f"{main}_mean"].dropna()
    if len(means) < 2:
        return []
    row = int(means.idxmin() if metrics.metric(result.metric).lower_is_better else means.idxmax())
    word = "Lowest" if metrics.metric(result.metric).lower_is_better else "Highest"
    mean = f"{decimals(means[row])} {interval(table['interval_low'][row], table['interval_high'][row], decimals)}".rstrip()
    n = int(table["n_seeds"][row])
    rate = f" at learning rate {short(table['learning_rate'][row])}" if pd.notna(table["learning_rate"][row]) else ""
    sentence = f"{word} {metrics.label(result.metric)}: {result.labels[row]}{rate}, {mean}, {counted(n, 'seed')}."
    close = [
        result.labels[other]
        for other in means.index
        if other != row
        and not _differ(result, row, other)
        and pd.notna(table["interval_high"][other])
        and pd.notna(table["interval_high"][row])
        and table["interval_low"][other] <= table["interval_high"][row]
        and table["interval_low"][row] <= table["interval_high"][other]
    ]
    if close:
        sentence += f" The intervals of {few(close)} overlap with it."
    return [sentence]


def _differ(result: Assay, row: int, other: int) -> bool:
    """Tell whether the two rows are a pair that differs: pairs are sharper than two intervals."""
    contrasts = [contrast for view in result.views for contrast in view.contrasts]
    return any(contrast.marked and {contrast.row, contrast.reference} == {row, other} for contrast in contrasts)


def _contrasts(result: Assay, fixed: pd.DataFrame) -> list[str]:
    """Say of each pair what one rate for both shows, and what each at its own best rate shows."""
    sentences: list[tuple[float, str]] = []
    for contrast in result.views[0].contrasts:
        if contrast.test.n == 0:
            continue
        grid = sorted({*result.conditions[contrast.row].rates} & {*result.conditions[contrast.reference].rates})
        rows = of_pair(fixed, contrast)
        rates = [rate for rate in grid if rate in rows.index]
        tuned = _tuned(result, contrast)
        if len(grid) < 2 or not rates:
            sentences.append((abs(contrast.test.mean), f"{_pair(result, contrast)}{_untuned(result, contrast)}: {tuned}"))
            continue
        middle = rates[len(rates) // 2]
        shown = rows.loc[middle]
        lead = _lead(result, contrast, shown["difference"], shown["low"], shown["high"])
        first = f"at one fixed rate, {short(middle)} for both, {lead}, {counted(int(shown['n']), 'seed')}"
        if len(rates) > 1:
            ends = [f"{signed(rows['difference'][rate])} at {short(rate)}" for rate in (rates[0], rates[-1])]
            first += f" (from {ends[0]} to {ends[1]})"
        text = f"{_pair(result, contrast)}: {first}; each at its own best rate{_chosen(result, contrast)}, {tuned}"
        sentences.append((abs(shown["difference"] - contrast.test.mean), text + _edges(result, contrast)))
    sentences.sort(key=lambda entry: -entry[0])
    rest = len(sentences) - MOST
    return [text for _, text in sentences[:MOST]] + ([f"{rest} more pairs are in the tables."] if rest > 0 else [])


def _pair(result: Assay, contrast: Contrast) -> str:
    return f"{result.labels[contrast.row]} against {result.labels[contrast.reference]}"


def _chosen(result: Assay, contrast: Contrast) -> str:
    rates = [result.conditions[row].chosen for row in (contrast.row, contrast.reference)]
    return f" ({' and '.join('none' if rate is None else short(rate) for rate in rates)})"


def _untuned(result: Assay, contrast: Contrast) -> str:
    """Name the rates of a pair that shares no grid, or a grid of one."""
    rates = [result.conditions[row].chosen for row in (contrast.row, contrast.reference)]
    if rates[0] == rates[1] and rates[0] is not None:
        return f", at one rate for both, {short(rates[0])}"
    return f", at learning rates{_chosen(result, contrast)}"


def _tuned(result: Assay, contrast: Contrast) -> str:
    test = contrast.test
    text = f"{_lead(result, contrast, test.mean, test.low, test.high)}, {counted(test.n, 'seed')}"
    if test.n < ENOUGH_SEEDS:
        return f"{text}: too few seeds for any claim."
    p = f"p = {p_value(contrast.p_holm)} after Holm"
    if contrast.p_holm < ALPHA and not contrast.marked:
        p += ", but the interval holds 0"
    equal = f", and equivalent within {result.margin:g}" if test.equivalent else ""
    verdict = "a difference" if contrast.marked else "no difference shown"
    return f"{text}: {verdict} ({p}){equal}.{_lost(result, contrast)}"


def _lost(result: Assay, contrast: Contrast) -> str:
    runs = result.comparison.runs[result.comparison.runs["row"].isin((contrast.row, contrast.reference))]
    lost = int((runs["status"] != "ok").sum())
    verb = "has" if lost == 1 else "have"
    return f" {lost} of the {len(runs)} report runs {verb} no number, so this is of the seeds that both finished." if lost else ""


def _lead(result: Assay, contrast: Contrast, difference: float, low: float, high: float) -> str:
    """Name the better row, so that the sign need not be read: ``rslora leads, -0.1900 [-0.2000, -0.1800]``."""
    better = difference < 0 if metrics.metric(result.metric).lower_is_better else difference > 0
    names = [str(result.table["variant"][row]) for row in (contrast.row, contrast.reference)]
    leader = f"{names[0] if better else names[1]} leads" if difference else "neither leads"
    return f"{leader}, {with_interval(difference, low, high)}"


def _edges(result: Assay, contrast: Contrast) -> str:
    edges = [
        f"{result.labels[row]}'s best rate is the {edge} of the grid"
        for row in (contrast.row, contrast.reference)
        if (edge := result.conditions[row].edge)
    ]
    return f" {'; '.join(edges)}: a better one may lie beyond it." if edges else ""


def method(result: Assay) -> list[str]:
    """Explain how the numbers were made, as notes under the table."""
    split = result.selection.split
    tuned = [condition for condition in result.conditions if len(condition.rates) > 1]
    notes = []
    if tuned and split.disjoint:
        counts = sorted({len(condition.rates) for condition in tuned})
        notes.append(
            f"Learning rates: for each row the best of {' or '.join(map(str, counts))} by {CHOSEN_BY} over the tuning seeds"
            f" {_list(split.tuning)}; all other numbers are over the report seeds {_list(split.report)}."
        )
    elif tuned:
        notes.append(
            f"Learning rates were chosen by {CHOSEN_BY} over the same seeds that report ({_list(split.report)}):"
            " no others are left to report on, so the means flatter."
        )
    runs = result.selection.runs
    unreported = runs[~runs["run_id"].isin(result.comparison.runs["run_id"])]
    notes += [f"Among the runs of other rates and of tuning seeds, {sentence}" for sentence in ended_badly(unreported)]
    for view in result.views:
        if view.contrasts:
            notes += _of_view(result, view)
    detectable = [contrast.test.mde for view in result.views for contrast in view.contrasts if not math.isnan(contrast.test.mde)]
    if detectable:
        low, high = decimals(min(detectable)), decimals(max(detectable))
        notes.append(
            f"Equivalent means that both one-sided t tests within {result.margin:g} reject at {ALPHA:g} (TOST), not adjusted for"
            f" the number of rows. One unadjusted paired t test finds differences of {low} to {high} with 80% power; the test"
            " that marks rows, exact and after Holm, finds less."
        )
        both = any(contrast.bootstrap is not None for view in result.views for contrast in view.contrasts)
        where = "are in comparison.csv and on the page" if both else "need the runs' predictions.jsonl, which are not there"
        notes.append(
            "Intervals are Student's t over seeds, on these test examples; those over seeds and examples together (hierarchical"
            f" bootstrap) {where}."
        )
    return notes


def _of_view(result: Assay, view: View) -> list[str]:
    text = f"At the {view.name}: row minus {result.reference}, paired by seed; {family(view)}."
    n = max(contrast.test.n for contrast in view.contrasts)
    if n >= ENOUGH_SEEDS and view.smallest_p >= ALPHA:
        text += (
            f" With {n} seeds and {view.family} contrasts the smallest p after Holm is {p_value(view.smallest_p)}, so nothing can"
            " be marked as different however large: more seeds would be needed."
        )
    notes = [text]
    if view.unmatched:
        within = f" within {TOLERANCE:.0%}" if view.name != SAME_RANK else ""
        notes.append(
            f"No {result.reference} row of the {view.name}{within}: {few([result.labels[row] for row in view.unmatched])}."
        )
    return notes


def family(view: View) -> str:
    number = view.family
    if not number:
        return "one seed or none in common, so nothing is tested"
    return f"sign-flip tests, exact up to 16 seeds, Holm over {counted(number, 'contrast')}"


def _list(seeds: frozenset[Seed]) -> str:
    return ", ".join(str(seed) if seed == data else f"{seed}/{data}" for seed, data in sorted(seeds))
