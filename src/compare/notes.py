"""Write the notes beside a comparison table: what a reader must know, as sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..files.text import counted, few, plain
from ..measure import metrics
from . import contents, shares
from .frame import MISSING

ENOUGH_SEEDS = 6  # below it an exact sign-flip test cannot reach p < 0.05 two-sided: 2 / 2**5 = 0.0625
MOST_IDS = 49  # a sentence names so many, or one less and counts the rest
MEMORY_KINDS = {
    "cuda_allocated": "CUDA memory allocated (cuda_allocated)",
    "process_rss": "resident memory of the whole process (process_rss)",
}


@dataclass(frozen=True)
class Groups:
    """The runs with their ``row``, the table, and the identity fields of each row of it."""

    runs: pd.DataFrame
    table: pd.DataFrame
    fields: list[dict[str, Any]]
    differing: list[str]
    metric: str


def footnotes(groups: Groups, expected: int, absent: tuple[str, ...]) -> tuple[str, list[str]]:
    """Write the caption and the notes under the table."""
    notes = [
        *_unfinished(groups.runs, expected, absent),
        *_base_models(groups.runs),
        *_seeds(groups),
        *_unlike(groups),
        *_shares(groups),
        *_memory(groups.table),
        *_packs(groups.runs),
        *_checks(groups.runs),
    ]
    return caption(groups), notes


def subject(runs: pd.DataFrame) -> str:
    """Name model and data in a few words: ``smollm2_135m on cldr_names``."""

    def named(column: str, many: str) -> str:
        names = list(dict.fromkeys(str(name) for name in runs[column] if name))
        return names[0] if len(names) == 1 else f"{len(names)} {many}" if names else f"unnamed {many[:-1]}"

    return f"{named('model', 'models')} on {named('dataset', 'data sets')}"


def named(variant: str, r: float) -> str:
    """Name a variant at a rank: ``lora r=4``; the variant alone where there is no rank."""
    return variant if pd.isna(r) else f"{variant} r={r:.0f}"


def seed_count(table: pd.DataFrame) -> str:
    """Say how many seeds finished in a row of the table: ``3 seeds`` or ``1 to 3 seeds``."""
    trained = table[table["trainable_parameters"] != 0]  # a control that trains nothing gives the same for every seed
    return from_to([int(n) for n in (trained if len(trained) else table)["n_seeds"] if n])


def from_to(counts: Sequence[int]) -> str:
    """Put numbers of seeds into words, from the smallest to the largest."""
    if not counts:
        return "no finished run"
    low, high = min(counts), max(counts)
    return counted(low, "seed") if low == high else f"{low} to {high} seeds"


def own_peak(table: pd.DataFrame) -> pd.Series:
    """Tell which rows' measured peak is of one run alone in its process, with no copy of the base held.

    Elsewhere the tables show the closed form.
    """
    return (table["pack_size"] == 1).fillna(False) & ~table["hold_dequantised"] & table["peak_memory_bytes"].notna()


def caption(groups: Groups) -> str:
    ok = groups.runs[groups.runs["status"] == "ok"]
    shown = groups.table["peak_memory_kind"][own_peak(groups.table)].dropna()
    kinds = [MEMORY_KINDS.get(kind, kind) for kind in dict.fromkeys(shown)]
    devices = list(dict.fromkeys(ok["device"].dropna()))
    over = "no finished run"
    if len(ok):
        over = f"mean over {seed_count(groups.table)}, sd is the sample standard deviation over seeds"
    parts = [f"{subject(groups.runs)}; {metrics.label(groups.metric)}: {over}"]
    if kinds:
        parts.append(f"peak memory is {' or '.join(kinds)}")
    if devices:
        parts.append(f"on {' and '.join(devices)}")
    return "; ".join(parts) + "."


def _unfinished(runs: pd.DataFrame, expected: int, absent: tuple[str, ...]) -> list[str]:
    notes = []
    if absent:
        verb = "has" if len(absent) == 1 else "have"
        notes.append(f"{len(absent)} of {expected} runs {verb} no record yet: {few(absent, MOST_IDS)}.")
    return notes + ended_badly(runs)


def ended_badly(runs: pd.DataFrame) -> list[str]:
    """Count the runs that did not finish, by status and reason, with their ids."""
    bad = runs[~runs["status"].isin(["ok", MISSING])].fillna({"reason": "no reason recorded"})
    groups = bad.groupby(["status", "reason"], sort=True)
    return [f"{len(group)} {status}: {reason} ({_names_and_ids(group)})." for (status, reason), group in groups]


def _names_and_ids(runs: pd.DataFrame) -> str:
    what = dict.fromkeys(map(named, runs["variant"], runs["r"]))
    return f"{', '.join(what)}; run{'s' * (len(runs) > 1)} {few(list(runs['run_id']), MOST_IDS)}"


def _base_models(runs: pd.DataFrame) -> list[str]:
    noted = runs.dropna(subset=["model_note"])
    pairs = dict.fromkeys(zip(noted["model"], noted["model_note"], strict=True))
    return [f"Base model {model}: {note}." for model, note in pairs]


def _seeds(groups: Groups) -> list[str]:
    notes = [f"Seeds in a row: {seed_count(groups.table)}."]
    if groups.table["n_seeds"].between(1, ENOUGH_SEEDS - 1).any():
        notes[0] += f" Fewer than {ENOUGH_SEEDS} seeds: differences are descriptive, no significance is claimed."
    ok = groups.runs[groups.runs["status"] == "ok"]
    trained = ok[ok["trains"] != "none"]
    of_rows = {tuple(sorted(zip(group["seed"], group["data_seed"], strict=True))) for _, group in trained.groupby("row")}
    if len(of_rows) > 1:
        notes.append("Rows stand on different seeds, so their means are not paired.")
    measured = ok[groups.metric].notna().sum() if groups.metric in ok else 0
    if measured < len(ok):
        notes.append(f"{groups.metric} was measured in {measured} of {len(ok)} finished runs.")
    return notes


def _unlike(groups: Groups) -> list[str]:
    notes = []
    for key in groups.differing:
        values = list(dict.fromkeys(plain(value) for value in groups.table[key].dropna()))
        content = contents.NAMES.get(key)
        why = "" if content is None else f", which is {content.meaning}"
        notes.append(f"Rows differ in {key} ({', '.join(values)}){why}: compare those that agree in it.")
    ok = groups.runs[groups.runs["status"] == "ok"]
    if (ok.groupby("row")[contents.PROSE.key].nunique() > 1).any():
        notes.append("Runs of one row measured forgetting on other contents of the same text: such a row shows no mean of it.")
    return notes


def _shares(groups: Groups) -> list[str]:
    table = groups.table
    return shares.notes(groups.runs, dict(zip(table.index, map(named, table["variant"], table["r"]), strict=True)))


def _memory(table: pd.DataFrame) -> list[str]:
    """Explain where the memory column is no measured peak."""
    closed = ~own_peak(table) & table["estimated_memory_bytes"].notna()
    packed = (table["pack_size"] > 1).fillna(False) & table["peak_memory_bytes"].notna()
    mixed = table["pack_sizes"].notna() & table["pack_size"].isna()
    parts = ["memory with ~ is the closed form for the run trained alone"] if closed.any() else []
    if packed.any() or mixed.any():
        where = " where a row's packs are of one size" if mixed.any() else ""
        parts.append(f"the measured peak belongs to the whole pack and is in the CSV{where}")
    text = "; ".join(parts)
    notes = [f"{text[0].upper()}{text[1:]}."] if text else []
    if table["hold_dequantised"].any():
        notes.append(
            "Precision (held): a dequantised copy of the 4-bit base stayed on the device, which gives the same numbers at LoRA's "
            "speed; the measured memory, in the CSV, is not representative of QLoRA."
        )
    return notes


def _packs(runs: pd.DataFrame) -> list[str]:
    """Explain what packs do to speed, and count those that did not fit."""
    timed = runs[(runs["status"] == "ok") & runs["tokens_per_second"].notna()]
    sizes = [f"{size:.0f}" for size in sorted(timed["pack_size"].dropna().unique())]
    share = "in a pack it is the run's own tokens over the seconds of the whole pack"
    notes = []
    if len(sizes) > 1:
        notes.append(
            f"Runs trained in packs of different size ({', '.join(sizes)}): their tokens/s do not compare, since {share}."
        )
    elif sizes and sizes != ["1"]:
        notes.append(f"tokens/s does not compare variants that shared a pack: {share}.")
    halved = [
        f"{counted(count, 'run')} after a pack of {size:.0f}"
        for size, count in runs["halved_from"].dropna().value_counts().sort_index().items()
    ]
    if halved:
        notes.append(f"Packs that ran out of memory went on in smaller ones: {', '.join(halved)}.")
    return notes


def _checks(runs: pd.DataFrame) -> list[str]:
    failed: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for run, checks in zip(runs["run_id"], runs["failed_checks"], strict=True):
        for name, detail in checks.items():
            failed[name].append((run, detail))
    return [
        f"Failed check {name}: {', '.join(run for run, _ in where)} ({where[0][1] or 'no detail'})."
        for name, where in sorted(failed.items())
    ]
