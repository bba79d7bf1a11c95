"""FinLoRA's comparison: what is trained, and the report, by hand and from the committed results."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.finlora_small import report, run
from src.command.cli import compose
from src.files.errors import ConfigError
from src.record.records import RUNS
from src.variants.methods.scaling import effective_scale
from tests.compare import synthetic


def runs_of(losses: dict[tuple[str, float], list[float]]) -> pd.DataFrame:
    """Runs of one task: of each (form, rate) the loss by seed, from seed 0 on, the same for validation and test."""
    rows = [
        {
            "task": "formula",
            "form": form,
            "learning_rate": rate,
            "seed": seed,
            "val_loss": loss,
            "test_loss": loss,
            "status": "ok",
        }
        | {"effective_scale": 2.0, "exact_match": 0.5, "parse_failures": None}
        for (form, rate), values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_the_forms_are_those_of_the_named_configs() -> None:
    for task in run.TASKS:
        found = [compose(words) for words in run.conditions(task, "FOLDER", [])]
        assert [(c.variant.name, c.lora.r, c.lora.alpha) for c in found] == list(run.FORMS.values())
        scales = [effective_scale(c.variant.scaling, c.lora.alpha, c.lora.r) for c in found]
        assert scales == pytest.approx([2, 4, 2, 16 / 8**0.5, 2])
        assert {c.dataset.name for c in found} == {f"finlora_{task}"} and {c.train.warmup_steps for c in found} == {10}
        assert all(c.train.batch_size * c.train.grad_accum == 16 and c.lora.dropout == 0.05 for c in found)


def test_rates_contrasts_and_orders_by_hand() -> None:
    tuning = {
        ("8bits_r8", 1e-4): [3.0, 3.0, 3.0], ("8bits_r8", 1e-3): [1.0, 1.0, 4.0], ("8bits_r8", 1e-2): [2.5, 2.5, 2.5],
        ("8bits_r8_dora", 1e-4): [2.0, 2.0, 2.0], ("8bits_r8_dora", 1e-3): [2.1, 2.1, 2.1],
    }  # fmt: skip
    runs = runs_of(tuning)
    best = report.chosen(runs)
    assert best == {"8bits_r8": 1e-3, "8bits_r8_dora": 1e-4}  # 2.0 on average, with its one bad seed
    (found,) = report.contrasts(runs, best, run.TUNE).values()
    one, p = found
    assert (one.n, one.mean) == (3, pytest.approx((1 + 1 - 2) / 3)) and p == 1.0
    losses = {form: report.at_rate(runs, form, rate, run.TUNE).test_loss.tolist() for form, rate in best.items()}
    assert losses == {"8bits_r8": [1.0, 1.0, 4.0], "8bits_r8_dora": [2.0, 2.0, 2.0]}


def test_a_difference_needs_six_seeds_and_holm() -> None:
    high, low = [2.0 + 0.01 * seed for seed in range(11)], [1.0 + 0.02 * seed for seed in range(11)]
    every = {(form, 1e-3): high for form in report.FORMS} | {("8bits_r8_dora", 1e-3): low}
    rates = dict.fromkeys(report.FORMS, 1e-3)
    found = report.contrasts(runs_of(every), rates, run.REPORT)
    assert found["8bits_r8_dora"][1] == pytest.approx(4 * 2 / 2**8)  # the smallest of 8 seeds, times four contrasts
    lines = report.table(runs_of(every), rates, run.REPORT)
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["-", "equivalent", "differs", "equivalent", "equivalent"]
    assert "n < 6" in report.table(runs_of(every), rates, run.TUNE)[3]


def test_the_committed_tables_and_numbers_come_from_the_committed_results() -> None:
    results = pd.read_csv(report.HERE / "results.csv")
    text = report.tables(results)
    assert (report.HERE / "tables.md").read_text() == text
    readme = (report.HERE / "README.md").read_text()
    numbers = {
        "0.387 [0.379, 0.395]": "0.3871 [0.3793, 0.3948]",
        "1.27 [1.23, 1.31]": "-1.2661 [-1.3067, -1.2254]",
        "0.22 [0.05, 0.39]": "+0.2216 [+0.0542, +0.3890]",
        "0.042 [0.020, 0.065]": "-0.0423 [-0.0650, -0.0197]",
        "1.42": "+1.4200",
        "p = 0.031": "0.0312",
        "0.324 [0.308, 0.340]": "-0.3235 [-0.3396, -0.3075]",
        "0.050 [0.043, 0.057] (8 seeds, p = 0.031 after Holm, as all four there)": "+0.0500 [+0.0431, +0.0569] | 0.0312",
        "0.008 [0.005, 0.011]": "-0.0077 [-0.0106, -0.0048]",
        "0.081 [0.076, 0.086]": "+0.0812 [+0.0764, +0.0860]",
        "QLoRA at alpha 8, of LoRA's own scale, trails by 0.108 [0.100, 0.116]": "+0.1081 [+0.0998, +0.1164] | 0.0312",
        "all eight seeds have that order": "- 8 x DoRA < LoRA < rsLoRA < QLoRA",
        "eight different orders": "8 orders in 8 seeds",
    }
    for said, meant in numbers.items():
        assert said in re.sub(r"\s+", " ", readme) and meant in text
    lost = report.at_rate(results[results.task == "formula"], "8bits_r8", 1e-2, run.REPORT)
    assert f"loses {(lost.prose_after - lost.prose_before).mean():.1f} nats on held-out prose" in re.sub(r"\s+", " ", readme)
    assert "330 runs, none failed" in readme and len(results) == 330 and set(results.status) == {"ok"}
    grid = set(zip(results.task, results.form, results.learning_rate, results.seed, strict=True))
    assert len(grid) == 330 and set(itertools.product(run.TASKS, run.FORMS, run.RATES, run.TUNE)) <= grid


def test_no_best_rate_is_at_an_edge_and_the_readme_says_how_near_the_next_is() -> None:
    results = pd.read_csv(report.HERE / "results.csv")
    readme = re.sub(r"\s+", " ", (report.HERE / "README.md").read_text())
    tuning = results[results.seed.isin(run.TUNE)].groupby(["task", "form", "learning_rate"]).val_loss.mean()
    for task, form in itertools.product(run.TASKS, run.FORMS):
        found = tuning[task, form]
        assert found.index[0] < found.idxmin() < found.index[-1]
    assert "(highest)" not in (report.HERE / "tables.md").read_text()
    lora, rslora = tuning["formula", "8bits_r8"], tuning["xbrl_term", "8bits_r8_rslora"]
    assert f"({lora[3e-3]:.3f} at 3e-3, {lora[1e-2]:.3f} at 1e-2; {lora[3e-2]:.3f} at 3e-2)" in readme
    assert f"({rslora[3e-3]:.3f}, {rslora[1e-2]:.3f})" in readme
    worse = [tuning["formula", form][3e-2] - tuning["formula", form].min() for form in run.FORMS]
    assert f"3e-2 is worse than the best of each form by {min(worse):.2f} to {max(worse):.2f}" in readme


def test_qlora_at_loras_scale_is_last_on_xbrl_term_and_goes_on_where_its_tuning_seeds_were() -> None:
    results = pd.read_csv(report.HERE / "results.csv")
    readme = re.sub(r"\s+", " ", (report.HERE / "README.md").read_text())
    runs = results[results.task == "xbrl_term"]
    best = report.chosen(runs)
    losses = pd.DataFrame({form: report.at_rate(runs, form, best[form], run.REPORT).test_loss for form in run.FORMS})
    assert len(losses) == 8 and set(losses.idxmax(axis=1)) == {"matched/4bits_r4"} and "last in all eight" in readme
    own = runs[(runs.form == "matched/4bits_r4") & (runs.learning_rate == best["matched/4bits_r4"])].set_index("seed")
    old, new = own.loc[list(run.TUNE)], own.loc[list(run.REPORT)]
    assert f"test loss {new.test_loss.mean():.3f} on the new seeds, {old.test_loss.mean():.3f} on the tuning seeds" in readme
    assert own.prose_before.nunique() == 1


def test_a_form_without_report_seeds_is_named_and_left_out() -> None:
    losses = {(form, rate): [1.0 + rate * 100 + 0.01 * seed for seed in range(11)] for form in report.FORMS for rate in run.RATES}
    runs = runs_of(losses)
    stopped = (runs.form == "matched/4bits_r4") & runs.seed.isin(run.REPORT[3:])
    text = report.tables(runs[~stopped])
    tuning, reported = text.split("Each at its own best rate")
    assert "| QLoRA, alpha 8 |" in tuning and "| QLoRA, alpha 8 |" not in reported
    assert "QLoRA, alpha 8: its best rate is 0.0001; its report seeds are not all trained." in reported
    report.figure(runs[~stopped])


def test_a_run_that_is_not_ok_is_in_no_number_and_is_named() -> None:
    losses = {(form, rate): [1.0 + rate * 100 + 0.01 * seed for seed in range(11)] for form in report.FORMS for rate in run.RATES}
    runs = runs_of(losses)
    dora = runs.form == "8bits_r8_dora"
    runs.loc[dora & (runs.learning_rate == 1e-4) & (runs.seed == 2), "status"] = "diverged"  # though its losses are there
    runs.loc[dora & (runs.learning_rate == 1e-3) & (runs.seed == 5), ["status", "test_loss"]] = ["failed", float("nan")]
    text = report.tables(runs)
    assert report.chosen(runs)["8bits_r8_dora"] == 1e-3 and "220 runs, 2 not ok." in text
    named = "DoRA, 8 bits at 0.0001, seed 2 (diverged); DoRA, 8 bits at 0.001, seed 5 (failed)"
    assert f"Not ok, so in no number and no choice of a rate: {named}." in text
    tuning, reported = text.split("Each at its own best rate")
    assert "| DoRA, 8 bits | 2 | 0.0001 | 2 | 1.0150 " in tuning and "1 order in 2 seeds" in reported
    assert "| DoRA, 8 bits | 2 | 0.001 | 7 | " in reported and "1 order in 7 seeds" in reported
    report.figure(runs)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("form", "8bits_r8_ia3", "8bits_r8_ia3: no form of this study"),
        ("task", "headline", "headline is no task of this study"),
        ("test_loss", "", "row 7 ended well, and has no val_loss and test_loss that are finite"),
        ("seed", "1.5", "seed of row 7 is 1.5, not a whole number"),
    ],
)
def test_a_run_of_another_study_or_without_losses_is_refused(column: str, value: str, said: str) -> None:
    frame = pd.read_csv(report.HERE / "results.csv", dtype=str, na_filter=False)
    frame.loc[6, column] = value
    with pytest.raises(ConfigError) as caught:
        report.read("results.csv", frame.to_csv(index=False))
    assert str(caught.value).startswith(f"results.csv: {said}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "header", "cut", "end", "word", "column", "bytes", "twice"])
def test_a_damaged_table_is_one_line(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (report.HERE / "results.csv").read_text()
    lines = whole.splitlines(keepends=True)
    text = {
        "empty": "", "header": lines[0], "cut": whole[: len(lines[0]) + 40], "end": whole[:-3],
        "word": whole.replace(",0.0001,", ",soon,", 1),
        "column": whole.replace("val_loss", "loss"), "bytes": "", "twice": whole + lines[-1],
    }[damage]  # fmt: skip
    (tmp_path / "results.csv").write_bytes(b"\xff\xfe\x00" * 50 if damage == "bytes" else text.encode())
    monkeypatch.setattr(sys, "argv", ["report", f"folder={tmp_path}"])
    with pytest.raises(ConfigError) as caught:
        report.main()
    assert "\n" not in str(caught.value) and "results.csv" in str(caught.value)
    assert not (tmp_path / "tables.md").exists()


def test_without_report_seeds_of_the_reference_nothing_is_compared_there() -> None:
    losses = {(form, rate): [1.0 + rate, 1.1 + rate, 1.3 + rate] for form in report.FORMS for rate in run.RATES}
    del losses["4bits_r4", run.RATES[0]]
    runs = runs_of(losses)
    tuning, reported = report.tables(runs).split("Each at its own best rate")
    assert "| DoRA, 8 bits |" in tuning and "QLoRA, alpha 16" not in tuning and "| DoRA" not in reported
    assert "QLoRA, alpha 16: its best rate is 0.001; its report seeds are not all trained." in reported
    report.figure(runs)


def recorded(loss: float, **options: Any) -> str:
    """A run of the study as src.train leaves it."""
    own = {"sweep": "finlora_formula", "dataset": "finlora_formula", "r": 8, "lr": 1e-4, "curve": ()}
    return synthetic.run(**{"variant": {"base_precision": "int8"}, "loss": loss} | own | options)


def reports(*words: str) -> None:
    sys.argv[1:] = [*words, "folder=."]
    assert report.main() == 0


def test_rows_of_another_machines_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report"])
    place = tmp_path / "results.csv"
    for seed in run.TUNE:
        recorded(1.0 + seed / 3, seed=seed)
    reports("records")
    first = place.read_text().splitlines()
    shutil.rmtree(RUNS)
    again = recorded(7.0, seed=1, metrics={"val/loss": 7.1, "test/loss": 7.0, "forgetting/after": 3.0})
    other = recorded(9.0, seed=0, lr=1e-3)
    capsys.readouterr()
    reports("records", "more")
    assert capsys.readouterr().out == "results.csv: 2 rows kept, 2 from records\n" + (tmp_path / "tables.md").read_text()
    found = place.read_text().splitlines()
    assert found[:2] == first[:2] and found[3] == first[3] and len(found) == 5
    assert again in found[2] and ",7.1,7,," in found[2] and found[2].endswith(",3") and other in found[4]
    shutil.rmtree(RUNS)
    recorded(7.0, seed=2, fields={"eval.batch_size": 3})
    whole = place.read_bytes()
    with pytest.raises(ConfigError, match=r"results.csv and .*runs: .*: one form, rate and seed twice"):
        reports("records", "more")
    place.write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=r"results.csv: row 4 has no end of line"):
        reports("records", "more")
    assert place.read_bytes() == whole[:-1]
    place.unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"results.csv: not there; the word records alone makes it"):
        reports("records", "more")
    assert sorted(tmp_path.iterdir()) == before
    for words in (["more"], ["more", "records"], ["records", "more", "more"]):
        with pytest.raises(ConfigError, match="takes no word but records, and after it more"):
            reports(*words)


def test_a_rate_that_not_all_tuning_seeds_came_through_is_no_candidate() -> None:
    nan = float("nan")
    runs = runs_of({("8bits_r8", 1e-3): [1.0, 1.0, 1.0], ("8bits_r8", 1e-2): [0.9, nan, nan], ("4bits_r4", 1e-3): [nan] * 3})
    assert report.chosen(runs) == {"8bits_r8": 1e-3}
    assert report.chosen(runs.drop(index=2)) == {}  # as where a sweep was stopped
