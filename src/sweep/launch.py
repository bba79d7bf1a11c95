"""Bring jobs to records: group them into packs, run one pack after the other, and put back what has to wait.

Light as plan.py is; the work is done in the worker's process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from ..record.records import ENDED
from .attempt import Attempt
from .child import Workers
from .display import Display, describe, notice
from .fit import Memory
from .locks import Claims
from .machine import untested
from .outlook import outlook
from .packs import Pack, group
from .plan import Job, plan, prepare


class RunsFailed(Exception):
    """Some runs of this command did not end well. Which and why has been printed."""


def run_jobs(nodes: Sequence[tuple[DictConfig, Any]]) -> None:
    """Run the jobs of one command: (composed config, Hydra's group choices) each.

    Raises:
        ConfigError: some job cannot run; nothing was written and nothing started.
        RunsFailed: at least one run failed or ran out of memory.
    """
    jobs = plan(nodes)
    if warning := untested():
        notice(warning)
    prepare(jobs)
    launch(jobs)


def launch(jobs: Sequence[Job]) -> None:
    """Bring each job to its result. Raises RunsFailed if one did not end well."""
    display, memory = Display(len(jobs)), Memory()
    command = Launch(display, memory)
    left = [job for job in jobs if not command.is_done(job)]
    for job in jobs:
        if job.run_id in command.statuses:
            _clear_leftovers(job)
    packs = group(left, memory)
    if len(left) > 1:
        print(outlook(packs, memory), flush=True)
    with display:
        command.run(packs)
    failed = [job for job in jobs if command.statuses[job.run_id] not in ENDED]
    if failed:
        for job in failed if len(jobs) > 1 else []:
            notice(f"{job.run_id} {job.label()}: {describe(job.folder.result() or {})}")
        raise RunsFailed


class Launch:
    """The state of a command: the jobs that wait for their turn or for another process, and how runs ended."""

    def __init__(self, display: Display, memory: Memory) -> None:
        self.display = display
        self.memory = memory
        self.workers = Workers()
        self.statuses: dict[str, str] = {}
        self.queue: deque[Sequence[Job]] = deque()
        self.put_off: list[Job] = []
        self.limit: int | None = None  # runs in a pack, once memory was too small for more
        self.halved_from: dict[str, int] = {}
        self.died: set[str] = set()  # runs whose process has ended before they had, once

    def run(self, packs: Sequence[Pack]) -> None:
        self.queue.extend(pack.jobs for pack in packs)
        with self.workers:
            while self.queue or self.put_off:
                with Claims() as claims:
                    if self.queue:
                        self._run_claimable(self.queue.popleft(), claims)
                    else:
                        jobs, self.put_off = self.put_off, []
                        _wait(jobs, claims)
                        self._run_claimable(jobs, claims)

    def is_done(self, job: Job) -> bool:
        """Tell whether the run has ended before; then this is shown and counted."""
        before = job.folder.result()
        if before is None or before["status"] not in ENDED or job.config.force or job.folder.damage(before):
            return False
        self.statuses[job.run_id] = before["status"]
        self.display.already_done(job, before)
        return True

    def _run_claimable(self, jobs: Sequence[Job], claims: Claims) -> None:
        """Run a pack of those jobs that no other process has and that are not done by now; the rest has to wait.

        They are grouped anew: since the plan was made, another process may have brought some of them further.
        """
        claimed = []
        for job in jobs:
            if not claims.take(job.folder):
                self.put_off.append(job)
            elif self.is_done(job):
                job.folder.clear_checkpoints()
                claims.give_up(job.folder)
            else:
                claimed.append(job)
        if not claimed:
            return
        pack, *later = group(claimed, self.memory, self.limit)
        for job in (job for other in later for job in other.jobs):
            claims.give_up(job.folder)
        self._put_in_front([other.jobs for other in later])
        self._attempt(pack, claims)

    def _attempt(self, pack: Pack, claims: Claims) -> None:
        halved = [self.halved_from[job.run_id] for job in pack.jobs if job.run_id in self.halved_from]
        attempt = Attempt(pack, claims, self.display, max(halved, default=None), self.workers)
        # Without a GPU the next worker's imports would take the processor from the steps of this one.
        self.workers.preload = bool(self.queue) and self.memory.machine(pack.config.device).gpu is not None
        attempt.run()
        if attempt.untaken:
            self._put_in_front([attempt.untaken])
        if attempt.too_big:
            self._halve(attempt.too_big, len(attempt.jobs))
        if attempt.dead:
            self._try_again(attempt)
        self.statuses |= attempt.statuses

    def _try_again(self, attempt: Attempt) -> None:
        """Queue runs whose process died, once each: what ended it may have been an accident from outside."""
        again = [job for job in attempt.dead if job.run_id not in self.died]
        attempt.record_death([job for job in attempt.dead if job.run_id in self.died])
        self.died.update(job.run_id for job in again)
        if again:
            what = f"{again[0].run_id} is" if len(again) == 1 else f"{len(again)} runs are"
            notice(f"{attempt.end}: {what} tried once more")
            self._put_in_front([again])

    def _halve(self, jobs: Sequence[Job], tried: int) -> None:
        self.limit = _half(tried)
        for job in jobs:
            self.halved_from.setdefault(job.run_id, tried)
        parts = group(jobs, self.memory, _half(len(jobs)))
        sizes = " and ".join(str(len(part.jobs)) for part in parts)
        notice(f"out of memory with {tried} runs: going on with {sizes} from the last checkpoints")
        self._put_in_front([part.jobs for part in parts])

    def _put_in_front(self, waiting: Sequence[Sequence[Job]]) -> None:
        self.queue.extendleft(reversed(waiting))


def _clear_leftovers(job: Job) -> None:
    """Delete checkpoints that nobody needs: a kill between a result and the end of its run leaves them."""
    if job.folder.checkpoints.exists():
        with Claims() as claims:
            if claims.take(job.folder):
                job.folder.clear_checkpoints()


def _half(count: int) -> int:
    return (count + 1) // 2


def _wait(jobs: Sequence[Job], claims: Claims) -> None:
    """Wait for the first of these jobs, which other processes have."""
    what, them = (f"{jobs[0].run_id} is", "it") if len(jobs) == 1 else (f"{len(jobs)} runs are", "them")
    notice(f"{what} being trained by another process; waiting for {them}")
    claims.wait(jobs[0].folder)
