"""What the studies' reports have in common on their command line."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path

import pytest

from src.files.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
STUDIES = sorted(file.parent.name for file in FOLDER.glob("*/report.py"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_report_is_of_a_folder_that_can_be_named(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = import_module(f"experiments.{study}.report")

    def told(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        with pytest.raises(ConfigError) as caught:
            report.main(*([arguments] if inspect.signature(report.main).parameters else []))
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
        return str(caught.value)

    assert "nowhere" in told("folder=nowhere") and told("folder=nowhere") != told("nowhere")
    assert told("folder=") == "folder: needs a value, such as folder=FOLDER"
    assert "'foldr': no such key (did you mean folder?)" in told("foldr=nowhere")
    assert "folder=FOLDER" in str(report.__doc__).splitlines()[0]
