"""Refuse, before the first job starts, a base that the jobs' engine, targets, precision or rows do not fit.

Light where the files are what the family's closed form says. Any other folder is opened by transformers on torch's meta
device, which reads no numbers: its verdict on names and shapes is the one that loading would give, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.schema import Config, is_packed
from ..data.datasets import Splits
from ..files.errors import ConfigError
from ..model import capacity, configs, headers, models
from ..variants import tensors
from ..variants.counts import linears, targets
from ..variants.methods.point import VariantConfig


def refuse(jobs: Sequence[Config]) -> None:
    """Raise ConfigError where the base of these jobs, which share model and targets, does not fit one of them."""
    config = jobs[0]
    values = configs.known(config.model)
    _refuse_family(jobs, values)
    _refuse_dropout(jobs, values)
    shape, folder = models.find_shape(config.model), configs.folder_of(config.model)
    if shape is not None:
        targets(linears(shape), config.lora.target_modules, config.model.name)
    if folder is None or (held := _held(config, folder)) is None:
        return
    if shape is None or not tensors.fits(held, shape):
        layers = configs.dimension(values or {}, "num_hidden_layers", "n_layer", "num_layers") or 0
        if layers > len(held):  # before anyone builds so many
            where = configs.called(config.model)
            raise ConfigError(f"{where}: config.json says {layers} layers; its weights hold {len(held)} tensors")
        _refuse_layers(jobs, folder)


def refuse_rows(config: Config, splits: Splits) -> None:
    """Raise ConfigError where a training row is certainly too long for the base."""
    values, folder = configs.known(config.model), configs.folder_of(config.model)
    if values is not None and folder is not None:
        capacity.refuse_certain(config, values, folder, splits)


def _refuse_family(jobs: Sequence[Config], values: dict[str, Any] | None) -> None:
    family = None if values is None else values.get("model_type")
    if values is None or family in models.FAMILIES or not any(is_packed(job) for job in jobs):
        return
    raise ConfigError(f"engine=packed: knows the families {', '.join(models.FAMILIES)}, not {family}; use engine=peft")


def _refuse_dropout(jobs: Sequence[Config], values: dict[str, Any] | None) -> None:
    """Raise ConfigError for a base that drops numbers in training: a pack cannot draw them anew for each run and step."""
    drops = [f"{key}={value}" for key, value in (values or {}).items() if "drop" in key and type(value) is float and value > 0]
    if drops and any(is_packed(job) for job in jobs):
        raise ConfigError(
            f"engine=packed: the base drops numbers at random while it trains ({', '.join(drops)} in config.json); engine=peft"
            " draws them anew for each run and step"
        )


def _held(config: Config, folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Read the shapes of what the folder's weights hold; None where it has none, or the cache not all of a hub model's."""
    if config.model.source == "hub":
        try:
            known = headers.read(folder, configs.called(config.model))
        except ConfigError:  # transformers completes what is there
            return None
    else:
        known = headers.read(folder, configs.called(config.model))
    return None if known is None else {name: tensor.shape for name, tensor in known.items()}


def _refuse_layers(jobs: Sequence[Config], folder: Path) -> None:
    """Raise ConfigError where transformers finds other tensors than the model needs, or its layers do not fit the jobs."""
    from ..files.terminal import quiet_libraries
    from ..model.pretrained import load_whole
    from ..variants import share
    from ..variants.adapters import attach, linears_of

    quiet_libraries()
    config = jobs[0]
    network = load_whole(folder, configs.called(config.model), device_map={"": "meta"})
    for job in jobs:
        share.refuse_left_out(network, job.variant.base_precision)
    if any(job.variant.trains == "adapter" for job in jobs):
        targets(linears_of(network), config.lora.target_modules, config.model.name)
        attach(network, VariantConfig(), config.lora, 0)
