"""Compare runs: each condition at its own best learning rate, with its contrasts, its audit and its flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..files.text import few
from ..measure import metrics
from ..record.records import RUNS
from . import contents, contrasts, flags, logs, statistics
from .audit import NOTE, Audit, Line, audit
from .comparison import Comparison, column, compare
from .contrasts import Contrast, View
from .flags import Flag
from .frame import AFTER, BEFORE, CHANGE, Gathered
from .notes import named
from .selection import REPORT, TUNING, Condition, Seed, Selection, row_conditions, select

READ_AT_MOST = 2000  # runs whose predictions and logged losses are read


@dataclass(frozen=True)
class Assay:
    """A comparison and all that a reader must know to judge it.

    comparison: one row per condition, at its chosen learning rate, over the report seeds; selection: the rates that were
    tried and the seeds that chose; conditions, labels, flags: one entry a row; views: same rank, same trainable
    parameters; rates: one row per condition and learning rate; expected: the number of runs that were looked for.
    """

    comparison: Comparison
    selection: Selection
    conditions: list[Condition]
    labels: list[str]
    reference: str
    margin: float
    views: list[View]
    audit: Audit
    flags: list[list[Flag]]
    rates: pd.DataFrame
    expected: int

    @property
    def table(self) -> pd.DataFrame:
        return self.comparison.table

    @property
    def metric(self) -> str:
        return self.comparison.metrics[0]


def assay(
    gathered: Gathered, metric: str = "test/loss", reference: str = "lora", tuning_seeds: Collection[int] | None = None,
    margin: float | None = None, root: Path = RUNS,
) -> Assay:  # fmt: skip
    """Compare the runs that were gathered.

    Args:
        metric: the metric that is reported, on the report seeds. Rates are chosen by validation loss in any case.
        reference: the variant that the others are paired with.
        tuning_seeds: the seeds that choose the rates; default: a third of them.
        margin: of equivalence, in the metric's unit; default: the metric's own, 0.01 for most.
        root: where the predictions for the bootstrap are read.
    """
    read = contents.read_by(metric)
    selection = select(gathered.frame(), tuning_seeds, read)
    comparison = compare(selection.reported(), metric, gathered.expected, tuple(gathered.absent))
    numbers = row_conditions(comparison.runs)
    conditions = [selection.conditions[number] for number in numbers]
    names = _names(comparison)
    labels = _labels(comparison, names)
    margin = metrics.metric(metric).margin if margin is None else margin
    values = contrasts.by_seed(comparison.runs, metric, "row")
    rows = contents.of_rows(comparison.runs)
    views = contrasts.views(comparison.table, rows, values, reference, margin, read)
    if metric == "test/loss":
        views = _bootstrapped(views, comparison.runs, root)
    pairs = [(contrast.row, contrast.reference) for view in views for contrast in view.contrasts if contrast.test.n]
    grids = [condition.rates for condition in conditions]
    between = audit(pairs, comparison.fields, _recorded_facts(comparison.runs), labels, grids)
    row_flags = flags.flags(comparison, selection, numbers, views[0])
    table = _table(comparison, conditions, values, views)
    table["flags"] = ["; ".join(flag.words for flag in raised) or None for raised in row_flags]
    return Assay(
        comparison=replace(comparison, table=table),
        selection=selection,
        conditions=conditions,
        labels=labels,
        reference=reference,
        margin=margin,
        views=views,
        audit=replace(
            between,
            lines=[*contents.lines(rows, names, read), *between.lines, *_mixed_origins(comparison.runs, labels)],
        ),
        flags=row_flags,
        rates=rates(selection, metric, numbers),
        expected=gathered.expected,
    )


def rates(selection: Selection, metric: str, numbers: list[int]) -> pd.DataFrame:
    """Tabulate the learning-rate grid: one row per condition and rate, with means over the seeds that choose and that report.

    Columns: row (of the comparison), learning_rate, chosen, validation (mean over the tuning seeds), metric (mean over the
    report seeds that have run at this rate), and how many runs of each kind ended ``ok`` and did not.
    """
    runs = selection.runs[selection.runs["learning_rate"].notna()]
    row_of = {number: row for row, number in enumerate(numbers)}
    cells = []
    for (number, rate), group in runs.groupby(["condition", "learning_rate"], sort=True):
        ok = group[group["status"] == "ok"]
        tuning, report = ok[ok["role"] != REPORT], ok[ok["role"] != TUNING]
        cells.append(
            {
                "row": row_of[number],
                "learning_rate": rate,
                "chosen": bool(group["chosen"].any()),
                "validation": tuning["val/loss"].mean() if "val/loss" in tuning else math.nan,
                "metric": report[metric].mean() if metric in report else math.nan,
                "tuning_runs": len(tuning),
                "report_runs": len(report),
                "not_ok": len(group) - len(ok),
            }
        )
    columns = ["row", "learning_rate", "chosen", "validation", "metric", "tuning_runs", "report_runs", "not_ok"]
    return pd.DataFrame(cells, columns=columns).sort_values(["row", "learning_rate"], ignore_index=True)


def at_fixed_rates(result: Assay) -> pd.DataFrame:
    """Repeat the contrasts with one learning rate for both rows, as a table without tuning would have shown them.

    One row per contrast of the first view and rate that both have, over all seeds that both have at that rate. Columns:
    row, reference, learning_rate, difference, low, high, n.
    """
    numbers = row_conditions(result.comparison.runs)
    cells = contrasts.by_seed(result.selection.runs, result.metric, ["condition", "learning_rate"])
    contrasts_at_rates = []
    for contrast in result.views[0].contrasts:
        if contrast.unlike:
            continue
        rates = set(result.conditions[contrast.row].rates) & set(result.conditions[contrast.reference].rates)
        for rate in sorted(rates):
            a, b = cells[numbers[contrast.row], rate], cells[numbers[contrast.reference], rate]
            mean = statistics.mean_interval(np.array([a[seed] - b[seed] for seed in sorted(set(a) & set(b))]))
            if mean.n:
                contrasts_at_rates.append(
                    {"row": contrast.row, "reference": contrast.reference, "learning_rate": rate, "difference": mean.mean}
                    | {"low": mean.low, "high": mean.high, "n": mean.n}
                )
    return pd.DataFrame(contrasts_at_rates, columns=["row", "reference", "learning_rate", "difference", "low", "high", "n"])


def of_pair(fixed: pd.DataFrame, contrast: Contrast) -> pd.DataFrame:
    """Take the rows of ``at_fixed_rates`` that are of this pair, by learning rate."""
    return fixed[(fixed["row"] == contrast.row) & (fixed["reference"] == contrast.reference)].set_index("learning_rate")


def _names(comparison: Comparison) -> list[str]:
    """Name the rows: ``lora r=4``, and the alpha and fields that tell rows of that name apart. Contents do not."""
    table = comparison.table
    plain = list(map(named, table["variant"], table["r"]))
    keys = [key for key in comparison.differing if key not in contents.NAMES]
    names = []
    for row, name in enumerate(plain):
        if plain.count(name) > 1:
            details = (
                [f"alpha {table['alpha'][row]:g}"]
                if table["alpha"].dropna().nunique() > 1 and pd.notna(table["alpha"][row])
                else []
            )
            details += [f"{key} {table[key][row]}" for key in keys if pd.notna(table[key][row])]
            name = ", ".join([name, *details])
        names.append(name)
    return names


def _labels(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Add to the names of all rows the contents in which rows differ: whatever is said of a row says what it read."""
    table, read = comparison.table, contents.columns(comparison.table)
    return [
        ", ".join([name, *(f"{key} {table[key][row]}" for key in read if pd.notna(table[key][row]))])
        for row, name in enumerate(names)
    ]


