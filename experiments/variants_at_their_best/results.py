"""Write the records of the runs to results.csv, a row each, and read it back as what ``src.eval`` compares.

Columns have the record's own names and units: losses in nats per target token, seconds, bytes, counts; ``trained_share`` is
trained parameters over those of the base. ``train_seconds`` are those of the run's pack, ``wall_seconds`` those from the
start of its worker to its result, ``started`` is when its command began it (UTC).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import sheet
from experiments.variants_at_their_best.run import cells
from src.command.cli import compose
from src.compare.audit import HELD, OWN, differing
from src.compare.frame import METRIC, MISSING, NUMBERS, TEXTS, Gathered, flatten, gather, run_ids
from src.compare.notes import named
from src.files.durable import Damaged
from src.files.errors import ConfigError
from src.files.text import few
from src.record.records import RUNS, RunFolder, read_sweep

STUDY = "variants_at_their_best"
CONTROLS = ("frozen", "full")
KEY = ["variant", "r", "learning_rate", "seed"]
RECORDED = (
    *("run_id", *KEY, "status", "reason", "alpha", "effective_scale", "model", "dataset", "steps"),
    *("trainable_parameters", "total_parameters", "engine", "pack_size", "halved_from", "hold_dequantised", "speed"),
    *("train_tokens", "train_seconds", "tokens_per_second", "pack_tokens_per_second", "wall_seconds"),
    *("peak_memory_bytes", "device"),
)
ORIGIN = ("started", "commit", "dirty")  # of provenance.json
LOSSES = ("val/loss", "test/loss")
NEEDED = (
    *("run_id", *KEY, "status", "alpha", "effective_scale", "model", "dataset", "steps", *LOSSES),
    *("trainable_parameters", "total_parameters", "pack_size", "train_tokens", "train_seconds", "device"),
)
FILLED = ("run_id", "variant", "seed", "status", "model", "dataset")
COUNTED = {"r", "learning_rate", "seed", "alpha", *NUMBERS, "wall_seconds"}  # numbers, like the metrics


def from_records(unfinished: bool = False, elsewhere: Collection[str] = ()) -> pd.DataFrame:
    """Collect a row for each run of the sweep below ``runs/``; runs without a result only with ``unfinished``.

    Runs of ``elsewhere`` have a result on another machine: without one here they are left out, and not reported as missing.

    Raises:
        ConfigError: one line; a record is missing, damaged, doubled, or of another study.
    """
    records = gather(_ids())
    if records.problems:
        raise ConfigError(_first(records.problems))
    absent = [run for run in records.absent if run not in elsewhere]
    here = [row for row in records.rows if row["status"] != MISSING or row["run_id"] not in elsewhere]
    if not here:
        raise ConfigError(f"{RUNS.absolute()}: holds no run of the sweep {STUDY}")
    if absent:
        message = f"{RUNS.absolute()}: {len(absent)} of {records.expected} runs have no result: {few(absent)}"
        if not unfinished:
            raise ConfigError(f"{message}; train them, or add the word unfinished")
        print(f"warning: {message}", file=sys.stderr)  # runs that never started are in no row
    _refuse_foreign(records)
    rows = []
    for row in here:
        folder = RunFolder(row["run_id"])
        result, origin = folder.result() or {}, folder.provenance() or {}
        known = row | {name: result[name] for name in RECORDED if result.get(name) is not None}
        metrics = {name: value for name, value in result.get("metrics", {}).items() if METRIC.fullmatch(name)}
        values = {name: known.get(name) for name in RECORDED}
        if known["total_parameters"]:
            values["trained_share"] = known["trainable_parameters"] / known["total_parameters"]
        if row["trains"] != "adapter":
            values |= {"r": None, "alpha": None}  # from the config, without effect on this run
        if row["trains"] == "none":
            values["learning_rate"] = None
        rows.append(values | metrics | {name: origin.get(name) for name in ORIGIN})
    frame = pd.DataFrame(rows).sort_values(KEY, ignore_index=True).dropna(axis="columns", how="all")
    return checked(frame.reindex(columns=list(dict.fromkeys([*NEEDED, *frame.columns]))), str(RUNS.absolute()))


def _first(problems: list[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more


def _ids() -> list[str]:
    """List the runs on the sweep's list, if there is one, and all other runs in ``runs/``.

    Raises:
        ConfigError: a run there is of another sweep.
    """
    try:
        listed = read_sweep(STUDY) or []
    except Damaged as error:
        raise ConfigError(f"{RUNS / 'sweeps' / STUDY}.json: {error}") from error
    for run in sorted(set(run_ids()) - set(listed)):
        result = RunFolder(run).result()
        if result is not None and result.get("sweep") != STUDY:
            raise ConfigError(f"{RUNS / run}: of the sweep {result.get('sweep')}, not of {STUDY}; take it elsewhere")
    return list(dict.fromkeys([*listed, *run_ids()]))


def _refuse_foreign(records: Gathered) -> None:
    """Raise ConfigError where a run differs from most others in more than its variant, rank, rate and seed."""
    rests = [json.dumps({k: v for k, v in row["fields"].items() if not k.startswith(OWN)}) for row in records.rows]
    usual = records.rows[rests.index(Counter(rests).most_common(1)[0][0])]["fields"]
    for row in records.rows:
        for name in differing(row["fields"], usual):
            if name != HELD:
                here, there = row["fields"][name], usual[name]
                raise ConfigError(f"{RUNS / row['run_id']}: {name} is {here}, and {there} in most runs of the study")
        if row["data_seed"] != row["seed"]:
            raise ConfigError(f"{RUNS / row['run_id']}: data_seed is {row['data_seed']}, not its seed, {row['seed']}")


def load(path: Path) -> pd.DataFrame:
    """Read the runs of results.csv.

    Raises:
        ConfigError: one line; the file is missing, or is no such table.
    """
    if not path.exists():
        raise ConfigError(f"{path}: not there; the word records alone makes it from runs/")
    return read(path)


def read(path: Path | str, text: str | None = None) -> pd.DataFrame:
    """Read the runs of a CSV, or of ``text`` that came from ``path``."""
    frame = sheet.read(path, FILLED, list(filter(is_number, NEEDED)), ("device",), text)
    return checked(frame.replace({"device": {"": np.nan}}), str(path))


def is_number(column: str) -> bool:
    return column in COUNTED or METRIC.fullmatch(column) is not None


def checked(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Convert the numbers of the runs, and check that each run is known, unique and of one study.

    Raises:
        ConfigError: one line that begins with ``where``.
    """
    counted = list(filter(is_number, frame))
    frame = sheet.as_numbers(frame, counted, where).astype(dict.fromkeys(counted, float))
    labels = list(map(named, frame["variant"], frame["r"]))
    known = {named(variant, r) for variant, r in cells()[0]} | set(CONTROLS)
    if strange := [label for label in labels if label not in known]:
        raise ConfigError(f"{where}: {few(strange)}: no cell of this study")
    if (rateless := frame["learning_rate"].isna() & (frame["variant"] != "frozen")).any():
        raise ConfigError(f"{where}: row {rateless.idxmax() + 1} has no learning_rate")
    if len(twice := frame[frame.duplicated(KEY, keep=False)]):
        run = twice.iloc[0]
        ids = few(twice.groupby(KEY, dropna=False, sort=False)["run_id"].apply(list).iloc[0])
        what = f"{named(run['variant'], run['r'])}, rate {run['learning_rate']:g}, seed {run['seed']:.0f}"
        raise ConfigError(f"{where}: {what} is there more than once: {ids}")
    device = frame["device"].astype(object).str.split(":").str[0]  # dtype object also where no run has a device yet
    kinds = frame.assign(device=device, steps=frame["steps"].where(frame["learning_rate"].notna()))
    for name in ("model", "dataset", "steps", "alpha", "device"):
        if len(values := kinds[name].dropna().unique()) > 1:
            raise ConfigError(f"{where}: runs of {name} {few([str(value) for value in values])}: not one study")
    return frame.sort_values(KEY, ignore_index=True)


