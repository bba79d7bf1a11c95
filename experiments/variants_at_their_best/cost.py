"""Sum the time of the runs from their records, and estimate their training steps with PEFT, one run after another.

Measured: the seconds in training steps of each pack, its first step and compilation too; validation, loading and testing are
not in them. Extrapolated: for each (variant, r) its runs' training tokens / the tokens/s of PEFT's timed steps of
``peft.csv``; so PEFT's start-up, first steps, evaluation and testing count as nothing, which is in its favor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments import sheet
from experiments.markdown import table
from experiments.variants_at_their_best.questions import Study, name, named
from experiments.variants_at_their_best.results import CONTROLS
from src.compare.columns import rate
from src.compare.notes import named as labeled
from src.files.errors import ConfigError
from src.files.text import few

TABLE, MACHINE = "peft.csv", "peft.json"


@dataclass(frozen=True)
class Peft:
    """``timed``: for each (variant, r) its steps, tokens and tokens_per_second; ``machine``: what timed them, or nothing."""

    timed: pd.DataFrame
    machine: dict[str, str]


def load(folder: Path) -> Peft | None:
    """Read the table of ``peft.py``; None where there is none. Raises ConfigError, one line, where it is no such table."""
    path = folder / TABLE
    if not path.exists():
        return None
    needed = ("r", "steps", "tokens", "tokens_per_second")
    timed = sheet.as_numbers(sheet.read(path, ("variant", *needed), needed), needed, path)
    if not (timed["tokens_per_second"] > 0).all():
        raise ConfigError(f"{path}: a row with a tokens_per_second that is not above 0")
    if (twice := timed.duplicated(["variant", "r"])).any():
        row = timed[twice].iloc[0]
        raise ConfigError(f"{path}: {labeled(row['variant'], row['r'])} is there more than once")
    try:
        machine = json.loads((folder / MACHINE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        machine = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / MACHINE}: cannot be read ({error})") from error
    if not isinstance(machine, dict):
        raise ConfigError(f"{folder / MACHINE}: no mapping")
    return Peft(timed, {str(key): str(value) for key, value in machine.items()})


def adapters(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the runs with an adapter that trained, which PEFT would have to train too."""
    return runs[~runs["variant"].isin(CONTROLS) & (runs["train_tokens"] > 0)]


def packs(runs: pd.DataFrame) -> pd.DataFrame:
    """List pack_size and train_seconds of each pack once: its runs have the same seconds to the last digit.

    A run that diverged stopped its clock early, so it is left out, unless it was alone in its pack.
    """
    whole = runs[(runs["status"] != "diverged") | (runs["pack_size"] == 1)].dropna(subset=["train_seconds"])
    alone = whole["pack_size"] == 1
    columns = ["pack_size", "train_seconds"]
    return pd.concat([whole.loc[alone, columns], whole.loc[~alone, columns].drop_duplicates()], ignore_index=True)


def under_way(runs: pd.DataFrame) -> float | None:
    """Count the seconds in which at least one run was under way, from loading to scoring; None where records do not say."""
    if not {"started", "wall_seconds"} <= set(runs.columns):
        return None
    timed = runs.dropna(subset=["started", "wall_seconds"])
    begun = pd.to_datetime(timed["started"], utc=True, errors="coerce", format="ISO8601")
    if timed.empty or begun.isna().any():
        return None
    ended = begun + pd.to_timedelta(timed["wall_seconds"], unit="s")
    total, reached = pd.Timedelta(0), begun.min()
    for start, end in sorted(zip(begun, ended, strict=True)):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return float(total.total_seconds())


def extrapolated(runs: pd.DataFrame, peft: Peft) -> pd.DataFrame:
    """List runs, train_tokens, PEFT's tokens_per_second and seconds of each (variant, r); NaN where PEFT was not timed."""
    trained = adapters(runs).groupby(["variant", "r"], sort=False)["train_tokens"].agg(["size", "sum"]).reset_index()
    cells = trained.rename(columns={"size": "runs", "sum": "train_tokens"})
    cells = cells.merge(peft.timed[["variant", "r", "tokens_per_second"]], on=["variant", "r"], how="left")
    return cells.assign(seconds=cells["train_tokens"] / cells["tokens_per_second"])


