"""The runs as a table: records -> results.csv, a row for each run -> what ``src.eval`` compares.

Columns have the record's own names and units: losses in nats per target token, seconds, bytes, counts; ``trained_share`` is
trained parameters over those of the base. ``train_seconds`` are those of the run's pack, ``wall_seconds`` those from its
worker's first moment to its result, ``started`` is when its command took it (UTC).
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
    """A row for each run of the sweep below ``runs/``; without a result only where ``unfinished`` lets them be.

    Those of ``elsewhere`` are known to have a result on another machine, so without one here they are no row, and no lack.

    Raises:
        ConfigError: one line; a record is missing, damaged, doubled, or of another study.
    """
    found = gather(_ids())
    if found.problems:
        raise ConfigError(_first(found.problems))
    absent = [run for run in found.absent if run not in elsewhere]
    here = [row for row in found.rows if row["status"] != MISSING or row["run_id"] not in elsewhere]
    if not here:
        raise ConfigError(f"{RUNS.absolute()}: holds no run of the sweep {STUDY}")
    if absent:
        said = f"{RUNS.absolute()}: {len(absent)} of {found.expected} runs have no result: {few(absent)}"
        if not unfinished:
            raise ConfigError(f"{said}; train them, or add the word unfinished")
        print(f"warning: {said}", file=sys.stderr)  # those that were never begun are in no row
    _refuse_foreign(found)
    rows = []
    for row in here:
        folder = RunFolder(row["run_id"])
        result, origin = folder.result() or {}, folder.provenance() or {}
        known = row | {name: result[name] for name in RECORDED if result.get(name) is not None}
        metrics = {name: value for name, value in result.get("metrics", {}).items() if METRIC.fullmatch(name)}
        told = {name: known.get(name) for name in RECORDED}
        if known["total_parameters"]:
            told["trained_share"] = known["trainable_parameters"] / known["total_parameters"]
        if row["trains"] != "adapter":
            told |= {"r": None, "alpha": None}  # the config's, of no use to it
        if row["trains"] == "none":
            told["learning_rate"] = None
        rows.append(told | metrics | {name: origin.get(name) for name in ORIGIN})
    frame = pd.DataFrame(rows).sort_values(KEY, ignore_index=True).dropna(axis="columns", how="all")
    return checked(frame.reindex(columns=list(dict.fromkeys([*NEEDED, *frame.columns]))), str(RUNS.absolute()))


def _first(problems: list[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more


def _ids() -> list[str]:
    """The runs on the sweep's list, where there is one, and all that lie there.

    Raises:
        ConfigError: one lies there that is of another sweep.
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


def _refuse_foreign(found: Gathered) -> None:
    """Raise ConfigError where a run differs from most others in more than its variant, rank, rate and seed."""
    rests = [json.dumps({k: v for k, v in row["fields"].items() if not k.startswith(OWN)}) for row in found.rows]
    usual = found.rows[rests.index(Counter(rests).most_common(1)[0][0])]["fields"]
    for row in found.rows:
        for name in differing(row["fields"], usual):
            if name != HELD:
                here, there = row["fields"][name], usual[name]
                raise ConfigError(f"{RUNS / row['run_id']}: {name} is {here}, and {there} in most runs of the study")
        if row["data_seed"] != row["seed"]:
            raise ConfigError(f"{RUNS / row['run_id']}: data_seed is {row['data_seed']}, not its seed, {row['seed']}")


def load(path: Path) -> pd.DataFrame:
    """The runs of results.csv.

    Raises:
        ConfigError: one line; it is not there, or not such a table.
    """
    if not path.exists():
        raise ConfigError(f"{path}: not there; the word records alone makes it from runs/")
    return read(path)


def read(path: Path | str, text: str | None = None) -> pd.DataFrame:
    """The runs of a CSV, or of ``text`` that came from ``path``."""
    frame = sheet.read(path, FILLED, list(filter(is_number, NEEDED)), ("device",), text)
    return checked(frame.replace({"device": {"": np.nan}}), str(path))


def is_number(column: str) -> bool:
    return column in COUNTED or METRIC.fullmatch(column) is not None


def checked(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """The runs with their numbers as such, each known once and all of one study.

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
        one = twice.iloc[0]
        ids = few(twice.groupby(KEY, dropna=False, sort=False)["run_id"].apply(list).iloc[0])
        what = f"{named(one['variant'], one['r'])}, rate {one['learning_rate']:g}, seed {one['seed']:.0f}"
        raise ConfigError(f"{where}: {what} is there more than once: {ids}")
    device = frame["device"].astype(object).str.split(":").str[0]  # an object also where no run has one yet
    kinds = frame.assign(device=device, steps=frame["steps"].where(frame["learning_rate"].notna()))
    for name in ("model", "dataset", "steps", "alpha", "device"):
        if len(values := kinds[name].dropna().unique()) > 1:
            raise ConfigError(f"{where}: runs of {name} {few([str(value) for value in values])}: not one study")
    return frame.sort_values(KEY, ignore_index=True)


def gathered(frame: pd.DataFrame) -> Gathered:
    """The rows as ``src.eval`` has them from records, with the fields that its comparison asks for."""
    axes = {name: asdict(compose([f"variant={name}"]).variant) for name in frame["variant"].unique()}
    metrics = [name for name in frame if METRIC.fullmatch(name)]
    rows = []
    for one in frame.to_dict("records"):
        said: dict[str, Any] = {str(key): None if pd.isna(value) else value for key, value in one.items()}
        variant = axes[said["variant"]]
        fields: dict[str, Any] = {"variant": {key: value for key, value in variant.items() if key != "name"}}
        if variant["trains"] == "adapter":
            fields["lora"] = {"r": said["r"], "alpha": said["alpha"]}
        if variant["trains"] != "none":
            fields["train"] = {"lr": said["learning_rate"]}
        seed = int(said["seed"])
        rows.append(
            {name: said.get(name) for name in (*NUMBERS, *TEXTS, "commit")}
            | {"fields": dict(flatten(fields)), "group": json.dumps(fields), "seed": seed, "data_seed": seed}
            | {key: variant[key] for key in ("trains", "base_precision")}
            | {key: said[key] for key in ("run_id", "model", "dataset", "variant", "r", "alpha", "learning_rate", "status")}
            | {"metrics": {name: said[name] for name in metrics if said[name] is not None}, "failed_checks": {}}
            # A held copy changes no number, so it parts no runs here.
            | {"hold_dequantised": False, "dirty": said.get("dirty") is True, "versions": None}
        )
    absent = [row["run_id"] for row in rows if row["status"] == MISSING]
    return Gathered(rows, expected=len(rows), absent=absent)
