"""One worker process for one pack: what stands in the folders before it, and what is made of its end."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace

from src.records import provenance
from src.train import child
from src.train.child import Event
from src.train.claims import Claims
from src.train.display import Display, notice
from src.train.packs import Pack
from src.train.plan import Job
from src.train.result import Outcome
from src.train.result import result as record


class Attempt:
    """After ``run``: ``statuses`` of the runs that ended; ``untaken`` and ``too_big`` are still to be done."""

    def __init__(self, pack: Pack, claims: Claims, display: Display, halved_from: int | None) -> None:
        self.pack = pack
        self.claims = claims
        self.display = display
        self.halved_from = halved_from
        self.jobs: list[Job] = []  # those that the worker takes
        self.statuses: dict[str, str] = {}
        self.untaken: list[Job] = []  # the worker measured, and had no room for them
        self.too_big: list[Job] = []  # they ran out of memory together
        self.started = 0.0

    def run(self) -> None:
        self.jobs = self._prepare_folders()
        self.display.started(self.pack)
        self.started = time.perf_counter()
        options = [] if self.halved_from is None else ["--halved-from", str(self.halved_from)]
        folders = [str(job.folder.path) for job in self.jobs]
        code = child.run([*options, *folders], self.claims.locks, self._on_event, self.display.on_line)
        for job in self.jobs:
            self._end(job)
        unfinished = [job for job in self.jobs if job.run_id not in self.statuses]
        # The kernel frees memory with SIGKILL.
        if len(self.jobs) > 1 and code in (child.OUT_OF_MEMORY, -signal.SIGKILL):
            self.too_big = unfinished
            return
        for job in unfinished:
            job.folder.write_json("result.json", record(job.config, job.run_id, Outcome("failed", _death(code))))
            self._end(job)

    def _prepare_folders(self) -> list[Job]:
        """Also the jobs as they stand from here on: forced no more, since a second attempt goes on from checkpoints."""
        origin = provenance(sys.argv)
        for job in self.pack.jobs:
            job.folder.clear_results()
            if job.config.force:
                job.folder.clear_progress()
            job.folder.write_config(job.config)
            job.folder.write_json("provenance.json", origin)
        return [replace(job, config=replace(job.config, force=False)) for job in self.pack.jobs]

    def _on_event(self, event: Event) -> None:
        if event["event"] == "taken":
            self._take(set(event["runs"]))
        elif event["event"] == "ended":
            for job in self.jobs:
                if job.run_id == event["run"]:
                    self._end(job)
        self.display.show(event)

    def _take(self, run_ids: set[str]) -> None:
        taken = [job for job in self.jobs if job.run_id in run_ids]
        left = [job for job in self.jobs if job.run_id not in run_ids]
        if not taken or not left:
            return
        notice(f"memory holds {len(taken)} of these {len(self.jobs)} runs; the other {len(left)} follow")
        self.jobs, self.untaken = taken, self.untaken + left
        for job in left:
            self.claims.give_up(job.folder)

    def _end(self, job: Job) -> None:
        """Say how a run ended, once, if its record is there."""
        result = job.folder.result()
        if result is not None and job.run_id not in self.statuses:
            self.statuses[job.run_id] = result["status"]
            self.display.ended(job, result, time.perf_counter() - self.started)


def _death(code: int) -> str:
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"
