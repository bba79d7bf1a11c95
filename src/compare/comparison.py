"""Group like runs into the rows of a table. Pure functions of frames: nothing is read or written here.

Runs are of one group when every field of their identity but the two seeds agrees, and so do the kind of device, the engine
that really ran, whether a dequantized base was held, and the contents that they read (contents.py). Only runs of one group are
averaged, and only those that ended well; the others keep their place in the table. The size of a pack does not part runs: it
changes no result.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..measure import metrics
from ..variants.methods import point
from . import contents
from .contents import Content
from .frame import MISSING, UNREADABLE
from .notes import Groups, footnotes

VARIANT_ORDER = (
    "frozen", "full",
    "lora", "rslora", "dora", "dora_rs",
    "lora_8bit", "rslora_8bit", "dora_8bit", "dora_rs_8bit",
    "qlora", "rsqlora", "qdora", "qdora_rs",
)  # fmt: skip
STATUS_ORDER = ("ok", "diverged", "out_of_memory", "failed", UNREADABLE, MISSING)
# The axes of the comparison have columns of their own.
AXES = (*(f"variant.{axis}" for axis in point.AXES), "lora.r", "lora.alpha", "train.lr")
# Recorded facts that part runs of one config.
FACTS = ("device_type", "engine", "hold_dequantised")
# Fields that only say which model or which data; the name says it in one column where the name is enough.
WHICH_MODEL = re.compile(r"model\.(?!hold_dequantised$).*")
WHICH_DATA = re.compile(
    r"dataset\.(source|version|format|answer|path|val_path|test_path|id|revision|subset|\w+_split|\w+_column|\w+_files|labels)"
)


@dataclass(frozen=True)
class Comparison:
    """The comparison of some runs.

    table: one row per group, raw numbers, NaN where there is none. runs: the runs, with their ``row`` in the table.
    fields: the identity fields of each row. differing: the fields, other than the axes, in which rows differ: columns
    of the table. metrics: those with a ``_mean`` column, the asked one first. caption, notes: the text beside the table.
    """

    table: pd.DataFrame
    runs: pd.DataFrame
    fields: list[dict[str, Any]]
    differing: list[str]
    metrics: list[str]
    caption: str
    notes: list[str]


def column(metric: str) -> str:
    """Turn a metric into the beginning of a column's name: ``test/loss`` into ``test_loss``."""
    return re.sub(r"\W+", "_", metric)


def compare(
    runs: pd.DataFrame, metric: str = "test/loss", expected: int | None = None, absent: tuple[str, ...] = ()
) -> Comparison:
    """Group the runs of ``Gathered.frame`` and sum each group up.

    Args:
        runs: one row per run; at least one.
        metric: the metric that gets a mean and a spread, beside test/loss.
        expected: how many runs the sweep has; the number of rows if not given.
        absent: ids of the sweep without a record.
    """
    read = contents.read_by(metric)
    runs = _in_order(runs if "facts" in runs else split_by_facts(runs, read))
    runs["row"] = pd.factorize(runs["group"])[0]
    grouped = [group for _, group in runs.groupby("row", sort=True)]
    fields: list[dict[str, Any]] = [group["fields"].iloc[0] for group in grouped]
    differing = differing_fields(runs.groupby("row", sort=True).first(), fields)
    differing += contents.differing(contents.of_rows(runs), read)
    shown = [metric, *(name for name in _shown(runs) if name != metric)]
    table = pd.DataFrame([_row(group, differing, shown) for group in grouped])
    for name in ("r", "n_seeds", "n_runs", "trainable_parameters", "total_parameters", "pack_size"):
        table[name] = table[name].astype(float).round().astype("Int64")
    groups = Groups(runs=runs, table=table, fields=fields, differing=differing, metric=metric)
    caption, notes = footnotes(groups, len(runs) if expected is None else expected, absent)
    return Comparison(table, runs, fields, differing, shown, caption, notes)


