"""Hand the jobs of a Hydra multirun to sweep/launch.py all at once, so that none starts before all are checked.

Hydra only takes plugins from the package ``hydra_plugins``, so this file stands outside of the product. It finds the product by
Hydra's task, which is a function of it, and does not know the name under which it is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PackedLauncher(Launcher):
    """Run all jobs of a multirun as one sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.task_function = task_function
        self.hydra_context = hydra_context

    def product_module(self, name: str) -> ModuleType:
        """Import a module, such as ``.sweep.launch``, of the package that Hydra's task belongs to."""
        package = sys.modules[self.task_function.__module__].__package__ or ""
        return import_module(name, package.partition(".")[0])

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        compose_jobs = self.product_module(".command.cli").compose_jobs
        run_jobs = self.product_module(".sweep.launch").run_jobs
        run_jobs(compose_jobs(self.hydra_context.config_loader, self.config, job_overrides))
        return [_completed(overrides) for overrides in job_overrides]


def _completed(overrides: Sequence[str]) -> JobReturn:
    result = JobReturn(overrides=overrides)
    result.status = JobStatus.COMPLETED
    return result


class GridSweeper(BasicSweeper):
    """Launch the grid of a multirun in one batch, without Hydra's multirun.yaml and its second composition of each job."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None and isinstance(self.launcher, PackedLauncher)
        admission = self.launcher.product_module(".command.admission")
        bounds = self.launcher.product_module(".command.bounds")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = [*self._parse_config(), *arguments]
        bounds.refuse_large_arguments(words)
        overrides = parser.parse_overrides(self.launcher.product_module(".command.texts").as_typed(words))
        for override in overrides:
            admission.refuse_override(override)
        bounds.refuse_many_jobs(overrides)
        (jobs,) = self.split_arguments(overrides, max_batch_size=None)
        return [self.launcher.launch(jobs, initial_job_idx=0)]


# Hydra itself instantiates plugins by name; this is the only place where a name of code is configuration.
_STORE = ConfigStore.instance()
_STORE.store(group="hydra/launcher", name="assay", node={"_target_": f"{__name__}.PackedLauncher"}, provider="lora-assay")
_STORE.store(
    group="hydra/sweeper",
    name="assay",
    node={"_target_": f"{__name__}.GridSweeper", "max_batch_size": None, "params": None},
    provider="lora-assay",
)
