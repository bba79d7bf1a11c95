"""A row that is added to the table of metrics is all that a new metric needs: every reader shows it as the row says."""

from __future__ import annotations

import pandas as pd
import pytest

from src.adapter.card import metric_line
from src.compare import figures, findings
from src.compare.assay import at_fixed_rates
from src.compare.columns import cells
from src.compare.report import report
from src.measure import metrics
from src.measure.metrics import METRICS, Metric
from tests.compare import synthetic

NAME = "test/edits"
ROW = Metric("edits", "edit distance", "signs to change", "signs", lower_is_better=True, margin=3.0)


def runs() -> None:
    """lora needs 20 to 22 edits, rslora one fewer with each seed, which is within the margin."""
    for seed in range(6):
        for variant, edits in ((None, 20.0 + seed % 3), (synthetic.RSLORA, 19.0 + seed % 3)):
            synthetic.run(seed=seed, variant=variant, curve=(), metrics={"test/loss": 2.0, "val/loss": 2.1, NAME: edits})


def test_a_row_is_all_that_a_metric_needs(make: synthetic.Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, ROW))
    runs()

    beside = cells(synthetic.assayed().comparison)
    assert [row[beside.headings.index("edit distance")] for row in beside.rows] == ["21.0000", "20.0000"]

    result = synthetic.assayed(metric=NAME)
    assert result.margin == 3.0 and result.views[0].contrasts[0].test.equivalent
    assert "test edit distance (signs): mean over 6 seeds" in result.comparison.caption
    fixed = at_fixed_rates(result)
    best, pair = findings.findings(result, fixed)
    assert best.startswith("Lowest test edit distance (signs): rslora r=8") and "rslora leads" in pair
    assert result.table["pareto"][1] == "memory, parameters, time" and pd.isna(result.table["pareto"][0])
    assert report(result, fixed, pd.DataFrame(columns=["run_id", "step", "metric", "value"]), "")["metric"] == {
        "name": NAME,
        "label": "test edit distance (signs)",
        "lower_is_better": True,
    }
    figure = figures.quality_vs_rank(result.comparison)
    assert figure.axes[0].get_ylabel() == "test edit distance (signs)"
    assert figure.get_suptitle().startswith("Test edit distance by rank")

    assert metric_line(NAME) == "signs to change, test split (signs)"


def test_a_row_that_is_never_shown_is_no_column(make: synthetic.Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runs()
    plain = cells(synthetic.assayed().comparison)
    assert not {"edits", "edit distance"} & set(plain.headings), "without a row a metric has no column"
