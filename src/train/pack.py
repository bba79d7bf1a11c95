"""Hold the runs that one process trains together, and write how each of them ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..config.schema import Config
from ..sweep.events import Events
from .run import Run
from .session import slot_order


class Pack:
    """Runs in slot order, known to the engine by their place. ``keep`` leaves some to another process, before training."""

    def __init__(self, runs: Sequence[Run], events: Events) -> None:
        self.runs = [runs[index] for index in slot_order([run.config for run in runs])]
        self.events = events

    @property
    def config(self) -> Config:
        """Give any run's config, for what they agree on."""
        return self.runs[0].config

    @property
    def configs(self) -> list[Config]:
        return [run.config for run in self.runs]

    def keep(self, places: Iterable[int], memory: int | None, why: str) -> None:
        """Go on with the runs at ``places`` and say so; ``why`` begins the parent's sentence on the others."""
        self.runs = [self.runs[place] for place in places]
        self.events.taken([run.folder.run_id for run in self.runs], memory, why)

    def sound(self) -> dict[int, Run]:
        """Give the runs that have not failed so far, by their place."""
        return {place: run for place, run in enumerate(self.runs) if run.outcome.status == "ok"}

    def finish(self, run: Run) -> None:
        run.finish()
        self.events.ended(run.folder.run_id)

    def fail(self, error: BaseException) -> None:
        """Record what happened as the end of every run that has none."""
        for run in self.runs:
            if run.ended:
                continue
            if run.outcome.status == "ok":
                run.fail(error)
            self.finish(run)
