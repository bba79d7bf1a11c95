"""Write results.csv a row at a time, so that a killed process leaves what it has measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import sheet
from experiments.rank_stability.norms import Spread
from experiments.rank_stability.plan import Planned

KEY_COLUMNS = ("form", "variant", "r", "scale", "learning_rate", "seed", "step", "module")
LOSSES = ("train_loss", "val_loss", "test_loss")
QUANTITIES = ("grad_A", "grad_B", "weight", "change", "activation")
COLUMNS = (*KEY_COLUMNS, *LOSSES, *QUANTITIES)


class Sheet:
    """The rows of results.csv, each in the file as soon as it is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._write([])

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        self._write(rows)

    def drop(self, runs: Iterable[Planned]) -> None:
        """Take away the rows of runs that are trained again."""
        gone = {(run.variant, run.r, run.rate, run.seed) for run in runs}
        self.rows = [row for row in self.rows if (row["variant"], row["r"], row["learning_rate"], row["seed"]) not in gone]
        self.path.unlink()
        self._write(self.rows)

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        sheet.append(self.path, COLUMNS, ([_text(row.get(name)) for name in COLUMNS] for row in rows))


def _text(value: Any) -> Any:
    return ("" if math.isnan(value) else f"{value:.6g}") if isinstance(value, float) else value


def rows_of(runs: Sequence[Planned], engine: Any, step: int, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the rows of a step: losses stand in the row of all modules."""
    spreads: dict[str, Spread] = {name: measured[name] for name in QUANTITIES if name in measured}
    modules = list(next(iter(spreads.values()), {"all": []}))
    rows = []
    for place, run in enumerate(runs):
        for form in run.forms:
            for module in modules:
                key = (form, run.variant, run.r, *engine.scales(place), run.rate, run.seed, step, module)
                row = dict(zip(KEY_COLUMNS, key, strict=True)) | {name: spread[module][place] for name, spread in spreads.items()}
                if module == "all":
                    row |= {name: measured[name][place] for name in LOSSES if name in measured}
                rows.append(row)
    return rows
