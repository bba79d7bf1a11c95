"""Train, and read dM and dD at the checkpoints: ``python -m experiments.magnitude_direction.measure [key=value ...]``.

    model=smollm2_135m  tiny | smollm2_135m
    variants=lora,dora,full
    ranks=16,64         of LoRA and DoRA; alpha is 16
    lora=3e-3 dora=3e-3 full=1e-4     the learning rate; for LoRA and DoRA also one for each rank: lora=3e-3,1e-3
    seeds=3,4,5,6,7,8   of initial adapter, data order and batches
    steps=300 batch=16  of rows
    at=2,10,38,75,150,225,262,300     steps after which weights are read; with other steps= the same shares of them
    val=128 test=1004   examples that are scored, at most
    full_processes=0    so many processes for the runs of full, after the pack; 0: in this one, one after the other
    out=FOLDER          for results.csv.gz, losses.csv and provenance.json; default: this folder

LoRA and DoRA train in one pack, on everything that ``src.train`` has. Step 1 moves nothing: the warm-up starts at rate 0.
"""

from __future__ import annotations

import gzip
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments import folders
from experiments.magnitude_direction.runs import LOSSES, RESULTS, Plan, train_full, train_pack
from src.command import cli, words
from src.command.cli import compose
from src.command.words import Key
from src.config.schema import Config
from src.files.durable import dump_json, write_atomically
from src.files.errors import ConfigError
from src.files.terminal import quiet_libraries
from src.model import device, models, refusals
from src.model.device import reset_peak
from src.record import records

HERE = Path(__file__).resolve().parent
SHARES = (2 / 300, 10 / 300, 38 / 300, 0.25, 0.5, 0.75, 262 / 300, 1.0)
VARIANTS = ("lora", "dora", "full")


def list_of(read: words.Read) -> words.Read:
    """Make a reader of values that are separated by commas, none of them twice where they are whole numbers."""

    def check(value: str) -> list[Any]:
        parts = [read(part) for part in value.split(",")]
        if all(isinstance(part, int | str) for part in parts) and len(set(parts)) < len(parts):
            raise ValueError("different values")
        return parts

    return check


RATE = words.number(1e-8, 1.0)
KEYS = {
    "model": Key(words.one_of("smollm2_135m", "tiny"), "smollm2_135m"),
    "variants": Key(list_of(words.one_of(*VARIANTS)), "lora,dora,full"),
    "ranks": Key(list_of(words.whole(1, 512)), "16,64"),
    "lora": Key(list_of(RATE), "3e-3"),
    "dora": Key(list_of(RATE), "3e-3"),
    "full": Key(RATE, "1e-4"),
    "seeds": Key(list_of(words.whole(0, 2**31 - 1)), "3,4,5,6,7,8"),
    "steps": Key(words.whole(2, 100_000), "300"),
    "batch": Key(words.whole(1, 1024), "16"),
    "at": Key(list_of(words.whole(1, 100_000)), "75,150,225,300"),
    "val": Key(words.whole(1, 100_000), "128"),
    "test": Key(words.whole(1, 100_000), "1004"),
    "full_processes": Key(words.whole(0, 64), "6"),
    "out": Key(Path, "FOLDER"),
}
DEFAULTS: dict[str, Any] = {
    "model": "smollm2_135m", "variants": list(VARIANTS), "ranks": [16, 64], "lora": [3e-3], "dora": [3e-3], "full": 1e-4,
    "seeds": [3, 4, 5, 6, 7, 8], "steps": 300, "batch": 16, "val": 128, "test": 1004, "full_processes": 0, "out": HERE,
}  # fmt: skip


def plan_of(asked: dict[str, Any]) -> Plan:
    """Plan after which steps weights are read. Raises ConfigError where ``at`` and ``steps`` do not agree."""
    steps = asked["steps"]
    read_after = sorted(asked["at"]) if "at" in asked else sorted({max(2, round(share * steps)) for share in SHARES})
    if read_after[-1] != steps:
        raise ConfigError(f"at: the last checkpoint is {read_after[-1]}, and has to be the last step, {steps}")
    return Plan(asked["out"], tuple(read_after))


