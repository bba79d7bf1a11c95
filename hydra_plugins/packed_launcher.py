"""Hydra's door to src/sweep/launch: all jobs of a multirun arrive together, and none starts before all are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PackedLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from src.command.cli import compose_jobs
        from src.sweep.launch import run_jobs

        run_jobs(compose_jobs(self.hydra_context.config_loader, self.config, job_overrides))
        return [_returned(overrides) for overrides in job_overrides]


def _returned(overrides: Sequence[str]) -> JobReturn:
    result = JobReturn(overrides=overrides)
    result.status = JobStatus.COMPLETED
    return result


class GridSweeper(BasicSweeper):
    """The grid of a multirun in one batch, without Hydra's multirun.yaml and its second composition of each job."""

    def sweep(self, arguments: list[str]) -> Any:
        from src.command import admission, bounds

        assert self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = [*self._parse_config(), *arguments]
        bounds.refuse_large_arguments(words)
        overrides = parser.parse_overrides(words)
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
