"""A child process: one pack from its configs to its results. ``python -m src.train.worker runs/<id> [runs/<id> ...]``

``--standby N`` in place of all else: import, then read the command line from the socket of that number.

A process of its own keeps memory peaks clean, and a crash ends one pack. What happens to the pack is in life.py; here is
what its parent sees: events, output, an exit code.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ..command import cli
from ..files.durable import CannotWrite
from ..files.terminal import quiet_libraries
from ..model import device
from ..record.wandb import mirror
from ..sweep import handover
from ..sweep.child import CANNOT_WRITE, OUT_OF_MEMORY
from ..sweep.events import Events
from ..sweep.held import Lost, holding
from . import life
from .pack import Pack
from .run import Run
from .stop import Stop


def run(
    paths: Sequence[Path], events: Events, halved_from: int | None = None, stop: Stop | None = None, locks: Sequence[int] = ()
) -> int:
    """Run what the ``config.yaml`` files say and write the results. Returns the exit code.

    ``halved_from``: how many runs the pack had before memory was too small for it; ``locks``: the runs' open lock files.
    """
    try:
        with holding(paths, locks):
            pack = Pack([Run(path) for path in paths], events)
            for each in pack.runs:
                each.outcome.measured["halved_from"] = halved_from
            code = _run(pack, stop or Stop())
    except CannotWrite as error:
        if isinstance(error, Lost):
            mirror.abandon()
        if not events.cannot_write(str(error)):
            with suppress(OSError):  # where the command is gone, its output may be too
                print(f"error: {error}", file=sys.stderr)
        return CANNOT_WRITE
    if code == 0:
        mirror.flush()
    return code


def _run(pack: Pack, stop: Stop) -> int:
    """Bring the pack to its results, failed ones too, or to OUT_OF_MEMORY where a smaller one may do better."""
    placed = None
    try:
        placed = life.load(pack)
        life.train(pack, placed, stop)
    except CannotWrite:
        raise
    except Exception as error:
        if placed is not None and len(pack.runs) > 1 and device.is_out_of_memory(error):
            return OUT_OF_MEMORY
        pack.fail(error)
    return 0


def _preload(descriptor: int) -> list[str]:
    """Import what takes its time and wait for the command line; what is printed from then on goes where it says."""
    import peft  # noqa: F401

    from ..engine.packed import engine  # noqa: F401

    with socket.socket(fileno=descriptor) as channel:
        received = handover.receive(channel)
    if received is None:
        raise SystemExit  # the command has ended and needs no worker
    arguments, (events, output, *locks) = received  # locks are held as long as this process lives
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return ["--events", str(events), *(["--locks", ",".join(map(str, locks))] if locks else []), *arguments]


def main() -> NoReturn:
    stop = Stop()
    try:
        stop.listen()
        quiet_libraries()
        parser = argparse.ArgumentParser(prog="python -m src.train.worker")
        parser.add_argument("--events", type=int)
        parser.add_argument("--locks", type=lambda text: [int(number) for number in text.split(",")], default=[])
        parser.add_argument("--halved-from", type=int)
        parser.add_argument("paths", nargs="+", type=Path)
        standby = sys.argv[1:2] == ["--standby"]
        arguments = parser.parse_args(_preload(int(sys.argv[2])) if standby else None)
        code = run(arguments.paths, Events(arguments.events), arguments.halved_from, stop, arguments.locks)
    except KeyboardInterrupt:
        code = cli.SIGNALED + (stop.asked or signal.SIGINT)  # the parent got a signal too, and says so once
    finally:
        mirror.close()
    # Python takes seconds to take torch's modules apart, and a signal leaves ten in all. What has to be done at the exit
    # is done: W&B removes its temporary folders there.
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    cli.run(main)
