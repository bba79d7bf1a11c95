"""Admit only values of our schema from a command line and the YAML files it chooses, and nothing that names code.

Our schema has no ``_target_``. Hydra's own node has: it instantiates or imports what ``hydra`` says about launchers, callbacks,
loggers and search paths, sets the environment and changes folders, and that node can be set from the command line, from an
experiment's YAML and from its defaults list. So each command is composed once before Hydra acts on it, and its ``hydra`` node,
unresolved, has to be the one of a command without arguments, but for ``hydra.mode`` and ``hydra.sweeper.params``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..config.schema import CONF_FOLDER
from ..config.values import refuse_texts
from ..files import credentials
from ..files.errors import ConfigError
from . import bounds, texts

ALLOWED = ("mode", "sweeper.params")
# What Hydra writes into its node while it composes. Nothing there is instantiated; the overrides are checked one by one.
FILLED_IN = (
    *("overrides.hydra", "overrides.task", "job.override_dirname"),
    *("runtime.choices", "runtime.config_sources", "runtime.cwd"),
)
CHOICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
NEEDED = ("model", "variant", "dataset", "tracking")
GROUPS = (*NEEDED, "experiment")
NO_OPTION = {  # as argparse names them
    "experimental_rerun": "--experimental-rerun: is not accepted, since it loads a pickle",
    "package": "--package: is not accepted; --cfg job shows the whole config",
    "config_path": "--config-path: is not accepted; --config-dir adds a folder of your own YAML files",
    "config_name": "--config-name: is not accepted; an experiment is chosen by experiment=NAME",
}


def refuse_secrets(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a word that carries a secret, without repeating the secret."""
    if problem := credentials.in_arguments(arguments):
        raise ConfigError(problem)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line as Hydra reads it.

    Raises:
        ConfigError: an option does not exist or is not accepted.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; options come before the overrides, and --help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_args(arguments)
    for name, message in NO_OPTION.items():
        if getattr(options, name) is not None:
            raise ConfigError(message)
    return options


def refuse_override(override: Override) -> None:
    """Raise ConfigError for a word that sets what it may not. Call this before composing, which may import a search path."""
    key = override.key_or_group
    for name in (key, override.package or ""):
        if re.match(r"(_global_\.)?hydra\b", name) and not any(_is_below(key, f"hydra.{allowed}") for allowed in ALLOWED):
            raise ConfigError(_refusal(key))
    value = override.value()
    values: list[Any] = [getattr(part, "text", part) for part in value.list] if isinstance(value, ChoiceSweep) else [value]
    refuse_texts(values, key)
    if (key in GROUPS or "/" in key) and not override.is_delete():
        for choice in values:
            _refuse_choice(key, choice)


def refuse_command(options: argparse.Namespace) -> None:
    """Raise ConfigError where the command would change more of Hydra's settings than it may."""
    search_path = create_config_search_path(str(CONF_FOLDER))
    bounds.refuse_large_yaml(CONF_FOLDER / "experiment")
    if options.config_dir is not None:
        folder = Path(options.config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir={options.config_dir}: no such folder")
        bounds.refuse_large_yaml(folder)
        for path in [*folder.glob("*.yaml"), *folder.glob("*.yml"), *folder.glob("hydra")]:
            # It would stand in for our schema, or for one of Hydra's settings.
            raise ConfigError(f"{path}: is not read; YAML files stand in its folders {', '.join(GROUPS)}")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    loader = ConfigLoaderImpl(search_path)
    # As Hydra composes to find out hydra.mode: values that make a sweep are left to the sweeper.
    refuse_settings(loader.load_configuration("config", options.overrides, RunMode.MULTIRUN, validate_sweep_overrides=False))
    texts.refuse_unquoted(loader, options.overrides)


def refuse_settings(composed: DictConfig) -> None:
    """Raise ConfigError where the ``hydra`` node of a composed config is not that of a command without arguments.

    It may differ in ``hydra.mode``, ``hydra.sweeper.params`` and in what Hydra fills in by itself.
    """
    settings, defaults = _flatten(composed), _default_settings()
    for key in sorted(settings.keys() | defaults.keys()):
        if not any(_is_below(key, parent) for parent in (*ALLOWED, *FILLED_IN)) and settings.get(key, ...) != defaults.get(
            key, ...
        ):
            raise ConfigError(_refusal(f"hydra.{key}"))
    overrides = [*composed.hydra.overrides.hydra, *composed.hydra.overrides.task]
    for override in bounds.parse(overrides):
        refuse_override(override)
    for group, choice in composed.hydra.runtime.choices.items():
        _refuse_choice(group, choice)
    params = OmegaConf.to_container(composed, resolve=False)["hydra"]["sweeper"]["params"]  # type: ignore[index, call-overload]
    refuse_texts(params, "hydra.sweeper.params")


@cache
def _default_settings() -> dict[str, Any]:
    """Return the ``hydra`` node of a command without arguments, flat."""
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF_FOLDER)))
    return _flatten(loader.load_configuration("config", [], RunMode.MULTIRUN))


def _flatten(composed: DictConfig) -> dict[str, Any]:
    """Return Hydra's node as dotted keys and plain values, interpolations unresolved."""
    return dict(_leaves(OmegaConf.to_container(composed, resolve=False)["hydra"], ""))  # type: ignore[index, call-overload]


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _is_below(key: str, parent: str) -> bool:
    return key == parent or key.startswith(f"{parent}.")


def _refuse_choice(group: str, choice: Any) -> None:
    """Raise ConfigError for anything but the name of one file of a group."""
    if choice is None and group not in NEEDED:
        return
    if not isinstance(choice, str):
        several = isinstance(choice, list | ListConfig)
        shown = f"[{','.join(map(str, choice))}]" if several else "null" if choice is None else choice
        raise ConfigError(f"{group}={shown}: needs one name; several make a sweep, which needs -m {group}=A,B")
    if not (len(choice) <= 100 and CHOICE.fullmatch(choice)):
        raise ConfigError(f"{group}={choice!r}: is the name of a file of the group {group}, not a path")


def _refusal(key: str) -> str:
    return f"{key}: cannot be set; of Hydra's own settings only hydra.mode and hydra.sweeper.params can"