def _recorded_facts(runs: pd.DataFrame) -> pd.DataFrame:
    """Take for each row the device, engine and code that its first recorded run names, for the audit."""
    columns = ["device_type", "engine", "hold_dequantised", "device", "commit", "versions"]
    recorded = runs[["row", *columns]].where(runs["status"].isin(["ok", "diverged"]))
    recorded["row"] = runs["row"]
    return recorded.groupby("row", sort=True)[columns].first()


def _mixed_origins(runs: pd.DataFrame, labels: list[str]) -> list[Line]:
    """Report the rows whose own runs come from several commits, versions of libraries or devices."""
    lines = []
    ok = runs[runs["status"] == "ok"]
    for name in ("device", "commit", "versions"):
        several = ok.groupby("row")[name].nunique()
        rows = [labels[int(row)] for row in several.index[several > 1]]
        if rows:
            lines.append(Line(f"{name}, within a row", f"not the same for all runs of {few(rows)}", NOTE))
    return lines


def _bootstrapped(views: list[View], runs: pd.DataFrame, root: Path) -> list[View]:
    """Add intervals over seeds and test items to the contrasts whose predictions agree in their items."""
    ok = runs[runs["status"] == "ok"]
    wanted = {row for view in views for contrast in view.contrasts for row in (contrast.row, contrast.reference)}
    ids = ok[ok["row"].isin(wanted)]
    if not len(ids) or len(ids) > READ_AT_MOST:
        return views
    run_of = {
        (int(r), (int(s), int(d))): run
        for r, s, d, run in zip(ids["row"], ids["seed"], ids["data_seed"], ids["run_id"], strict=True)
    }

    @cache
    def items(row: int, seed: Seed) -> logs.Items | None:
        return logs.items(run_of[row, seed], root)

    @cache  # a pair of both views is resampled once
    def resampled(row: int, reference: int, seeds: tuple[Seed, ...]) -> statistics.Resampled | None:
        if len(seeds) < 2:  # one seed says nothing of others, and its interval over items alone would pass for one that does
            return None
        pairs = [(items(row, seed), items(reference, seed)) for seed in seeds]
        first = pairs[0][0]
        if first is None:
            return None
        differences = []
        for a, b in pairs:
            if a is None or b is None or not first.same_examples(a) or not first.same_examples(b):
                return None
            differences.append(a.nats - b.nats)
        return statistics.bootstrap(np.stack(differences), first.tokens, first.clusters)

    return [
        replace(
            view,
            contrasts=[replace(c, bootstrap=resampled(c.row, c.reference, c.seeds)) for c in view.contrasts],
        )
        for view in views
    ]


