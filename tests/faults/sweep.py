"""The sweep that is killed, and what is compared of it with the same sweep that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as tensors_of

from tests.faults.commands import Command

# fp32 tells how exact regrouping is; nf4 multiplies in bf16.
ONE_PACK = "variant.base_precision=fp32"
TWO_PACKS = "variant.base_precision=fp32,nf4"
STEPS = 24
# Everything that draws a random number or reads a clock is on: dropout, generation, forgetting, many checkpoints.
SETTINGS = [
    *("model=tiny", "tracking=disabled", "sweep=faults", "dataset=jsonl", "dataset.path=rows.jsonl"),
    *(
        "variant=lora,dora",
        "lora.r=2,6",
        "lora.dropout=0.1",
        f"train.steps={STEPS}",
        "train.batch_size=4",
        "train.checkpoint_every=3",
    ),
    *("eval.every=8", "eval.max_new_tokens=12", "forgetting.tokens=128"),
]
# What a result says of the time, the machine and the company of a run; nothing else may differ.
CIRCUMSTANCES = (
    *(
        "pack_size",
        "halved_from",
        "wall_seconds",
        "train_seconds",
        "checkpoint_seconds",
        "tokens_per_second",
        "pack_tokens_per_second",
    ),
    *("peak_memory_bytes", "files", "sha256"),
)
# Of a run that went on in another pack than the reference's, by base precision: products of other shapes round otherwise.
LOSSES = {"fp32": 2e-5, "nf4": 5e-3}  # relative, of every number in metrics and predictions
WEIGHTS = {"fp32": 1e-5, "nf4": 1e-3}  # absolute


def prepare(folder: Path) -> None:
    """A working folder with the rows that the sweep reads."""
    folder.mkdir(parents=True)
    rows = (f'{{"context": "What is {n} plus one? ", "target": "{n + 1}"}}\n' for n in range(60))
    (folder / "rows.jsonl").write_text("".join(rows))


def start(folder: Path, precisions: str, *more: str) -> Command:
    """The same command for every case; ``more`` decides no number of a record."""
    return Command(folder, "-m", *SETTINGS, precisions, *more)


@dataclass(frozen=True)
class Record:
    """A finished run: its result without what the circumstances decide, and its other files."""

    result: dict[str, Any]
    pack_size: int
    metrics: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    adapter: bytes

    @classmethod
    def read(cls, folder: Path) -> Record:
        result = json.loads((folder / "result.json").read_text())
        kept = {key: value for key, value in result.items() if key not in CIRCUMSTANCES}
        metrics, predictions = (_lines(folder / f"{name}.jsonl") for name in ("metrics", "predictions"))
        adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        return cls(kept, result["pack_size"], metrics, predictions, adapter)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.adapter).hexdigest()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Reference:
    """The undisturbed sweep: records by run id, the names of all files, how long it took."""

    records: dict[str, Record]
    names: set[str]
    seconds: float

    def of_one_pack(self) -> Reference:
        """Select the runs that ONE_PACK's sweep trains, in the same pack."""
        left_out = {run for run, record in self.records.items() if record.result["base_precision"] != "fp32"}
        return Reference(
            {run: record for run, record in self.records.items() if run not in left_out},
            {name for name in self.names if not any(f"runs/{run}" in name for run in left_out)},
            self.seconds,
        )


def undisturbed(folder: Path, precisions: str) -> Reference:
    prepare(folder)
    started = time.monotonic()
    command = start(folder, precisions)
    assert command.wait() == 0, command.errors()
    records = {path.parent.name: Record.read(path.parent) for path in folder.glob("runs/*/result.json")}
    return Reference(records, _names(folder), time.monotonic() - started)


