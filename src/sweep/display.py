"""Show how packs are doing: a line for each run that ends and, on a terminal, bars below them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .child import Event
from .packs import Pack
from .plan import Job

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def describe(result: dict[str, Any]) -> str:
    """Describe a result in a few words: its status with the reason, or its test loss."""
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    metrics = result["metrics"]
    parts = [f"{key} {metrics[key]:.3f}" for key in ("test/loss", "test/exact_match") if key in metrics]
    return ", ".join(["ok", *parts])


def notice(text: str) -> None:
    """Print something out of the ordinary, on stderr."""
    print(text, file=sys.stderr, flush=True)


NO_WEIGHTS = "; its weights were not kept: force=true trains it again"


class Display:
    """Lines and bars for ``runs`` runs. A run's number is that of runs ended so far."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.done = 0
        self.packs = 0
        self.bars: Bars | None = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            self.bars = Bars(self.runs, self.done)
            self.bars.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.progress.stop()

    @property
    def on_line(self) -> Callable[[str], None] | None:
        """Give what prints a worker's own lines while bars are drawn, which would write over them; None without bars."""
        return None if self.bars is None else notice

    def started(self, pack: Pack) -> None:
        self.packs += 1
        if len(pack.jobs) == 1:
            print(f"{self._head(pack.jobs[0], self.done + 1)} ...", flush=True)
        else:
            print(f"pack {self.packs}: {pack.describe()} ...", flush=True)
        if self.bars is not None:
            self.bars.start(pack)

    def show(self, event: Event) -> None:
        """Show progress of the current pack, where there are bars."""
        if self.bars is not None:
            self.bars.show(event, self.done)

    def ended(self, job: Job, result: dict[str, Any], seconds: float) -> None:
        self._end(job, f"{describe(result)}, {seconds:.0f} s")

    def already_done(self, job: Job, result: dict[str, Any]) -> None:
        wanted = job.config.keep_weights and job.config.variant.trains != "none"
        # Where they are not there the config says why; parsing it takes a while.
        lacks = wanted and not job.folder.has_weights and not job.folder.read_config().keep_weights
        self._end(job, f"already done, {describe(result)}{NO_WEIGHTS if lacks else ''}")

    def _end(self, job: Job, text: str) -> None:
        self.done += 1
        print(f"{self._head(job, self.done)}: {text}", flush=True)
        if self.bars is not None:
            self.bars.end(job, self.done)

    def _head(self, job: Job, number: int) -> str:
        return f"[{number}/{self.runs}] {job.run_id} {job.label()}"


class Bars:
    """Two bars: the command's runs with speed and time left, and what the current pack is at."""

    def __init__(self, runs: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()]
        self.progress: Progress = Progress(
            *columns,
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what is piped away must reach the pipe
        )
        self.runs = runs
        self.sweep: TaskID = self.progress.add_task(f"{done}/{runs} runs", total=runs, completed=done, note="")
        self.pack: TaskID = self.progress.add_task("starting", total=None, note="", visible=False)
        self.training: set[str] = set()

    def start(self, pack: Pack) -> None:
        self.training = {job.run_id for job in pack.jobs}
        self._pack("starting", None, 0)

    def end(self, job: Job, done: int) -> None:
        self.training.discard(job.run_id)
        self.progress.update(self.sweep, description=f"{done}/{self.runs} runs", completed=done)

    def show(self, event: Event, done: int) -> None:
        if event["event"] == "taken":
            self.training = set(event["runs"])
        elif event["event"] == "phase":
            self._pack(event["what"], None, 0)
        elif event["event"] == "scoring":
            self._pack(event["what"], event["total"], event["done"])
        elif event["event"] == "step":
            step, steps, speed = event["step"], event["steps"], event["tokens_per_second"]
            losses = [loss for loss in event["losses"].values() if loss is not None]
            note = f"loss {sum(losses) / len(losses):.3f}" if losses else ""
            self._pack(f"step {step}/{steps}", steps, step, note)
            self.progress.update(
                self.sweep,
                completed=done + len(self.training) * step / steps,
                note=f"{speed:,.0f} tokens/s" if speed else "",
            )

    def _pack(self, what: str, total: int | None, done: int, note: str = "") -> None:
        self.progress.update(self.pack, description=what, total=total, completed=done, note=note, visible=True)