def _shown(runs: pd.DataFrame) -> list[str]:
    """List the metrics of the test split that are columns: first those that always are, then those that a run has."""
    names = {f"test/{row.name}": row.shown for row in metrics.METRICS}
    always = [name for name, shown in names.items() if shown == "always"]
    measured = [name for name, shown in names.items() if shown == "where measured" and name in runs and runs[name].notna().any()]
    return always + measured


def differing_fields(firsts: pd.DataFrame, fields: list[dict[str, Any]]) -> list[str]:
    """List the identity fields, other than the axes, in which the rows differ.

    A field that a row does not have (a frozen model has no steps) is no difference. ``device`` is among them where the
    kind of device differs, ``engine`` where another one ran than was ordered. Where models or data sets differ and their
    names tell them apart, the name stands for them.
    """
    keys = list(dict.fromkeys(key for row in fields for key in row if key not in AXES))
    keys = [key for key in keys if len({json.dumps(row[key]) for row in fields if key in row}) > 1]
    for which, name in ((WHICH_MODEL, "model"), (WHICH_DATA, "dataset")):
        part = [key for key in keys if which.fullmatch(key)]
        if part and _is_one_to_one(list(firsts[name]), [json.dumps([row.get(key) for key in part]) for row in fields]):
            keys = [f"{name}.name", *(key for key in keys if key not in part)]
    if firsts["device_type"].dropna().nunique() > 1:
        keys.append("device")
    # What has no adapter cannot choose its engine, so its engine is no difference.
    if "engine" not in keys and firsts["engine"][firsts["trains"] == "adapter"].dropna().nunique() > 1:
        keys.append("engine")
    return keys


def _is_one_to_one(names: list[str], things: list[str]) -> bool:
    pairs = set(zip(names, things, strict=True))
    return len(pairs) == len(set(names)) == len(set(things))


def split_by_facts(runs: pd.DataFrame, read: tuple[Content, ...] = contents.ALWAYS) -> pd.DataFrame:
    """Split groups by recorded facts: runs of one config on a CPU and on a GPU differ in memory, speed and rounding.

    So do runs whose records name different engines, or of which only some held a copy of the base, against the config, and runs
    that read other contents under the same names; ``read`` are those that matter. A run without a record, or that died before it
    had a device or had read anything, joins its group if the group knows one value.
    """
    runs = runs.copy()
    for key in ("base_share", *(content.key for content in contents.NAMES.values())):
        if key not in runs:  # measurements of a study, kept as CSV
            runs[key] = None
    runs["device_type"] = runs["device"].str.split(":").str[0] if runs["device"].notna().any() else None
    recorded = ~runs["status"].isin([MISSING, UNREADABLE])
    for fact in FACTS:
        values = runs[fact].astype(object)
        known = values.where(recorded).groupby(runs["group"])
        unsure = (values.isna() | ~recorded) & (known.transform("nunique") == 1)
        runs[fact] = values.mask(unsure, known.transform("first"))
    facts = [runs[fact].where(runs[fact].notna(), "unknown").astype(str) for fact in FACTS]
    runs["facts"] = facts[0].str.cat(facts[1:], sep=" ")
    group = runs["group"] + " " + runs["facts"]
    for key in (content.key for content in read):
        values = runs[key].astype(object)
        known = values.groupby(group)
        runs[key] = values.mask(values.isna() & (known.transform("nunique") == 1), known.transform("first"))
        runs["facts"] += " " + runs[key].where(runs[key].notna(), "unknown").astype(str)
    runs["group"] = runs["group"] + " " + runs["facts"]
    return runs


def variant_rank(name: str) -> tuple[float, str]:
    """Make a sort key of a variant: the controls, then 16-bit, 8-bit and 4-bit ones, plain LoRA first in each."""
    base = name.rsplit("_", 1)[0]
    if name in VARIANT_ORDER:
        return (VARIANT_ORDER.index(name), name)
    return (VARIANT_ORDER.index(base) + 0.5 if base in VARIANT_ORDER else len(VARIANT_ORDER), name)


