"""The flagship study's own commands, and what its report makes of runs; the loop over rates is test_tuned.py's."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.variants_at_their_best import cost, differences, figures, peft, report, results, run, tables
from experiments.variants_at_their_best.questions import Study, study
from src.compare.assay import assay
from src.compare.frame import gather, run_ids
from src.engine.peft import PeftEngine
from src.files.errors import ConfigError
from src.record.records import RUNS, RunFolder, write_sweep
from tests.compare import synthetic
from tests.compare.synthetic import DIVERGED, DORA, FROZEN, FULL, RSLORA
from tests.conftest import TINY, Run, TrainPack


def test_the_cells_and_rates_are_those_of_the_experiment() -> None:
    cells, rates = run.cells()
    assert len(cells) * len(rates) * 11 == 1232  # as the study says
    assert cells[0] == ("lora", 4) and cells[-1] == ("qlora", 256)
    assert run.SPARE[0] < min(rates) and max(rates) < run.SPARE[1]
    assert rates == sorted(rates)


def test_peft_is_timed_on_the_rows_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    advance = PeftEngine.advance

    def watched(engine: PeftEngine, start: int, end: int) -> list:
        steps = advance(engine, start, end)
        seen.append((start, end, sum(step.tokens[0] for step in steps)))
        return steps

    monkeypatch.setattr(PeftEngine, "advance", watched)
    monkeypatch.setattr(peft, "cells", lambda: ([("lora", 2), ("dora", 4)], []))
    monkeypatch.setattr(peft, "TIMED", 3)
    monkeypatch.setattr(sys, "argv", ["peft", f"out={tmp_path}", *TINY, "train.batch_size=2"])
    assert peft.main() == 0
    with open(tmp_path / "peft.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["r"], row["steps"]) for row in rows] == [("lora", "2", "3"), ("dora", "4", "3")]
    assert [int(row["tokens"]) for row in rows] == [tokens for start, _, tokens in seen if start]  # not those of the warm-up
    for row in rows:
        assert float(row["tokens_per_second"]) == pytest.approx(int(row["tokens"]) / float(row["seconds"]), rel=1e-2)


Losses = Mapping[tuple[str, int | None, float | None], Mapping[int, float | None]]
SEEDS = range(11)
FACTOR = {"rslora": 0.5}  # of r in the scale


def runs_of(losses: Losses, **columns: Any) -> pd.DataFrame:
    """Runs as results.csv has them: of each (variant, r, rate) the loss by seed, None where it diverged.

    Validation and test loss are the same; ``columns`` replaces what else a run says.
    """
    rows = [
        {"variant": variant, "r": r, "learning_rate": rate, "seed": seed, "status": "diverged" if loss is None else "ok"}
        | {"val/loss": loss, "test/loss": loss, "alpha": r and 16, "effective_scale": r and 16 / r ** FACTOR.get(variant, 1)}
        | {"model": "smollm2_135m", "dataset": "cldr_names", "steps": 300, "device": "cuda: H100", "pack_size": 1}
        | {"trainable_parameters": (r or 0) * 100, "total_parameters": 40_000, "train_tokens": 1000, "train_seconds": 10.0}
        for (variant, r, rate), by_seed in losses.items()
        for seed, loss in by_seed.items()
    ]
    return results.checked(pd.DataFrame(rows).assign(run_id=[f"{at:010x}" for at in range(len(rows))], **columns), "here")


def studied(losses: Losses) -> Study:
    return study(runs_of(losses))


def level(loss: float, seeds: range = SEEDS, wobble: float = 0.01) -> dict[int, float | None]:
    """The loss of each seed: seeds differ from each other, and all levels differ in the same way."""
    return {seed: loss + wobble * seed for seed in seeds}


def test_a_cell_gets_the_rate_that_is_best_on_the_tuning_seeds_alone() -> None:
    losses: Losses = {
        ("lora", 4, 1e-3): {0: 1.0, 1: 1.0, 2: 4.0, 3: 9.0},  # 2.0 on average: the best of the tuning seeds, and bad after
        ("lora", 4, 2e-3): {0: 2.1, 1: 2.1, 2: 2.1, 3: 1.0},
        ("lora", 4, 3e-3): {0: 0.1, 1: None, 2: 0.1},  # better, but one seed diverged
        ("dora", 4, 1e-3): {0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0},
        ("dora", 4, 2e-3): {0: 2.0, 1: 2.0, 2: 2.0, 3: 2.5},
        ("qlora", 4, 1e-3): {0: 3.0, 1: 3.0, 2: 3.0},
        ("qlora", 4, 2e-3): {0: 2.0, 1: 2.0, 2: 2.0},
        ("qlora", 4, 3e-3): {0: 2.5, 1: 2.5, 2: 2.5},
    }
    found = studied(losses)
    chosen = {variant: found.condition((variant, 4)).chosen for variant in ("lora", "dora", "qlora")}
    assert chosen == {"lora": 1e-3, "dora": 2e-3, "qlora": 2e-3}
    edges = {variant: found.condition((variant, 4)).edge for variant in chosen}
    assert edges == {"lora": "lowest", "dora": "highest", "qlora": None}
    assert found.losses(("lora", 4)) == [9.0] and found.losses(("dora", 4)) == [2.5]
    assert "| LoRA r=4 | 4 | 0.001 (lowest tried) | 1 | 9.0000 |" in tables.levels(found)
    lines = tables.by_rate(found).splitlines()
    assert "| LoRA r=4 | **2.0000** | 2.1000 | 1 of 3 not ok | lowest |" in lines
    assert "| DoRA r=4 | 3.0000 | 2.0000 | - | - |" in lines  # a rate is missing, so none is called the best
    assert "| QLoRA r=4 | 3.0000 | **2.0000** | 2.5000 | - |" in lines
    assert "| LoRA r=4 | 0.003 | 1 of 3 | 0 of 0 | 1 diverged |" in tables.not_ok(found)
    head = tables.head(found)
    assert "Not tried at every rate on every tuning seed: DoRA r=4." in head
    assert "in no comparison: base as it is, full fine-tuning, LoRA r=16" in head and "QLoRA r=4, QLoRA r=16" in head
    assert not {("lora", 4), ("dora", 4)} & set(found.unreported()) and len(found.unreported()) == 2 + 16 - 2


def test_variants_are_compared_with_lora_at_the_same_rank_over_a_family_of_a_rank() -> None:
    found = studied({
        ("lora", 4, 1e-3): level(2.0), ("rslora", 4, 1e-3): level(1.9), ("dora", 4, 1e-3): level(2.001, wobble=0.0102),
        ("qlora", 4, 1e-3): {seed: 2.0 + 0.01 * seed + (0.05 if seed % 2 else -0.04) for seed in SEEDS},
        ("lora", 16, 1e-3): level(1.5),
    })  # fmt: skip
    one, two, three = found.of_variants(4).contrasts
    assert [found.cell(each.row) for each in (one, two, three)] == [("rslora", 4), ("dora", 4), ("qlora", 4)]
    assert (one.test.n, one.test.mean) == (8, pytest.approx(-0.1))
    assert one.p_holm == pytest.approx(3 * 2 / 2**8) and one.verdict == "differs"  # all 8 signs agree: the smallest p, times 3
    assert two.test.mean == pytest.approx(0.001 + 0.0002 * 6.5) and two.verdict == "differs, equivalent"
    assert three.verdict == "undecided" and found.of_variants(16).contrasts == []
    text = differences.variants(found)
    assert "- r=4: lowest mean rsLoRA, 1.9650. To LoRA, differs: rsLoRA -0.1000; differs, equivalent: DoRA +0.0023;" in text
    assert "0.0234 with 8 seeds and 3 differences" in text
    assert "At one rank rsLoRA is LoRA at another alpha, to the bit: 32 at r=4, where LoRA has 16." in text


def test_ranks_are_compared_with_the_lowest_and_with_the_one_that_validation_calls_best() -> None:
    losses = {("lora", r, 1e-3): level(loss) for r, loss in ((4, 2.0), (16, 1.9), (64, 1.8), (256, 1.95))}
    runs = runs_of(losses)
    runs.loc[(runs["r"] == 16) & (runs["seed"] < 3), "val/loss"] = 0.5  # the best where it counts, whatever its test loss
    runs.loc[runs["r"].isin([4, 64, 256]) & (runs["seed"] < 3), "val/loss"] = [1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 1.2, 1.2, 1.2]
    one_rate = study(runs)
    assert one_rate.best_rank("lora") is None  # nothing was chosen where one rate was tried
    worse = runs.assign(learning_rate=2e-3, run_id="b" + runs["run_id"])
    worse["val/loss"] += 1
    found = study(results.checked(pd.concat([runs, worse], ignore_index=True), "here"))
    assert found.best_rank("lora") == 16
    view = found.of_ranks("lora")
    pairs = [(found.cell(one.row)[1], found.cell(one.reference)[1]) for one in view.contrasts]
    assert pairs == [(16, 4), (64, 4), (256, 4), (64, 16), (256, 16)]  # 16 - 4 once
    assert [one.test.mean for one in view.contrasts] == pytest.approx([-0.1, -0.2, -0.05, -0.1, 0.05])
    assert [one.p_holm for one in view.contrasts] == pytest.approx([5 * 2 / 2**8] * 5)
    assert "best by validation r=16; means from 1.8650 (r=64) to 2.0650 (r=4), 0.2000 apart." in differences.ranks(found)


def test_fewer_than_six_seeds_only_describe_and_the_seeds_of_a_pair_are_those_of_both() -> None:
    found = studied({
        ("lora", 4, 1e-3): level(2.0, range(9)), ("rslora", 4, 1e-3): level(1.0) | {10: None},
        ("lora", 16, 1e-3): level(2.0, range(8)), ("dora", 16, 1e-3): level(1.0),
    })  # fmt: skip
    (one,), (two,) = (found.of_variants(r).contrasts for r in (4, 16))
    assert (found.cell(one.row)[0], one.test.n, one.verdict) == ("rslora", 6, "differs")
    assert (found.cell(two.row)[0], two.test.n, two.verdict) == ("dora", 5, "descriptive")
    assert "| rsLoRA r=4 | 0.001 | 0 of 3 | 1 of 8 | 1 diverged |" in tables.not_ok(found)


def test_the_same_difference_at_one_rate_and_at_the_best_of_each() -> None:
    """LoRA is best at 2e-3 and DoRA at 1e-3; at either rate for both they lie a nat apart, at their own nothing."""
    tuning, after = range(3), range(3, 11)
    found = studied({
        ("lora", 4, 1e-3): level(2.0, tuning), ("lora", 4, 2e-3): level(1.0), ("lora", 4, 3e-3): {0: 5.0, 1: None, 2: None},
        ("dora", 4, 1e-3): level(1.0), ("dora", 4, 2e-3): level(1.5, tuning), ("dora", 4, 3e-3): level(7.0, tuning, 0.0),
        ("lora", 16, 2e-3): level(1.25, SEEDS), ("lora", 16, 1e-3): level(2.5, tuning),
    })  # fmt: skip
    (one,) = found.of_variants(4).contrasts
    assert one.test.n == len(after) and one.test.mean == pytest.approx(0)
    row, last = differences.at_rates(found, [("a", one)], 3)
    assert row == {
        "": "a",
        "0.001": "-1.0000",
        "0.002": "+0.5000",
        "0.003": "+2.0000 (n=1)",
        differences.BEST: row[differences.BEST],
    }
    assert row[differences.BEST].startswith("+0.0000 [")
    assert last == {
        "": "the largest in size",
        "0.001": "1.0000",
        "0.002": "0.5000",
        "0.003": "2.0000",
        differences.BEST: "0.0000",
    }
    assert "| LoRA: r=16 - r=4 | +0.5000 | +0.2500 (n=11) | +0.2500 [+0.2500, +0.2500] |" in differences.one_rate(found)


def test_controls_stand_beside_the_cells_on_the_same_rows() -> None:
    found = studied({
        ("frozen", None, None): {0: 3.5}, ("full", None, 1e-5): level(1.5, range(3)), ("full", None, 3e-5): level(1.0),
        ("lora", 4, 1e-3): level(1.25),
    })  # fmt: skip
    lines = tables.levels(found).splitlines()
    assert "| base as it is | - | - | 1 | 3.5000 | - | 0 (0%) |" in lines
    assert any(line.startswith("| full fine-tuning | - | 3e-05 (highest tried) | 8 | 1.0650 [") for line in lines)
    assert any(
        "| +0.2500 [+0.2500, +0.2500] | 400 (1%) |" in line for line in lines if line.startswith("| LoRA r=4 | 4 | 0.001 | 8")
    )
    assert "Trained at r=4, as a share of the base's 40,000 parameters: LoRA 1.0%." in tables.notes(found)


def test_a_rank_above_a_layers_width_is_said_from_the_models_own_shape() -> None:
    wide = tables.notes(studied({("lora", 256, 1e-3): level(1.0)}))
    assert "r=256 is more than the smaller side of k_proj (192 x 576), v_proj (192 x 576), out x in" in wide
    assert "smaller side" not in tables.notes(studied({("lora", 64, 1e-3): level(1.0)}))


def timed_by_peft(folder: Path, rows: list[tuple[str, int, float]], gpu: str = "H100") -> cost.Peft | None:
    lines = [f"{variant},{r},30,900,1.0,{speed},2.0" for variant, r, speed in rows]
    (folder / "peft.csv").write_text("\n".join([",".join(peft.COLUMNS), *lines]) + "\n")
    (folder / "peft.json").write_text(json.dumps({"gpu": gpu}))
    return cost.load(folder)


def test_what_the_runs_would_take_with_peft_by_hand(tmp_path: Path) -> None:
    """Two runs of 1,000 tokens at 100/s and one of 400, which diverged, at 50/s: 20 s and 8 s. Ours: two packs, 6 and 2 s."""
    runs = runs_of({("lora", 4, 1e-3): {0: 1.0, 1: 1.0}, ("dora", 4, 1e-3): {0: None}, ("full", None, 1e-5): {0: 1.0, 1: 1.0}})
    adapters = runs["variant"] != "full"
    runs.loc[adapters, "pack_size"] = 2
    runs.loc[runs["variant"] == "lora", "train_seconds"] = [6.0, 2.0]
    runs.loc[runs["variant"] == "dora", ["train_seconds", "train_tokens"]] = [2.5, 400]
    timed = timed_by_peft(tmp_path, [("lora", 4, 100.0), ("dora", 4, 50.0), ("qlora", 4, 1.0)])
    assert timed is not None
    found = cost.extrapolated(runs, timed).set_index("variant")
    assert dict(found["seconds"]) == {"lora": 20.0, "dora": 8.0} and dict(found["runs"]) == {"lora": 2, "dora": 1}
    assert sorted(cost.packs(runs[adapters])["train_seconds"]) == [2.0, 6.0]  # the clock of what diverged stopped early
    text = cost.section(study(runs), timed)
    assert "3 runs with an adapter (2,400 tokens) in 2 packs, 8.0 s in training steps" in text
    assert "Full fine-tuning, 2 runs, the seconds of each added up: 20.0 s." in text  # two packs of one, of the same seconds
    assert "Extrapolated: 28.0 s for the training steps of 3 runs with PEFT" in text
    assert "That is 3.5 times the 8.0 s that were measured." in text and "another device" not in text


def test_a_pack_counts_once_and_what_peft_did_not_time_is_in_no_ratio(tmp_path: Path) -> None:
    runs = runs_of({("lora", 4, 1e-3): {0: 1.0, 1: 1.0}, ("dora", 16, 1e-3): {0: 1.0, 1: 1.0}}, pack_size=4)
    assert list(cost.packs(runs)["train_seconds"]) == [10.0]
    text = cost.section(study(runs), timed_by_peft(tmp_path, [("lora", 4, 100.0)], gpu="A100"))
    assert "Not timed, and not in it: DoRA r=16; so the two sums do not compare." in text and "times the" not in text
    assert "The runs trained on another device: cuda: H100." in text
    assert "Extrapolated: 20.0 s for the training steps of 2 runs" in text
    assert "peft.csv is not there, so nothing is said of PEFT." in cost.section(study(runs), None)


def test_time_under_way_counts_what_overlaps_once_and_no_pause() -> None:
    started = [
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:04+00:00",
        "2026-01-01T00:00:05.500000+00:00",
        "2026-01-01T01:00:00+00:00",
    ]
    runs = runs_of({("lora", 4, 1e-3): dict.fromkeys(range(4), 1.0)}, started=started, wall_seconds=[6.0, 1.0, 2.5, 3.0])
    assert cost.under_way(runs) == pytest.approx(8 + 3)  # 0-6, 4-5 and 5.5-8; then 3
    assert cost.under_way(runs.drop(columns="started")) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("variant,r\nlora,4\n", "has no column steps, tokens"),
        ("variant,r,steps,tokens,tokens_per_second\n", "has no row"),
        ("variant,r,steps,tokens,tokens_per_second\nlora,4,30,900,fast\n", "tokens_per_second of row 1 is fast"),
        ("variant,r,steps,tokens,tokens_per_second\nlora,4,30,900,0\n", "not above 0"),
        ("variant,r,steps,tokens,tokens_per_second\nlora,4,30,900,inf\n", "tokens_per_second of row 1 is inf"),
        ("variant,r,steps,tokens,tokens_per_second\nlora,4,,900,5\n", "row 1 has no steps"),
        ("variant,r,steps,tokens,tokens_per_second\nlora,4,30,900,5", "row 1 has no end of line"),
        ("variant,r,steps,tokens,tokens_per_second\n" + 2 * "lora,4,30,900,5\n", "lora r=4 is there more than once"),
    ],
)
def test_a_table_of_peft_that_is_none_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "peft.csv").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        cost.load(tmp_path)
    assert "\n" not in str(caught.value).strip()


def recorded(**options: Any) -> str:
    """A run of the sweep as src.train leaves it; ``lr`` and ``seed`` tell it from others."""
    return synthetic.run(**{"r": 4, "curve": (), "sweep": results.STUDY, "wall_seconds": 100.0} | options)


def test_records_become_a_row_for_each_run(tmp_path: Path) -> None:
    recorded(
        loss=1.5,
        val=1.6,
        lr=1e-3,
        pack_size=7,
        provenance={"started": "2026-01-01T00:00:00+00:00", "commit": "abc", "dirty": True},
    )
    recorded(lr=2e-3, **DIVERGED)
    recorded(variant=FULL, lr=1e-5, loss=1.2, trainable_parameters=40_000)
    recorded(variant=FROZEN, loss=3.0, trainable_parameters=0, train_tokens=None, train_seconds=None, learning_rate=None)
    found = results.from_records().set_index(["variant", "learning_rate"])
    assert len(found) == 4
    one = found.loc[("lora", 1e-3)]
    told = {"r": 4, "alpha": 16, "effective_scale": 4, "seed": 0, "status": "ok", "steps": 300, "val/loss": 1.6, "test/loss": 1.5}
    told |= {
        "trainable_parameters": 1000,
        "total_parameters": 40_000,
        "trained_share": 0.025,
        "pack_size": 7,
        "train_tokens": 30_000,
    }
    told |= {
        "train_seconds": 60,
        "pack_tokens_per_second": 3500,
        "wall_seconds": 100,
        "test/exact_match": 0.5,
        "dataset": "cldr_names",
    }
    told |= {"commit": "abc", "dirty": True, "started": "2026-01-01T00:00:00+00:00", "device": "cpu: AMD EPYC, 2 threads"}
    assert {key: one[key] for key in told} == told
    assert found.loc[("lora", 2e-3), "status"] == "diverged" and pd.isna(found.loc[("lora", 2e-3), "test/loss"])
    assert pd.isna(found.loc[("full", 1e-5), "r"]) and found.loc[("full", 1e-5), "trained_share"] == 1
    assert found.xs("frozen").index.isna().all() and found.xs("frozen")["trained_share"].item() == 0
    assert not {"halved_from", "forgetting/after"} & set(found)  # which no record has


def missing() -> None:
    recorded(recorded=False, seed=1)


def listed() -> None:
    write_sweep(results.STUDY, ["0123456789"], add=True)


def doubled() -> None:
    shutil.copytree(RUNS / recorded(seed=5), RUNS / "again")


def damaged() -> None:
    (RUNS / recorded(seed=5) / "result.json").write_text("{}")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (missing, "1 of 3 runs have no result: .*; train them, or add the word unfinished"),
        (listed, "1 of 3 runs have no result: 0123456789"),
        (doubled, "the same run as"),
        (damaged, "result.json: cannot be read"),
        (lambda: recorded(seed=5, sweep="another"), "of the sweep another, not of variants_at_their_best"),
        (lambda: recorded(seed=5, steps=30), "train.steps is 30, and 300 in most runs of the study"),
        (lambda: recorded(seed=5, fields={"dataset.source": "jsonl"}), "dataset.source is jsonl, and cldr_names in most runs"),
        (lambda: recorded(seed=5, fields={"data_seed": 6}), "data_seed is 6, not its seed, 5"),
        (lambda: recorded(seed=5, r=8), "lora r=8: no cell of this study"),
        (lambda: recorded(seed=5, variant=RSLORA | DORA), "dora_rs r=4: no cell of this study"),
        (lambda: recorded(seed=5, device="cuda: H100"), "runs of device cpu, cuda: not one study"),
    ],
)
def test_a_record_that_is_missing_doubled_or_foreign_is_one_line_and_nothing_is_written(
    tmp_path: Path, act: Callable[[], object], message: str
) -> None:
    recorded(seed=0)
    recorded(seed=3)
    act()
    with pytest.raises(ConfigError, match=message) as caught:
        report.main(["records", f"folder={tmp_path}"])
    assert "\n" not in str(caught.value).strip()
    assert not [path for path in tmp_path.iterdir() if path.name != "runs"]


def test_runs_without_a_result_can_be_left_to_be_rows_without_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(seed=3)
    missing()
    assert report.main(["records", "unfinished", f"folder={tmp_path}"]) == 0
    found = pd.read_csv(tmp_path / "results.csv")
    assert list(found["status"]) == ["missing", "ok"]
    said = capsys.readouterr()
    assert "| LoRA r=4 | 0.001 | 1 of 1 | 0 of 1 | 1 missing |" in said.out
    assert said.err.startswith("warning: ") and "1 of 2 runs have no result" in said.err


def test_rows_of_another_machines_runs_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "results.csv"
    told = {"provenance": {"started": "2026-01-01T00:00:00+00:00", "commit": "abc", "dirty": True}}
    for seed in range(3):
        recorded(seed=seed, loss=1 + seed / 3, train_seconds=1 / 3, **told)
    assert report.main(["records", f"folder={tmp_path}"]) == 0
    head, *first = place.read_text().splitlines()
    shutil.rmtree(RUNS)
    recorded(seed=1, metrics={"val/loss": 7.25, "test/loss": 7.5, "forgetting/after": 3.0})
    recorded(seed=2, recorded=False)  # not trained here, and known from there
    recorded(seed=3, loss=9.0)
    recorded(variant=FULL, lr=1e-5, loss=1.2, trainable_parameters=40_000)
    capsys.readouterr()
    assert report.main(["records", "more", f"folder={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert said.out == "results.csv: 2 rows kept, 3 from records\n" + (tmp_path / "tables.md").read_text() and not said.err
    names, full, *lora = place.read_text().splitlines()
    assert names == head + ",forgetting/after" and full.split(",")[1] == "full"
    assert [lora[0], lora[2]] == [first[0] + ",", first[2] + ","]
    assert ",7.25,7.5," in lora[1] and lora[1].endswith(",,,,3") and ",9.1,9," in lora[3]

    listed()
    for words in (["more", "unfinished"], ["unfinished", "more"]):
        before = place.read_bytes()
        with pytest.raises(ConfigError, match=r"1 of 5 runs have no result: 0123456789; train them, or"):
            report.main(["records", "more", f"folder={tmp_path}"])
        assert report.main(["records", *words, f"folder={tmp_path}"]) == 0
        assert place.read_bytes() == before and "1 of 5 runs have no result" in capsys.readouterr().err


def test_a_row_is_without_numbers_until_one_machine_has_them(tmp_path: Path) -> None:
    recorded(seed=3)
    missing()
    arguments = ["records", "unfinished", f"folder={tmp_path}"]
    assert report.main(arguments) == 0
    shutil.rmtree(RUNS / recorded(seed=3))
    with pytest.raises(ConfigError, match=r"1 of 1 runs have no result: .*; train them"):
        report.main(["records", "more", f"folder={tmp_path}"])
    assert report.main([*arguments, "more"]) == 0
    assert list(pd.read_csv(tmp_path / "results.csv")["status"]) == ["missing", "ok"]
    recorded(seed=1, loss=1.5)
    assert report.main(["records", "more", f"folder={tmp_path}"]) == 0
    assert list(pd.read_csv(tmp_path / "results.csv")["test/loss"]) == [1.5, 2.0]


def test_rows_to_keep_that_clash_or_cannot_be_read_are_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    recorded(seed=0)
    recorded(seed=3)
    place, arguments = tmp_path / "results.csv", ["records", "more", f"folder={tmp_path}"]
    with pytest.raises(ConfigError, match=r"results.csv: not there; the word records alone makes it"):
        report.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert report.main([arguments[0], arguments[2]]) == 0
    whole = place.read_bytes()
    shutil.rmtree(RUNS)
    recorded(seed=3, fields={"eval.batch_size": 3})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"results.csv and .*runs: lora r=4, rate 0.001, seed 3 is there more than once: "):
        report.main(arguments)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    for cut, said in (
        (1, "row 2 has no end of line"),
        (60, "cannot be read .* row 2"),
        (len(whole), "cannot be read .No columns"),
    ):
        place.write_bytes(whole[:-cut])
        with pytest.raises(ConfigError, match=f"results.csv: {said}") as caught:
            report.main(arguments)
        assert "\n" not in str(caught.value) and place.read_bytes() == whole[:-cut]
    for words in (["more"], ["more", "records"], ["records", "more", "more"], ["records", "more", "figures"]):
        with pytest.raises(ConfigError, match="takes no word but records, and after it unfinished and more, each once"):
            report.main([*words, f"folder={tmp_path}"])


def test_a_sweeps_list_may_name_runs_that_another_sweep_has_trained(tmp_path: Path) -> None:
    other = recorded(seed=0, sweep="another")
    with pytest.raises(ConfigError, match="of the sweep another"):
        results.from_records()
    write_sweep(results.STUDY, [other])
    assert list(results.from_records()["run_id"]) == [other]


def test_no_record_and_no_table_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runs: holds no run of the sweep variants_at_their_best"):
        report.main(["records", f"folder={tmp_path}"])
    with pytest.raises(ConfigError, match=r"results.csv: not there; the word records alone makes it from runs/"):
        report.main([f"folder={tmp_path}"])
    with pytest.raises(ConfigError, match="figures: takes no word but records"):
        report.main(["figures"])


GOOD = "12345e6789,lora,4,0.001,3,ok,16,4,smollm2_135m,cldr_names,300,1.5,1.4,1000,40000,1,500,9.5,cuda: H100"
AT = {name: at for at, name in enumerate(results.NEEDED)}


def changed(**values: str) -> str:
    cells = GOOD.split(",")
    for name, value in values.items():
        cells[AT[name.replace("_of_", "/")]] = value
    return ",".join(cells)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "cannot be read"),
        ([], "has no row"),
        ([changed(test_of_loss="low")], "test/loss of row 1 is low, not a number"),
        ([GOOD, changed(seed="4", test_of_loss="inf")], "test/loss of row 2 is inf, not a number"),
        ([GOOD, changed(seed="4")[:-20]], "row 2 has 16 cells for 19 columns"),
        ([changed(learning_rate="")], "row 1 has no learning_rate"),
        ([changed(status="")], "row 1 has no status"),
        ([changed(variant="nolora")], "nolora r=4: no cell of this study"),
        ([GOOD, changed(run_id="1")], "lora r=4, rate 0.001, seed 3 is there more than once: 12345e6789, 1"),
        ([GOOD, changed(seed="4", steps="30")], "runs of steps 300.0, 30.0: not one study"),
        ([GOOD, changed(seed="4", dataset="gsm8k")], "runs of dataset cldr_names, gsm8k: not one study"),
        ([GOOD, changed(seed="4", alpha="32")], "runs of alpha 16.0, 32.0: not one study"),
    ],
)
def test_a_table_of_runs_that_is_none_is_one_line(tmp_path: Path, lines: list[str] | None, message: str) -> None:
    place = tmp_path / "results.csv"
    place.write_text("" if lines is None else "\n".join([",".join(results.NEEDED), *lines]) + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        report.main([f"folder={tmp_path}"])
    assert "\n" not in str(caught.value).strip()
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_table_without_a_column_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("run_id,variant\n0,lora\n")
    with pytest.raises(ConfigError, match="has no column seed, status, model, dataset, r and 12 more"):
        report.main([f"folder={tmp_path}"])


def test_the_numbers_are_those_of_src_eval_from_the_same_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And all that is drawn and said comes again from the committed table alone."""
    for variant, base in (({}, 1.5), (RSLORA, 1.4), (DORA, 1.45)):
        for lr, worse in ((1e-3, 0.2), (2e-3, 0.0), (4e-3, 0.5)):
            for seed in (*range(3), *(range(3, 11) if not worse else ())):
                bad = variant == RSLORA and lr == 2e-3 and seed == 1  # so that its best rate is another one
                loss = base + worse + 0.013 * ((7 * seed) % 5)
                recorded(variant=variant, lr=lr, seed=seed, **(DIVERGED if bad else {"loss": loss, "val": loss + 0.1}))
    for seed in range(3, 11):
        recorded(variant=RSLORA, lr=1e-3, seed=seed, loss=1.6 + 0.01 * seed)
    theirs = assay(gather(run_ids()), "test/loss", "lora", (0, 1, 2))
    assert report.main(["records", f"folder={tmp_path}"]) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert set(first) == {"results.csv", "tables.md", "at_their_best.png", "to_lora.png", "rates.png"}
    ours = study(results.load(tmp_path / "results.csv"))
    keys = ["variant", "r", "learning_rate", "n_seeds", "test_loss_mean", "interval_low", "interval_high", "grid_edge",
            "difference", "difference_low", "difference_high", "p_sign_flip", "p_tost", "verdict"]  # fmt: skip
    pd.testing.assert_frame_equal(ours.result.table[keys], theirs.table[keys], rtol=1e-9)
    assert ours.condition(("rslora", 4)).chosen == 1e-3
    shutil.rmtree(RUNS)
    for name in ("tables.md", "at_their_best.png", "to_lora.png", "rates.png"):
        (tmp_path / name).unlink()
    capsys.readouterr()
    assert report.main([f"folder={tmp_path}"]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == first
    assert capsys.readouterr().out == first["tables.md"].decode()


def test_records_of_training_are_read(
    tmp_path: Path, run: Run, train_pack: TrainPack, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["train.steps=2", f"sweep={results.STUDY}", "eval.generate=false"]
    pack = [[f"variant={v}", "lora.r=4", f"train.lr={lr}", f"seed={seed}", *shared] for v in ("lora", "dora")
            for lr in (1e-3, 1e-2) for seed in (0, 3)]  # fmt: skip
    assert train_pack(*pack).code == 0
    run("variant=frozen", *shared)
    run("variant=full", "train.lr=1e-3", "seed=3", *shared)
    assert report.main(["records", f"folder={tmp_path}"]) == 0
    found = pd.read_csv(tmp_path / "results.csv").set_index("run_id")
    assert len(found) == 10 and set(found["status"]) == {"ok"} and set(found["steps"]) == {2}
    for name, row in found.iterrows():
        result = RunFolder(str(name)).result()
        assert result is not None
        assert row["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-10)
        assert row["forgetting/after"] == pytest.approx(result["metrics"]["forgetting/after"], rel=1e-10)
        assert row["trained_share"] == pytest.approx(result["trainable_parameters"] / result["total_parameters"])
    text = capsys.readouterr().out
    assert "8 runs with an adapter" in text and "in 1 pack," in text and "test loss [95%]" in text


def test_names_beside_lines_are_moved_apart_no_more_than_needed() -> None:
    assert figures.apart([1.0, 2.0, 5.0], 1.0) == [1.0, 2.0, 5.0]
    assert figures.apart([1.0, 1.0, 5.0], 1.0) == pytest.approx([0.5, 1.5, 5.0])
    assert figures.apart([1.0, 1.2, 1.4, 2.0], 1.0) == pytest.approx([-0.1, 0.9, 1.9, 2.9])  # their center is 1.4
    assert figures.apart([], 1.0) == []


def test_the_figures_show_each_variant_and_which_differences_are_shown() -> None:
    found = studied({
        ("lora", 4, 1e-3): level(2.0), ("rslora", 4, 1e-3): level(1.9), ("dora", 4, 1e-3): level(2.0),
        ("lora", 16, 1e-3): level(1.8), ("rslora", 16, 1e-3): level(1.7), ("dora", 16, 1e-3): level(1.8),
        ("frozen", None, None): {0: 9.0}, ("full", None, 1e-5): level(1.6), ("full", None, 1e-4): level(1.7, range(3)),
    })  # fmt: skip
    (losses,) = figures.at_their_best(found).axes
    faces = {marker: {line.get_markerfacecolor() for line in losses.lines if line.get_marker() == marker} for marker in "os^"}
    assert faces["o"] == {"#0072B2"} and faces["s"] == {"#E69F00"}  # rsLoRA differs at both ranks
    assert faces["^"] == {"white"}  # DoRA is not told apart
    assert losses.get_ylim()[1] < 3  # the base is named at the edge, and presses nothing together
    names = {text.get_text() for text in losses.texts}
    assert {"LoRA", "rsLoRA", "DoRA", "full fine-tuning\n1.665", "\u2191 base as it is: 9.00"} < names
    assert "smollm2_135m on cldr_names, mean and 95% interval of 8 seeds, rates chosen on 3 others" in names
    (paired,) = figures.to_lora(found).axes
    points = [line for line in paired.lines if line.get_marker() == "s"]
    assert [line.get_ydata()[0] for line in points] == pytest.approx([-0.1, -0.1])
    assert {line.get_markerfacecolor() for line in points} == {"#E69F00"}
    assert {line.get_markerfacecolor() for line in paired.lines if line.get_marker() == "^"} == {"white"}


def test_a_base_that_is_near_is_drawn_and_a_line_that_ends_early_has_its_name_there() -> None:
    found = studied({
        ("lora", 4, 1e-3): level(2.0), ("lora", 16, 1e-3): level(1.8), ("dora", 4, 1e-3): level(2.1),
        ("frozen", None, None): {3: 2.2},
    })  # fmt: skip
    (axes,) = figures.at_their_best(found).axes
    places = {text.get_text(): text.xy for text in axes.texts}
    assert places["base as it is"] == (1, pytest.approx(2.2))
    assert places["LoRA"][0] == 1 and places["DoRA"] == (pytest.approx(4, rel=0.1), pytest.approx(2.165))


def test_the_rates_that_diverged_are_crosses_and_the_best_are_rings() -> None:
    found = studied({
        ("lora", 4, 1e-3): level(2.0), ("lora", 4, 2e-3): level(1.9), ("lora", 4, 4e-3): {0: 1.0, 1: None, 2: None},
        ("dora", 16, 1e-3): level(2.0), ("dora", 16, 2e-3): level(2.1), ("dora", 16, 4e-3): level(2.2),
    })  # fmt: skip
    left, right = figures.rates(found).axes
    rings = [[(x, round(y, 3)) for x, y in zip(*line.get_data(), strict=True)] for axes in (left, right) for line in axes.lines
             if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]  # fmt: skip
    near = {"rel": 0.05}  # the variants stand side by side
    assert rings == [[(pytest.approx(2e-3, **near), 1.91)], [(pytest.approx(1e-3, **near), 2.01)]]  # means of seeds 0 to 2
    crosses = [list(line.get_xdata()) for axes in (left, right) for line in axes.lines if line.get_marker() == "x"]
    assert crosses == [[pytest.approx(4e-3, rel=0.1)], []]


def test_a_loss_above_the_panel_is_said_over_its_rate_and_full_fine_tuning_is_a_line() -> None:
    found = studied({
        ("lora", 4, 1e-3): level(1.0), ("lora", 4, 2e-3): level(6.0),
        ("dora", 4, 1e-3): level(1.1), ("dora", 4, 2e-3): level(5.0),
        ("full", None, 1e-5): level(0.8), ("full", None, 1e-4): level(0.9),
    })  # fmt: skip
    (axes,) = figures.rates(found).axes
    above = [(text.get_text(), text.xy[0]) for text in axes.texts]
    assert above == [("\u2191 6.01", 2e-3), ("\u2191 5.01", 2e-3)]
    assert 0.8 < axes.get_ylim()[1] < 2.5
    (full,) = [line for line in axes.lines if line.get_color() == "#000000"]
    assert list(full.get_ydata()) == pytest.approx([0.81, 0.81])


def test_the_committed_tables_come_from_the_committed_results() -> None:
    found = study(results.load(report.HERE / "results.csv"))
    assert (report.HERE / "tables.md").read_text(encoding="utf-8") == tables.tables(found, cost.load(report.HERE))


def test_the_readmes_numbers_are_those_of_the_committed_results() -> None:
    """By pandas and scipy alone, from results.csv."""
    runs = pd.read_csv(report.HERE / "results.csv").query("3 <= seed <= 10")
    best = {"lora": [3e-3] * 4, "dora": [3e-3] * 4, "qlora": [3e-3] * 4, "rslora": [3e-3, 1.25e-3, 1.25e-3, 1.25e-3]}

    def losses(variant: str, r: int | None, rate: float, metric: str = "test/loss") -> Any:
        mine = runs[(runs.variant == variant) & np.isclose(runs.learning_rate, rate) & ((runs.r == r) | (r is None))]
        assert sorted(mine.seed) == list(range(3, 11))
        return mine.sort_values("seed")[metric].to_numpy()

    def said(differences: Any) -> str:
        low, high = stats.t.interval(0.95, len(differences) - 1, differences.mean(), stats.sem(differences))
        return f"{differences.mean():.3f} [{low:.3f}, {high:.3f}]"

    of = {
        (variant, r): losses(variant, r, rate)
        for variant, rates in best.items()
        for r, rate in zip((4, 16, 64, 256), rates, strict=True)
    }
    full = losses("full", None, 3e-4)
    leads = [f"{(of['lora', r] - of['rslora', r]).mean():.3f}" for r in (4, 16, 64, 256)]
    dora = [(of["lora", r] - of["dora", r]).mean() for r in (4, 16, 64, 256)]
    qlora = [(of["qlora", r] - of["lora", r]).mean() for r in (4, 16, 64, 256)]
    prose = [losses("lora", r, 3e-3, "forgetting/after").mean() for r in (4, 16, 64, 256)]
    wanted = [
        f"From r = 4 to 16 LoRA gains {said(of['lora', 4] - of['lora', 16])}",
        f"from r = 4 to 256 by {said(of['rslora', 4] - of['rslora', 256])}",
        f"by {said(of['lora', 4] - of['rslora', 4])} at r = 4, {leads[1]}, {leads[2]}, and"
        f" {said(of['lora', 256] - of['rslora', 256])} at r = 256",
        f"DoRA leads LoRA by {min(dora):.3f} to {max(dora):.3f}",
        f"QLoRA trails by {min(qlora):.3f} to {max(qlora):.3f}",
        f"both at scale 1, {said(of['lora', 16] - of['rslora', 256])}",
        f"both at scale 4, {said(of['lora', 4] - of['rslora', 16])}",
        f"({said(full)})",
        f"is {said(of['rslora', 256] - full)} behind, LoRA {(of['lora', 16] - full).mean():.3f} and more",
        f"it ends at {losses('rslora', 256, 1.25e-3, 'forgetting/after').mean():.2f} nats, full at"
        f" {losses('full', None, 3e-4, 'forgetting/after').mean():.2f}, LoRA at {min(prose):.2f} to {max(prose):.2f}",
    ]
    readme = " ".join((report.HERE / "README.md").read_text(encoding="utf-8").split())
    assert [sentence for sentence in wanted if sentence not in readme] == []


def test_the_panels_of_rates_show_the_variants_however_low_full_is() -> None:
    full = {("full", None, 1e-5): level(0.5), ("full", None, 1e-4): level(0.7)}
    found = studied({("lora", 4, 1e-3): level(2.0), ("lora", 4, 2e-3): level(2.1)} | full)
    (axes,) = [one for one in figures.rates(found).axes if one.get_visible()]
    low, high = axes.get_ylim()
    assert low < 0.5 and high > 2.1
