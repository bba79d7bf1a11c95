"""Read records: one row per run. Reading needs no pandas, so that a refusal is immediate.

A finished run is read from its ``result.json`` and ``provenance.json`` alone: 100,000 of them in well under a minute.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..config.schema import variant_name
from ..files.durable import Damaged, unseal
from ..files.text import first_line
from ..record.records import PROVENANCE, RESULT, RUNS, RunFolder, id_of, identity, run_id, with_defaults
from .shares import read_shares

if TYPE_CHECKING:
    import pandas as pd

MISSING = "missing"  # no result.json yet
UNREADABLE = "unreadable"  # a result.json that is no record
NUMBERS = (
    "effective_scale",
    "pack_size",
    "steps",
    "trainable_parameters",
    "total_parameters",
    "adapter_bytes",
    "peak_memory_bytes",
    "estimated_memory_bytes",
    "tokens_per_second",
    "pack_tokens_per_second",
    "halved_from",
    "train_seconds",
    "train_tokens",
)
FINGERPRINTS = ("data_fingerprint", "token_fingerprint", "base_fingerprint", "prose_fingerprint")
TEXTS = ("reason", "model_note", "peak_memory_kind", "device", "engine")
COUNTS_BELOW = 2.0**53  # a table counts in whole numbers, which a float holds up to here
METRICS_BELOW = 1e100  # so that sums of squares are finite
RUN_ID = re.compile(r"[0-9a-f]{10}")
METRIC = re.compile(r"[A-Za-z0-9_.-]{1,50}/[A-Za-z0-9_.-]{1,50}")  # "split/name"
BEFORE, AFTER, CHANGE = "forgetting/before", "forgetting/after", "forgetting/change"


@dataclass
class Gathered:
    """The content of record files, before pandas.

    rows: one dict a run; expected: how many runs were looked for; absent: the ids among them that have no result.json;
    problems: one line for each file that could not be read.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    expected: int = 0
    absent: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def measured(self) -> list[str]:
        """List the metrics that at least one finished run has."""
        return sorted({name for row in self.rows if row["status"] == "ok" for name in row["metrics"]})

    def frame(self) -> pd.DataFrame:
        """Make a frame of one row per run. Metrics are columns under their own name (``test/loss``); an absent number is NaN.

        ``fields`` holds the identity of the run as a flat dict with dotted keys, ``failed_checks`` a dict name -> detail.
        """
        import pandas as pd

        plain = [{key: value for key, value in row.items() if key != "metrics"} | row["metrics"] for row in self.rows]
        frame = pd.DataFrame(plain)
        numbers = {name for row in self.rows for name in row["metrics"]} | {*NUMBERS, "r", "alpha", "learning_rate"}
        for name in sorted(numbers & set(frame.columns)):
            frame[name] = frame[name].astype(float)
        return frame


def run_ids(root: Path = RUNS) -> list[str]:
    """List the folders below ``root`` that hold a run."""
    return sorted(path.name for path in root.glob("*") if any((path / name).exists() for name in ("config.yaml", "result.json")))


def known_sweeps(root: Path = RUNS) -> list[str]:
    return sorted(path.stem for path in (root / "sweeps").glob("[!.]*.json"))


def gather(ids: list[str], root: Path = RUNS) -> Gathered:
    """Read the runs of ``ids``. What cannot be read becomes a line in ``problems``, never an exception."""
    gathered = Gathered(expected=len(ids))
    first_of: dict[tuple[str, int, int], str] = {}
    fields_of: dict[str, dict[str, Any]] = {}  # runs of one group share their fields: a sweep has thousands of runs
    for run in ids:
        row, problem = _read_run(root / run)
        if problem is not None:
            gathered.problems.append(problem)
        if (row is None or row["status"] == MISSING) and not (root / run / "result.json").exists():
            gathered.absent.append(run)
        if row is None:
            continue
        key = (row["group"], row["seed"], row["data_seed"])
        if key in first_of:
            gathered.problems.append(f"{root / run}: the same run as {first_of[key]}, left out")
            continue
        first_of[key] = run
        row["fields"] = fields_of.setdefault(row["group"], row["fields"])
        gathered.rows.append(row)
    return gathered


