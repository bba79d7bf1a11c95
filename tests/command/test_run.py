"""Exit codes and lines of ``cli.run``, which every command ends in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT

PROGRAM = """
import sys
from src.command import cli
from src.files.durable import CannotWrite
from src.files.errors import ConfigError

def command():
    {body}

cli.run(command{more})
"""


def ended(folder: Path, body: str, more: str = "") -> tuple[int, str]:
    """(exit code, stderr) of a command with this body, in a process of its own."""
    secret = {"MY_TOKEN": "correct-horse-42-battery"}
    code = PROGRAM.format(body=body, more=more)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT | secret, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("return None", 0, ""),
        ("return 1", 1, ""),
        ("raise ConfigError('lora.r=0: needs more')", 2, "error: lora.r=0: needs more\n"),
        ("raise ConfigError('two\\nlines\\x1b[2J')", 2, "error: two; lines\\x1b[2J\n"),
        ("raise ConfigError('token correct-horse-42-battery')", 2, "error: token [redacted]\n"),
        ("raise CannotWrite('x: full')", 1, "error: x: full; what is done stays, and the same command goes on from here\n"),
        ("raise MemoryError", 1, "error: out of memory\n"),
        ("import torch; raise torch.OutOfMemoryError('CUDA out of memory.')", 1, "error: CUDA out of memory.\n"),
        ("raise BrokenPipeError", 0, ""),
        ("raise KeyboardInterrupt", 130, "interrupted; the same command goes on from here\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "interrupted; the same command goes on from here\n"),
    ],
)
def test_how_a_command_ends(folder: Path, body: str, code: int, line: str) -> None:
    assert ended(folder, body) == (code, line)


def test_a_long_line_shows_its_ends_and_no_half_of_a_secret(folder: Path) -> None:
    code, text = ended(folder, "raise ConfigError('a' * 240 + ' correct-horse-42-battery ' + 'b' * 500)")
    assert code == 2 and text.startswith("error: aaa") and text.endswith("bbb\n") and " ... " in text
    assert "[redacted" in text and "correct" not in text


def test_a_command_that_starts_again_does_not_promise_to_go_on(folder: Path) -> None:
    assert ended(folder, "raise KeyboardInterrupt", ", resumes=False") == (130, "interrupted\n")


def test_a_defect_shows_its_traceback_without_secrets(folder: Path) -> None:
    code, text = ended(folder, "raise RuntimeError('at correct-horse-42-battery')")
    assert code == 1 and text.startswith("Traceback") and text.endswith("RuntimeError: at [redacted]\n")


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    """Also where all the output fits into the buffer, and the loss shows only when that is flushed."""
    reader, writer = os.pipe()
    os.close(reader)
    code = PROGRAM.format(body="print('a line')", more="")
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sign_that_the_terminal_lacks_is_replaced(folder: Path) -> None:
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    code = PROGRAM.format(body="print(chr(252))", more="")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "?\n", "")


def test_a_signal_that_nohup_ignores_stays_ignored(folder: Path) -> None:
    code = PROGRAM.format(body="import os, signal; os.kill(os.getpid(), signal.SIGHUP)", more="")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, "")
