"""Train a sweep in two stages: all learning rates on the tuning seeds, then each condition's best rate on the report seeds.

A table needs no other runs of the report seeds, so this costs a third of the whole grid. ``python -m src.eval`` then chooses
the same rates from the same records.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import fmean

from src.command.cli import compose
from src.config.schema import Config
from src.files.errors import ConfigError
from src.record.records import RunFolder, run_id
from src.sweep.launch import launch
from src.sweep.plan import admit, prepare


def train(
    conditions: Sequence[Sequence[str]],
    rates: Sequence[float],
    tune: Sequence[int],
    report: Sequence[int],
    spare: Sequence[float] = (),
) -> list[float]:
    """Train both stages of ``conditions``, each a list of overrides; return the learning rate chosen for each on validation.

    Where a best rate is the lowest or the highest tried, all conditions also try the next ``spare`` rate on that side, as long
    as there is one: a longer grid for one condition would be unfair to the others.

    Raises:
        ConfigError: a config cannot be run, or a condition has no rate at which all tuning seeds ended well.
    """
    bases = [compose(list(condition)) for condition in conditions]
    tried: list[float] = []
    new = list(rates)
    while new:
        launch_all([with_rate(base, rate, seed) for base in bases for rate in new for seed in tune])
        tried = sorted([*tried, *new])
        best = [_best(base, tried, tune) for base in bases]
        new = _beyond(tried, best, spare)
    launch_all([with_rate(base, rate, seed) for base, rate in zip(bases, best, strict=True) for seed in report])
    return best


def refuse(words: Sequence[str], own: Sequence[str]) -> None:
    """Raise ConfigError where overrides set a key that the study itself sets: the study would overwrite it silently."""
    for word in words:
        if (key := word.partition("=")[0].lstrip("+~")) in ("train.lr", "seed", "data_seed", "sweep", *own):
            raise ConfigError(f"{word}: the study sets {key} itself")


def with_rate(config: Config, rate: float, seed: int) -> Config:
    """Copy a condition's config with this learning rate and with one seed for adapter and data."""
    config = copy.deepcopy(config)
    config.train.lr, config.seed, config.data_seed = rate, seed, seed
    return config


def launch_all(configs: Sequence[Config]) -> None:
    """Train all runs that have no result yet, as one command does. Raises RunsFailed if a run did not end well."""
    if configs:
        jobs = admit(configs)
        prepare(jobs)
        launch(jobs)


def _beyond(tried: Sequence[float], best: Sequence[float], spare: Sequence[float]) -> list[float]:
    """Pick the nearest spare rate beyond each end of the sorted ``tried`` where a best rate lies."""
    lower = max((rate for rate in spare if rate < tried[0]), default=None) if min(best) == tried[0] else None
    higher = min((rate for rate in spare if rate > tried[-1]), default=None) if max(best) == tried[-1] else None
    return [rate for rate in (lower, higher) if rate is not None]


def _best(config: Config, rates: Sequence[float], tune: Sequence[int]) -> float:
    """Choose the rate with the lowest mean validation loss; a rate at which a tuning seed diverged is excluded."""
    means = {}
    for rate in rates:
        results = [RunFolder(run_id(with_rate(config, rate, seed))).result() or {} for seed in tune]
        if all(result.get("status") == "ok" for result in results):
            means[rate] = fmean(result["metrics"]["val/loss"] for result in results)
    if not means:
        raise ConfigError(f"{config.variant.name} r={config.lora.r}: no learning rate at which all tuning seeds came to an end")
    return min(means, key=lambda rate: means[rate])
