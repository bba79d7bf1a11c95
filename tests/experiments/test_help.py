"""Every command of the studies tells what it does when it is asked, and does nothing else."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in [*(ROOT / "experiments").rglob("*.py"), ROOT / "benchmarks/sweep.py"]
    if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module = import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.chdir(tmp_path)
    takes = inspect.signature(module.main).parameters
    assert not module.main(*([["--help"]] if takes else []))
    shown = capsys.readouterr().out
    assert shown.startswith(str(module.__doc__)) and f"``python -m {name}" in shown
    assert not list(tmp_path.iterdir())
