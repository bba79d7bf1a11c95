"""Runs of one config that read other contents are never one row and never a pair, and the audit names what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from src.compare.assay import at_fixed_rates
from src.compare.audit import CONFOUND
from src.compare.page.render import page
from src.compare.report import report
from src.record.records import RUNS
from tests.compare.synthetic import DORA, FROZEN, QLORA, RSLORA, assayed
from tests.conftest import evaluate

OLD = {"commit": "a" * 40, "dirty": False, "packages": {}} | {
    f"{name}_fingerprint": f"{name[:4]:0<16}" for name in ("data", "token", "base", "prose")
}
NAMES = {"data_fingerprint": "data", "token_fingerprint": "tokens", "base_fingerprint": "base weights"}
EVERY = pytest.mark.parametrize("key", NAMES)


def with_other(key: str, value: str | None = "f00d000000000000") -> dict[str, Any]:
    """A provenance in which one content, and the tokens that follow from the data, have another fingerprint."""
    more = {"token_fingerprint": "f00d7000"} if key == "data_fingerprint" else {}
    return {"provenance": OLD | more | {key: value}}


@EVERY
def test_other_contents_are_another_row_that_a_reader_can_tell_apart(make, key) -> None:
    make(1.0, 0, provenance=OLD)
    make(3.0, 1, **with_other(key))
    make(2.0, 2, provenance=OLD)
    result = assayed()
    assert sorted(result.table["test_loss_mean"]) == [1.5, 3.0] and sorted(result.table["n_seeds"]) == [1, 2]
    assert result.comparison.differing == [NAMES[key]], "the tokens of other data are other ones anyway"
    shown = sorted(result.table[NAMES[key]])
    assert "f00d0000" in shown and len(set(shown)) == 2
    assert sorted(result.labels) == [f"lora r=8, {NAMES[key]} {value}" for value in shown]
    assert any(note.startswith(f"Rows differ in {NAMES[key]} (") for note in result.comparison.notes)


@EVERY
def test_the_audit_names_them_and_no_seed_is_paired_across_them(make, key) -> None:
    """As a file is changed between two commands of one sweep: no row of the new contents has a seed in common with another."""
    make(1.0, 0, provenance=OLD)
    make(2.0, 0, variant=RSLORA, **with_other(key))
    make(3.0, 1, **with_other(key))
    result = assayed()
    [line] = result.audit.lines
    assert (line.field, line.severity) == (NAMES[key], CONFOUND) and "f00d0000 in lora r=8" in line.text
    assert not result.audit.clean and NAMES[key] in result.audit.summary and result.audit.summary.startswith("Confounded: ")
    assert [contrast.test.n for view in result.views for contrast in view.contrasts] == [0, 0]
    assert result.audit.pairs == 0


@EVERY
def test_of_two_references_the_one_that_read_the_same_is_taken(make, key) -> None:
    for seed in range(4):
        later = with_other(key) if seed > 1 else {"provenance": OLD}
        make(5.0 if seed > 1 else 1.0, seed, **later)
        make(1.5, seed, variant=DORA, provenance=OLD)
        make(5.25, seed, variant=RSLORA, **with_other(key))
    result = assayed()
    by_variant = {result.table["variant"][contrast.row]: contrast for contrast in result.views[0].contrasts}
    assert {name: (c.test.n, c.test.mean) for name, c in by_variant.items()} == {"rslora": (2, 0.25), "dora": (2, 0.5)}
    assert "2 compared pairs" not in result.audit.summary, "the pairs themselves differ in the variant alone"


@EVERY
def test_without_a_reference_that_read_the_same_nothing_is_tested(make, key) -> None:
    for seed in range(2):
        for rate in (1e-3, 1e-4):
            make(1.0, seed, lr=rate, provenance=OLD)
            make(2.0, seed, lr=rate, variant=RSLORA, **with_other(key))
    result = assayed()
    assert [contrast.verdict for contrast in result.views[0].contrasts] == [f"other {NAMES[key]}"]
    assert [contrast.seeds for view in result.views for contrast in view.contrasts] == [(), ()], "though both have seed 1"
    assert result.table["difference"].isna().all()
    assert not len(at_fixed_rates(result)), "at a fixed rate neither"


def test_strict_refuses_other_data_and_writes_nothing(make, capsys) -> None:
    make(1.0, 0, provenance=OLD)
    make(2.0, 0, variant=RSLORA, **with_other("data_fingerprint"))
    assert evaluate(["strict=true"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not Path("reports").exists()
    assert captured.err == (
        "error: strict=true: compared rows differ in more than the variant: data (other contents of the same files: data0000 in"
        " lora r=8; f00d0000 in rslora r=8)\n"
    )


def test_the_page_and_the_best_row_keep_them_apart(make) -> None:
    """One best row for each contents: the lower loss may be the easier data's. And each is on a Pareto front of its own."""
    make(1.0, 0, provenance=OLD)
    make(2.0, 0, variant=RSLORA, **with_other("data_fingerprint"))
    make(3.0, 0, variant=DORA, **with_other("data_fingerprint"))
    result = assayed()
    shown = report(result, at_fixed_rates(result), pd.DataFrame(columns=["run_id", "step", "metric", "value"]), "python")
    best = [text for text in shown["findings"] if text.startswith("Lowest")]
    assert len(best) == 1 and "rslora r=8, data f00d0000" in best[0]
    assert result.table.set_index("variant")["pareto"].dropna().to_dict() == {
        "lora": "memory, parameters, time", "rslora": "memory, parameters, time"
    }  # fmt: skip
    text = page(shown)
    assert "Confounded" in text and "other contents of the same files" in text and "f00d0000" in text


