"""Put both questions as paired differences: ranks of one variant with each other, and variants with LoRA at one rank.

Rates, differences, intervals and tests are those of ``src.eval``. A family of Holm's correction is one variant's ranks, or the
variants at one rank: with 8 seeds an exact p is 2/2^8 or more, so a family of more than 6 could mark nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from experiments.variants_at_their_best.results import CONTROLS, gathered
from experiments.variants_at_their_best.run import TUNE, cells
from src.compare.assay import Assay, assay, at_fixed_rates
from src.compare.contrasts import Contrast, Values, View, by_seed, contrast
from src.compare.frame import MISSING
from src.compare.selection import Condition
from src.compare.statistics import holm
from src.files.text import few

METRIC, REFERENCE, MARGIN = "test/loss", "lora", 0.01  # nats
NAMES = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "qlora": "QLoRA",
    "full": "full fine-tuning",
    "frozen": "base as it is",
}
# The bootstrap over test items needs predictions, which the table of runs does not hold; python -m src.eval has it.
NO_PREDICTIONS = Path(__file__).resolve().parent
Cell = tuple[str, int | None]  # variant, r; None: a control


def name(cell: Cell) -> str:
    variant, r = cell
    return NAMES.get(variant, variant) + ("" if r is None else f" r={r}")


def named(cells: Sequence[Cell]) -> str:
    return few([name(cell) for cell in cells], 18)


@dataclass(frozen=True)
class Study:
    """``result`` is what ``python -m src.eval sweep=variants_at_their_best tune=0,1,2`` makes of the same runs."""

    runs: pd.DataFrame
    result: Assay

    @cached_property
    def rows(self) -> dict[Cell, int]:
        """The row of each cell in the comparison; only of cells that have a run."""
        table = self.result.table
        by_cell = {
            (str(v), None if pd.isna(r) else int(r)): int(row)
            for row, v, r in zip(table.index, table["variant"], table["r"], strict=True)
        }
        order: list[Cell] = [(name, None) for name in CONTROLS]
        return {cell: by_cell[cell] for cell in [*order, *cells()[0]] if cell in by_cell}

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(v for v, r in self.rows if r is not None))

    @property
    def ranks(self) -> list[int]:
        return sorted({r for _, r in self.rows if r is not None})

    @cached_property
    def values(self) -> dict[int, Values]:
        """The reported test losses of each row, by seed."""
        return dict(by_seed(self.result.comparison.runs, METRIC, "row"))

    def losses(self, cell: Cell) -> list[float]:
        return list(self.values[self.rows[cell]].values()) if cell in self.rows else []

    def condition(self, cell: Cell) -> Condition:
        return self.result.conditions[self.rows[cell]]

    def of(self, cell: Cell) -> pd.DataFrame:
        """All runs of the cell."""
        variant, r = cell
        return self.runs[(self.runs["variant"] == variant) & (self.runs["r"].isna() if r is None else self.runs["r"] == r)]

    def cell(self, row: int) -> Cell:
        return next(cell for cell, place in self.rows.items() if place == row)

    def unreported(self) -> list[Cell]:
        """List the cells for which no report seed has a number."""
        return [cell for cell in [*((name, None) for name in CONTROLS), *cells()[0]] if not self.losses(cell)]

    def reported(self) -> list[Cell]:
        """List the variants and ranks for which a report seed has a number."""
        return [cell for cell in cells()[0] if self.losses(cell)]

    def grid(self, cell: Cell) -> list[float]:
        """List the rates that were tried for cells of this kind (adapters or controls); empty where the cell has no rate."""
        conditions = [self.condition(other) for other in self.rows if (other[1] is None) == (cell[1] is None)]
        return sorted({rate for condition in conditions for rate in condition.rates}) if self.condition(cell).rates else []

    def tuning(self, cell: Cell, rate: float) -> pd.DataFrame:
        """Select the runs that choose this rate: those of the tuning seeds that have ended."""
        runs, seeds = self.of(cell), [seed for seed, _ in self.result.selection.split.tuning]
        return runs[(runs["learning_rate"] == rate) & runs["seed"].isin(seeds) & (runs["status"] != MISSING)]

    def unseen(self, cell: Cell) -> bool:
        """Tell whether a run of a tuning seed has not ended at some rate: then no rate is called the best."""
        return any(len(self.tuning(cell, rate)) < len(self.result.selection.split.tuning) for rate in self.grid(cell))

    def best_rank(self, variant: str) -> int | None:
        """Choose a rank by the validation loss of the tuning seeds; the report seeds would favor their own choice."""
        losses = {}
        for r in self.ranks:
            if (variant, r) not in self.rows or self.unseen((variant, r)):
                continue
            if (condition := self.condition((variant, r))).chosen in condition.validation:
                losses[r] = condition.validation[condition.chosen]
        return min(losses, key=lambda r: losses[r]) if losses else None

    def of_ranks(self, variant: str) -> View:
        """Compare each rank with the lowest and with the best; a pair that is both is tested once."""
        ranks = [r for r in self.ranks if self.losses((variant, r))]
        best = self.best_rank(variant)
        pairs = [(r, ranks[0]) for r in ranks[1:]]
        pairs += [(r, best) for r in ranks if best in ranks and r != best and (best, r) not in pairs and (r, best) not in pairs]
        return self._family(f"{variant}, ranks", [((variant, a), (variant, b)) for a, b in pairs])

    def of_variants(self, r: int) -> View:
        """Compare each other variant with LoRA at this rank."""
        others = [v for v in self.variants if v != REFERENCE and self.losses((v, r))]
        pairs = [((v, r), (REFERENCE, r)) for v in others if self.losses((REFERENCE, r))]
        return self._family(f"variants at r={r}", pairs)

    def to_full(self) -> View:
        """Compare each cell with full fine-tuning, to describe only, so without a family."""
        full: Cell = ("full", None)
        cells_ = [cell for cell in self.rows if cell[0] not in CONTROLS and self.losses(cell) and self.losses(full)]
        return View("full", [contrast(self.rows[cell], self.rows[full], self.values, MARGIN) for cell in cells_], [])

    def at_one_rate(self, contrasts: list[Contrast]) -> pd.DataFrame:
        """Recompute these differences with one rate for both, by ``src.compare.assay.at_fixed_rates``."""
        return at_fixed_rates(replace(self.result, views=[View("at one rate", contrasts, [])]))

    def _family(self, name: str, pairs: Sequence[tuple[Cell, Cell]]) -> View:
        contrasts = [contrast(self.rows[first], self.rows[other], self.values, MARGIN) for first, other in pairs]
        adjusted = holm([pair.test.p_flip for pair in contrasts])
        return View(name, [replace(pair, p_holm=float(p)) for pair, p in zip(contrasts, adjusted, strict=True)], [])


def study(runs: pd.DataFrame) -> Study:
    """Compare the runs of ``results.checked``."""
    return Study(runs, assay(gathered(runs), METRIC, REFERENCE, TUNE, MARGIN, NO_PREDICTIONS))


def wider_p(views: Sequence[View]) -> dict[tuple[int, int], float]:
    """Compute p of each contrast's paired t test after Holm over all views at once, the wider family."""
    every: list[Contrast] = [pair for view in views for pair in view.contrasts]
    adjusted = holm([pair.test.p_t for pair in every])
    return {(pair.row, pair.reference): float(p) for pair, p in zip(every, adjusted, strict=True)}
