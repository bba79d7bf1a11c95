"""What the runs took, from their records, and what their training steps would take with PEFT, one run after another.

Measured: the seconds in training steps of each pack, its first step and compilation too; validation, loading and testing are
not in them. Extrapolated: for each (variant, r) its runs' training tokens / the tokens/s of PEFT's timed steps of
``peft.csv``; so PEFT's start-up, first steps, evaluation and testing count as nothing, which is in its favour.
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
from src.compare.notes import named as labelled
from src.files.errors import ConfigError
from src.files.text import few

TABLE, MACHINE = "peft.csv", "peft.json"


@dataclass(frozen=True)
class Peft:
    """``timed``: for each (variant, r) its steps, tokens and tokens_per_second; ``machine``: what timed them, or nothing."""

    timed: pd.DataFrame
    machine: dict[str, str]


def load(folder: Path) -> Peft | None:
    """What ``peft.py`` measured; None where there is none. Raises ConfigError, one line, where it is not such a table."""
    path = folder / TABLE
    if not path.exists():
        return None
    needed = ("r", "steps", "tokens", "tokens_per_second")
    timed = sheet.as_numbers(sheet.read(path, ("variant", *needed), needed), needed, path)
    if not (timed["tokens_per_second"] > 0).all():
        raise ConfigError(f"{path}: a row with a tokens_per_second that is not above 0")
    if (twice := timed.duplicated(["variant", "r"])).any():
        one = timed[twice].iloc[0]
        raise ConfigError(f"{path}: {labelled(one['variant'], one['r'])} is there more than once")
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
    """The runs with an adapter that trained: those that PEFT would have had to train too."""
    return runs[~runs["variant"].isin(CONTROLS) & (runs["train_tokens"] > 0)]


def packs(runs: pd.DataFrame) -> pd.DataFrame:
    """pack_size and train_seconds of each pack, once: its runs have the same seconds to the last digit.

    A run that diverged stopped its clock early, so it names no pack, unless it was alone.
    """
    whole = runs[(runs["status"] != "diverged") | (runs["pack_size"] == 1)].dropna(subset=["train_seconds"])
    alone = whole["pack_size"] == 1
    columns = ["pack_size", "train_seconds"]
    return pd.concat([whole.loc[alone, columns], whole.loc[~alone, columns].drop_duplicates()], ignore_index=True)


def under_way(runs: pd.DataFrame) -> float | None:
    """Seconds in which at least one run was under way, loading, compiling and scoring too; None where the records do not say."""
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
    """Of each (variant, r) that trained: runs, train_tokens, PEFT's tokens_per_second and seconds, NaN where it was not timed."""
    trained = adapters(runs).groupby(["variant", "r"], sort=False)["train_tokens"].agg(["size", "sum"]).reset_index()
    found = trained.rename(columns={"size": "runs", "sum": "train_tokens"})
    found = found.merge(peft.timed[["variant", "r", "tokens_per_second"]], on=["variant", "r"], how="left")
    return found.assign(seconds=found["train_tokens"] / found["tokens_per_second"])


def section(study: Study, peft: Peft | None) -> str:
    """What was measured, a row for each cell, and what that makes with PEFT."""
    runs = study.runs
    trained, full = adapters(runs), runs[runs["variant"].isin(CONTROLS)]
    mine, its = packs(trained), packs(full)
    ours = float(mine["train_seconds"].sum())
    said = (
        f"Measured: {len(trained)} runs with an adapter ({trained['train_tokens'].sum():,.0f} tokens) in {len(mine)}"
        f" pack{'s' * (len(mine) != 1)}, {duration(ours)} in training steps, first steps and compilation too, the seconds of a"
        " pack counted once. Not in it: validation, loading, testing, and what a pack lost that did not fit into memory."
    )
    if len(its):
        said += (
            f" Full fine-tuning, {len(its)} runs, the seconds of each added up: {duration(float(its['train_seconds'].sum()))}."
        )
    if (wall := under_way(runs)) is not None:
        said += (
            f" For {duration(wall)} at least one run was under way, all but the start of processes counted; where several"
            " processes shared the GPU, their seconds overlap and their tokens/s are of a share of it."
        )
    found = None if peft is None else extrapolated(runs, peft)
    parts = [said, table(_rows(study, found))]
    if found is None or peft is None:
        return "\n\n".join([*parts, f"{TABLE} is not there, so nothing is said of PEFT."])
    timed, theirs = found[found["seconds"].notna()], float(found["seconds"].sum())
    steps = _range(peft.timed["steps"], "{:.0f}")
    about = ", ".join(f"{key} {value}" for key, value in peft.machine.items()) or "nothing says on what"
    said = (
        f"Extrapolated: {duration(theirs)} for the training steps of {timed['runs'].sum()} runs with PEFT, one after another: the"
        f" sum over runs of their tokens / PEFT's tokens/s at that variant and rank, from {steps} timed steps each ({TABLE};"
        f" {about}). Steps alone: PEFT's start-up, first steps, validation and testing count as nothing. Those runs were not"
        " trained so."
    )
    untimed = [(str(v), int(r)) for v, r in found.loc[found["seconds"].isna(), ["variant", "r"]].itertuples(index=False)]
    if untimed:
        said += f" Not timed, and not in it: {named(untimed)}; so the two sums do not compare."
    elif ours:
        said += f" That is {theirs / ours:.1f} times the {duration(ours)} that were measured."
    devices = list(trained["device"].dropna().unique())
    if (gpu := peft.machine.get("gpu")) and any(gpu not in device for device in devices):
        said += f" The runs trained on another device: {few(devices)}."
    return "\n\n".join([*parts, said])


def _rows(study: Study, found: pd.DataFrame | None) -> list[dict[str, str]]:
    rows = []
    for cell in study.rows:
        mine = study.of(cell)
        mine = mine[mine["train_tokens"] > 0]
        if mine.empty:
            continue
        row = {"": name(cell), "runs": str(len(mine)), "tokens": f"{mine['train_tokens'].sum():,.0f}"}
        row["runs in a pack"] = _range(mine["pack_size"], "{:.0f}")
        row["train s of a pack"] = _range(mine.loc[mine["status"] != "diverged", "train_seconds"], "{:.1f}")
        if "pack_tokens_per_second" in mine:
            row["tokens/s of a pack"] = _range(mine["pack_tokens_per_second"], "{:,.0f}")
        if "peak_memory_bytes" in mine:
            row["peak GiB of a pack"] = _range(mine["peak_memory_bytes"] / 2**30, "{:.1f}")
        if found is not None and cell[1] is not None:
            one = found[(found["variant"] == cell[0]) & (found["r"] == cell[1])].iloc[0]
            if pd.notna(one["seconds"]):
                row |= {"PEFT: tokens/s": rate(one["tokens_per_second"]), "PEFT: extrapolated": duration(one["seconds"])}
        rows.append(row)
    return rows


def duration(seconds: float) -> str:
    """In seconds below two minutes, in minutes below two hours."""
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def _range(values: pd.Series, form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return "-" if values.dropna().empty else low if low == high else f"{low} to {high}"