@pytest.mark.parametrize("known", [None, OLD])
def test_a_record_without_fingerprints_joins_the_row_that_it_joined_before(make, known) -> None:
    make(1.0, 0, provenance=known)
    make(3.0, 1, provenance={"commit": "a" * 40, "packages": {}})
    make(2.0, 2)
    make(seed=3, recorded=False)
    result = assayed()
    assert list(result.table["n_seeds"]) == [3] and list(result.table["n_runs"]) == [4]
    assert result.audit.clean and result.comparison.differing == []


def test_without_fingerprints_it_joins_neither_of_two(make) -> None:
    make(1.0, 0, provenance=OLD)
    make(2.0, 1, **with_other("data_fingerprint"))
    make(3.0, 2)
    assert sorted(assayed().table["test_loss_mean"]) == [1.0, 2.0, 3.0]


def test_what_the_config_asks_for_otherwise_is_not_reported_twice(make) -> None:
    """Another data set, model, precision or kind of device has other fingerprints by itself, and the config says so."""
    make(provenance=OLD)
    make(variant=RSLORA, fields={"dataset.path": "other.jsonl"}, **with_other("data_fingerprint"))
    make(variant=DORA, fields={"eval.test_examples": 5}, **with_other("token_fingerprint"))
    make(variant=QLORA, **with_other("base_fingerprint"))
    make(variant=RSLORA, r=4, fields={"model.revision": "abc"}, **with_other("base_fingerprint"))
    make(variant=DORA, r=4, device="cuda: NVIDIA H200", **with_other("base_fingerprint", "cafe"))
    make(r=4, provenance=OLD)
    assert {line.field for line in assayed().audit.confounds} == {
        "dataset.path", "eval.test_examples", "model.revision", "kind of device"
    }  # fmt: skip


def test_another_number_format_is_another_row(make) -> None:
    """A 16-bit base is multiplied in fp32 where the processor has no bf16 products; its weights are then others too."""
    make(1.0, 0, provenance=OLD, base_precision="bf16")
    make(3.0, 1, base_precision="fp32", **with_other("base_fingerprint"))
    result = assayed()
    assert result.comparison.differing == ["number format"] and list(result.table["n_seeds"]) == [1, 1]
    assert [line.field for line in result.audit.confounds] == ["number format"]


