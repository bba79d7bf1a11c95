"""Fixtures of the comparison: a folder of synthetic records for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compare import synthetic


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> synthetic.Make:
    """Writes the files of a run below tmp_path/runs, with tmp_path the current folder, and returns the run's id."""
    monkeypatch.chdir(tmp_path)
    return synthetic.run


@pytest.fixture
def grid(make: synthetic.Make) -> synthetic.Grid:
    """Writes the runs of one variant at several rates and seeds, and returns their ids."""
    return synthetic.grid