def _read_run(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Read a run: (its row, the problem in reading it). No row where neither record nor config says what was ordered."""
    row: dict[str, Any] | None = None
    result, broken = _read(folder, RESULT)
    if result is not None:
        try:
            row = _ordered_by_record(folder.name, result)
        except (ValueError, RecursionError) as error:
            broken = first_line(error)
    if row is None:
        try:
            row = _ordered_by_config(folder)
        except (OSError, ValueError, TypeError, AssertionError, YAMLError, OmegaConfBaseException, RecursionError) as error:
            return None, f"{folder / 'config.yaml'}: cannot be read, so the run is in no row: {first_line(error)}"
    if row is None and broken is None:
        return None, None if result is None else f"{folder / 'config.yaml'}: not there, so the run is in no row"
    if row is None:
        return None, f"{folder / 'result.json'}: cannot be read, and there is no config.yaml, so the run is in no row: {broken}"
    if result is not None and broken is None:
        try:
            row |= _recorded(result)
        except ValueError as error:
            broken = first_line(error)
    origin = _origin(folder, result if broken is None else None)
    row |= {"commit": origin.commit, "dirty": origin.dirty, "versions": origin.versions, **origin.fingerprints}
    if broken is None:
        return row, origin.problem
    row |= {"status": UNREADABLE, "reason": "result.json cannot be read"}
    return row, f"{folder / 'result.json'}: cannot be read: {broken}"


def _read(folder: Path, name: str, sha256: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """Read a sealed file: (its mapping, None), (None, why it cannot be read), or twice None where there is no such file."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        value = unseal(data)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise Damaged("it is not the one that belongs to result.json")
        # JSON can spell half a surrogate pair, which no file and no frame can hold.
        if b"\\ud" in data or b"\\uD" in data:
            value = _without_half_surrogates(value)
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, RecursionError) as error:
        return None, first_line(error)
    return value, None