def test_a_run_that_died_before_it_had_a_device_has_no_number_format(make) -> None:
    make(1.0, 0, provenance=OLD, base_precision="fp32")
    make(None, 1, provenance=OLD, base_precision="bf16", device=None, status="failed", reason="no memory")
    assert list(assayed().table["status"]) == ["1 ok, 1 failed"]


def test_prose_parts_runs_only_where_forgetting_is_the_metric(make) -> None:
    forgot = {"metrics": {"test/loss": 2.0, "val/loss": 2.1, "forgetting/before": 3.0, "forgetting/after": 3.5}}
    make(2.0, 0, provenance=OLD, **forgot)
    make(2.0, 1, **with_other("prose_fingerprint"), **forgot)
    make(2.0, 0, r=4, provenance=OLD, **forgot)
    result = assayed()
    assert list(result.table["n_seeds"]) == [1, 2] and result.audit.clean
    assert list(result.table["forgetting_change_mean"].isna()) == [False, True], "a mean over two texts is of neither"
    assert any("forgetting on other contents" in note for note in result.comparison.notes)
    asked = assayed(metric="forgetting/change")
    assert list(asked.table["n_seeds"]) == [1, 1, 1] and asked.comparison.differing == ["prose"]
    assert [line.field for line in asked.audit.confounds] == ["prose"]


def test_a_pair_of_other_data_is_refused_and_of_other_weights_is_called_confounded(make, capsys) -> None:
    """An id is a file and a line: the same line of a changed file is another example, with as many tokens perhaps."""
    answers = [{"id": f"rows.jsonl:{n}", "target": "a", "log_loss": 1.0, "tokens": 2, "correct": n > 1} for n in range(4)]
    first = make(1.0, 0, provenance=OLD, predictions=answers)
    data, base = (
        make(1.0, seed, predictions=answers, **with_other(key))
        for seed, key in enumerate(("data_fingerprint", "base_fingerprint"), start=1)
    )
    texts = make(1.0, 3, provenance=OLD, predictions=[answer | {"target": "b"} for answer in answers])
    assert evaluate([f"pair={first},{data}"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("were not scored on the same test examples: other data under the same names\n")
    assert evaluate([f"pair={first},{texts}"]) == 2
    capsys.readouterr()
    assert evaluate([f"pair={first},{base}"]) == 0
    assert "confounded: the same config, but other base weights" in capsys.readouterr().out


@pytest.mark.parametrize("strange", [5, ["x"], {"a": "b"}, "", "x" * 5000, "a\x1b[31m\nb"])
def test_a_strange_fingerprint_breaks_no_table(make, capsys, strange) -> None:
    make(1.0, 0, provenance=OLD)
    make(2.0, 1, **with_other("data_fingerprint", strange))
    assert evaluate([]) == 0
    assert "\x1b" not in capsys.readouterr().out and (RUNS.parent / "reports/all/report.html").exists()


def test_unlike_shares_of_a_base_are_said(make) -> None:
    make(base_share={"bf16": 1.0})
    make(r=4, base_share={"bf16": 1.0})
    make(variant=QLORA, base_share={"nf4": 0.31, "bf16": 0.69})
    make(variant={"base_precision": "int8"}, base_share={"int8": 0.83, "bf16": 0.17})
    make(variant=FROZEN)
    notes = [note for note in assayed().comparison.notes if "shares" in note]
    assert len(notes) == 1 and notes[0].endswith(
        "are quantized in rows of smollm2_135m: 31.0% in qlora r=8, 83.0% in lora_8bit r=8."
    )


@pytest.mark.parametrize("strange", [None, 5, [], {}, {"nf4": "most"}, {"nf4": True}, {"nf4": -1}, {"nf4": 0.31}])
def test_a_share_that_is_absent_or_strange_is_no_note(make, strange) -> None:
    make(variant=QLORA, base_share=strange)
    make(variant=QLORA, r=4)
    make(variant=QLORA, seed=1, base_share={"nf4": 0.3104, "bf16": 0.6896} if strange == {"nf4": 0.31} else None)
    assert not [note for note in assayed().comparison.notes if "shares" in note]
