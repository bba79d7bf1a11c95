"""The command is tested on the synthetic records of the comparison."""

from __future__ import annotations

from tests.compare.conftest import grid, make

__all__ = ["grid", "make"]