def _in_order(runs: pd.DataFrame) -> pd.DataFrame:
    keys = pd.DataFrame(
        {
            "variant": runs["variant"].map(variant_rank),
            **{name: runs[name].astype(float) for name in ("r", "alpha", "learning_rate")},
            "group": runs["group"],
            "seed": runs["seed"],
            "run_id": runs["run_id"],
        }
    )
    order = keys.sort_values(list(keys.columns), na_position="first", kind="stable").index
    return runs.loc[order].reset_index(drop=True)


def _row(group: pd.DataFrame, differing: list[str], metrics: list[str]) -> dict[str, Any]:
    ok = group[group["status"] == "ok"]
    first = group.iloc[0]
    trainable, total = (_known(ok, group, name) for name in ("trainable_parameters", "total_parameters"))
    row: dict[str, Any] = {name: first[name] for name in ("variant", "base_precision", "r", "alpha")}
    row["effective_scale"] = _known(ok, group, "effective_scale")
    row["learning_rate"] = first["learning_rate"]
    row |= {key: _shown_field(key, first) for key in differing}
    row |= {
        "n_seeds": len(ok),
        "n_runs": len(group),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_percent": 100 * trainable / total if total else float("nan"),
    }
    for metric in metrics:
        values = ok[metric].dropna() if metric in ok else pd.Series(dtype=float)
        row[f"{column(metric)}_mean"] = values.mean()
        if metric in (metrics[0], "test/loss"):
            row[f"{column(metric)}_sd"] = values.std(ddof=1)  # NaN for a single seed: one number has no spread
    kinds = ok["peak_memory_kind"].dropna().unique()
    packs = _pack_sizes(ok) or _pack_sizes(group)
    return row | {
        "pack_size": packs[0] if len(packs) == 1 else float("nan"),
        "pack_sizes": ", ".join(f"{size:.0f}" for size in packs) or None,
        # A peak is of a whole process: the mean of a small pack's and a large one's would be nobody's.
        "peak_memory_bytes": ok["peak_memory_bytes"].mean() if len(kinds) <= 1 and len(packs) == 1 else float("nan"),
        "peak_memory_kind": kinds[0] if len(kinds) == 1 else None,
        "estimated_memory_bytes": _known(ok, group, "estimated_memory_bytes"),
        "hold_dequantised": bool(first["hold_dequantised"]),
        "tokens_per_second": ok["tokens_per_second"].mean(),
        "pack_tokens_per_second": ok["pack_tokens_per_second"].mean(),
        "status": _status(group["status"]),
        "reasons": "; ".join(dict.fromkeys(group["reason"].dropna())) or None,
        "model": first["model"],
        "dataset": first["dataset"],
        "dataset_version": first["fields"].get("dataset.version"),
        "engine": first["engine"],
        "devices": "; ".join(sorted(ok["device"].dropna().unique())) or None,
        "seeds": " ".join(str(seed) for seed in ok["seed"]) or None,
        "run_ids": " ".join(group["run_id"]),
    }


def _known(ok: pd.DataFrame, group: pd.DataFrame, name: str) -> float:
    """Take a number that is the same for all runs of a group, from a finished run if there is one."""
    for runs in (ok, group):
        values = runs[name].dropna()
        if len(values):
            return float(values.iloc[0])
    return float("nan")


def _pack_sizes(runs: pd.DataFrame) -> list[float]:
    return sorted(runs["pack_size"].dropna().unique())


def _shown_field(key: str, first: pd.Series) -> Any:
    if key in ("model.name", "dataset.name"):
        return first[key.split(".")[0]]
    if key == "device":
        return first["device_type"]
    if key in contents.NAMES:
        return contents.shown(first[contents.NAMES[key].key])
    value = first["fields"].get(key)
    if value is None:
        return "none" if key in first["fields"] else None
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _status(statuses: pd.Series) -> str:
    """Sum up statuses: one word where all agree, otherwise such as ``2 ok, 1 diverged``."""
    counts = statuses.value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    known = [name for name in STATUS_ORDER if name in counts]
    return ", ".join(f"{counts[name]} {name}" for name in [*known, *sorted(set(counts.index) - set(known))])