def _table(comparison: Comparison, conditions: list[Condition], values: dict[int, Any], views: list[View]) -> pd.DataFrame:
    """Add the columns of tuning, statistics and cost to the comparison's table."""
    table, runs = comparison.table.copy(), comparison.runs
    means = [statistics.mean_interval(np.array(list(values[row].values()))) for row in table.index]
    table["interval_low"], table["interval_high"] = [mean.low for mean in means], [mean.high for mean in means]
    table["rates_tried"] = [len(condition.rates) for condition in conditions]
    table["rates"] = [" ".join(f"{rate:g}" for rate in condition.rates) or None for condition in conditions]
    table["grid_edge"] = [condition.edge for condition in conditions]
    table["tuning_runs"] = [condition.tuning_runs for condition in conditions]
    for view, prefix in zip(views, ("", "same_parameters_"), strict=True):
        by_row = [view.of(row) for row in table.index]
        for name, get in _STATISTICS.items():
            table[prefix + name] = [math.nan if contrast is None else get(contrast) for contrast in by_row]
        table[f"{prefix}verdict"] = [None if contrast is None else contrast.verdict for contrast in by_row]
        table[f"{prefix}reference_row"] = [math.nan if contrast is None else contrast.reference for contrast in by_row]
    ok = runs[runs["status"] == "ok"].groupby("row")
    for name in ("train_seconds", "adapter_bytes"):
        table[name] = ok[name].mean().reindex(table.index)
    # The seconds of a pack belong to all of its runs, whichever of them took longer.
    alone = runs["train_seconds"].where((runs["status"] == "ok") & (runs["pack_size"] == 1))
    table["train_seconds_alone"] = alone.groupby(runs["row"]).mean().reindex(table.index)
    prose = runs[runs["status"] == "ok"].groupby("row")[contents.PROSE.key].nunique().reindex(table.index)
    for name in (BEFORE, AFTER, CHANGE):
        if name in runs:  # the mean over unlike prose would be of nothing
            table[f"{column(name)}_mean"] = ok[name].mean().reindex(table.index).mask(prose > 1)
    table["pareto"] = _pareto(table, comparison.metrics[0], contents.columns(table))
    return table


_STATISTICS: dict[str, Callable[[Contrast], float]] = {
    "pairs": lambda contrast: contrast.test.n,
    "difference": lambda contrast: contrast.test.mean,
    "difference_sd": lambda contrast: contrast.test.sd,
    "difference_low": lambda contrast: contrast.test.low,
    "difference_high": lambda contrast: contrast.test.high,
    "p_sign_flip": lambda contrast: contrast.test.p_flip,
    "p_holm": lambda contrast: contrast.p_holm,
    "p_t": lambda contrast: contrast.test.p_t,
    "p_tost": lambda contrast: contrast.test.p_tost,
    "minimal_detectable": lambda contrast: contrast.test.mde,
    "bootstrap_low": lambda contrast: math.nan if contrast.bootstrap is None else contrast.bootstrap.low,
    "bootstrap_high": lambda contrast: math.nan if contrast.bootstrap is None else contrast.bootstrap.high,
}
COSTS = {"memory": "estimated_memory_bytes", "parameters": "trainable_parameters", "time": "train_seconds_alone"}


def _pareto(table: pd.DataFrame, metric: str, read: list[str]) -> list[str | None]:
    """Name for each row the costs for which no other row of its model and data set is better without costing more.

    ``read``: columns of contents, in which those rows have to agree too.
    """
    quality = table[f"{column(metric)}_mean"].astype(float)
    quality = -quality if metrics.metric(metric).lower_is_better else quality
    fronts: dict[Any, list[str]] = {row: [] for row in table.index}
    for _, rows in table.groupby(["model", "dataset", *read], dropna=False):
        for name, key in COSTS.items():
            front = statistics.pareto_front(rows[key].astype(float).to_numpy(), quality[rows.index].to_numpy())
            for row in rows.index[front]:
                fronts[row].append(name)
    return [", ".join(names) or None for names in fronts.values()]
