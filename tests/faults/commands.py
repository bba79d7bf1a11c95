"""A command of this project as a process that can be watched and killed: its worker, what it does now, what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

from tests.conftest import ENVIRONMENT

TIMEOUT = 240.0  # seconds; of the longest command here
STEPS = b'"train/loss"'


class Command:
    """``python -m src.train ARGUMENTS`` in ``folder``, in a process group of its own; its output lies beside the folder."""

    started: ClassVar[list[Command]] = []

    def __init__(self, folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "src.train")) -> None:
        self.folder = folder
        self._worker: psutil.Process | None = None
        number = len(list(folder.parent.glob(f"{folder.name}.*.out")))
        self.out, self.err = (folder.parent / f"{folder.name}.{number}.{end}" for end in ("out", "err"))
        with open(self.out, "xb") as out, open(self.err, "xb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=folder,
                env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.started.append(self)

    def wait(self, timeout: float = TIMEOUT) -> int:
        return int(self.process.wait(timeout))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def output(self) -> str:
        return self.out.read_text(errors="replace")

    def errors(self) -> str:
        return self.err.read_text(errors="replace")

    def worker(self) -> psutil.Process | None:
        """The process that trains for this command now."""
        if self._worker is None or not _runs(self._worker):
            self._worker = next((child for child in self._children() if _runs(child) and _is_worker(child)), None)
        return self._worker

    def _children(self) -> list[psutil.Process]:
        pid = self.process.pid
        with suppress(OSError, psutil.Error):  # the kernel's own list, since psutil looks at every process there is
            return [psutil.Process(int(child)) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def kill(self, victim: str) -> None:
        """SIGKILL to ``all`` processes in the folder, to the ``parent`` alone or to the ``worker`` alone."""
        if victim == "all":
            kill_all(self.folder)
        elif victim == "parent":
            self.process.kill()
        elif worker := self.worker():
            with suppress(psutil.Error):
                worker.kill()

    def phase(self) -> str:
        """Tell the current phase, as far as files and processes show it."""
        worker = self.worker()
        if self.ended:
            return "ended"
        if worker is None:
            others = [process for process in left(self.folder) if process.pid != self.process.pid]
            if others:
                return "waiting for another process"
            return "between packs" if any(self.folder.glob("runs/*/result.json")) else "starting"
        try:
            since, runs = worker.create_time(), runs_of(worker)
        except psutil.Error:
            return "between packs"
        if any((run / "result.json").exists() for run in runs):
            return "between packs" if all((run / "result.json").exists() for run in runs) else "writing results"
        if any((run / "predictions.jsonl").exists() or (run / "adapter").exists() for run in runs):
            return "evaluating"
        return "training" if any(_newer(run / "metrics.jsonl", since) for run in runs) else "loading"


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("worker" in argument for argument in process.cmdline())
    return False


def runs_of(worker: psutil.Process) -> list[Path]:
    """The folders of the runs that a worker was given."""
    folder = Path(worker.cwd())
    return [folder / argument for argument in worker.cmdline() if argument.startswith("runs/")]


def _newer(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime > since
    except FileNotFoundError:
        return False


def left(folder: Path) -> list[psutil.Process]:
    """The processes that work in a folder or below; all that a command starts inherit its working folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid == os.getpid():
                continue
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(folder: Path) -> None:
    """SIGKILL to all that works in a folder or below."""
    for process in left(folder):
        with suppress(psutil.Error):
            process.kill()
    for command in Command.started:
        if command.folder.is_relative_to(folder):
            command.wait()


def wait_until_none_is_left(folder: Path, seconds: float) -> list[psutil.Process]:
    """Those that are still there after so many seconds."""
    until = time.monotonic() + seconds
    while (found := left(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return found
