"""Runs of the tiny model in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from src.cli import compose
from src.config import Config
from src.records import RunFolder, run_id
from src.train import worker
from tests.conftest import TINY

Run = Callable[..., tuple[RunFolder, dict[str, Any]]]


@pytest.fixture
def run(folder: object) -> Run:
    """Train the tiny model with these overrides in this process; (folder, result)."""

    def go(*overrides: str, config: Config | None = None) -> tuple[RunFolder, dict[str, Any]]:
        config = config or compose([*TINY, *overrides])
        record = RunFolder(run_id(config))
        record.write_config(config)
        worker.run(record.path)
        result = record.result()
        assert result is not None
        return record, result

    return go
