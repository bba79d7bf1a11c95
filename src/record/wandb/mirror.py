"""Mirror each run to a W&B run, from the record's own lines. Training never waits for it or fails because of it.

Each mirror has its own thread. Where W&B breaks (its service process was killed, its disk is full), the mirror is made again
from the record when the run has ended: offline, and once.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...config.schema import Config
from ...files.text import first_line
from ..records import RunFolder
from . import client
from .offline_file import closed_with

# W&B's service writes the end of its file just after it reports that a run is finished.
WRITE_SECONDS = 5.0
# The limit at the end of a worker: one init and one upload, and time to make mirrors again.
FLUSH_SECONDS = 60.0
# Of the 10 s that a signal leaves to the whole process. Ending a healthy service takes 0.1 s.
CLOSE_SECONDS = 3.0

_setting_up = threading.Lock()  # one thread at a time, so that a silent server is waited for only once
_closing = threading.Event()
_mirrors: list[Mirror] = []
_online = True  # False once the server has not answered in this process


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Wait until the mirrors of all ended runs are closed; after this long, leave them and print one line."""
    until = time.monotonic() + seconds
    ended = [mirror for mirror in _mirrors if mirror.ended.is_set()]
    for mirror in ended:
        mirror.thread.join(max(0.0, until - time.monotonic()))
        _mirrors.remove(mirror)
    if left := [str(mirror.folder) for mirror in ended if mirror.thread.is_alive()]:
        _say(f"left after {seconds:.0f} s, with complete records: {', '.join(left)}; later: wandb sync FOLDER/wandb/*run-*")


def close(seconds: float = CLOSE_SECONDS) -> None:
    """End W&B within this time at the end of the process, whatever its mirrors do. W&B cannot be used afterwards.

    Removes W&B's own exit hook, which would wait for as long as its service does.
    """
    _closing.set()
    if "wandb" not in sys.modules:
        return
    ending = threading.Thread(target=client.teardown, daemon=True)
    ending.start()
    ending.join(seconds)
    if ending.is_alive():  # the service would go on for FINISH_SECONDS, holding our stderr
        for service in client.services():
            service.kill()


def abandon() -> None:
    """End W&B's services at once, so that they write nothing more: the folders of the mirrors are no longer ours."""
    _closing.set()
    if "wandb" in sys.modules:
        for service in client.services():
            service.kill()


class Mirror:
    """The W&B mirror of one run. An error of W&B becomes one line on stderr when the run has ended."""

    def __init__(self, config: Config, run_id: str, folder: Path) -> None:
        self.config, self.run_id, self.folder = config, run_id, folder
        self.lines: SimpleQueue[dict[str, Any] | None] = SimpleQueue()  # None is the end
        self.ended = threading.Event()
        self.on = config.tracking.mode != "disabled"
        self.thread = threading.Thread(target=self._work, name=f"mirror of {run_id}", daemon=True)
        if self.on:
            _mirrors.append(self)
            self.thread.start()

    def log(self, line: dict[str, Any]) -> None:
        """Queue one line of metrics.jsonl, for its step."""
        if self.on:
            self.lines.put(line)

    def finish(self, summary: dict[str, Any], ok: bool) -> None:
        """Close the mirror after all queued lines."""
        self.summary, self.exit_code = summary, 0 if ok else 1
        self.lines.put(None)
        self.ended.set()

    def _work(self) -> None:
        try:
            self._fill(self._open(), iter(self.lines.get, None))
        except Exception as error:  # any failure of a mirror is a failure to mirror, nothing more
            self.ended.wait()
            self._rebuild(first_line(error))

    def _open(self) -> Any:
        global _online
        with _setting_up:
            if self.config.tracking.mode == "online" and _online:
                try:
                    if not client.has_key():
                        raise LookupError("no API key (WANDB_API_KEY or wandb login)")
                    return self._start("online")
                except Exception as error:
                    _online = False
                    _say(f"online: {first_line(error)}; mirroring offline")
            return self._start("offline")

    def _start(self, mode: str) -> Any:
        if _closing.is_set():
            raise InterruptedError("the process ends")
        return client.start(self.config, self.run_id, self.folder, mode, _say)

    def _fill(self, run: Any, lines: Iterable[dict[str, Any]]) -> None:
        """Send all lines to W&B, then check that its file holds them: W&B reports no error on a full disk."""
        steps = set()
        for line in lines:
            steps.add(line["step"])
            run.log({key: value for key, value in line.items() if value is not None and math.isfinite(value)}, step=line["step"])
        run.summary.update(self.summary)
        file = Path(run.dir).parent / f"run-{run.id}.wandb"
        try:
            run.finish(exit_code=self.exit_code)
        except TimeoutError:
            folder = self.folder / "wandb" / file.parent.name
            _say(f"the server did not take everything in {client.FINISH_SECONDS} s; later: wandb sync {folder}")
        until = time.monotonic() + WRITE_SECONDS
        while closed_with(file) != steps:
            if time.monotonic() > until:
                raise OSError(f"{file.name} is not complete")
            time.sleep(0.1)

    def _rebuild(self, reason: str) -> None:
        try:
            with _setting_up:
                if not client.services():
                    client.teardown()  # else it would keep asking the service that died
                run = self._start("offline")
            self._fill(run, RunFolder(self.folder.name, self.folder.parent).logged())
            _say(f"{reason}; the mirror of {self.folder} was made again from its record")
        except Exception as error:
            _say(f"{reason}; no complete mirror of {self.folder} ({first_line(error)}); its record is complete")


def _say(text: str) -> None:
    if not _closing.is_set():
        print(f"W&B: {text}", file=sys.stderr)
