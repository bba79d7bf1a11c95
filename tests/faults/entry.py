"""The commands as a shell starts them, but in this process: what they said, how they ended, and what they would train.

Everything up to the first worker is the real thing. What lies behind the checks (src/sweep/launch: conversion of the
embedded model, training) is replaced, so that a line that is accepted costs no more than one that is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from src.command import cli
from src.data import cldr_names, datasets
from src.eval import __main__ as eval_command
from src.sweep import launch
from src.sweep.plan import Job
from src.train import __main__ as train_command
from src.variants import __main__ as variants_command

LONGEST_LINE = 600  # characters: more is no clear line


@dataclass(frozen=True)
class Ended:
    """The exit of a command, its output, and the jobs that it would have trained."""

    code: int
    stdout: str
    stderr: str
    jobs: list[Job] = field(default_factory=list)
    prints: bool = False  # an option of Hydra's was given that prints as it composes, such as --info

    @property
    def refused(self) -> bool:
        return self.code == cli.BAD_INPUT


def train(*arguments: str) -> Ended:
    """``python -m src.train``; what it accepts is not trained."""
    jobs: list[Job] = []
    train_command._composed.clear()  # a process has one command
    GlobalHydra.instance().clear()
    with (
        _replaced(launch, "prepare", lambda found: None),
        _replaced(launch, "launch", jobs.extend),
        _replaced(datasets, "cldr_rows", cldr_rows),
    ):
        return _ended(lambda: cli.run(train_command.main), "train", arguments, jobs)


@cache
def cldr_rows() -> list[tuple[str, str, str, str]]:
    """The rows of the default dataset, read once: most accepted lines ask for them."""
    return list(cldr_names.cldr_rows())


def variants(*arguments: str) -> Ended:
    """``python -m src.variants``."""
    return _ended(lambda: cli.run(variants_command.main), "variants", arguments)


def evaluate(*arguments: str) -> Ended:
    """``python -m src.eval``."""
    return _ended(lambda: cli.run(lambda: eval_command.main(list(arguments)), resumes=False), "eval", arguments)


def _ended(command: Callable[[], Any], name: str, arguments: Sequence[str], jobs: list[Job] | None = None) -> Ended:
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]  # as Python's
    argv, folder, environment = sys.argv, Path.cwd(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    sys.argv = [f"src/{name}/__main__.py", *arguments]
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), warnings.catch_warnings():
            warnings.simplefilter("always")
            command()
        raise AssertionError("a command ends its process")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = argv
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = []
    for stream in streams:
        stream.flush()
        said.append(stream.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]
    prints = any(word.startswith(("-i", "--inf", "-c", "--c", "-sc", "--s")) for word in arguments)
    return Ended(code, *said, jobs or [], prints)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def tree(folder: Path) -> set[str]:
    """Every file and folder below, by its path, without what hypothesis keeps for itself."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in found if path.parts[0] != ".hypothesis"}


def restore(folder: Path, before: set[str]) -> None:
    """Take away what has come since ``before``, as a folder for the next case."""
    for name in sorted(tree(folder) - before):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _visible(name: str) -> str:
    """The longest part of a name that is shown as it is, to be looked for; where there is none, that escapes are shown."""
    parts = "".join(c if c.isprintable() else "\0" for c in name).split("\0")
    return max(parts, key=len).strip()[:40] or ("\\" if name.strip() else f"{name!r}: not of the form")


def check(ended: Ended, names: Sequence[str], before: set[str]) -> None:
    """Fail unless the command ran, or refused in one clear line that has one of ``names``, and wrote nothing."""
    assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
    written = tree(Path.cwd()) - before
    if ended.code == 0:
        assert all(re.fullmatch(r"runs(/sweeps(/\.lock|/[\w.-]+\.json(\.damaged)?)?)?", path) for path in written), written
        return
    assert ended.code == cli.BAD_INPUT, ended
    assert not written
    assert ended.stdout == "" or ended.prints, ended.stdout[:500]
    assert ended.stderr.endswith("\n"), ended.stderr
    line = ended.stderr[:-1]
    assert line.startswith("error: ") and line.isprintable(), repr(line)
    assert len(line) <= LONGEST_LINE, len(line)
    assert any(map(line.__contains__, map(_visible, names))), line


def tally(counts: Counter[str]) -> str:
    """Count the ends of all cases, in words for docs/reliability.md."""
    parts = [f"{count:,} {what}" for what, count in counts.most_common()]
    return f"{counts.total():,} cases: {', '.join(parts)}"


def what(ended: Ended) -> str:
    return "refused with one line and code 2" if ended.refused else "accepted" if ended.jobs else "answered"