def section(study: Study, peft: Peft | None) -> str:
    """Write the measured time, a row for each cell, and the estimate with PEFT."""
    runs = study.runs
    trained, full = adapters(runs), runs[runs["variant"].isin(CONTROLS)]
    adapter_packs, full_runs = packs(trained), packs(full)
    ours = float(adapter_packs["train_seconds"].sum())
    text = (
        f"Measured: {len(trained)} runs with an adapter ({trained['train_tokens'].sum():,.0f} tokens) in"
        f" {len(adapter_packs)} pack{'s' * (len(adapter_packs) != 1)}, {duration(ours)} in training steps, first steps and"
        " compilation too, the seconds of a pack counted once. Not in it: validation, loading, testing, and what a pack lost that"
        " did not fit into memory."
    )
    if len(full_runs):
        added = duration(float(full_runs["train_seconds"].sum()))
        text += f" Full fine-tuning, {len(full_runs)} runs, the seconds of each added up: {added}."
    if (wall := under_way(runs)) is not None:
        text += (
            f" For {duration(wall)} at least one run was under way, all but the start of processes counted; where several"
            " processes shared the GPU, their seconds overlap and their tokens/s are of a share of it."
        )
    estimates = None if peft is None else extrapolated(runs, peft)
    parts = [text, table(_rows(study, estimates))]
    if estimates is None or peft is None:
        return "\n\n".join([*parts, f"{TABLE} is not there, so nothing is said of PEFT."])
    timed, theirs = estimates[estimates["seconds"].notna()], float(estimates["seconds"].sum())
    steps = _range(peft.timed["steps"], "{:.0f}")
    about = ", ".join(f"{key} {value}" for key, value in peft.machine.items()) or "nothing says on what"
    text = (
        f"Extrapolated: {duration(theirs)} for the training steps of {timed['runs'].sum()} runs with PEFT, one after another: the"
        f" sum over runs of their tokens / PEFT's tokens/s at that variant and rank, from {steps} timed steps each ({TABLE};"
        f" {about}). Steps alone: PEFT's start-up, first steps, validation and testing count as nothing. Those runs were not"
        " trained so."
    )
    untimed = [(str(v), int(r)) for v, r in estimates.loc[estimates["seconds"].isna(), ["variant", "r"]].itertuples(index=False)]
    if untimed:
        text += f" Not timed, and not in it: {named(untimed)}; so the two sums do not compare."
    elif ours:
        text += f" That is {theirs / ours:.1f} times the {duration(ours)} that were measured."
    devices = list(trained["device"].dropna().unique())
    if (gpu := peft.machine.get("gpu")) and any(gpu not in device for device in devices):
        text += f" The runs trained on another device: {few(devices)}."
    return "\n\n".join([*parts, text])


def _rows(study: Study, estimates: pd.DataFrame | None) -> list[dict[str, str]]:
    rows = []
    for cell in study.rows:
        runs = study.of(cell)
        runs = runs[runs["train_tokens"] > 0]
        if runs.empty:
            continue
        row = {"": name(cell), "runs": str(len(runs)), "tokens": f"{runs['train_tokens'].sum():,.0f}"}
        row["runs in a pack"] = _range(runs["pack_size"], "{:.0f}")
        row["train s of a pack"] = _range(runs.loc[runs["status"] != "diverged", "train_seconds"], "{:.1f}")
        if "pack_tokens_per_second" in runs:
            row["tokens/s of a pack"] = _range(runs["pack_tokens_per_second"], "{:,.0f}")
        if "peak_memory_bytes" in runs:
            row["peak GiB of a pack"] = _range(runs["peak_memory_bytes"] / 2**30, "{:.1f}")
        if estimates is not None and cell[1] is not None:
            estimate = estimates[(estimates["variant"] == cell[0]) & (estimates["r"] == cell[1])].iloc[0]
            if pd.notna(estimate["seconds"]):
                row |= {
                    "PEFT: tokens/s": rate(estimate["tokens_per_second"]),
                    "PEFT: extrapolated": duration(estimate["seconds"]),
                }
        rows.append(row)
    return rows


def duration(seconds: float) -> str:
    """Write a time in seconds below two minutes, in minutes below two hours, else in hours."""
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def _range(values: pd.Series, form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return "-" if values.dropna().empty else low if low == high else f"{low} to {high}"
