"""Start the worker processes of a command and read what they say: events, one JSON object a line, through their own pipe.

A worker inherits the locks of its runs. It goes on if its parent is killed, and then nobody listens to it. It is the
head of a process group of its own, so that it can be ended with all that it started.

A worker imports its libraries for seconds, on some machines half a minute, while the GPU waits. So a standby is preloaded
while a worker trains, and gets its command line when its turn comes.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from . import handover

CODE = Path(__file__).resolve().parents[2]
PRODUCT = __name__.removesuffix(".sweep.child")  # the name that this tree was imported by
WORKER = [sys.executable, "-m", f"{PRODUCT}.train.worker"]
OUT_OF_MEMORY = 3  # the worker's exit code where several runs together needed more memory than there is
CANNOT_WRITE = 4  # and where a record file could not be written
STDERR = 2  # file descriptor
# Seconds that a worker gets to save and stop before it is killed: a scheduler gives ten to all of us.
GRACE = 8.5
IMPORTS = 120.0  # seconds that a standby may still take for its imports

# For every child process. One runs at a time, so it may have all cores; CUBLAS's setting makes repeated sums alike.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONUNBUFFERED": "1",
}

Event = dict[str, Any]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}


@dataclass(frozen=True)
class End:
    """The end of a worker's process: its exit code, negative if a signal ended it; ``silent`` if it had to be stopped."""

    code: int
    silent: float | None = None  # seconds without a sign of life

    def __str__(self) -> str:
        if self.silent is not None:
            return f"its process gave no sign of life for {self.silent:g} s"
        if self.code < 0:
            return f"its process was killed by {signal.Signals(-self.code).name}"
        return f"its process ended with exit code {self.code}"


class Workers:
    """The workers of a command, one at a time. With ``preload`` a standby begins to import while a worker trains."""

    def __init__(self) -> None:
        self.preload = False
        self._standby: Standby | None = None
        self._worker: subprocess.Popen[bytes] | None = None  # here, since a signal may come before its start is over

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._standby is not None:
            self._standby.end()

    def run(
        self,
        arguments: Sequence[str],
        locks: Sequence[int],
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None] | None,
        silence: float,
    ) -> End:
        """Start a worker and wait for its end, or stop it where it says nothing for ``silence`` seconds.

        What it prints goes to our stderr, or to ``on_line`` line by line where something else is drawn there. A signal
        that stops us is passed on.
        """
        ours, theirs = os.pipe()
        readers = {ours: _Lines(lambda line: _parse(line, lambda event: self._on_event(event, on_event)))}
        output = STDERR
        opened = [theirs]
        if on_line is not None:
            printed, output = os.pipe()
            readers[printed] = _Lines(lambda line: on_line(line.decode(errors="replace")))
            opened.append(output)
        self._worker = None
        try:
            worker = self._start(arguments, locks, theirs, output)
            while opened:
                os.close(opened.pop())
            if not _read(worker, readers, silence):
                _kill(worker)
                return End(worker.wait(), silence)
            return End(worker.wait())
        except KeyboardInterrupt:
            if self._worker is not None:
                self._worker.terminate()
                _stop(self._worker, list(readers))
            raise
        finally:
            if self._worker is not None and self._worker.poll() is None:
                _kill(self._worker)
                self._worker.wait()
            for end in (*readers, *opened):
                os.close(end)

    def _start(self, arguments: Sequence[str], locks: Sequence[int], events: int, output: int) -> subprocess.Popen[bytes]:
        standby, self._standby = self._standby, None
        if standby is not None and standby.take(arguments, [events, output, *locks]):
            self._worker = standby.process
            return self._worker
        held = ["--locks", ",".join(map(str, locks))] if locks else []
        command = [*WORKER, "--events", str(events), *held, *arguments]
        passed = [*locks, events]
        self._worker = subprocess.Popen(
            command, env=environment(), pass_fds=passed, stdout=output, stderr=output, process_group=0
        )
        return self._worker

    def _on_event(self, event: Event, on_event: Callable[[Event], None]) -> None:
        # Not before the first step: until then this worker needs the processor to load and build.
        if event["event"] == "step" and self.preload and self._standby is None:
            try:
                self._standby = Standby()
            except OSError:  # no more processes or files than these: the next worker starts in its turn, if it can
                self.preload = False
        on_event(event)


class Standby:
    """A preloaded worker that has no runs yet. It ends by itself where the command that started it is gone."""

    def __init__(self) -> None:
        self._channel, theirs = handover.channel()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [*WORKER, "--standby", str(theirs.fileno())],
                    env=environment(), pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    process_group=0,
                )  # fmt: skip
        except OSError:
            self._channel.close()
            raise

    def take(self, arguments: Sequence[str], descriptors: Sequence[int]) -> bool:
        """Give it runs: the descriptors are its events, its output and its locks. False where it has died or says nothing."""
        taken = False
        self._channel.settimeout(IMPORTS)
        try:
            with self._channel, suppress(OSError):
                handover.send(self._channel, arguments, descriptors)
                taken = True
        finally:
            if not taken:
                self.end()
        return taken

    def end(self) -> None:
        self._channel.close()
        _kill(self.process)
        self.process.wait()


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)


def _stop(worker: subprocess.Popen[bytes], ends: Sequence[int]) -> None:
    """Wait until the worker has stopped. Its pipes are still emptied, so that it does not hang on a full one."""
    until = time.monotonic() + GRACE
    _read(worker, {end: _Lines(lambda line: None) for end in ends}, until - time.monotonic(), until)
    while worker.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


class _Lines:
    """A buffer that cuts bytes into lines and gives each to ``take``; at the end, which is no bytes, what is left too."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.take = take
        self.rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.take(line)
        if not data and self.rest:
            self.take(self.rest)


def _read(worker: subprocess.Popen[bytes], readers: dict[int, _Lines], silence: float, until: float = float("inf")) -> bool:
    """Feed the readers until the pipes are closed, or the worker has ended and only a process of its own holds them.

    False where the worker lives on and has said nothing for ``silence`` seconds.
    """
    last_sign = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for end in readers:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until:
            ready = selector.select(timeout=0.5)
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                readers[key.fd].feed(data)
                if not data:
                    selector.unregister(key.fd)
            if ready:
                last_sign = time.monotonic()
            elif worker.poll() is not None:
                return True
            elif time.monotonic() - last_sign > silence:
                return False
    return True


def _parse(line: bytes, on_event: Callable[[Event], None]) -> None:
    """Pass an event on. What is no event, such as a line that the worker's death cut off, is left out."""
    try:
        event = json.loads(line)
    except ValueError:
        return
    if isinstance(event, dict) and "event" in event:
        on_event(event)
