"""The numbers of a comparison, against sums done by hand, and what its writers do with hostile text."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from src.compare import columns, figures, logs, writers
from src.compare.comparison import Comparison, compare
from src.compare.frame import gather, run_ids
from src.record.records import RUNS, RunFolder
from tests.compare.synthetic import DIVERGED, DORA, FROZEN, forge, record_again

HOSTILE = "<script>x</script> =cmd() a|b \\input{x}\nsecond line\x1b[31m 100% $y$ #1 & _z_ [l](http://h)"


def compared(metric: str = "test/loss") -> Comparison:
    found = gather(run_ids())
    assert found.problems == []
    return compare(found.frame(), metric, found.expected, tuple(found.absent))


def notes(comparison: Comparison) -> str:
    return "\n".join(comparison.notes)


def test_mean_and_sample_sd_of_three_seeds(make) -> None:
    # mean (1 + 2 + 6) / 3 = 3; squared deviations 4 + 1 + 9 = 14; 14 / (3 - 1) = 7
    for seed, loss in enumerate((1.0, 2.0, 6.0)):
        make(loss, seed, tokens_per_second=100.0 * (seed + 1), peak_memory_bytes=2**30 * (seed + 1))
    [row] = compared().table.to_dict("records")
    assert row["n_seeds"] == 3
    assert row["test_loss_mean"] == pytest.approx(3.0)
    assert row["test_loss_sd"] == pytest.approx(math.sqrt(7))
    assert row["tokens_per_second"] == pytest.approx(200.0)
    assert row["peak_memory_bytes"] == pytest.approx(2 * 2**30)
    assert row["trainable_percent"] == pytest.approx(2.5)
    assert row["test_exact_match_mean"] == pytest.approx(0.5)
    assert row["status"] == "ok"
    assert "test_macro_f1_mean" not in row


def test_one_seed_has_no_spread(make) -> None:
    make(2.0)
    comparison = compared()
    assert math.isnan(comparison.table["test_loss_sd"][0])
    shown = columns.cells(comparison)
    assert shown.rows[0][shown.headings.index("sd")] == "-"
    assert next(csv.DictReader(io.StringIO(writers.csv_text(comparison.table))))["test_loss_sd"] == ""
    assert "Fewer than 6 seeds: differences are descriptive, no significance is claimed." in notes(comparison)


def test_six_seeds_need_no_warning(make) -> None:
    for seed in range(6):
        make(2.0, seed)
    assert "Fewer" not in notes(compared())


@pytest.mark.parametrize("difference", [{"steps": 100}, {"lr": 1e-4}, {"r": 16}, {"variant": DORA}, {"model": "other/model"}])
def test_unlike_runs_are_never_averaged(make, difference) -> None:
    make(1.0, 0)
    make(3.0, 1, **difference)
    table = compared().table
    assert sorted(table["test_loss_mean"]) == [1.0, 3.0]
    assert list(table["n_seeds"]) == [1, 1]


def test_devices_are_not_averaged(make) -> None:
    make(1.0, 0)
    make(3.0, 1, device="cuda: NVIDIA H100 80GB HBM3", peak_memory_kind="cuda_allocated")
    comparison = compared()
    assert list(comparison.table["n_seeds"]) == [1, 1]
    assert sorted(comparison.table["device"]) == ["cpu", "cuda"]
    assert "process_rss" in comparison.caption and "cuda_allocated" in comparison.caption


def test_a_field_that_differs_is_a_column_and_a_note(make) -> None:
    make(steps=100)
    make(steps=300)
    make(variant=FROZEN)
    comparison = compared()
    assert comparison.differing == ["train.steps"]
    assert "Rows differ in train.steps (100, 300)" in notes(comparison)
    assert columns.cells(comparison).rows[0][5] == "-", "a frozen model has no steps"
    make(model="other/model")
    assert compared().differing == ["model.name", "train.steps"]


def test_failed_runs_are_rows_and_no_numbers(make) -> None:
    make(1.0, 0)
    make(2.0, 1)
    bad = make(seed=2, peak_memory_bytes=9e12, tokens_per_second=9e9, **DIVERGED)
    alone = make(r=256, loss=99.0, status="out_of_memory", reason="out of memory at step 1")
    comparison = compared()
    mixed, failed = comparison.table.to_dict("records")
    assert mixed["status"] == "2 ok, 1 diverged"
    assert (mixed["n_seeds"], mixed["n_runs"], mixed["test_loss_mean"], mixed["tokens_per_second"]) == (2, 3, 1.5, 500.0)
    assert mixed["peak_memory_bytes"] == 3 * 2**30
    assert (failed["status"], failed["n_seeds"]) == ("out_of_memory", 0)
    assert math.isnan(failed["test_loss_mean"]) and math.isnan(failed["peak_memory_bytes"])
    assert failed["trainable_parameters"] == 1000
    assert f"1 diverged: loss was not finite at step 12 (lora r=8; run {bad})." in notes(comparison)
    assert f"run {alone}" in notes(comparison)


def test_missing_and_unreadable_runs_are_rows(make) -> None:
    make(1.0, 0)
    waiting = make(seed=1, recorded=False)
    torn = make(seed=2, configured=True)
    (RUNS / torn / "result.json").write_text('{"status": "ok", "met')
    found = gather(run_ids())
    assert len(found.problems) == 1 and f"{torn}/result.json" in found.problems[0]
    comparison = compare(found.frame(), "test/loss", found.expected, tuple(found.absent))
    assert list(comparison.table["status"]) == ["1 ok, 1 unreadable, 1 missing"]
    assert f"1 of 3 runs has no record yet: {waiting}." in notes(comparison)


def test_a_metric_cannot_take_the_place_of_a_column(make) -> None:
    make(metrics={"test/loss": 1.0, "status": 5.0, "group": 1.0, "test/nan": None})
    assert compared().table["status"][0] == "ok"


def test_natural_order(make) -> None:
    make(variant={"base_precision": "nf4"})
    make(variant={"trains": "all"})
    make(variant=DORA)
    for r in (256, 16):
        make(variant={"scaling": "alpha_over_sqrt_r"}, r=r)
        make(r=r)
    make(r=16, lr=1e-4)
    make(variant=FROZEN)
    table = compared().table
    assert list(table["variant"]) == ["frozen", "full", "lora", "lora", "lora", "rslora", "rslora", "dora", "qlora"]
    assert list(table["r"][2:5]) == [16, 16, 256] and list(table["learning_rate"][2:5]) == [1e-4, 1e-3, 1e-3]
    assert pd.isna(table["r"][0]) and pd.isna(table["learning_rate"][0]) and table["learning_rate"][1] == 1e-3


def test_other_notes(make) -> None:
    run = make(model_note="random weights, for tests", checks={"magnitude_moved": {"ok": False, "detail": "it stood still"}})
    make(seed=1, variant=DORA, pack_size=4)
    said = notes(compared())
    assert "Base model smollm2_135m: random weights, for tests." in said
    assert f"Failed check magnitude_moved: {run} (it stood still)." in said
    assert "packs of different size (1, 4)" in said
    assert "different seeds, so their means are not paired" in said


def test_label_metrics_appear_where_measured(make) -> None:
    make(metrics={"test/loss": 1.0, "test/macro_f1": 0.25, "test/parse_failures": 3})
    make(variant=DORA)
    table = compared().table
    assert table["test_macro_f1_mean"][0] == 0.25 and math.isnan(table["test_macro_f1_mean"][1])
    assert table["test_parse_failures_mean"][0] == 3
    assert math.isnan(table["test_exact_match_mean"][0])


def test_metrics_of_tasks_appear_where_measured_and_can_be_chosen(make) -> None:
    make(metrics={"test/loss": 1.0, "test/choice_accuracy": 0.5, "test/bleu": 12.5})
    comparison = compared(metric="test/bleu")
    assert comparison.metrics == ["test/bleu", "test/loss", "test/exact_match", "test/choice_accuracy"]
    assert comparison.table["test_bleu_mean"][0] == 12.5 and comparison.table["test_choice_accuracy_mean"][0] == 0.5
    assert "test bleu (0 to 100)" in comparison.caption


def test_two_versions_of_one_dataset_are_two_rows_and_a_record_from_before_versions_is_a_third(make) -> None:
    make(fields={"dataset.version": 1})
    make(fields={"dataset.version": 2})
    make()
    comparison = compared()
    assert comparison.differing == ["dataset.version"]
    assert sorted(comparison.table["dataset_version"].dropna()) == [1, 2] and len(comparison.table) == 3
    assert sorted(map(str, comparison.table["dataset.version"])) == ["1", "2", "none"]


def test_another_metric(make) -> None:
    make(2.0)
    make(4.0, 1)
    comparison = compared("val/loss")
    assert comparison.table["val_loss_mean"][0] == pytest.approx(3.1)
    assert comparison.table["val_loss_sd"][0] == pytest.approx(math.sqrt(2))
    assert comparison.table["test_loss_mean"][0] == pytest.approx(3.0)


def test_csv_keeps_every_digit(make) -> None:
    make(0.1 + 0.2)
    [row] = csv.DictReader(io.StringIO(writers.csv_text(compared().table)))
    assert row["test_loss_mean"] == "0.30000000000000004"
    assert row["r"] == "8" and row["trainable_parameters"] == "1000"


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\t=cmd()", "\r=cmd()", " =cmd()"])
def test_csv_runs_no_formula(make, text) -> None:
    make(**DIVERGED | {"reason": text})
    [row] = csv.DictReader(io.StringIO(writers.csv_text(compared().table)))
    assert row["reasons"] == "'" + text.strip()


def test_csv_leaves_negative_numbers_alone(make) -> None:
    make(-1.5)
    assert next(csv.DictReader(io.StringIO(writers.csv_text(compared().table))))["test_loss_mean"] == "-1.5"


def test_hostile_text_harms_no_output(make, tmp_path: Path) -> None:
    checks = {HOSTILE: {"ok": False, "detail": HOSTILE}}
    make(model=HOSTILE, model_note=HOSTILE, device=HOSTILE, checks=checks)
    run = make(seed=1, model="plain", **DIVERGED | {"reason": HOSTILE})
    record = RUNS / run / "result.json"
    forge(
        record, json.dumps(json.loads(record.read_text())).replace("second line", "second \\ud800 line")
    )  # half a surrogate pair
    comparison = compared()
    writers.write(comparison, pd.DataFrame(), tmp_path)
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + 2
    assert len({line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")}) == 1
    assert "<script" not in "\n".join(lines) and "&lt;script&gt;" in "\n".join(lines)
    assert r"\[l\](http" in "\n".join(lines)
    tex = (tmp_path / "comparison.tex").read_text()
    assert r"\input{x}" not in tex and r"\textbackslash{}input\{x\}" in tex
    assert r"100\% \$y\$ \#1 \& \_z\_" in tex
    rows = list(csv.reader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1
    assert "\x1b" not in "".join(path.read_text() for path in tmp_path.glob("comparison.*"))
    assert run in tex
    assert len(figures.write(comparison, logs.curves(run_ids()).frame, tmp_path)) == 6


def test_figures_are_the_same_for_the_same_records(make, tmp_path: Path) -> None:
    for seed in (0, 1):
        make(9.0, seed, variant=FROZEN, trainable_parameters=0)
        for r in (4, 8):
            make(2.0 + 0.1 * seed, seed, r=r)
            make(2.5 + 0.1 * seed, seed, r=r, variant=DORA)
    make(seed=2, **DIVERGED)
    comparison, curves = compared(), logs.curves(run_ids()).frame
    first = [path.read_bytes() for path in figures.write(comparison, curves, tmp_path / "1")]
    assert first == [path.read_bytes() for path in figures.write(comparison, curves, tmp_path / "2")]
    assert "Runs not drawn: 1 diverged." in {text.get_text() for text in figures.quality_vs_rank(comparison).texts}


def test_a_line_never_joins_unlike_rows(make) -> None:
    for r in (4, 8):
        for lr in (1e-3, 1e-4):
            make(2.0, r=r, lr=lr)
    joined = figures.series(compared())
    assert [(line.label, len(line.rows)) for line in joined] == [("lora, lr 0.0001", 2), ("lora, lr 0.001", 2)]


def test_curves_stop_at_a_broken_line(make) -> None:
    run = make()
    with open(RunFolder(run).metrics, "a") as file:
        file.write('{"step": 40, "train/l\n{"step": 50, "train/loss": 1.0}\n')
    record_again(run)
    found = logs.curves([run])
    assert len(found.frame) == 4 and "metrics.jsonl" in found.problems[0]


def test_a_loss_that_was_not_finite_is_no_point(make) -> None:
    run = make(curve=(3.0, float("nan"), 2.0))
    assert list(logs.curves([run]).frame["value"]) == [3.0, 2.0, 2.1]
