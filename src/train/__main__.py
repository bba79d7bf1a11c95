"""``python -m src.train``: check the command line, let Hydra compose it, and run the jobs (sweep/launch.py)."""

from __future__ import annotations

import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..command import admission, cli, texts
from ..config.schema import CONF_FOLDER

_composed: list[tuple[DictConfig, Any]] = []


@hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="config")
def compose(node: DictConfig) -> None:
    # Only composed here and run after Hydra has returned, which would print its own report around an error.
    _composed.append((node, HydraConfig.get().runtime.choices))


def main() -> int:
    """Run the command; 1 if a run failed, 0 otherwise."""
    from ..sweep.launch import RunsFailed, run_jobs

    sweep = [option for option in sys.argv[1:] if option in ("-m", "--multirun")]
    # argparse, inside Hydra, takes -m only before the overrides.
    sys.argv[1:] = [*sweep[:1], *(argument for argument in sys.argv[1:] if argument not in sweep)]
    admission.refuse_secrets(sys.argv[1:])
    options = admission.read_options(sys.argv[1:])
    cli.refuse_malformed(options.overrides)
    typed = dict(zip(options.overrides, texts.as_typed(options.overrides), strict=True))
    sys.argv[1:] = [typed.get(argument, argument) for argument in sys.argv[1:]]
    options.overrides = list(typed.values())
    cli.register_schema()
    if not options.shell_completion:
        admission.refuse_command(options)
    try:
        compose()  # with -m the jobs go to the launcher (hydra_plugins/), which runs them all
        if _composed:
            run_jobs(_composed)
    except RunsFailed:
        return cli.FAILED  # each failed run has been reported already
    return 0


if __name__ == "__main__":
    cli.run(main)
