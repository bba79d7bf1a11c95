"""Plan what the study trains: its keys, the learning rates that it reads, and the config of each run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments import sheet
from src.command import cli
from src.command.words import Key, Read, number, one_of, whole
from src.config.schema import Config
from src.files.errors import ConfigError
from src.train import session

VARIANTS = ("lora", "rslora")  # alpha/r and alpha/sqrt r
LOGGED = (0, 1, 2, 10, 30, 100, 300)
HIGHEST_RANK, HIGHEST_SEED = 4096, 64


@dataclass(frozen=True)
class Planned:
    """One run. Where the best rate is the fixed one, it is trained once and stands in the results under both forms."""

    forms: tuple[str, ...]
    variant: str
    r: int
    rate: float
    seed: int


def numbers(low: int, high: int) -> Read:
    """Make a reader of whole numbers and ranges of them, such as ``0-5`` or ``0,1,8``, sorted.

    Ranges may overlap. What adds nothing to the rest, such as the second 4 of ``4,4``, was meant to be another.
    """

    def check(value: str) -> list[int]:
        ranges: dict[str, range] = {}
        times: Counter[int] = Counter()
        for part in value.split(","):
            match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
            ends = [int(end) for end in match.groups() if end] if match else []
            if not ends or not low <= ends[0] <= ends[-1] <= high:
                raise ValueError(f"whole numbers from {low} to {high}")
            ranges[part] = range(ends[0], ends[-1] + 1)
            times.update(ranges[part])
        for part, each in ranges.items():
            if all(times[number] > 1 for number in each):
                raise ValueError(f"{part} only once")
        return sorted(times)

    return check


KEYS = {
    "out": Key(str, "FOLDER"),
    "rates": Key(str, "rates.csv"),
    "ranks": Key(numbers(1, HIGHEST_RANK), "4,16,64"),
    "seeds": Key(numbers(0, HIGHEST_SEED), "0-5"),
    "rate": Key(number(1e-9, 1.0), "1e-3"),
    "alpha": Key(number(1e-6, 1e6), "16"),
    "steps": Key(whole(1, 1_000_000), "300"),
    "rows": Key(whole(1, 4096), "16"),
    "schedule": Key(one_of("linear", "constant", "cosine"), "linear"),
    "model": Key(one_of("smollm2_135m", "tiny"), "tiny"),
    "logged": Key(numbers(0, 1_000_000), "0,1,10"),
    "runs": Key(whole(1, 10_000), "42"),
    "test": Key(whole(1, 1_000_000), "64"),
}
DEFAULTS: dict[str, Any] = {
    "out": str(Path(__file__).resolve().parent),
    "rates": None,
    "ranks": [4, 8, 16, 32, 64, 128, 256],
    "seeds": list(range(6)),
    "rate": 1e-3,
    "alpha": 16.0,
    "steps": 300,
    "rows": 16,
    "schedule": "linear",
    "model": "smollm2_135m",
    "logged": list(LOGGED),
    "runs": None,
    "test": None,
}


def read_rates(path: Path) -> dict[tuple[str, int], float]:
    """Read the learning rate of each (variant, rank) of a CSV.

    Raises:
        ConfigError: no such file, one that is cut off, or a row that says no rate; one line.
    """
    rates: dict[tuple[str, int], float] = {}
    rows = sheet.read(path, ("variant", "r", "learning_rate"), numbers=())
    for line, row in enumerate(rows.to_dict("records"), start=1):
        try:
            key = (one_of(*VARIANTS)(row["variant"]), whole(1, HIGHEST_RANK)(row["r"]))
            rate = number(1e-9, 1.0)(row["learning_rate"])
        except ValueError as error:
            raise ConfigError(f"{path}: row {line} needs {error}") from error
        if key in rates:
            raise ConfigError(f"{path}: row {line} names {key[0]} r={key[1]} twice")
        rates[key] = rate
    return rates


def planned(values: dict[str, Any], rates: dict[tuple[str, int], float]) -> list[Planned]:
    """List all runs, seed by seed, so that the runs to be compared share a pack."""
    forms: dict[tuple[str, int, float], list[str]] = {}
    for variant in VARIANTS:
        for r in values["ranks"]:
            forms[variant, r, values["rate"]] = ["fixed"]
    for (variant, r), rate in rates.items():
        forms.setdefault((variant, r, rate), []).append("best")
    return [Planned(tuple(form), *run, seed) for seed in values["seeds"] for run, form in forms.items()]


@cache
def _composed(variant: str, words: tuple[str, ...]) -> Config:
    return cli.compose([f"variant={variant}", "tracking=disabled", "forgetting.tokens=0", *words])


def config_of(run: Planned, values: dict[str, Any]) -> Config:
    """Make the config of a run. It is composed once for each variant, since composing takes 0.1 s."""
    words = (
        f"model={values['model']}", f"lora.alpha={values['alpha']}", f"train.steps={values['steps']}",
        f"train.batch_size={values['rows']}", f"train.schedule={values['schedule']}",
    )  # fmt: skip
    base = _composed(run.variant, words)
    return replace(
        base,
        lora=replace(base.lora, r=run.r),
        train=replace(base.train, lr=run.rate),
        eval=replace(base.eval, test_examples=values["test"]),
        seed=run.seed,
        data_seed=run.seed,
    )


def in_slots(runs: Sequence[Planned], values: dict[str, Any]) -> tuple[list[Planned], list[Config]]:
    """Order the runs, and their configs, as a pack holds them."""
    configs = [config_of(run, values) for run in runs]
    order = session.slot_order(configs)
    return [runs[index] for index in order], [configs[index] for index in order]