def gathered(frame: pd.DataFrame) -> Gathered:
    """Turn rows into those that ``src.eval`` gathers from records, with the fields that its comparison needs."""
    axes = {name: asdict(compose([f"variant={name}"]).variant) for name in frame["variant"].unique()}
    metrics = [name for name in frame if METRIC.fullmatch(name)]
    rows = []
    for run in frame.to_dict("records"):
        values: dict[str, Any] = {str(key): None if pd.isna(value) else value for key, value in run.items()}
        variant = axes[values["variant"]]
        fields: dict[str, Any] = {"variant": {key: value for key, value in variant.items() if key != "name"}}
        if variant["trains"] == "adapter":
            fields["lora"] = {"r": values["r"], "alpha": values["alpha"]}
        if variant["trains"] != "none":
            fields["train"] = {"lr": values["learning_rate"]}
        seed = int(values["seed"])
        rows.append(
            {name: values.get(name) for name in (*NUMBERS, *TEXTS, "commit")}
            | {"fields": dict(flatten(fields)), "group": json.dumps(fields), "seed": seed, "data_seed": seed}
            | {key: variant[key] for key in ("trains", "base_precision")}
            | {key: values[key] for key in ("run_id", "model", "dataset", "variant", "r", "alpha", "learning_rate", "status")}
            | {"metrics": {name: values[name] for name in metrics if values[name] is not None}, "failed_checks": {}}
            # A held copy changes no number, so it separates no runs here.
            | {"hold_dequantised": False, "dirty": values.get("dirty") is True, "versions": None}
        )
    absent = [row["run_id"] for row in rows if row["status"] == MISSING]
    return Gathered(rows, expected=len(rows), absent=absent)
