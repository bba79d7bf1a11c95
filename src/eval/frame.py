"""Records -> one row per run, and one row per logged loss. Reading needs no pandas, so that a refusal is immediate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.config import Config, variant_name
from src.records import RUNS, RunFolder, identity, read_lines

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
TEXTS = ("reason", "model_note", "peak_memory_kind", "device", "engine")
CURVES = ("train/loss", "val/loss")


@dataclass
class Gathered:
    """What the record files say, before pandas.

    rows: one dict a run; curves: one dict a logged number (run_id, step, metric, value);
    expected: how many runs were looked for; absent: the ids among them that have no result.json;
    problems: one line for each file that could not be read.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    expected: int = 0
    absent: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def measured(self) -> list[str]:
        """The metrics that at least one finished run has."""
        return sorted({name for row in self.rows if row["status"] == "ok" for name in row["metrics"]})

    def frame(self) -> pd.DataFrame:
        """One row per run. Metrics are columns under their own name (``test/loss``); an absent number is NaN.

        ``fields`` holds the identity of the run as a flat dict with dotted keys, ``failed_checks`` a dict name -> detail.
        """
        import pandas as pd

        plain = [{key: value for key, value in row.items() if key != "metrics"} | row["metrics"] for row in self.rows]
        frame = pd.DataFrame(plain)
        numbers = {name for row in self.rows for name in row["metrics"]} | {*NUMBERS, "r", "alpha", "learning_rate"}
        for name in sorted(numbers & set(frame.columns)):
            frame[name] = frame[name].astype(float)
        return frame

    def curve_frame(self) -> pd.DataFrame:
        """One row per logged loss: run_id, step, metric (``train/loss`` or ``val/loss``), value in nats per target token."""
        import pandas as pd

        return pd.DataFrame(self.curves, columns=["run_id", "step", "metric", "value"])


def run_ids(root: Path = RUNS) -> list[str]:
    """Every folder below ``root`` that holds a run."""
    return sorted(path.name for path in root.glob("*") if any((path / name).exists() for name in ("config.yaml", "result.json")))


def known_sweeps(root: Path = RUNS) -> list[str]:
    return sorted(path.stem for path in (root / "sweeps").glob("*.json"))


def gather(ids: list[str], root: Path = RUNS) -> Gathered:
    """Read the runs of ``ids``. What cannot be read becomes a line in ``problems``, never an exception."""
    found = Gathered(expected=len(ids))
    first_of: dict[str, str] = {}
    for run in ids:
        folder = RunFolder(run, root)
        recorded = (folder.path / "result.json").exists()
        if not recorded:
            found.absent.append(run)
        if not (folder.path / "config.yaml").exists():
            if recorded:
                found.problems.append(f"{folder.path / 'config.yaml'}: not there, so the run is in no row")
            continue
        try:
            config = folder.read_config()
            fields = dict(flatten(identity(config)))
        except (OSError, ValueError, TypeError, AssertionError, YAMLError, OmegaConfBaseException) as error:
            found.problems.append(f"{folder.path / 'config.yaml'}: cannot be read, so the run is in no row: {_first_line(error)}")
            continue
        key = json.dumps(fields, sort_keys=True)
        if key in first_of:
            found.problems.append(f"{folder.path}: the same run as {first_of[key]}, left out")
            continue
        first_of[key] = run
        row = _described(run, config, fields)
        try:
            row |= _recorded(folder) if recorded else {"status": MISSING}
        except (OSError, ValueError, RecursionError) as error:
            found.problems.append(f"{folder.path / 'result.json'}: cannot be read: {_first_line(error)}")
            row |= {"status": UNREADABLE, "reason": "result.json cannot be read"}
        found.rows.append(row)
        _read_curves(folder, found)
    return found


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as (dotted key, value)."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _described(run: str, config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """What the config alone says about a run. The record is not asked: ``group`` and ``fields`` say what was ordered."""
    like = {key: value for key, value in fields.items() if key not in ("seed", "data_seed")}
    return {
        "run_id": run,
        "group": json.dumps(like, sort_keys=True),
        "fields": like,
        "variant": variant_name(config.variant),
        "base_precision": config.variant.base_precision,
        "trains": config.variant.trains,
        "r": fields.get("lora.r"),
        "alpha": fields.get("lora.alpha"),
        "learning_rate": fields.get("train.lr"),
        "seed": config.seed,
        "data_seed": config.data_seed,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "hold_dequantised": bool(fields.get("model.hold_dequantised")),
        "status": MISSING,
        "metrics": {},
        "failed_checks": {},
        **dict.fromkeys(NUMBERS),
        **dict.fromkeys(TEXTS),
        "model_note": config.model.note,
        "engine": fields.get("engine"),
    }


def _recorded(folder: RunFolder) -> dict[str, Any]:
    """What result.json adds. A record that names no pack, as from before there were any, is of a pack of one.

    Raises:
        ValueError: it is not JSON, or not a record.
    """
    result = folder.result()
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        raise ValueError("not a record: it has no status")
    metrics = result.get("metrics") or {}
    checks = result.get("checks") or {}
    if not isinstance(metrics, dict) or not isinstance(checks, dict):
        raise ValueError("not a record: metrics and checks must be mappings")
    held = result.get("hold_dequantised")
    if not isinstance(held, bool | None):
        raise ValueError(f"not a record: hold_dequantised is {held!r:.40}, not true or false")
    numbers = {name: _number(name, result.get(name)) for name in NUMBERS}
    if numbers["pack_size"] is None:
        numbers["pack_size"] = 1.0
    # A metric is "split/name"; anything else could take the place of a column of ours.
    measured = {_text(name): _number(name, value) for name, value in metrics.items() if "/" in name}
    texts = {name: _text(result[name]) for name in TEXTS if result.get(name) is not None}
    failed = {
        _text(name): _text(check.get("detail", "") if isinstance(check, dict) else check)
        for name, check in checks.items()
        if not (isinstance(check, dict) and check.get("ok") is True)
    }
    kept = {name: value for name, value in measured.items() if value is not None}
    row = {"status": _text(result["status"]), "metrics": kept, "failed_checks": failed} | numbers | texts
    return row if held is None else row | {"hold_dequantised": held}


def _text(value: Any) -> str:
    """JSON can spell half a surrogate pair, which no file and no frame can hold."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _number(name: str, value: Any) -> float | None:
    """A finite number, or None where there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a record: {name} is {value!r:.40}, not a number")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError as error:
        raise ValueError(f"not a record: {name} is too large") from error


def _read_curves(folder: RunFolder, found: Gathered) -> None:
    try:
        for line in read_lines(folder.metrics):
            step = _number("step", line.get("step")) if isinstance(line, dict) else None
            if step is None:
                raise ValueError("a line has no step")
            for metric in CURVES:
                if (value := _number(metric, line.get(metric))) is not None:
                    found.curves.append({"run_id": folder.run_id, "step": step, "metric": metric, "value": value})
    except (OSError, ValueError, RecursionError) as error:
        found.problems.append(f"{folder.metrics}: read up to a line that is broken: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
