"""Lay out a comparison for a reader: columns with headings, rounded numbers with units, ``-`` where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..files.text import byte_size, clean, plain
from ..measure.metrics import heading
from . import contents
from .comparison import Comparison, column
from .notes import own_peak

ABSENT = "-"
DETECTABLE = "what one unadjusted paired t test of these seeds finds with 80% power"
CONDITION, QUALITY, REFERENCE, COST, STATE = "condition", "quality", "against the reference", "cost", "state"


@dataclass(frozen=True)
class Column:
    """A column of the printed table. ``key`` is the column of the frame; ``write`` makes a text of its value, None for words.

    A column that is ``optional`` is shown where at least one row has a value.
    """

    label: str
    key: str
    write: Callable[[Any], str] | None
    group: str
    help: str
    optional: bool = False


@dataclass(frozen=True)
class Cells:
    """A table as text: headings, whether a column holds numbers (right-aligned), how many columns name the row, rows."""

    headings: list[str]
    numeric: list[bool]
    naming: int
    rows: list[list[str]]


def cells(comparison: Comparison, without: tuple[str, ...] = ()) -> Cells:
    """Write the table as text, without the columns whose labels are named."""
    table = readable(comparison.table)
    shown = [column for column in columns(comparison, table) if column.label not in without]
    rows = [[text(column, row[column.key]) for column in shown] for row in table.to_dict("records")]
    naming = sum(column.group == CONDITION for column in shown)
    return Cells([clean(column.label) for column in shown], [column.write is not None for column in shown], naming, rows)


def text(column: Column, value: Any) -> str:
    return ABSENT if pd.isna(value) else clean((column.write or plain)(value)) or ABSENT


def columns(comparison: Comparison, table: pd.DataFrame) -> list[Column]:
    """List the columns of a comparison, in order. ``table`` is the ``readable`` one of the comparison."""
    main, *others = comparison.metrics
    tuned = "rates_tried" in comparison.table and (comparison.table["rates_tried"] > 1).any()
    wanted = [
        Column("variant", "variant", None, CONDITION, "its point on all axes, base precision included, under one name"),
        Column("precision", "base_precision", None, CONDITION, "what the frozen base is held in"),
        Column("r", "r", count, CONDITION, "rank"),
        Column("scale", "effective_scale", short, CONDITION, "factor of B A: alpha/r, or alpha/sqrt(r) for rsLoRA"),
        Column(
            "lr", "learning_rate", short, CONDITION,
            "learning rate chosen on validation over the tuning seeds" if tuned else "learning rate",
        ),
        *(Column(key, key, None, CONDITION, _help(key)) for key in comparison.differing),
        Column("n", "n_seeds", count, QUALITY, "finished runs that the numbers stand on: one for each report seed"),
        Column(heading(main), f"{column(main)}_mean", decimals, QUALITY, f"{main}, mean over the n seeds"),
        Column("95% interval", "interval", str, QUALITY, "of the mean: Student's t over the seeds", True),
        Column("sd", f"{column(main)}_sd", decimals, QUALITY, "sample standard deviation over the seeds"),
        *(Column(heading(name), f"{column(name)}_mean", decimals, QUALITY, f"{name}, mean over the n seeds") for name in others),
        Column(
            "prose loss change", "forgetting_change_mean", signed, QUALITY,
            "forgetting: log-loss per token on held-out prose after training, minus before", True,
        ),
        Column("difference", "difference", signed, REFERENCE, "to the reference variant at the same rank, paired by seed", True),
        Column("95% interval of it", "difference_interval", str, REFERENCE, "Student's t over the paired seeds", True),
        Column("p (Holm)", "p_holm", p_value, REFERENCE, "exact sign-flip test, two-sided, adjusted over all rows", True),
        Column("verdict", "verdict", None, REFERENCE, "differs: p < 0.05 after Holm, interval without 0; equivalent: TOST", True),
        Column("detectable", "minimal_detectable", decimals, REFERENCE, DETECTABLE, True),
        Column("trainable", "trainable_parameters", count, COST, "trained parameters"),
        Column("% of total", "trainable_percent", percent, COST, "of all parameters"),
        *([Column("pack", "pack_sizes", str, COST, "runs that trained together")] if _packed(comparison.table) else []),
        Column("peak memory", "memory", str, COST, "measured for a run trained alone; with ~ the closed form for one"),
        Column("tokens/s", "tokens_per_second", rate, COST, "the run's own tokens over the seconds of its pack"),
        Column("train s", "train_seconds", rate, COST, "seconds of the run's pack in training steps", True),
        Column("adapter", "adapter_bytes", size, COST, "bytes of the saved adapter", True),
        Column("tuning runs", "tuning_runs", count, COST, "runs spent to choose the learning rate", True),
        Column("Pareto front", "pareto", None, COST, "costs for which no other row is better without costing more", True),
        Column("status", "status", None, STATE, "how the runs ended"),
        Column("flags", "flags", None, STATE, "what to know about this row", True),
    ]  # fmt: skip
    return [each for each in wanted if not each.optional or (each.key in table and table[each.key].notna().any())]


def _help(key: str) -> str:
    content = contents.NAMES.get(key)
    if content is None:
        return "a field of the config in which rows differ"
    return f"what was recorded of the {key} that the runs read, shortened; another one means {content.meaning}"


def _packed(table: pd.DataFrame) -> bool:
    return bool((table["pack_sizes"].dropna() != "1").any())


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that only a reader needs: intervals as text, memory of the run alone, marks of held bases."""
    memory = [
        size(peak) if own else None if pd.isna(closed) else f"~{size(closed)}"
        for own, peak, closed in zip(own_peak(table), table["peak_memory_bytes"], table["estimated_memory_bytes"], strict=True)
    ]
    precision = table["base_precision"] + table["hold_dequantised"].map({True: " (held)", False: ""})
    table = table.assign(memory=memory, base_precision=precision)
    if "interval_low" in table:
        table["interval"] = _intervals(table["interval_low"], table["interval_high"], decimals)
        table["difference_interval"] = _intervals(table["difference_low"], table["difference_high"], signed)
        if (table["tuning_runs"] == 0).all() or (table["rates_tried"] < 2).all():
            table["tuning_runs"] = None
    return table


def _intervals(low: pd.Series, high: pd.Series, write: Callable[[Any], str]) -> list[str | None]:
    return [interval(a, b, write) or None for a, b in zip(low, high, strict=True)]


def interval(low: float, high: float, write: Callable[[Any], str]) -> str:
    """Write an interval, ``[low, high]``; nothing where an end is unknown."""
    return "" if pd.isna(low) or pd.isna(high) else f"[{write(low)}, {write(high)}]"


def with_interval(value: float, low: float, high: float) -> str:
    """Write a difference and its interval, ``-0.0600 [-0.0658, -0.0543]``; the interval only where it is known."""
    return f"{signed(value)} {interval(low, high, signed)}".rstrip()


def count(value: Any) -> str:
    return f"{int(value):,}"


def short(value: float) -> str:
    return f"{value:.4g}"


def decimals(value: float) -> str:
    """Write four decimals; a small number that they would turn into zero keeps its two leading digits."""
    return f"{value:.1e}" if 0 < abs(value) < 0.00005 else f"{value:.4f}"


def signed(value: float) -> str:
    return decimals(value) if value < 0 else f"+{decimals(value)}"


def p_value(value: float) -> str:
    return f"{value:.1e}" if value < 0.0001 else f"{value:.4f}".rstrip("0").rstrip(".") if value < 1 else "1"


def percent(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float) -> str:
    return byte_size(value, KiB=1, MiB=1, GiB=2)