def _without_half_surrogates(value: Any) -> Any:
    """Replace every half of a surrogate pair in the texts of a value."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_half_surrogates(key): _without_half_surrogates(entry) for key, entry in value.items()}
    return [_without_half_surrogates(entry) for entry in value] if isinstance(value, list) else value


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested dicts into (dotted key, value)."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _ordered_by_record(run: str, result: dict[str, Any]) -> dict[str, Any] | None:
    """Read what was ordered from the record; None where it does not say, as before it had an ``identity``.

    Raises:
        ValueError: it is not a record, or its identity is not what its run id is the hash of.
    """
    if not isinstance(result.get("status"), str):
        raise ValueError("not a record: it has no status")
    ordered = result.get("identity")
    if ordered is None:
        return None
    if not isinstance(ordered, dict) or id_of(ordered) != result.get("run_id"):
        raise ValueError("not a record: its identity is not what its run_id is the hash of")
    if RUN_ID.fullmatch(run) and run != result["run_id"]:  # a folder that was given another name is still its run's
        raise ValueError("it is the record of another run")
    names = {name: result.get(name) for name in ("model", "dataset", "variant")}
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError("not a record: its model, dataset and variant are not named")
    return _ordered(run, dict(flatten(ordered)), names, result.get("model_note"))


def _ordered_by_config(folder: Path) -> dict[str, Any] | None:
    """Read what was ordered from config.yaml; None where there is none."""
    if not (folder / "config.yaml").exists():
        return None
    config = RunFolder(folder.name, folder.parent).read_config()
    if run_id(config) != folder.name:
        raise Damaged("its fields are not those that the folder's name is the hash of")
    names = {"model": config.model.name, "dataset": config.dataset.name, "variant": variant_name(config.variant)}
    return _ordered(folder.name, dict(flatten(identity(config))), names, config.model.note)


def _ordered(run: str, fields: dict[str, Any], names: dict[str, Any], note: Any) -> dict[str, Any]:
    """Make a row before anything was measured. ``group`` is the same for runs that differ in their seeds alone."""
    if not isinstance(fields.get("seed"), int) or not isinstance(fields.get("data_seed"), int):
        raise ValueError("not a record: its seeds are no whole numbers")
    fields = with_defaults(fields)
    without_seeds = {key: value for key, value in fields.items() if key not in ("seed", "data_seed")}
    return {
        "run_id": run,
        "group": sys.intern(json.dumps(without_seeds, sort_keys=True)),
        "fields": without_seeds,
        **names,
        "base_precision": str(fields.get("variant.base_precision")),
        "trains": str(fields.get("variant.trains")),
        "r": _number("lora.r", fields.get("lora.r")),
        "alpha": _number("lora.alpha", fields.get("lora.alpha")),
        "learning_rate": _number("train.lr", fields.get("train.lr")),
        "seed": fields["seed"],
        "data_seed": fields["data_seed"],
        "hold_dequantised": bool(fields.get("model.hold_dequantised")),
        "status": MISSING,
        "metrics": {},
        "failed_checks": {},
        **dict.fromkeys(NUMBERS),
        **dict.fromkeys(TEXTS),
        "model_note": None if note is None else str(note),
        "engine": fields.get("engine"),
        "number_format": None,
        "base_share": None,
    }


class Origin(NamedTuple):
    """The code that a run came from and the contents that it read, None where unknown.

    dirty: whether files differed from the commit; versions: of Python and the libraries, as JSON; problem: why provenance.json
    cannot be read; fingerprints: of the rows, tokens, weights and prose that were really read.
    """

    commit: str | None = None
    dirty: bool | None = None
    versions: str | None = None
    problem: str | None = None
    fingerprints: Mapping[str, str | None] = MappingProxyType(dict.fromkeys(FINGERPRINTS))


def _origin(folder: Path, result: dict[str, Any] | None) -> Origin:
    """Read the code that a run came from and what it read, from the provenance.json that belongs to the result."""
    files = (result or {}).get("files")
    known = files.get(PROVENANCE) if isinstance(files, dict) else None
    provenance, broken = _read(folder, PROVENANCE, known.get("sha256") if isinstance(known, dict) else None)
    if provenance is None:
        if broken is None and known is not None:
            broken = "it is gone"
        problem = f"{folder / PROVENANCE}: cannot be read, so nothing says which code the run came from: {broken}"
        return Origin(problem=None if broken is None else problem)
    packages, commit, dirty = provenance.get("packages"), provenance.get("commit"), provenance.get("dirty")
    versions = {"python": provenance.get("python"), **(packages if isinstance(packages, dict) else {})}
    return Origin(
        commit=None if commit is None else sys.intern(str(commit)[:40]),
        dirty=dirty if isinstance(dirty, bool) else None,
        versions=sys.intern(json.dumps(versions, sort_keys=True)),
        fingerprints={key: _text_or_none(provenance.get(key)) for key in FINGERPRINTS},
    )


def _text_or_none(value: Any) -> str | None:
    return sys.intern(value) if isinstance(value, str) and value else None


def _recorded(result: dict[str, Any]) -> dict[str, Any]:
    """Read what result.json adds to a row. A record that names no pack, as from before there were any, is of a pack of one.

    Raises:
        ValueError: it is not a record.
    """
    metrics = result.get("metrics") or {}
    checks = result.get("checks") or {}
    if not isinstance(metrics, dict) or not isinstance(checks, dict):
        raise ValueError("not a record: metrics and checks must be mappings")
    held = result.get("hold_dequantised")
    if not isinstance(held, bool | None):
        raise ValueError(f"not a record: hold_dequantised is {held!r:.40}, not true or false")
    numbers = {name: _number(name, result.get(name)) for name in NUMBERS}
    negative = [name for name, value in numbers.items() if value is not None and value < 0]
    if negative:
        raise ValueError(f"not a record: {negative[0]} is below 0")
    if numbers["pack_size"] is None:
        numbers["pack_size"] = 1.0
    # Anything else could take the place of a column of ours, or of a figure.
    measured = {name: _number(name, value, METRICS_BELOW) for name, value in metrics.items() if METRIC.fullmatch(name)}
    texts = {name: str(result[name]) for name in TEXTS if result.get(name) is not None}
    failed = {
        name: str(check.get("detail", "") if isinstance(check, dict) else check)
        for name, check in checks.items()
        if not (isinstance(check, dict) and check.get("ok") is True)
    }
    kept = {name: value for name, value in measured.items() if value is not None}
    if BEFORE in kept and AFTER in kept:
        kept[CHANGE] = kept[AFTER] - kept[BEFORE]
    row = {"status": result["status"], "metrics": kept, "failed_checks": failed} | numbers | texts
    # Measured together with the device: before that it is only what was ordered.
    if "device" in texts and result.get("base_precision") is not None:
        row["base_share"] = read_shares(result.get("base_share"))
        row["number_format"] = sys.intern(str(result["base_precision"]))
    return row if held is None else row | {"hold_dequantised": held}


def _number(name: str, value: Any, below: float = COUNTS_BELOW) -> float | None:
    try:
        return number(name, value, below)
    except ValueError as error:
        raise ValueError(f"not a record: {error}") from None


def number(name: str, value: Any, below: float) -> float | None:
    """Read a finite number, or None where there is none.

    Raises:
        ValueError: it is something else, or not below ``below`` in size.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r:.40}, not a number")
    if abs(value) < below:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    raise ValueError(f"{name} is too large")
