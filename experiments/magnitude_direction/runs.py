"""Train the runs and read their weights at the checkpoints: LoRA and DoRA in one pack, full fine-tuning run by run.

Every row is appended to its file as soon as it is measured, by whichever process measured it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments import sheet
from experiments.magnitude_direction.decomposition import Change, of_pack, of_weights
from src.config.schema import Config
from src.engine.protocol import Step
from src.measure.scorer import Scorer, per_token
from src.model import device
from src.model.device import Numerics
from src.train import session
from src.train.session import Session
from src.variants import quantization

RESULTS, LOSSES = "results.csv", "losses.csv"
COLUMNS = {
    RESULTS: "variant,r,seed,lr,step,paper,module,layer,d_in,dM,dD,relative_dM",
    LOSSES: "variant,r,seed,lr,step,train,val,test",
}
ROWS_AT_ONCE = 128  # of each run of the pack in scoring; a share of the free memory would change with other processes


@dataclass(frozen=True)
class Plan:
    """Settings that all runs share. ``read_steps``, from 1: weights are read after them, and training ends with the last."""

    folder: Path
    read_steps: tuple[int, ...]

    @property
    def steps(self) -> int:
        return self.read_steps[-1]

    def is_papers(self, step: int) -> bool:
        """Tell whether a step is one of the paper's: three intermediate checkpoints and the final one, evenly spaced."""
        return step in [round(self.steps * share) for share in (0.25, 0.5, 0.75, 1.0)]


def append(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Append rows to one of the two files, with five digits."""
    sheet.append(path, COLUMNS[path.name].split(","), ([_text(value) for value in row] for row in rows))


def _text(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


class Losses:
    """Mean log-losses of an engine's runs: training since the last checkpoint, validation, and test at the end."""

    def __init__(self, plan: Plan, opened: Session) -> None:
        self.plan, self.configs, self.items = plan, opened.configs, opened.loaded.rows.items
        self.scorer = Scorer(opened.engine.scored, ROWS_AT_ONCE, opened.loaded.rows.pad)

    def write(self, step: int, steps: Sequence[Step]) -> str:
        """Append a row for each run and return the range over runs, in words. A diverged run has nan as its training loss."""
        val = [per_token(losses) for losses in self.scorer.losses(self.items["val"])]
        test: list[float | None] = [None] * len(val)
        if step == self.plan.steps:
            test = [per_token(losses) for losses in self.scorer.losses(self.items["test"])]
        rows = []
        for run, config in enumerate(self.configs):
            seen = [s.loss[run] if math.isfinite(s.grad_norm[run]) else math.nan for s in steps]
            rows.append((*_of(config), step, sum(seen) / len(seen), val[run], test[run]))
        append(self.plan.folder / LOSSES, rows)
        return f"val {min(val):.3f} to {max(val):.3f}"


def _of(config: Config) -> tuple[str, int, int, float]:
    """Name a run by (variant, r, seed, lr); r is 0 where there is no adapter."""
    return config.variant.name, config.lora.r if config.variant.trains == "adapter" else 0, config.seed, config.train.lr


def _write_changes(plan: Plan, config: Config, step: int, changes: Sequence[Change]) -> None:
    rows = [
        (*_of(config), step, int(plan.is_papers(step)), module, layer, d_in, dM, dD, dM / norm)
        for module, layer, d_in, dM, dD, norm in changes
    ]
    append(plan.folder / RESULTS, rows)


def _advance(plan: Plan, engine: Any, losses: Losses, read: Callable[[int], None], finish: Callable[[], None], name: str) -> None:
    """Train to the last step; at each checkpoint ``read`` the weights and write the losses."""
    done, started = 0, time.perf_counter()
    for step in plan.read_steps:
        steps: list[Step] = []
        while done < step:
            steps += engine.advance(done, upto := min(done + 10, step))
            done = upto
        trained = time.perf_counter() - started
        read(step)
        if step == plan.steps:
            finish()
        ranges = losses.write(step, steps)
        whole = time.perf_counter() - started
        print(
            f"{name}: step {step} of {plan.steps}, {ranges}, {trained:.1f} s trained, {whole:.1f} s read and scored",
            flush=True,
        )


def train_pack(plan: Plan, configs: Sequence[Config]) -> dict[str, Any]:
    """Train all runs with an adapter together. Returns entries for the provenance."""
    started = time.perf_counter()
    opened = session.open(configs, steps=plan.steps)
    engine: Any = opened.engine
    print(f"pack: {len(configs)} runs, {engine.speed_layers}, built in {time.perf_counter() - started:.1f} s", flush=True)

    def read(step: int) -> None:
        for config, changes in zip(opened.configs, of_pack(engine), strict=True):
            _write_changes(plan, config, step, changes)

    _advance(plan, engine, Losses(plan, opened), read, engine.finish, "pack")
    return _measured(engine.numerics, started) | {"runs": len(configs), "speed": engine.speed_layers}


def train_full(plan: Plan, config: Config, threads: int | None = None) -> dict[str, Any]:
    """Train one run of full fine-tuning with the engine of ``variant=full``: fp32 weights, bf16 products.

    ``threads``: torch's threads on the CPU, where other processes run beside this one.
    """
    if threads:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    opened = session.open([config], steps=plan.steps)
    engine = opened.engine
    linears = quantization.linear_layers(engine.network)
    before = {name: layer.weight.detach().clone() for name, layer in linears}

    def read(step: int) -> None:
        _write_changes(plan, config, step, of_weights(before, {name: layer.weight for name, layer in linears}))

    name = f"full seed {config.seed}"
    print(f"{name}: built in {time.perf_counter() - started:.1f} s", flush=True)
    _advance(plan, engine, Losses(plan, opened), read, engine.finish, name)
    return _measured(engine.numerics, started)


def _measured(numerics: Numerics, started: float) -> dict[str, Any]:
    peak, kind = device.peak_memory(numerics.device)
    return {"seconds": round(time.perf_counter() - started, 1), "peak_gib": round(peak / 2**30, 2), "peak_kind": kind}
