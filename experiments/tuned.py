"""Two stages of one sweep: the whole grid of rates on the tuning seeds, then each condition's best rate on the others.

A table needs no more of the report seeds than that, so it costs a third of the whole grid. ``python -m src.eval`` then
chooses the same rates from the same records.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import fmean

from src.cli import compose
from src.config import Config, ConfigError
from src.records import RunFolder, run_id
from src.train.launch import launch
from src.train.plan import admit, prepare


def train(conditions: Sequence[Sequence[str]], rates: Sequence[float], tune: Sequence[int], report: Sequence[int]) -> list[float]:
    """Train both stages of ``conditions``, each a list of overrides; the rate of each with the lowest validation loss.

    Raises:
        ConfigError: what cannot be run, or a condition of which no run came to an end.
    """
    bases = [compose(list(condition)) for condition in conditions]
    launch_all([at(base, rate, seed) for base in bases for rate in rates for seed in tune])
    best = [_best(base, rates, tune) for base in bases]
    launch_all([at(base, rate, seed) for base, rate in zip(bases, best, strict=True) for seed in report])
    return best


def refuse(words: Sequence[str], own: Sequence[str]) -> None:
    """Raise ConfigError where overrides set what a study itself sets: it would be silently set again, or change its question."""
    for word in words:
        if (key := word.partition("=")[0].lstrip("+~")) in ("train.lr", "seed", "data_seed", "sweep", *own):
            raise ConfigError(f"{word}: the study sets {key} itself")


def at(config: Config, rate: float, seed: int) -> Config:
    """The condition at a rate, its adapter and its data under one seed."""
    config = copy.deepcopy(config)
    config.train.lr, config.seed, config.data_seed = rate, seed, seed
    return config


def launch_all(configs: Sequence[Config]) -> None:
    """Bring each config's run to its result, as one command does. Raises RunsFailed if one did not end well."""
    if configs:
        jobs = admit(configs)
        prepare(jobs)
        launch(jobs)


def _best(config: Config, rates: Sequence[float], tune: Sequence[int]) -> float:
    """By the mean over the tuning seeds; a rate at which one of them diverged is none."""
    means = {}
    for rate in rates:
        results = [RunFolder(run_id(at(config, rate, seed))).result() or {} for seed in tune]
        if all(result.get("status") == "ok" for result in results):
            means[rate] = fmean(result["metrics"]["val/loss"] for result in results)
    if not means:
        raise ConfigError(f"{config.variant.name} r={config.lora.r}: no learning rate at which all tuning seeds came to an end")
    return min(means, key=lambda rate: means[rate])
