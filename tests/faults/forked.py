"""Commands without their imports: a server that has imported everything forks a child for each, armed with a fault.

A command takes 8 seconds to start and 1 to do its work with the tiny model. What is forked here is the whole command:
its Hydra, its plan, its worker in a process of its own; only ``exec`` is left out. The server runs under the shim.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.shim import Shim, library, scratch

CODE = Path(__file__).resolve().parents[2]
LIMIT = 100.0  # seconds for one command; none takes a tenth of it on an idle machine
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Done:
    """``code`` is negative where a signal ended the command itself."""

    code: int
    stdout: str
    stderr: str


class Server:
    """Runs commands for tests. ``shim`` is set by the caller before each."""

    def __init__(self, folder: Path) -> None:
        self.shim = Shim(folder / "fault-state")
        self._folder = folder
        environment = {**os.environ, "LD_PRELOAD": str(library()), "PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked", str(library())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        atexit.register(self._process.communicate)

    def run(self, module: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> Done:
        """``python -m MODULE ARGUMENTS`` in ``cwd``, and everything that it started, to its end.

        Of ``environment``, what is read at imports (HOME, encodings) has no effect.
        """
        out, err = self._folder / "stdout", self._folder / "stderr"
        order = {
            "module": module,
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": dict(environment or {}),
        }
        order |= {"state": str(self.shim.path), "stdout": str(out), "stderr": str(err)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has died"
        code = json.loads(answer)
        assert code is not None, f"{module} {arguments} did not end within {LIMIT:.0f} s: {err.read_text(errors='replace')}"
        return Done(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


@functools.cache
def server() -> Server:
    """One for the whole session."""
    return Server(scratch("forked"))


class ForkedWorker:
    """Stands in for ``subprocess.Popen`` where a command starts its worker: the same process, forked instead of executed."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        stdout: int = 1,
        stderr: int = 2,
        process_group: int | None = None,
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if process_group is not None:
            os.setpgid(self.pid, process_group)  # both sides do it, since either may need it first
        if self.pid:
            return
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in pass_fds:
                with suppress(OSError):  # the listing's own
                    os.close(int(name))
        from src.train import worker

        os.environ.clear()
        os.environ.update(env)
        sys.argv = list(command[2:])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _to_its_end(worker.main)

    def poll(self) -> int | None:
        return self._take(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self._take(0 if until is None else os.WNOHANG)) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def _take(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _to_its_end(main: Any) -> None:
    """Run a command and end the process as the interpreter would, but for the frames of the parent below it."""
    import atexit
    import threading
    import traceback

    from src.command import cli

    code: Any = 1
    try:
        cli.run(main)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _command(order: dict[str, Any], shim: Any) -> None:
    """A child's life: the command, under the fault."""
    os.setsid()
    for path, fd in ((order["stdout"], 1), (order["stderr"], 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, fd)
        os.close(opened)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    os.environ.update(order["environment"])
    time.tzset()
    os.chdir(order["cwd"])
    sys.argv = [order["module"], *order["arguments"]]
    from src.sweep import child

    child.subprocess = _Forking  # type: ignore[attr-defined]
    shim.attach(order["state"].encode())
    if order["module"] == "src.train":
        from src.train.__main__ import main

        _to_its_end(main)
    from src.eval.__main__ import main as compare

    _to_its_end(lambda: compare(list(order["arguments"])))


class _Forking:
    """Stand in for ``subprocess`` in ``src.sweep.child``."""

    Popen = ForkedWorker
    PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
    TimeoutExpired = subprocess.TimeoutExpired


def _serve(shim_path: str) -> None:
    import ctypes

    import hydra._internal.hydra  # noqa: F401
    import peft  # noqa: F401
    import safetensors.torch  # noqa: F401
    import transformers  # noqa: F401

    import src.compare.assay
    import src.engine.packed.engine
    import src.eval.__main__
    import src.sweep.launch
    import src.train.__main__
    import src.train.worker  # noqa: F401

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shim = ctypes.CDLL(shim_path)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _command(order, shim)
        print(json.dumps(_reap(pid)), file=answers, flush=True)


def _reap(command: int) -> int | None:
    """Wait for a command and all that it left behind; its exit code, or None if it does not end."""
    code, until = None, time.monotonic() + LIMIT
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
        if not pid:
            if time.monotonic() > until:
                os.killpg(command, signal.SIGKILL)
                return None
            time.sleep(0.005)


if __name__ == "__main__":
    _serve(sys.argv[1])
