"""Runs that trained in packs: the memory and speed that a table shows for them, and its notes about both."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from src.compare import columns, figures, writers
from src.compare.comparison import Comparison, compare
from src.compare.frame import gather, run_ids
from src.record.records import RUNS
from tests.compare.synthetic import DORA, FROZEN, QLORA, forge

NEW = ("pack_tokens_per_second", "estimated_memory_bytes", "hold_dequantised", "halved_from")


def compared() -> Comparison:
    found = gather(run_ids())
    assert found.problems == []
    return compare(found.frame(), "test/loss", found.expected, tuple(found.absent))


def notes(comparison: Comparison) -> str:
    return "\n".join(comparison.notes)


def shown(comparison: Comparison, heading: str) -> list[str]:
    cells = columns.cells(comparison)
    return [row[cells.headings.index(heading)] for row in cells.rows]


def raw(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(writers.csv_text(comparison.table))))


def rewrite(run: str, drop: tuple[str, ...] = (), **values: object) -> None:
    path = RUNS / run / "result.json"
    record = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    forge(path, record | values)


def test_seeds_of_unequal_packs_are_one_row(make) -> None:
    make(1.0, 0, pack_size=16, peak_memory_bytes=40 * 2**30, tokens_per_second=100.0)
    make(3.0, 1, pack_size=8, peak_memory_bytes=20 * 2**30, tokens_per_second=300.0)
    comparison = compared()
    [row] = comparison.table.to_dict("records")
    assert (row["n_seeds"], row["test_loss_mean"], row["tokens_per_second"]) == (2, 2.0, 200.0)
    assert row["pack_tokens_per_second"] == (16 * 500 + 8 * 500) / 2
    assert shown(comparison, "pack") == ["8, 16"]
    [line] = raw(comparison)
    assert (line["pack_size"], line["pack_sizes"]) == ("", "8, 16")
    assert line["peak_memory_bytes"] == "", "30 GiB was nobody's peak"
    assert "packs of different size (8, 16): their tokens/s do not compare" in notes(comparison)
    assert "is in the CSV where a row's packs are of one size." in notes(comparison)


@pytest.mark.parametrize(("one", "other", "field"), [
    ({}, {"engine": "peft"}, "engine"),
    ({"variant": QLORA}, {"variant": QLORA, "hold": True}, "model.hold_dequantised"),
])  # fmt: skip
def test_engines_and_held_bases_are_not_averaged(make, one, other, field) -> None:
    make(1.0, 0, **one)
    make(3.0, 1, **other)
    comparison = compared()
    assert sorted(comparison.table["test_loss_mean"]) == [1.0, 3.0]
    assert comparison.differing == [field]
    assert f"Rows differ in {field}" in notes(comparison)


@pytest.mark.parametrize("fact", [{"engine": "peft"}, {"hold_dequantised": True}])
def test_what_really_ran_tells_runs_apart_too(make, fact) -> None:
    for r in (4, 8):
        make(1.0, 0, r=r, variant=QLORA)
        rewrite(make(3.0, 1, r=r, variant=QLORA), **fact)
    comparison = compared()
    assert sorted(comparison.table["test_loss_mean"]) == [1.0, 1.0, 3.0, 3.0]
    assert comparison.differing == (["engine"] if "engine" in fact else [])
    assert [len(one.rows) for one in figures.series(comparison)] == [2, 2], "no line joins the two"


def test_a_held_base_is_told_apart_where_models_differ_too(make) -> None:
    make(variant=QLORA, hold=True)
    make(variant=QLORA, model="other/model")
    assert compared().differing == ["model.name", "model.hold_dequantised"]


def test_a_waiting_run_stays_in_its_row(make) -> None:
    rewrite(make(variant=QLORA, hold=True), engine="peft")
    make(seed=1, variant=QLORA, hold=True, recorded=False)
    rewrite(make(seed=2, variant=QLORA, hold=True), hold_dequantised=None, status="failed", engine="peft")
    [row] = compared().table.to_dict("records")
    assert (row["status"], row["engine"], row["hold_dequantised"]) == ("1 ok, 1 failed, 1 missing", "peft", True)


def test_controls_run_in_another_engine_and_that_is_no_difference(make) -> None:
    make(variant=FROZEN)
    make()
    comparison = compared()
    assert list(comparison.table["engine"]) == ["peft", "packed"] and comparison.differing == []


def test_a_run_alone_shows_its_own_peak(make) -> None:
    make()
    comparison = compared()
    assert shown(comparison, "peak memory") == ["3.00 GiB"]
    assert "pack" not in columns.cells(comparison).headings
    assert "process_rss" in comparison.caption
    assert "~" not in notes(comparison) and "pack" not in notes(comparison)


def test_a_pack_shows_the_closed_form_of_one_run(make) -> None:
    make(variant=FROZEN, peak_memory_bytes=2**30, tokens_per_second=None)
    make(pack_size=8)
    make(pack_size=8, variant=DORA, estimated_memory_bytes=None)
    comparison = compared()
    assert shown(comparison, "peak memory") == ["1.00 GiB", "~2.00 GiB", "-"]
    assert shown(comparison, "pack") == ["1", "8", "8"]
    lines = raw(comparison)
    assert [line["peak_memory_bytes"] for line in lines] == [str(float(n * 2**30)) for n in (1, 3, 3)]
    assert [line["estimated_memory_bytes"] for line in lines] == [str(float(2 * 2**30))] * 2 + [""]
    assert [line["pack_size"] for line in lines] == ["1", "8", "8"]
    assert lines[1]["pack_tokens_per_second"] == "4000.0"
    closed, measured = "Memory with ~ is the closed form for the run trained alone", "the measured peak belongs to the whole pack"
    assert f"{closed}; {measured} and is in the CSV." in comparison.notes
    assert "process_rss" in comparison.caption, "of the frozen row"
    # What trained nothing has no speed, so its pack is none to compare with.
    assert "different size" not in notes(comparison)
    assert "tokens/s does not compare variants that shared a pack" in notes(comparison)
    assert r"\textasciitilde{}2.00 GiB" in writers.tex_text(comparison)
    assert r"\~2.00 GiB" in writers.markdown_text(comparison)


def test_the_caption_names_no_measure_that_the_table_does_not_show(make) -> None:
    make(pack_size=8)
    assert "peak memory" not in compared().caption


def test_out_of_memory_alone_shows_what_it_would_have_taken(make) -> None:
    make(status="out_of_memory", reason="out of memory at step 1", peak_memory_bytes=None, estimated_memory_bytes=200 * 2**30)
    comparison = compared()
    assert shown(comparison, "peak memory") == ["~200.00 GiB"]
    assert "Memory with ~ is the closed form for the run trained alone." in comparison.notes


def test_a_held_base_is_marked(make) -> None:
    make(variant=QLORA, hold=True)
    make()
    comparison = compared()
    assert comparison.differing == []
    assert shown(comparison, "precision") == ["bf16", "nf4 (held)"]
    assert shown(comparison, "peak memory") == ["3.00 GiB", "~2.00 GiB"]
    assert [line["hold_dequantised"] for line in raw(comparison)] == ["False", "True"]
    assert [line["base_precision"] for line in raw(comparison)] == ["bf16", "nf4"]
    assert "(held)" in notes(comparison) and "not representative of QLoRA" in notes(comparison)
    assert "whole pack" not in notes(comparison)


def test_halved_packs_are_counted(make) -> None:
    for seed in range(3):
        make(seed=seed, pack_size=4, halved_from=16)
    make(seed=3, halved_from=2, status="out_of_memory", reason="out of memory at step 1")
    make(seed=4)
    said = "Packs that ran out of memory went on in smaller ones: 1 run after a pack of 2, 3 runs after a pack of 16."
    assert said in compared().notes


def test_records_from_before_packs(make) -> None:
    old = make(variant=QLORA)
    rewrite(old, drop=(*NEW, "pack_size"), engine="peft")
    comparison = compared()
    [row] = comparison.table.to_dict("records")
    assert (row["pack_size"], row["engine"], row["hold_dequantised"]) == (1, "peft", False)
    assert math.isnan(row["estimated_memory_bytes"]) and math.isnan(row["pack_tokens_per_second"])
    assert shown(comparison, "peak memory") == ["3.00 GiB"] and shown(comparison, "precision") == ["nf4"]
    make(seed=1, variant=QLORA, pack_size=2)
    assert compared().differing == ["engine"]


@pytest.mark.parametrize("wrong", [{"hold_dequantised": "yes"}, {"pack_size": True}, {"halved_from": "16"}])
def test_a_wrong_type_is_no_record(make, wrong) -> None:
    rewrite(make(), **wrong)
    found = gather(run_ids())
    assert found.rows[0]["status"] == "unreadable" and next(iter(wrong)) in found.problems[0]
