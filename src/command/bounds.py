"""Limit the size of a command line and its YAML files before Hydra reads them: its time and memory grow without bound."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep

from ..config.values import RESOLVER, calls_resolver
from ..files.errors import ConfigError

# Hydra's parser takes time in the square of a list's length, and Python's stack for each bracket.
ARGUMENT_LENGTH, ARGUMENT_VALUES, ARGUMENT_DEPTH = 10_000, 1_000, 20
MOST_JOBS = 100_000
YAML_FILES, YAML_BYTES, YAML_PARTS, YAML_DEPTH = 1_000, 100_000, 10_000, 20
FOLDER_ENTRIES = 10_000
OPENING, CLOSING = "[{(", "]})"


def refuse_large_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument that is too long, lists too much or nests too deep."""
    for argument in arguments:
        name = argument.partition("=")[0][:100]
        if len(argument) > ARGUMENT_LENGTH or argument.count(",") >= ARGUMENT_VALUES:
            raise ConfigError(
                f"{name}: needs at most {ARGUMENT_LENGTH:,} characters and {ARGUMENT_VALUES:,} values; longer ones can stand"
                " in a YAML file of conf/experiment"
            )
        depth = itertools.accumulate((sign in OPENING) - (sign in CLOSING) for sign in argument)
        if max(depth, default=0) > ARGUMENT_DEPTH:
            raise ConfigError(f"{name}: needs at most {ARGUMENT_DEPTH} brackets inside each other")


def refuse_many_jobs(overrides: Iterable[Override]) -> None:
    """Raise ConfigError where the product of a sweep's values is above ``MOST_JOBS``. Nothing is multiplied out."""
    jobs = 1
    for override in overrides:
        if override.is_discrete_sweep():
            jobs *= _count_values(override)
        if jobs > MOST_JOBS:
            raise ConfigError(f"{override.input_line}: makes more than {MOST_JOBS:,} jobs, which is the most of one command")


def _count_values(override: Override) -> int:
    """Count the values of a sweep, up to ``MOST_JOBS`` + 1."""
    value = override.value()
    try:
        values = value.range() if isinstance(value, RangeSweep) else override.sweep_iterator()
    except ValueError as error:  # a step of zero
        raise ConfigError(f"{override.input_line}: {error}") from error
    return sum(1 for _ in itertools.islice(values, MOST_JOBS + 1))


def refuse_large_yaml(folder: Path) -> None:
    """Raise ConfigError for a YAML file below ``folder`` that OmegaConf, which copies each alias, could not read quickly."""
    entries, files = 0, []
    for parent, folders, names in os.walk(folder, followlinks=True):
        entries += len(folders) + len(names)
        files += [Path(parent, name) for name in names if name.endswith((".yaml", ".yml"))]
        if entries > FOLDER_ENTRIES or len(files) > YAML_FILES:
            raise ConfigError(
                f"{folder}: holds too many files for a folder of configs; put the YAML files into a folder of their own"
            )
    for path in files:
        if problem := _yaml_problem(path):
            raise ConfigError(f"{path}: {problem}")


def _yaml_problem(path: Path) -> str | None:
    """Say why a YAML file is refused, or return None."""
    if not path.is_file():
        return "is not a file"
    if path.stat().st_size > YAML_BYTES:
        return f"needs at most {YAML_BYTES:,} bytes"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for number, event in enumerate(yaml.parse(path.read_bytes(), Loader=loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                return "uses a YAML alias (*name), which is not read here; write the values out"
            if isinstance(event, yaml.ScalarEvent) and calls_resolver(event.value):
                return RESOLVER  # Hydra would put its result into a message already
            if depth > YAML_DEPTH or number > YAML_PARTS:
                return f"needs at most {YAML_PARTS:,} values, nested {YAML_DEPTH} deep"
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        return f"is not YAML: {' '.join(str(error).split())}"
    return None


def parse(arguments: Sequence[str]) -> list[Override]:
    """Parse arguments as Hydra's overrides.

    Raises:
        HydraException: an argument is malformed.
    """
    refuse_large_arguments(arguments)
    overrides: list[Override] = OverridesParser.create().parse_overrides(list(arguments))
    return overrides
