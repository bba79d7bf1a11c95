"""Platforms that nothing is tested on are named in a line; Windows is refused."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

import pytest

import src
from src.sweep import machine


@pytest.mark.parametrize(
    ("platform", "torch", "begins"),
    [
        ("linux", "2.13.0+cpu", None),
        ("linux", "2.13.0+cu130", None),
        ("linux", "2.13.0+rocm7.0", "ROCm: "),
        ("darwin", "2.13.0", "macOS: "),
        ("freebsd14", "2.13.0", "freebsd14: "),
    ],
)
def test_an_untested_platform_is_named(platform: str, torch: str, begins: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(metadata, "version", {"torch": torch}.__getitem__)
    line = machine.untested()
    if begins is None:
        assert line is None
    else:
        assert line is not None and line.startswith(begins) and "tested" in line and "\n" not in line


def test_windows_is_refused_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        importlib.reload(src)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: lora-assay runs on Linux; on Windows it runs inside WSL (wsl --install)\n"
