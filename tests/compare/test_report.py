"""The dict that the page is made of, and the files beside it, for a sweep whose numbers are known."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from src.compare import logs, writers
from src.compare.assay import Assay, at_fixed_rates
from src.compare.columns import cells
from src.compare.page.render import page
from src.compare.report import report
from src.record.records import write_sweep
from tests.compare import page_reports, synthetic
from tests.compare.synthetic import DORA, FROZEN, RSLORA, assayed
from tests.conftest import evaluate

LORA = {3e-4: 2.2, 1e-3: 2.1, 3e-3: 2.0}
BETTER = {3e-4: 2.1, 1e-3: 1.9, 3e-3: 2.0}
NAMED_BY_DATA = ("cells", "styles")


def wobbling(losses: dict[float, float], by: float) -> dict[str, Any]:
    return {"validation": losses, "test": lambda rate, seed: losses[rate] + 0.01 * seed + by * (-1) ** seed}


def sweep(**other: Any) -> list[str]:
    """Two variants at two ranks over three rates and 9 seeds: 3 tune, 6 report."""
    return [
        run
        for r in (4, 64)
        for variant, losses, by in (({}, LORA, 0.0), (RSLORA, BETTER, 0.002))
        for run in synthetic.grid(
            seeds=range(9), r=r, variant=variant, trainable_parameters=1000 * r, **wobbling(losses, by), **other
        )
    ]


def reported(result: Assay, curves: pd.DataFrame | None = None) -> dict[str, Any]:
    nothing = pd.DataFrame(columns=["run_id", "step", "metric", "value"])
    return report(result, at_fixed_rates(result), nothing if curves is None else curves, "python -m src.eval")


def keys(value: Any, path: str = "") -> set[str]:
    """Every path of keys in nested dicts and lists; what data names is one path."""
    if isinstance(value, list):
        return {found for entry in value for found in keys(entry, f"{path}[]")} | {path}
    if not isinstance(value, dict):
        return {path}
    found = {path}
    for key, entry in value.items():
        found |= keys(entry, f"{path}.*" if path.split(".")[-1].rstrip("[]") in NAMED_BY_DATA else f"{path}.{key}")
    return found


def test_it_has_what_the_page_reads(make) -> None:
    """The page's own tests are made of a dict written by hand: this one has all its keys."""
    written = keys(page_reports.small())
    sweep(ended={(3e-4, 1): "missing"})
    synthetic.run(5.0, variant=FROZEN, fields={"train.steps": 9})
    synthetic.run(1.0, 5, variant=DORA, r=4, trainable_parameters=4000, fields={"train.batch_size": 8})
    result = assayed()
    made = reported(result, logs.curves([str(run) for run in result.comparison.runs["run_id"]]).frame)
    assert written - keys(made) == set()


def test_it_is_json_and_the_page_is_made_of_it(make) -> None:
    sweep()
    synthetic.run(5.0, variant=FROZEN, trainable_parameters=0)
    made = reported(assayed())
    assert json.loads(json.dumps(made)) == made
    text = page(made)
    HTMLParser().feed(text)
    assert "rslora r=64" in text and "same trainable parameters" in text and "fixed rate against tuned" in text
    assert made["progress"] is None


def test_numbers_and_texts_by_hand(make) -> None:
    """LoRA r=4 reports seeds 3 to 8 at 3e-3, so 2.0 and the mean 0.055; rsLoRA is 0.1 lower at 1e-3."""
    sweep()
    made = reported(assayed())
    rows = {row["label"]: row["cells"] for row in made["rows"]}
    assert rows["lora r=4"]["test_loss_mean"] == {"value": pytest.approx(2.055), "text": "2.0550"}
    assert rows["lora r=4"]["learning_rate"] == {"value": 3e-3, "text": "0.003"}
    assert rows["lora r=4"]["difference"] == {"value": None, "text": "-"}
    assert rows["rslora r=4"]["difference"]["text"] == "-0.1000"
    assert rows["rslora r=4"]["tuning_runs"] == {"value": 9, "text": "9"}
    arm = next(arm for arm in made["arms"] if arm["label"] == "rslora r=4")
    assert [(one["seed"], one["value"]) for one in arm["seeds"]] == [
        (seed, pytest.approx(1.9 + 0.01 * seed + 0.002 * (-1) ** seed)) for seed in range(3, 9)
    ]
    assert [(rate["lr"], rate["chosen"], rate["validation"]) for rate in arm["rates"]] == [
        (3e-4, False, pytest.approx(2.1)), (1e-3, True, pytest.approx(1.9)), (3e-3, False, pytest.approx(2.0)),
    ]  # fmt: skip
    assert [seed["role"] for seed in arm["rates"][0]["seeds"]] == ["tuning"] * 3 + ["report"] * 6
    same_rank, _, fixed = made["views"]
    assert same_rank["family"] == "sign-flip tests, exact up to 16 seeds, Holm over 2 contrasts"
    assert [row["cells"]["reference"]["text"] for row in same_rank["rows"]] == ["lora r=4", "lora r=64"]
    # Over all 9 seeds the wobble sums to 0.002.
    assert fixed["rows"][0]["cells"]["at 0.001"]["value"] == pytest.approx(-0.2 + 0.002 / 9)
    assert fixed["rows"][0]["cells"]["tuned"]["text"].startswith("-0.1000 [-0.10")


def test_a_sweep_that_runs_says_how_far_it_is(make, capsys) -> None:
    """One run has no folder yet, and one no record: 2 of 36 and the page says so, and so do the notes."""
    ids = sweep(ended={(3e-3, 8): "missing"})
    write_sweep("study", [*ids, "0123456789"])
    assert evaluate(["sweep=study"]) == 0
    text, printed = Path("reports/study/report.html").read_text(), capsys.readouterr().out
    assert "104 of 109 runs finished." in text and "5 of 109 runs have no record yet." in text
    assert "- 5 of 109 runs have no record yet: " in printed and "0123456789" in printed
    assert "1 missing of 27 runs" in printed


