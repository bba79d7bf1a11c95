"""Describe what a command is about to do: its packs, what they need, and how long it took the last time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from ..files.text import byte_size
from ..record.records import RUNS, RunFolder
from .fit import Memory
from .machine import Machine
from .packs import Pack, resumable_steps

SHOWN = 20  # packs; runs that train alone can be thousands


def outlook(packs: Sequence[Pack], memory: Memory) -> str:
    """Write the packs as a table under one line that sums them up."""
    config = packs[0].config
    lines = [_summary(packs)]
    rows = [
        (str(number), pack.precision, pack.size, pack.variants, pack.settings, _need(pack))
        for number, pack in enumerate(packs[:SHOWN], start=1)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        lines.append("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    machine = memory.machine(config.device)
    if machine.total and packs[0].memory_bytes is not None:
        share = config.pack.memory_share
        whole = f" ({share:g} of {_bytes(machine.total)})" if share < 1 else ""
        lines[1] += f" of {_bytes(share * machine.total)}{whole}"
    if len(packs) > SHOWN:
        lines.append(f"  and {len(packs) - SHOWN} more")
    seconds = expected(packs, machine)
    if seconds is not None:
        lines.append(f"  training takes about {_duration(seconds)}, going by earlier runs")
    return "\n".join(lines)


def _summary(packs: Sequence[Pack]) -> str:
    runs = sum(len(pack.jobs) for pack in packs)
    configs = [pack.config for pack in packs]
    models, datasets = ({getattr(config, group).name: None for config in configs} for group in ("model", "dataset"))
    work: dict[str, None] = {}
    for train in (config.train for config in configs if config.variant.trains != "none"):
        rows = f"{train.batch_size * train.grad_accum} rows"
        work[f"{train.steps} steps of {rows}" if train.epochs is None else f"{train.epochs:g} epochs, {rows} a step"] = None
    counted = f"{len(packs)} pack{'s' * (len(packs) > 1)}, {runs} runs"
    return ", ".join(filter(None, [f"{counted}: {', '.join(models)} on {', '.join(datasets)}", " or ".join(work)]))


def _need(pack: Pack) -> str:
    return "" if pack.memory_bytes is None else f"about {_bytes(pack.memory_bytes)}"


def _bytes(count: float) -> str:
    return byte_size(count, MiB=0, GiB=1)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{int(unit == 'h')}f} {unit}"
    return f"{max(1.0, seconds):.0f} s"


def expected(packs: Sequence[Pack], machine: Machine) -> float | None:
    """Estimate the seconds of training by earlier packs of this model and data on this kind of device; None if unknown."""
    names = {(pack.config.model.name, pack.config.dataset.name) for pack in packs}
    if len(names) > 1 or any(pack.config.train.epochs is not None for pack in packs):
        return None
    known = [result for result in _results() if _is_like(result, *min(names), machine)]
    per_row = next((tokens for result in known if (tokens := _tokens_per_row(result))), None)
    if per_row is None:
        return None
    seconds = 0.0
    speeds: dict[tuple[str, int], float] = {}
    for pack in (pack for pack in packs if pack.config.variant.trains != "none"):
        train, kind = pack.config.train, (pack.precision, len(pack.jobs))
        if kind not in speeds:
            speeds[kind] = _nearest(known, *kind)["pack_tokens_per_second"]
        rows = (train.steps - max(resumable_steps(pack.jobs[0]), default=0)) * train.batch_size * train.grad_accum
        seconds += len(pack.jobs) * rows * per_row / speeds[kind]
    return seconds


def _results() -> list[dict[str, Any]]:
    results = (RunFolder(path.parent.name).result() for path in sorted(RUNS.glob("*/result.json")))
    return [result for result in results if result]


def _is_like(result: dict[str, Any], model: str, dataset: str, machine: Machine) -> bool:
    """Tell whether a result is of this model, data and kind of device: a GPU's name has to match, any processor will do."""
    device = str(result.get("device"))
    here = device == f"cuda: {machine.gpu}" if machine.gpu else device.startswith("cpu:")
    same = (result.get("model"), result.get("dataset")) == (model, dataset)
    return bool(here and same and result.get("pack_tokens_per_second"))


def _nearest(known: Sequence[dict[str, Any]], precision: str, size: int) -> dict[str, Any]:
    """Find the earlier pack most like this one: of its precision if there is one, then of the nearest size."""
    return min(known, key=lambda result: (result["base_precision"] != precision, abs(math.log(result["pack_size"] / size))))


def _tokens_per_row(result: dict[str, Any]) -> float | None:
    """Count the tokens of a training row, without padding, from a run's counts; None where its config is unreadable by now."""
    try:
        train = RunFolder(result["run_id"]).read_config().train
        return float(result["train_tokens"] / (result["steps"] * train.batch_size * train.grad_accum))
    except (OSError, OmegaConfBaseException, TypeError, ZeroDivisionError):
        return None