def _names(folder: Path) -> set[str]:
    """Every file and folder; those of the mirror aside, and the sweep's list, whose name tells which runs it has."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if "/wandb" not in name and not name.startswith("runs/sweeps/")}


@dataclass
class Verdict:
    """``wrong``: each difference that may not be. The others count runs."""

    wrong: list[str]
    identical: int = 0
    regrouped: int = 0  # of the identical: they trained in another pack than the reference's
    near: int = 0  # they did too, and that shows in their numbers
    gaps: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # of those near: precision -> (loss, weight)


def judge(folder: Path, reference: Reference) -> Verdict:
    """Compare a sweep that was brought to its end with the one that nobody disturbed."""
    verdict = Verdict([])
    names = _names(folder)
    for what, found in (("is missing", reference.names - names), ("should not be there", names - reference.names)):
        verdict.wrong += [f"{name} {what}" for name in sorted(found)]
    lists = [path for path in folder.glob("runs/sweeps/*") if path.name != ".lock"]
    if len(lists) != 1 or sorted(json.loads(lists[0].read_text())["run_ids"]) != sorted(reference.records):
        verdict.wrong.append(f"the sweep's list: {[path.name for path in lists]}")
    for run, wanted in reference.records.items():
        try:
            found = Record.read(folder / "runs" / run)
        except (OSError, ValueError, KeyError) as error:
            verdict.wrong.append(f"{run}: {error!r}")
            continue
        if found.result["status"] != "ok":
            verdict.wrong.append(f"{run}: {found.result['status']}, {found.result['reason']}")
        elif _differences(found, wanted) == []:
            verdict.identical += 1
            verdict.regrouped += found.pack_size != wanted.pack_size
        elif found.pack_size == wanted.pack_size:
            verdict.wrong += [f"{run}: {text}" for text in _differences(found, wanted)]
        else:
            _judge_regrouped(run, found, wanted, verdict)
    return verdict


def _differences(found: Record, wanted: Record) -> list[str]:
    parts = []
    for key in sorted({*found.result, *wanted.result}):
        if found.result.get(key) != wanted.result.get(key):
            parts.append(f"{key} is {found.result.get(key)}, not {wanted.result.get(key)}")
    if found.adapter != wanted.adapter:
        parts.append("another adapter")
    for name in ("metrics", "predictions"):
        if getattr(found, name) != getattr(wanted, name):
            parts.append(f"another {name}.jsonl")
    return parts


def _judge_regrouped(run: str, found: Record, wanted: Record, verdict: Verdict) -> None:
    verdict.near += 1
    for key in sorted({*found.result, *wanted.result} - {"metrics"}):
        if found.result.get(key) != wanted.result.get(key):
            verdict.wrong.append(f"{run}: {key} is {found.result.get(key)}, not {wanted.result.get(key)}")
    losses = [_gap(found.result["metrics"], wanted.result["metrics"])]
    for name in ("metrics", "predictions"):
        pairs = list(zip(getattr(found, name), getattr(wanted, name), strict=False))
        if len(getattr(found, name)) != len(getattr(wanted, name)):
            verdict.wrong.append(f"{run}: {len(getattr(found, name))} lines in {name}.jsonl")
        losses += [_gap(one, other) for one, other in pairs]
    precision = wanted.result["base_precision"]
    tensors, others = tensors_of(found.adapter), tensors_of(wanted.adapter)
    if tensors.keys() != others.keys():
        verdict.wrong.append(f"{run}: other tensors")
        return
    loss, weight = max(losses), max(float(np.abs(tensors[name] - others[name]).max()) for name in others)
    if loss > LOSSES[precision]:
        verdict.wrong.append(f"{run}: in a pack of {found.pack_size}, a loss is {loss:.1e} away")
    if weight > WEIGHTS[precision]:
        verdict.wrong.append(f"{run}: in a pack of {found.pack_size}, a weight is {weight:.1e} away")
    verdict.gaps.setdefault(precision, []).append((loss, weight))


def _gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of two rows' numbers; infinite where they have other keys or other words."""
    if one.keys() != other.keys():
        return math.inf
    gap = 0.0
    for key, value in other.items():
        if isinstance(value, float) and isinstance(one[key], float):
            gap = max(gap, abs(one[key] - value) / max(abs(value), 1e-3))
        elif one[key] != value:
            return math.inf
    return gap