def test_progress_ends_with_the_last_run(make) -> None:
    sweep(ended={(3e-3, 8): "diverged"})
    assert reported(assayed())["progress"] is None


def test_nothing_finished_is_a_page(make) -> None:
    synthetic.run(recorded=False)
    made = reported(assayed())
    assert made["findings"] == [] and made["progress"] == {
        "expected": 1, "finished": 0, "text": "1 of 1 runs have no record yet.",
    }  # fmt: skip
    assert "Nothing is claimed from these runs." in page(made)


def test_csv_has_every_digit(make) -> None:
    """Each float of the table is read again as the same float, and each absent one as an empty field."""
    sweep()
    result = assayed()
    read = list(csv.DictReader(io.StringIO(writers.csv_text(result.table))))
    compared = 0
    for row, again in zip(result.table.to_dict("records"), read, strict=True):
        for name, value in row.items():
            if isinstance(value, float) and not math.isnan(value):
                assert float(again[name]) == value
                compared += 1
            elif pd.isna(value):
                assert again[name] == ""
    assert compared > 60
    rates = list(csv.DictReader(io.StringIO(writers.csv_text(result.rates))))
    assert [float(row["validation"]) for row in rates] == list(result.rates["validation"])


def test_forgetting_is_a_column_where_it_was_measured(make) -> None:
    for seed, after in enumerate((3.5, 3.75)):
        synthetic.run(seed=seed, metrics={"test/loss": 2.0, "forgetting/before": 3.25, "forgetting/after": after})
    synthetic.run(variant=DORA)
    result = assayed()
    before, after, change = (result.table[f"forgetting_{name}_mean"][0] for name in ("before", "after", "change"))
    assert (before, after, change) == (3.25, 3.625, 0.375)
    shown = cells(result.comparison)
    assert [row[shown.headings.index("prose loss change")] for row in shown.rows] == ["+0.3750", "-"]


def test_forgetting_is_no_column_where_it_was_not(make) -> None:
    synthetic.run()
    assert "prose loss change" not in cells(assayed().comparison).headings


def test_forgetting_can_be_what_is_compared(make, capsys) -> None:
    for r in (4, 8):
        for variant, after in (({}, 3.5), (DORA, 3.3)):
            metrics = {"test/loss": 2.0, "forgetting/before": 3.25, "forgetting/after": after}
            synthetic.run(r=r, variant=variant, metrics=metrics, trainable_parameters=1000 * r)
    assert evaluate(["metric=forgetting/change"]) == 0
    assert "dora leads, -0.2000, 1 seed: too few seeds" in capsys.readouterr().out


def test_costs_by_hand(make) -> None:
    """Seconds of runs that trained alone, and who is beaten: B is worse than D in all but time, C beaten by both."""
    gigabyte = 2**30
    costs = {"A": (2.0, 2, 10, 60, 4), "B": (2.1, 2, 10, 12, 1), "C": (2.2, 3, 20, 60, 4), "D": (1.9, 4, 10, 60, 1)}
    for r, (loss, memory, parameters, seconds, pack) in enumerate(costs.values(), start=1):
        synthetic.run(
            loss, r=r, pack_size=pack, train_seconds=seconds,
            estimated_memory_bytes=memory * gigabyte, trainable_parameters=parameters,
        )  # fmt: skip
    table = assayed().table
    assert table["train_seconds_alone"].fillna(-1).tolist() == [-1, 12.0, -1, 60.0]
    assert list(table["train_seconds"]) == [60.0, 12.0, 60.0, 60.0] and list(table["adapter_bytes"]) == [4000.0] * 4
    # Memory: D is best, A is best of those that need less. Parameters: D has no more than any. Time: D and B, the others
    # shared theirs.
    fronts = ["memory", "time", None, "memory, parameters, time"]
    assert [None if pd.isna(front) else front for front in table["pareto"]] == fronts


def test_curves_are_of_the_steps_that_all_runs_have(make) -> None:
    ids = [synthetic.run(seed=0, curve=(3.0, 2.0, 1.0)), synthetic.run(seed=1, curve=(5.0, 4.0))]
    [arm] = reported(assayed(), logs.curves(ids).frame)["arms"]
    assert arm["curve"] == {
        "steps": [10, 20], "mean": [4.0, 3.0], "low": [3.0, 2.0], "high": [5.0, 4.0],
        "validation_steps": [30], "validation": [2.1],
    }  # fmt: skip


def test_a_long_curve_is_thinned(make) -> None:
    ids = [synthetic.run(curve=tuple(3.0 - step / 1000 for step in range(999)))]
    [arm] = reported(assayed(), logs.curves(ids).frame)["arms"]
    assert 100 <= len(arm["curve"]["steps"]) <= 200 and arm["curve"]["steps"][0] == 10


def test_an_interval_below_zero_keeps_both_of_its_signs_in_every_view(make) -> None:
    sweep()
    views = {view["name"]: view["rows"] for view in reported(assayed())["views"]}
    for row in views["fixed rate against tuned"]:
        assert re.fullmatch(r"-0\.[0-9]+ \[-0\.[0-9]+, -0\.[0-9]+\]", row["cells"]["tuned"]["text"])
        # At the lowest rate LoRA is far behind at every seed.
        assert re.fullmatch(r"-0\.[0-9]+ \[-0\.[0-9]+, -0\.[0-9]+\]", row["cells"]["at 0.0003"]["text"])
