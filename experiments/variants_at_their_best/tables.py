"""Write tables.md, the study's answers. Every number is a function of results.csv, and of peft.csv where it says so."""

from __future__ import annotations

import math

import pandas as pd

from experiments.markdown import table
from experiments.variants_at_their_best import cost, differences
from experiments.variants_at_their_best.cost import Peft
from experiments.variants_at_their_best.questions import MARGIN, METRIC, NAMES, Cell, Study, name, named
from src.command.cli import compose
from src.compare.columns import count, decimals, interval, short, with_interval
from src.compare.comparison import column
from src.compare.frame import AFTER, BEFORE
from src.compare.notes import ENOUGH_SEEDS
from src.files.text import few
from src.model.models import find_shape
from src.variants.counts import linears

EXACT = f"{column('test/exact_match')}_mean"


def tables(study: Study, peft: Peft | None) -> str:
    sections = {
        "Does a rank matter, each at its own rate?": differences.ranks(study),
        "Which variant wins, each at its own rate?": differences.variants(study),
        "Each at its own best rate, beside the controls": levels(study),
        "Validation loss by rate": by_rate(study),
        "How large the differences look at one rate for both": differences.one_rate(study),
        "Runs that did not end well": not_ok(study),
        "Cost": cost.section(study, peft),
        "To know": notes(study),
    }
    return "\n\n".join([head(study), *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def head(study: Study) -> str:
    runs, split = study.runs, study.result.selection.split
    model, data, device = (few(list(runs[key].dropna().unique())) for key in ("model", "dataset", "device"))
    commits = few([str(value)[:10] for value in runs["commit"].dropna().unique()]) if "commit" in runs else "not known"
    dirty = " with uncommitted changes" if "dirty" in runs and (runs["dirty"].astype(str) == "True").any() else ""
    tuning, report = (", ".join(str(seed) for seed, _ in sorted(seeds)) for seeds in (split.tuning, split.report))
    parts = [
        f"Written by `python -m experiments.variants_at_their_best.report` from results.csv: {len(runs)} runs of {model} on"
        f" {data}, {runs['steps'].max():g} steps, {(runs['status'] != 'ok').sum()} not ok; {device}; commit {commits}{dirty}.",
        f"Validation loss over seeds {tuning} chose each rate; all else, where not said otherwise, is over seeds {report}."
        if split.disjoint
        else f"No report seed has run: the numbers are of the seeds that chose the rates, {report}, so they flatter.",
        "Losses are nats per target token; [95%] is Student's t over seeds, on these test rows; p is of the exact sign-flip test,"
        f" after Holm over a family; equivalent means that both one-sided t tests within {MARGIN:g} reject at 0.05 (TOST, each"
        f" difference by itself); fewer than {ENOUGH_SEEDS} seeds only describe.",
    ]
    if cells := study.unreported():
        parts.append(f"Without a number from a report seed, and so in no comparison: {named(cells)}.")
    if cells := [cell for cell in study.rows if study.unseen(cell)]:
        parts.append(f"Not tried at every rate on every tuning seed: {named(cells)}.")
    return "\n\n".join(parts)


def levels(study: Study) -> str:
    comparison, rows = study.result.table, []
    to_full = study.to_full()
    before, after = (comparison.get(f"{column(key)}_mean", pd.Series(math.nan, comparison.index)) for key in (BEFORE, AFTER))
    for cell, row in study.rows.items():
        values, gap, condition = comparison.loc[row], to_full.of(row), study.condition(cell)
        mean, trained, total = (values[key] for key in (f"{column(METRIC)}_mean", "trainable_parameters", "total_parameters"))
        line = {"": name(cell), "n": count(values["n_seeds"])}
        if pd.notna(values["effective_scale"]):
            line["scale"] = short(values["effective_scale"])
        if condition.chosen is not None and not study.unseen(cell):
            line["best rate"] = f"{condition.chosen:g}" + (f" ({condition.edge} tried)" if condition.edge else "")
        if pd.notna(mean):
            line["test loss [95%]"] = (
                f"{decimals(mean)} {interval(values['interval_low'], values['interval_high'], decimals)}".rstrip()
            )
        if gap is not None and gap.test.n:
            line["minus full [95%]"] = with_interval(gap.test.mean, gap.test.low, gap.test.high)
        if pd.notna(values[EXACT]):
            line["exact match"] = f"{100 * values[EXACT]:.1f}%"
        if pd.notna(after[row]):
            line["prose, before and after"] = f"{before[row]:.3f}, {after[row]:.3f}"
        if pd.notna(trained) and pd.notna(total):
            line["trained (of the base)"] = f"{count(trained)} ({100 * trained / total:.3g}%)"
        rows.append(line)
    columns = dict.fromkeys(key for key in (
        *("", "scale", "best rate", "n", "test loss [95%]", "minus full [95%]", "exact match", "prose, before and after"),
        "trained (of the base)",
    ) if any(key in line for line in rows))  # fmt: skip
    return "\n\n".join([
        "All on the same test rows. Where a best rate is the lowest or the highest tried, a better one may lie beyond."
        " Differences to full fine-tuning, which has a grid of rates of its own, are paired by seed and only describe.",
        table([{key: line.get(key, "-") for key in columns} for line in rows]),
    ])  # fmt: skip


def by_rate(study: Study) -> str:
    """Write a table for each grid of rates: the adapters', and full fine-tuning's."""
    parts = ["Mean over the tuning seeds; **bold**: chosen. A rate at which a tuning seed diverged is no candidate."]
    for control in (False, True):
        rows = [
            {"": name(cell)}
            | {f"{rate:g}": _tuned(study, cell, rate) for rate in study.grid(cell)}
            | {"at an end of the grid": "-" if study.unseen(cell) else study.condition(cell).edge or "-"}
            for cell in study.rows
            if (cell[1] is None) == control and study.condition(cell).rates
        ]
        parts += [table(rows)] if rows else []
    return "\n\n".join(parts)


def _tuned(study: Study, cell: Cell, rate: float) -> str:
    runs, seeds = study.tuning(cell, rate), len(study.result.selection.split.tuning)
    if (bad := (runs["status"] != "ok").sum()) > 0:
        return f"{bad} of {len(runs)} not ok"
    losses = runs["val/loss"].dropna()
    if losses.empty:
        return "-"
    text = decimals(losses.mean()) + (f" (n={len(losses)})" if len(losses) < seeds else "")
    return f"**{text}**" if rate == study.condition(cell).chosen and not study.unseen(cell) else text


def not_ok(study: Study) -> str:
    tuning = [seed for seed, _ in study.result.selection.split.tuning]
    rows = []
    for cell in study.rows:
        for rate, runs in study.of(cell).groupby("learning_rate", dropna=False):
            lost = runs[runs["status"] != "ok"]
            if len(lost):
                chose = runs["seed"].isin(tuning)
                of = [f"{(runs['status'][some] != 'ok').sum()} of {some.sum()}" for some in (chose, ~chose)]
                how = ", ".join(f"{n} {status}" for status, n in lost["status"].value_counts().items())
                rows.append({"": name(cell), "rate": f"{rate:g}", "tuning seeds": of[0], "other seeds": of[1], "how": how})
    return table(rows) if rows else "None."


def notes(study: Study) -> str:
    lines, r = [], study.ranks[-1] if study.ranks else 0
    shape = find_shape(compose([f"model={study.runs['model'].iloc[0]}"]).model)
    narrow = [linear for linear in (linears(shape) if shape else []) if min(linear.out_features, linear.in_features) < r]
    if narrow:
        sides = ", ".join(f"{linear.name} ({linear.out_features} x {linear.in_features})" for linear in narrow)
        lines.append(
            f"r={r} is more than the smaller side of {sides}, out x in: there B A can be any update, and is no low-rank one."
        )
    runs = study.runs[study.runs["r"] == r].dropna(subset=["trainable_parameters", "total_parameters"])
    shares = {NAMES[v]: f"{100 * trained / total:.1f}%" for v, trained, total in
              runs[["variant", "trainable_parameters", "total_parameters"]].itertuples(index=False)}  # fmt: skip
    if shares:
        text, base = ", ".join(f"{variant} {share}" for variant, share in shares.items()), count(runs["total_parameters"].iloc[0])
        lines.append(f"Trained at r={r}, as a share of the base's {base} parameters: {text}.")
    held = study.runs[study.runs["hold_dequantised"].astype(str) == "True"] if "hold_dequantised" in study.runs else runs[:0]
    if len(held):
        who = few([NAMES[variant] for variant in held["variant"].unique()])
        lines.append(
            f"{who}: a dequantised copy of the 4-bit base was held, which gives the same numbers at LoRA's speed; the memory is"
            " not that of 4 bits."
        )
    return "\n".join(f"- {line}" for line in lines) or "Nothing more."
