"""Run one worker process for one pack: prepare its run folders, start it, interpret its exit."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from ..files.durable import CannotWrite
from ..record import checkpoint
from ..record.records import ENDED, provenance
from ..record.result import Outcome
from ..record.result import result as record
from . import child
from .child import Event, Workers
from .display import Display, notice
from .locks import Claims
from .machine import oom_kills
from .packs import Pack
from .plan import Job

EARLIER = ("started", "commit", "dirty", "python", "packages", "host", "device")  # what is kept of an earlier attempt


class Attempt:
    """One try at a pack. After ``run``: ``statuses`` of ended runs; ``untaken``, ``too_big`` and ``dead`` are to be done."""

    def __init__(self, pack: Pack, claims: Claims, display: Display, halved_from: int | None, workers: Workers) -> None:
        self.pack = pack
        self.workers = workers
        self.claims = claims
        self.display = display
        self.halved_from = halved_from
        self.jobs: list[Job] = []  # those that the worker takes
        self.statuses: dict[str, str] = {}
        self.untaken: list[Job] = []  # the worker measured, and had no room for them
        self.too_big: list[Job] = []  # they ran out of memory together
        self.dead: list[Job] = []  # their process ended before they had
        self.end: child.End | None = None
        self.unwritten: str | None = None  # a record file that could not be written, and why
        self.started = 0.0

    def run(self) -> None:
        """Start the worker and wait for its end. Raises CannotWrite where it, or we, could not write a record file."""
        self.jobs = self._prepare_folders()
        self.display.started(self.pack)
        self.started = time.perf_counter()
        options = [] if self.halved_from is None else ["--halved-from", str(self.halved_from)]
        folders = [str(job.folder.path) for job in self.jobs]
        killed_before = oom_kills()
        silence = self.pack.config.pack.silence
        self.end = self.workers.run([*options, *folders], self.claims.locks, self._on_event, self.display.on_line, silence)
        for job in self.jobs:
            self._show_end(job)
        if self.end.code == child.CANNOT_WRITE:
            raise CannotWrite(self.unwritten)
        unfinished = [job for job in self.jobs if job.run_id not in self.statuses]
        if not self._ran_out_of_memory(killed_before):
            self.dead = unfinished
        elif len(self.jobs) > 1:
            self.too_big = unfinished
        else:
            self.record_death(unfinished, "out_of_memory")

    def _ran_out_of_memory(self, killed_before: int | None) -> bool:
        """Tell whether memory ended the worker. The kernel frees memory with SIGKILL, and counts how often; where it does not
        say, a pack is believed to have been too big."""
        assert self.end is not None
        if self.end.code != -signal.SIGKILL or self.end.silent is not None:
            return self.end.code == child.OUT_OF_MEMORY
        killed = oom_kills()
        return len(self.jobs) > 1 if killed is None else killed != killed_before

    def record_death(self, jobs: Sequence[Job], status: str = "failed") -> None:
        """Write how their process ended as the end of these runs."""
        for job in jobs:
            job.folder.write_result(record(job.config, job.run_id, Outcome(status, str(self.end))))
            self._show_end(job)

    def _prepare_folders(self) -> list[Job]:
        """Write what a run needs to start. Returns the jobs without ``force``, as a second attempt resumes from checkpoints."""
        origin = provenance(sys.argv)
        losing = []
        for job in self.pack.jobs:
            job.folder.drop_links()
            if not job.config.force:
                for damage in job.folder.set_damage_aside():
                    notice(f"{job.run_id}: {damage}; set aside in {job.folder.damaged}, the run is done again")
            if job.folder.has_weights and not job.config.keep_weights:
                losing.append(job.run_id)
            job.folder.clear_results()
            if job.config.force:
                job.folder.clear_progress()
            job.folder.write_config(job.config)
            earlier = _earlier_attempts(job) if checkpoint.steps(job.folder.checkpoints) else []
            job.folder.write_provenance(origin | {"earlier": earlier})
        if losing:
            whose = f"{losing[0]}: its" if len(losing) == 1 else f"{len(losing)} runs: their"
            notice(f"{whose} earlier weights are deleted, and keep_weights=false keeps none of this time")
        return [replace(job, config=replace(job.config, force=False)) for job in self.pack.jobs]

    def _on_event(self, event: Event) -> None:
        if event["event"] == "taken":
            self._narrow(set(event["runs"]), event["why"])
        elif event["event"] == "cannot_write":
            self.unwritten = event["why"]
        elif event["event"] == "ended":
            for job in self.jobs:
                if job.run_id == event["run"]:
                    self._show_end(job)
        self.display.show(event)

    def _narrow(self, run_ids: set[str], why: str) -> None:
        """Put back the jobs that the worker does not take."""
        taken = [job for job in self.jobs if job.run_id in run_ids]
        left = [job for job in self.jobs if job.run_id not in run_ids]
        if not taken or not left:
            return
        notice(f"{why} {len(taken)} of these {len(self.jobs)} runs; the other {len(left)} follow")
        self.jobs, self.untaken = taken, self.untaken + left
        for job in left:
            self.claims.give_up(job.folder)

    def _show_end(self, job: Job) -> None:
        """Show how a run ended, once, if its record is there."""
        result = job.folder.result()
        if result is not None and job.run_id not in self.statuses:
            self.statuses[job.run_id] = result["status"]
            if result["status"] in ENDED:
                job.folder.clear_checkpoints()  # its process may have died before it could
            self.display.ended(job, result, time.perf_counter() - self.started)


def _earlier_attempts(job: Job) -> list[dict[str, object]]:
    """List code and machine of each attempt that the run resumes from, the newest last."""
    known = job.folder.provenance()
    if known is None:
        return []
    return [*known.get("earlier", []), {key: known.get(key) for key in EARLIER}]
