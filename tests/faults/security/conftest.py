"""Attacks: pickles and packages that leave a marker when they run, and a command that has to be refused."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src.command import cli
from src.files import credentials

Refused = Callable[..., str]


class Touch:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(folder: Path) -> Path:
    """The file that exists only if an attack was executed."""
    return folder / "executed"


@pytest.fixture
def evil(folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pickle that leaves the marker; beside it an importable package ``evil`` that does."""
    package = folder / "evil"
    package.mkdir()
    (package / "__init__.py").write_text(f"import os\nos.path.exists({str(marker)!r}) or os.mkdir({str(marker)!r})\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    path = folder / "evil.pkl"
    path.write_bytes(pickle.dumps(Touch(marker)))
    return path


@pytest.fixture
def own_secrets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No key of the person who runs the tests; a place for keys of the test's own."""
    place = tmp_path_factory.mktemp("keys")
    for name in [name for name in os.environ if credentials.NAME.search(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(place / "netrc"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(place / "token"))
    credentials.known.cache_clear()
    return place


@pytest.fixture
def command_in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit code of ``python -m src.train ARGUMENTS``, in this process."""

    def call(*arguments: str) -> int:
        from src.train import __main__ as training

        monkeypatch.setattr(training, "_composed", [])
        monkeypatch.setattr(sys, "argv", ["src.train", *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        with pytest.raises(SystemExit) as ended:
            cli.run(training.main)
        return int(ended.value.code or 0)

    return call


@pytest.fixture
def refused(
    folder: Path, command_in_process: Callable[..., int], own_secrets: Path, capfd: pytest.CaptureFixture[str]
) -> Refused:
    """The one line with which the command refuses; it must write nothing."""

    def call(*arguments: str) -> str:
        before = sorted(folder.rglob("*"))
        capfd.readouterr()
        code = command_in_process(*arguments)
        shown = capfd.readouterr()
        assert (code, shown.out) == (2, ""), shown
        (line,) = shown.err.splitlines()
        assert line.startswith("error: ")
        assert sorted(folder.rglob("*")) == before
        return line

    return call
