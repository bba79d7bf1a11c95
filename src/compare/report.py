"""Turn an assay into the plain dict that the page is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from ..measure import metrics
from . import findings
from .assay import Assay, of_pair
from .columns import (
    ABSENT,
    CONDITION,
    DETECTABLE,
    REFERENCE,
    STATE,
    Column,
    columns,
    decimals,
    interval,
    p_value,
    readable,
    short,
    signed,
    text,
    with_interval,
)
from .comparison import column
from .contrasts import SAME_RANK, Contrast, View
from .flags import by_flag
from .frame import MISSING
from .notes import subject
from .selection import REPORT
from .styles import DARK, STYLES

SYMBOLS = {
    "_": "line-ew", "*": "star", "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x", "<": "triangle-left", ">": "triangle-right", "p": "pentagon", "h": "hexagon", "H": "hexagon2",
}  # fmt: skip


def report(result: Assay, fixed: pd.DataFrame, curves: pd.DataFrame, command: str) -> dict[str, Any]:
    """Make the dict that ``page.render.page`` draws.

    Args:
        fixed: ``assay.at_fixed_rates``.
        curves: of ``logs.curves``, for the runs of the comparison.
        command: the command line that makes this report again.
    """
    comparison = result.comparison
    table = readable(comparison.table)
    shown = columns(comparison, table)
    rows = []
    for index, row in enumerate(table.to_dict("records")):
        cells = {each.key: {"value": _value(row[each.key]), "text": text(each, row[each.key])} for each in shown}
        cells.pop("flags", None)
        flags = [flag.words for flag in result.flags[index]]
        rows.append({"id": index, **_named(result, index), "flags": flags, "cells": cells})
    name = subject(comparison.runs)
    return {
        "title": "LoRA variants compared",
        "subject": name,
        "generated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "caption": comparison.caption,
        "metric": {
            "name": result.metric,
            "label": metrics.label(result.metric),
            "lower_is_better": metrics.metric(result.metric).lower_is_better,
        },
        "validation": {"label": metrics.label("val/loss")},
        "reference": result.reference,
        "findings": findings.findings(result, fixed),
        "progress": _progress(result),
        "audit": {
            "clean": result.audit.clean and not result.audit.rescaled,
            "verdict": result.audit.verdict,
            "summary": result.audit.detail,
            "lines": [{"field": line.field, "text": line.text, "severity": line.severity} for line in result.audit.lines],
        },
        "flags": [
            {"flag": flag, "explanation": explanation, "rows": names}
            for flag, explanation, names in by_flag(result.flags, result.labels)
        ],
        "notes": comparison.notes,
        "columns": [_column(each) for each in shown if each.key != "flags"],
        "rows": rows,
        "views": [*(_view(result, view) for view in result.views if view.contrasts), *_fixed_view(result, fixed)],
        "arms": [_arm(result, index, curves) for index in range(len(rows))],
        "styles": {
            variant: {"light": color, "dark": DARK.get(color, color), "symbol": SYMBOLS.get(marker, "circle")}
            for variant, (color, marker) in STYLES.items()
        },
    }


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else float(value) if isinstance(value, float) else int(value)


def _column(column: Column) -> dict[str, Any]:
    numeric = column.write is not None
    return {"key": column.key, "label": column.label, "help": column.help, "numeric": numeric, "group": column.group}


def _named(result: Assay, index: int) -> dict[str, Any]:
    row = result.table.loc[index]
    rank = None if pd.isna(row["r"]) else int(row["r"])
    return {"label": result.labels[index], "variant": row["variant"], "precision": row["base_precision"], "r": rank}


def _progress(result: Assay) -> dict[str, Any] | None:
    """Count the finished runs of a sweep that still runs; None once every run has ended."""
    expected, runs = result.expected, result.selection.runs
    ended = int((runs["status"] != MISSING).sum())
    if ended >= expected:
        return None
    return {"expected": expected, "finished": ended, "text": f"{expected - ended} of {expected} runs have no record yet."}


def _bootstrap_interval(contrast: Contrast) -> str:
    drawn = contrast.bootstrap
    return "" if drawn is None else interval(drawn.low, drawn.high, signed)


# (column, its value for a contrast, its text where the column does not write it). The text of a missing number is a dash.
_Field = tuple[Column, Callable[[Contrast], Any], Callable[[Contrast], str] | None]
_FIELDS: tuple[_Field, ...] = (
    (Column("pairs", "pairs", short, REFERENCE, "seeds that both rows have"), lambda contrast: contrast.test.n, None),
    (Column("difference", "difference", signed, REFERENCE, "row minus reference"), lambda contrast: contrast.test.mean, None),
    (
        Column("95% interval", "interval", str, REFERENCE, "Student's t over the paired seeds, on these test items"),
        lambda contrast: contrast.test.low,
        lambda contrast: interval(contrast.test.low, contrast.test.high, signed) or ABSENT,
    ),
    (
        Column(
            "over seeds and items",
            "bootstrap",
            str,
            REFERENCE,
            "95% interval, hierarchical bootstrap: other seeds and other items",
        ),
        lambda contrast: math.nan if contrast.bootstrap is None else contrast.bootstrap.low,
        lambda contrast: _bootstrap_interval(contrast) or ABSENT,
    ),
    (
        Column("p (Holm)", "p_holm", p_value, REFERENCE, "exact sign-flip, adjusted over this view"),
        lambda contrast: contrast.p_holm,
        None,
    ),
    (
        Column("p sign-flip", "p_flip", p_value, REFERENCE, "exact, two-sided, unadjusted"),
        lambda contrast: contrast.test.p_flip,
        None,
    ),
    (Column("p paired t", "p_t", p_value, REFERENCE, "two-sided, unadjusted"), lambda contrast: contrast.test.p_t, None),
    (
        Column("p TOST", "p_tost", p_value, REFERENCE, "of being further apart than the margin"),
        lambda contrast: contrast.test.p_tost,
        None,
    ),
    (
        Column("detectable", "mde", decimals, REFERENCE, DETECTABLE),
        lambda contrast: contrast.test.mde,
        None,
    ),
)


def _view(result: Assay, view: View) -> dict[str, Any]:
    names = (
        Column("row", "row", None, CONDITION, "a variant at a rank, at its own best rate"),
        Column("reference", "reference", None, CONDITION, "the row that it is paired with"),
    )
    verdict = Column("verdict", "verdict", None, STATE, "fewer than 6 pairs are descriptive, whatever p is")
    rows = []
    for contrast in view.contrasts:
        cells = {
            "row": _words(result.labels[contrast.row]),
            "reference": _words(result.labels[contrast.reference]),
            "verdict": _words(contrast.verdict),
        }
        for field, get, write in _FIELDS:
            value = get(contrast)
            cells[field.key] = {"value": _value(value), "text": write(contrast) if write else text(field, value)}
        rows.append({"id": contrast.row, "flags": [flag.words for flag in result.flags[contrast.row]], "cells": cells})
    equal = "rank" if view.name == SAME_RANK else "number of trainable parameters, to 5%"
    return {
        "name": view.name,
        "explanation": f"Each row against the {result.reference} row of the same {equal}, each at its own best learning rate.",
        "family": findings.family(view),
        "columns": [_column(each) for each in (*names, *(field for field, _, _ in _FIELDS), verdict)],
        "rows": rows,
    }


def _fixed_view(result: Assay, fixed: pd.DataFrame) -> list[dict[str, Any]]:
    """Show the differences at each fixed rate beside the difference after tuning."""
    rates = sorted(fixed["learning_rate"].unique())
    if len(rates) < 2:
        return []
    columns = [
        Column("row", "row", None, CONDITION, "a variant at a rank"),
        Column("reference", "reference", None, CONDITION, "the row that it is paired with"),
        *(Column(f"both at {rate:g}", f"at {rate:g}", signed, REFERENCE, "difference with this rate for both") for rate in rates),
        Column(
            "each at its best", "tuned", signed, REFERENCE, "difference with each at its own chosen rate, on the report seeds"
        ),
    ]
    rows = []
    for contrast in result.views[0].contrasts:
        cells = {"row": _words(result.labels[contrast.row]), "reference": _words(result.labels[contrast.reference])}
        by_rate = of_pair(fixed, contrast).reindex(rates)
        differences = zip(by_rate["difference"], by_rate["low"], by_rate["high"], strict=True)
        cells |= {f"at {rate:g}": _difference(*numbers) for rate, numbers in zip(rates, differences, strict=True)}
        cells["tuned"] = _difference(contrast.test.mean, contrast.test.low, contrast.test.high)
        rows.append({"id": contrast.row, "flags": [flag.words for flag in result.flags[contrast.row]], "cells": cells})
    return [
        {
            "name": "fixed rate against tuned",
            "explanation": "What a table with one learning rate for all would have shown, and what is left after tuning. "
            "Differences are row minus reference over all seeds that both have at the rate.",
            "family": "unadjusted, descriptive",
            "columns": [_column(each) for each in columns],
            "rows": rows,
        }
    ]


def _difference(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": _value(float(value)), "text": ABSENT if math.isnan(value) else with_interval(value, low, high)}


def _words(words: str) -> dict[str, Any]:
    return {"value": words, "text": words}


def _arm(result: Assay, index: int, curves: pd.DataFrame) -> dict[str, Any]:
    row, condition = result.table.loc[index], result.conditions[index]
    runs = result.comparison.runs[result.comparison.runs["row"] == index]
    ok = runs[(runs["status"] == "ok")]
    seeds = [
        {"seed": int(seed), "value": float(value), "run_id": run}
        for seed, value, run in zip(ok["seed"], ok.get(result.metric, ()), ok["run_id"], strict=False)
        if pd.notna(value)
    ]
    return {
        "id": index,
        **_named(result, index),
        "series": row["variant"],
        "trainable_parameters": _value(row["trainable_parameters"]),
        "memory_bytes": _value(row["estimated_memory_bytes"]),
        "seconds": _value(row["train_seconds_alone"]),
        "mean": _value(row[f"{column(result.metric)}_mean"]),
        "low": _value(row["interval_low"]),
        "high": _value(row["interval_high"]),
        "n": len(seeds),
        "seeds": seeds,
        "pareto": row["pareto"].split(", ") if isinstance(row["pareto"], str) else [],
        "rates": _rates(result, index, condition.chosen) if len(condition.rates) > 1 else [],
        "curve": _curve(curves[curves["run_id"].isin(ok["run_id"])]),
    }


def _rates(result: Assay, index: int, chosen: float | None) -> list[dict[str, Any]]:
    number = result.comparison.runs.loc[result.comparison.runs["row"] == index, "condition"].iloc[0]
    runs = result.selection.runs[result.selection.runs["condition"] == number].sort_values(["seed", "data_seed"])
    means = result.rates[result.rates["row"] == index].set_index("learning_rate")
    rates = []
    for rate, group in runs.groupby("learning_rate", sort=True):
        nothing = [math.nan] * len(group)
        columns = (
            group["seed"],
            group["role"],
            group.get("val/loss", nothing),
            group.get(result.metric, nothing),
            group["status"],
        )
        seeds = [
            {"seed": int(seed), "role": "report" if role == REPORT else "tuning"}
            | {"validation": _value(validation), "metric": _value(metric), "status": status}
            for seed, role, validation, metric, status in zip(*columns, strict=True)
        ]
        rates.append(
            {"lr": float(rate), "validation": _value(means["validation"][rate]), "metric": _value(means["metric"][rate])}
            | {"chosen": rate == chosen, "seeds": seeds}
        )
    return rates


POINTS = 200  # of a curve; a page needs no more


def _curve(logged: pd.DataFrame) -> dict[str, Any] | None:
    """Take mean, lowest and highest training loss over the runs at the steps that all of them have, and validation losses."""
    training = logged[logged["metric"] == "train/loss"]
    if not len(training):
        return None
    by_run = training.pivot_table(index="step", columns="run_id", values="value").dropna()
    by_run = by_run.iloc[:: max(1, math.ceil(len(by_run) / POINTS))]
    validation = logged[logged["metric"] == "val/loss"].groupby("step")["value"].mean()
    lines = {"mean": by_run.mean(axis=1), "low": by_run.min(axis=1), "high": by_run.max(axis=1)}
    return {
        "steps": [int(step) for step in by_run.index],
        **{name: [round(float(value), 5) for value in values] for name, values in lines.items()},
        "validation_steps": [int(step) for step in validation.index],
        "validation": [round(float(value), 5) for value in validation],
    }
