"""The sentences above a comparison: the story that tuning tells, and what a sweep that still runs can say."""

from __future__ import annotations

import math
import re

import pytest
from scipy import stats

from src.compare.assay import Assay, at_fixed_rates
from src.compare.findings import findings, method
from tests.compare import synthetic
from tests.compare.synthetic import DORA, FROZEN, RSLORA, assayed

LOW, MIDDLE, HIGH = 3e-4, 1e-3, 3e-3
# Sums to 0 over all 12 seeds and over the last 8.
NOISE = [0.004, -0.002, 0.003, -0.005, 0.001, -0.003, 0.002, -0.004, 0.005, -0.001, 0.0035, -0.0035]
# At 1e-3 rsLoRA leads by 0.19; LoRA's best rate is the highest that was tried, and there it is 0.05 behind.
LORA = {LOW: 2.10, MIDDLE: 1.84, HIGH: 1.70}
BETTER = {LOW: 1.75, MIDDLE: 1.65, HIGH: 1.80}


def story() -> Assay:
    """12 seeds, 3 rates. Each pair differs by its rate's gap, and by noise that depends on the seed alone."""
    synthetic.grid(LORA, test=lambda rate, seed: LORA[rate] + 0.01 * seed, r=64)
    synthetic.grid(BETTER, test=lambda rate, seed: BETTER[rate] + 0.01 * seed + NOISE[seed], r=64, variant=RSLORA)
    return assayed()


def sentences(result: Assay) -> list[str]:
    return findings(result, at_fixed_rates(result))