def configs_of(asked: dict[str, Any]) -> tuple[list[Config], list[Config]]:
    """Make the configs of (the runs with an adapter, the runs of full). Raises ConfigError, in one line."""
    common = [
        f"model={asked['model']}", "dataset=cldr_names", "tracking=disabled", "forgetting.tokens=0",
        f"train.steps={asked['steps']}", f"train.batch_size={asked['batch']}", f"eval.val_examples={asked['val']}",
        f"eval.test_examples={asked['test']}",
    ]  # fmt: skip

    def seeded(*overrides: str) -> list[Config]:
        config = compose([*common, *overrides])
        return [replace(config, seed=seed, data_seed=seed) for seed in asked["seeds"]]

    adapters: list[Config] = []
    for variant in [name for name in VARIANTS[:2] if name in asked["variants"]]:
        rates = asked[variant] * len(asked["ranks"]) if len(asked[variant]) == 1 else asked[variant]
        if len(rates) != len(asked["ranks"]):
            raise ConfigError(f"{variant}: {len(rates)} rates for {len(asked['ranks'])} ranks; give one for each, or one for all")
        for r, lr in zip(asked["ranks"], rates, strict=True):
            adapters += seeded(f"variant={variant}", f"lora.r={r}", f"train.lr={lr!r}")
    full = seeded("variant=full", f"train.lr={asked['full']!r}") if "full" in asked["variants"] else []
    return adapters, full


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Train everything; gives the seconds and the memory of each part, and what failed."""
    plan, (adapters, full) = plan_of(asked), configs_of(asked)
    refusals.refuse_impossible((adapters or full)[0].model)
    if asked["model"] == "smollm2_135m":
        models.location((adapters or full)[0].model)  # converted once, before processes want it side by side
    parts: dict[str, Any] = {"failed": []}
    if adapters:
        # By itself: a GPU gives each process that uses it an equal share of its time, and those of full use little of theirs.
        parts |= _attempt("pack", lambda: train_pack(plan, adapters), parts["failed"])
    processes = min(asked["full_processes"], len(full))
    if not processes:
        for config in full:
            reset_peak(device.choose(config).device)
            parts |= _attempt(f"full seed {config.seed}", partial(train_full, plan, config), parts["failed"])
        return parts
    # The runs of full are bound by the launches of their many small kernels, so they share a GPU well among themselves.
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=quiet_libraries) as pool:
        futures: dict[str, Future[dict[str, Any]]] = {
            f"full seed {config.seed}": pool.submit(train_full, plan, config, threads) for config in full
        }
        try:
            for name, future in futures.items():
                parts |= _attempt(name, future.result, parts["failed"])
        except BaseException:  # a signal: what is measured is written, and the pool would wait for the rest
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return parts


def _attempt(name: str, train: Callable[[], dict[str, Any]], failed: list[str]) -> dict[str, Any]:
    """Call ``train``; gives what it returns, by ``name``. A failure goes to ``failed`` and leaves the others alone."""
    try:
        return {name: train()}
    except Exception as error:
        failed.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
        return {}


def _compress(path: Path) -> None:
    """Put ``path``.gz in its place, the same bytes for the same rows."""
    with open(path, "rb") as plain, open(f"{path}.gz", "wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments:
        print(__doc__)
        return 0
    given, _ = words.read(arguments, KEYS)
    asked = DEFAULTS | given
    plan = plan_of(asked)
    adapters, full = configs_of(asked)
    folders.fresh(plan.folder, RESULTS, f"{RESULTS}.gz", LOSSES)
    quiet_libraries()
    started = time.perf_counter()
    about = records.provenance(["python", "-m", "experiments.magnitude_direction.measure"])
    about = {key: about[key] for key in ("commit", "dirty", "python", "packages", "started")}
    about["command"] = [
        f"{key}={given_text}" for key, _, given_text in (word.partition("=") for word in arguments) if key != "out"
    ]
    about["device"] = device.describe(device.choose((adapters or full)[0]).device)
    about["at"] = list(plan.read_steps)
    # Written before, so that what a killed run leaves behind says where it is from; then again, with the seconds.
    write_atomically(plan.folder / "provenance.json", dump_json(about))
    parts = measure(asked)
    about |= parts | {"seconds": round(time.perf_counter() - started, 1)}
    write_atomically(plan.folder / "provenance.json", dump_json(about))
    if (plan.folder / RESULTS).exists():
        _compress(plan.folder / RESULTS)
    print(f"{about['seconds']} s; {plan.folder}", flush=True)
    return 1 if parts["failed"] else 0


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