def t_interval(values: list[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    return float(low), float(high)


def test_the_story(make) -> None:
    """One sentence says both gaps with intervals and n, and that LoRA's rate is the edge of the grid."""
    best, sentence = sentences(story())
    fixed, tuned = t_interval([-0.19 + noise for noise in NOISE]), t_interval([-0.05 + noise for noise in NOISE[4:]])
    assert sentence == (
        "rslora r=64 against lora r=64: at one fixed rate, 0.001 for both, rslora leads,"
        f" -0.1900 [{fixed[0]:.4f}, {fixed[1]:.4f}], 12 seeds (from -0.3500 at 0.0003 to +0.1000 at 0.003);"
        " each at its own best rate (0.001 and 0.003), rslora leads,"
        f" -0.0500 [{tuned[0]:.4f}, {tuned[1]:.4f}], 8 seeds: a difference (p = 0.0078 after Holm)."
        " lora r=64's best rate is the highest of the grid: a better one may lie beyond it."
    )
    # Seeds 4 to 11 are 0.01 apart, so the mean of 1.65 + 0.01 * seed is 1.725.
    assert best.startswith("Lowest test loss (nats per target token): rslora r=64 at learning rate 0.001, 1.7250 [1.70")
    assert best.endswith("], 8 seeds.")


def test_fixed_rates_by_hand(make) -> None:
    fixed = at_fixed_rates(story())
    assert list(fixed["learning_rate"]) == [LOW, MIDDLE, HIGH] and list(fixed["n"]) == [12, 12, 12]
    assert list(fixed["difference"]) == pytest.approx([-0.35, -0.19, 0.10])


def test_rows_that_cannot_be_told_from_the_best_are_named(make) -> None:
    """LoRA's losses are 1 and 3; DoRA's mean of 2.5 lies in its interval, rsLoRA's 50 is far from both."""
    for variant, losses in (({}, (1.0, 3.0)), (DORA, (2.4, 2.6)), (RSLORA, (50.0, 50.1))):
        for seed, loss in enumerate(losses):
            synthetic.run(loss, seed, variant=variant)
    assert sentences(assayed())[0].endswith("2 seeds. The intervals of dora r=8 overlap with it.")


def test_a_lead_that_tuning_takes_away(make) -> None:
    """At 1e-3 rsLoRA leads by 0.2. Each at its best rate the two differ by noise: that is no difference, and equivalent."""
    synthetic.grid({LOW: 2.3, MIDDLE: 2.2, HIGH: 2.0, 1e-2: 2.1}, test=lambda rate, seed: 2.0 if rate == HIGH else 2.2)
    synthetic.grid({LOW: 2.1, MIDDLE: 2.0, HIGH: 2.3}, variant=RSLORA, test=lambda rate, seed: 2.0 + NOISE[seed] / 2 + 1e-4)
    [_, sentence] = sentences(assayed())
    low, high = t_interval([noise / 2 + 1e-4 for noise in NOISE[4:]])
    assert "0.001 for both, rslora leads, -0.1999 [" in sentence
    assert f"each at its own best rate (0.001 and 0.003), lora leads, +0.0001 [{low:.4f}, +{high:.4f}], 8 seeds:" in sentence
    assert re.search(r"no difference shown \(p = [\d.]+ after Holm\), and equivalent within 0\.01\.$", sentence)


def test_few_seeds_claim_nothing(make) -> None:
    for seed in range(3):
        synthetic.run(2.0 + 0.1 * seed, seed)
        synthetic.run(1.5 + 0.1 * seed, seed, variant=RSLORA)
    [_, sentence] = sentences(assayed())
    assert sentence.startswith("rslora r=8 against lora r=8, at one rate for both, 0.001: rslora leads, -0.5000")
    assert "[-0.5000, -0.5000], 3 seeds: too few seeds" in sentence
    assert "p =" not in sentence and "a difference" not in sentence


def test_one_seed_has_no_interval(make) -> None:
    synthetic.run(2.0)
    synthetic.run(1.5, variant=RSLORA)
    best, sentence = sentences(assayed())
    assert best == "Lowest test loss (nats per target token): rslora r=8 at learning rate 0.001, 1.5000, 1 seed."
    assert "rslora leads, -0.5000, 1 seed: too few seeds for any claim." in sentence


@pytest.mark.parametrize(("shares", "leader"), [((0.5, 0.6), "dora"), ((0.6, 0.5), "lora"), ((0.5, 0.5), None)])
def test_a_higher_share_leads(make, shares, leader) -> None:
    for variant, share in zip(({}, DORA), shares, strict=True):
        synthetic.run(variant=variant, metrics={"test/loss": 2.0, "test/exact_match": share})
    best, sentence = sentences(assayed(metric="test/exact_match"))
    assert f": {leader or 'neither'} leads, {shares[1] - shares[0]:+.4f}, 1 seed" in sentence
    assert best.startswith(f"Highest test exact match (share): {leader or 'lora'} r=8")


def test_the_largest_changes_come_first_and_the_rest_are_counted(make) -> None:
    for r in range(1, 11):
        synthetic.run(2.0, r=r)
        synthetic.run(2.0 - 0.01 * r, r=r, variant=RSLORA)
    _, first, *_, last = sentences(assayed())
    assert first.startswith("rslora r=10 against lora r=10") and last == "2 more pairs are in the tables."


def test_nothing_finished_finds_nothing(make) -> None:
    synthetic.run(recorded=False)
    synthetic.run(recorded=False, variant=RSLORA)
    assert sentences(assayed()) == []


def test_one_row_is_no_ranking(make) -> None:
    synthetic.run()
    assert sentences(assayed()) == []


def test_the_method_is_said(make) -> None:
    notes = method(story())
    assert notes[0] == (
        "Learning rates: for each row the best of 3 by val/loss over the tuning seeds 0, 1, 2, 3; all other numbers are over"
        " the report seeds 4, 5, 6, 7, 8, 9, 10, 11."
    )
    assert (
        "At the same rank: row minus lora, paired by seed; sign-flip tests, exact up to 16 seeds, Holm over 1 contrast." in notes
    )
    assert any(
        note.startswith("Equivalent means that both one-sided t tests within 0.01 reject at 0.05 (TOST)") for note in notes
    )


def test_seeds_that_could_not_be_kept_apart_are_said(make) -> None:
    synthetic.grid(LORA, seeds=[0])
    assert "over the same seeds that report (0): no others are left to report on" in method(assayed())[0]


def test_a_family_that_no_p_could_win_is_said(make) -> None:
    """6 seeds reach p = 2/64 at best; times the 4 contrasts that is 0.125."""
    for r in (2, 4, 8, 16):
        for seed in range(6):
            synthetic.run(2.0, seed, r=r, trainable_parameters=1000 * r)
            synthetic.run(1.0, seed, r=r, trainable_parameters=1000 * r, variant=RSLORA)
    result = assayed()
    [note] = [note for note in method(result) if note.startswith("At the same rank")]
    assert "With 6 seeds and 4 contrasts the smallest p after Holm is 0.125, so nothing can be marked" in note
    assert not [contrast for contrast in result.views[0].contrasts if contrast.marked]


def test_rows_without_a_reference_are_named(make) -> None:
    synthetic.run(r=4)
    synthetic.run(r=4, variant=DORA)
    synthetic.run(r=64, variant=DORA, trainable_parameters=64_000)
    notes = method(assayed())
    assert "No lora row of the same rank: dora r=64." in notes
    assert "No lora row of the same trainable parameters within 5%: dora r=64." in notes


def test_a_control_can_be_best_and_is_paired_with_nothing(make) -> None:
    synthetic.run(2.0)
    synthetic.run(1.0, variant=FROZEN)
    assert sentences(assayed()) == ["Lowest test loss (nats per target token): frozen, 1.0000, 1 seed."]


def test_a_sweep_can_be_compared_while_it_runs(make) -> None:
    """LoRA is done, rsLoRA's report seeds have not run, DoRA has not begun: what can be said is said."""
    synthetic.grid(LORA, range(6), r=64)
    synthetic.grid(
        BETTER, range(6), r=64, variant=RSLORA, ended={(rate, seed): "missing" for rate in LORA for seed in range(3, 6)}
    )
    synthetic.grid(LORA, [0, 5], r=64, variant=DORA, ended={(rate, seed): "missing" for rate in LORA for seed in (0, 5)})
    result = assayed()
    assert list(result.table["n_seeds"]) == [4, 1, 0]
    assert list(result.table["status"]) == ["ok", "1 ok, 3 missing", "missing"]
    assert math.isnan(result.table["learning_rate"][2]) and math.isnan(result.table["difference"][2])
    assert [flag.words for flag in result.flags[1]][-1] == "9 missing of 18 runs"
    assert [flag.words for flag in result.flags[2]] == ["incomplete grid", "no finished report run", "6 missing of 6 runs"]
    assert sentences(result)[1].startswith(
        "rslora r=64 against lora r=64: at one fixed rate, 0.001 for both, rslora leads, -0.1900"
    )
    assert any(note.startswith("15 of 42 runs have no record yet: ") for note in result.comparison.notes)


def test_runs_that_diverged_at_a_rate_that_was_not_chosen_are_listed(make) -> None:
    for rate, loss in ((1e-3, 1.5), (1e-2, 1.9)):
        for seed in range(3):
            make(loss, seed, lr=rate)
    lost = make(None, 2, lr=1e-1, status="diverged", reason="loss was not finite at step 12")
    [sentence] = [note for note in method(assayed()) if "diverged" in note]
    assert sentence.startswith("Among the runs of other rates and of tuning seeds, 1 diverged: loss was not finite at step 12")
    assert lost in sentence
