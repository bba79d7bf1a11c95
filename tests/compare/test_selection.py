"""The seeds that choose a learning rate, the rate that they choose, and the runs that are reported."""

from __future__ import annotations

import math

import pytest

from src.compare.selection import split_seeds
from tests.compare.synthetic import DIVERGED, FROZEN, FULL, RSLORA, assayed, flagged

LOW, MIDDLE, HIGH = 3e-4, 1e-3, 3e-3
BOWL = {LOW: 2.2, MIDDLE: 2.0, HIGH: 2.1}  # validation loss by rate
SAME_SEEDS = "tuned and reported on the same seeds"


def pairs(seeds) -> list[tuple[int, int]]:
    return [(seed, seed) for seed in seeds]


@pytest.mark.parametrize(
    ("seeds", "tuning", "report"),
    [(12, 4, 8), (11, 3, 8), (9, 3, 6), (6, 2, 4), (4, 1, 3), (3, 1, 2), (2, 1, 1)],
)
def test_a_third_of_the_seeds_tune_and_the_lowest_do(seeds, tuning, report) -> None:
    split = split_seeds(pairs(range(seeds)), None, needed=True)
    assert split.tuning == set(pairs(range(tuning))) and split.report == set(pairs(range(tuning, seeds)))
    assert len(split.report) == report and split.disjoint


def test_one_seed_does_both() -> None:
    split = split_seeds(pairs([7]), None, needed=True)
    assert split.tuning == split.report == {(7, 7)} and not split.disjoint


def test_nothing_to_choose_leaves_all_seeds_to_report() -> None:
    split = split_seeds(pairs(range(5)), None, needed=False)
    assert (len(split.tuning), len(split.report), split.disjoint) == (0, 5, True)


def test_the_seeds_that_tune_can_be_named() -> None:
    split = split_seeds([(0, 0), (1, 0), (1, 1), (2, 2)], (1, 2), needed=True)
    assert split.tuning == {(1, 0), (1, 1), (2, 2)} and split.report == {(0, 0)}
    for everything_or_nothing in ((0, 1, 2), (9,)):
        assert not split_seeds([(0, 0), (1, 1), (2, 2)], everything_or_nothing, needed=True).disjoint


def test_validation_over_the_tuning_seeds_alone_chooses(grid) -> None:
    """Tuning seeds 0-3 prefer LOW on validation. Their test losses, and both losses of seeds 4-11, prefer HIGH by far."""
    grid(
        {LOW: lambda seed: 2.0 if seed < 4 else 9.0, HIGH: lambda seed: 2.1 if seed < 4 else 1.0},
        test=lambda rate, seed: (3.0 if rate == LOW else 1.0) + (100.0 if seed < 4 else 0.0),
    )
    result = assayed()
    [condition], [row] = result.conditions, result.table.to_dict("records")
    assert (condition.chosen, condition.tuning_runs) == (LOW, 2 * 4)
    assert condition.validation == {LOW: 2.0, HIGH: 2.1}
    assert (row["learning_rate"], row["n_seeds"], row["test_loss_mean"]) == (LOW, 8, 3.0)
    assert row["seeds"] == "4 5 6 7 8 9 10 11"


def test_named_tuning_seeds_choose(grid) -> None:
    grid({LOW: lambda seed: 2.0 if seed < 4 else 9.0, HIGH: 5.0}, seeds=range(6))
    assert assayed(tuning_seeds=(0, 1)).conditions[0].chosen == LOW
    late = assayed(tuning_seeds=(4, 5))
    assert late.conditions[0].chosen == HIGH
    assert late.table["seeds"][0] == "0 1 2 3"


@pytest.mark.parametrize(("seeds", "reported", "flag"), [(1, "0", True), (2, "1", False), (4, "1 2 3", False)])
def test_few_seeds(grid, seeds, reported, flag) -> None:
    grid(BOWL, seeds=range(seeds))
    result = assayed()
    assert (result.conditions[0].chosen, result.table["seeds"][0]) == (MIDDLE, reported)
    assert (SAME_SEEDS in flagged(result, "lora r=8")) == flag


def test_one_rate_lets_all_seeds_report(grid) -> None:
    grid({MIDDLE: 2.0}, seeds=range(6))
    result = assayed()
    assert (result.table["n_seeds"][0], result.conditions[0].tuning_runs) == (6, 0)
    assert "one learning rate" in flagged(result, "lora r=8")


def test_two_variants_share_their_tuning_seeds(grid) -> None:
    """A variant with one rate reports on the others' report seeds, or its pairs would be of other seeds."""
    grid(BOWL)
    grid({MIDDLE: 2.0}, variant=RSLORA)
    result = assayed()
    assert list(result.table["seeds"]) == ["4 5 6 7 8 9 10 11"] * 2
    assert [condition.chosen for condition in result.conditions] == [MIDDLE, MIDDLE]


def test_a_two_stage_sweep(grid) -> None:
    """All rates on the tuning seeds, then the report seeds at the best one alone."""
    grid(BOWL, seeds=range(4))
    grid({MIDDLE: 5.0}, seeds=range(4, 12))
    result = assayed()
    [condition] = result.conditions
    assert (condition.chosen, condition.tuning_runs, condition.complete) == (MIDDLE, 12, True)
    assert (result.table["n_seeds"][0], result.table["test_loss_mean"][0]) == (8, 5.0)
    assert flagged(result, "lora r=8") == []


def test_report_seeds_at_a_rate_that_was_not_chosen_are_no_numbers(grid) -> None:
    grid(BOWL, seeds=range(4))
    grid({HIGH: 1.0}, seeds=range(4, 12))
    result = assayed()
    [row] = result.table.to_dict("records")
    assert (result.conditions[0].chosen, row["n_seeds"]) == (MIDDLE, 0)
    assert math.isnan(row["test_loss_mean"]) and math.isnan(row["interval_low"])
    assert row["reasons"] == "no report seed has run at the chosen rate"
    assert "no finished report run" in flagged(result, "lora r=8")


def test_a_rate_at_which_a_tuning_seed_diverged_is_no_candidate(grid) -> None:
    grid(BOWL | {HIGH: 1.0}, ended={(HIGH, 2): "diverged"})
    result = assayed()
    [condition] = result.conditions
    assert condition.chosen == MIDDLE and condition.validation == {LOW: 2.2, MIDDLE: 2.0} and not condition.complete
    assert flagged(result, "lora r=8") == ["incomplete grid", "1 diverged of 36 runs"]


def test_the_validation_loss_of_a_run_that_diverged_chooses_nothing(grid, make) -> None:
    grid({LOW: 2.2, MIDDLE: 2.0}, seeds=range(2))
    for seed in range(2):
        make(seed=seed, lr=HIGH, **DIVERGED | {"metrics": {"val/loss": 0.1}})
    assert assayed().conditions[0].validation == {LOW: 2.2, MIDDLE: 2.0}


def test_a_rate_at_which_a_report_seed_diverged_is_still_chosen(grid) -> None:
    grid(BOWL, ended={(MIDDLE, 7): "diverged"})
    [row] = assayed().table.to_dict("records")
    assert (row["learning_rate"], row["n_seeds"], row["status"]) == (MIDDLE, 7, "7 ok, 1 diverged")


def test_all_diverged(grid) -> None:
    grid(BOWL, seeds=range(3), ended={(rate, seed): "diverged" for rate in BOWL for seed in range(3)})
    grid(BOWL, seeds=range(3), variant=RSLORA)
    result = assayed()
    [lora, rslora] = result.table.to_dict("records")
    assert (result.conditions[0].chosen, lora["n_seeds"], lora["status"]) == (None, 0, "diverged")
    assert math.isnan(lora["learning_rate"]) and lora["effective_scale"] == 2.0
    assert flagged(result, "lora r=8") == ["incomplete grid", "no finished report run", "9 diverged of 9 runs"]
    assert (rslora["n_seeds"], rslora["pairs"], rslora["verdict"]) == (2, 0, "no common seed")


def test_tuning_seeds_that_diverged_at_every_rate_leave_a_row_without_a_number(grid) -> None:
    grid(BOWL, seeds=range(3), ended={(rate, 0): "diverged" for rate in BOWL})
    [row] = assayed().table.to_dict("records")
    assert (row["n_seeds"], row["status"]) == (0, "3 diverged, 6 not reported")
    assert "no tuning seed has a val/loss to choose a rate by" in row["reasons"]


@pytest.mark.parametrize("metrics", [{"test/loss": 2.0}, {"test/loss": 2.0, "val/accuracy": 0.5}])
def test_without_a_validation_loss_nothing_is_chosen(grid, metrics) -> None:
    grid(BOWL, seeds=range(3), metrics=metrics)
    result = assayed()
    assert (result.conditions[0].chosen, result.table["n_seeds"][0]) == (None, 0)
    assert "incomplete grid" in flagged(result, "lora r=8")


def test_a_rate_without_a_validation_loss_is_no_candidate(grid) -> None:
    grid({LOW: 2.2, MIDDLE: 2.0}, seeds=range(3))
    grid({HIGH: 1.0}, seeds=range(3), metrics={"test/loss": 1.0})
    assert assayed().conditions[0].chosen == MIDDLE


@pytest.mark.parametrize(("losses", "edge"), [((1.0, 2.0, 3.0), "lowest"), ((3.0, 2.0, 1.0), "highest"), ((2.0, 1.0, 2.0), None)])
def test_the_edge_of_the_grid(grid, losses, edge) -> None:
    grid(dict(zip(BOWL, losses, strict=True)), seeds=range(2))
    result = assayed()
    assert result.conditions[0].edge == edge
    assert (f"best rate on the grid's {edge} edge" in flagged(result, "lora r=8")) == (edge is not None)


def test_equal_rates_choose_the_lower(grid) -> None:
    grid({HIGH: 2.0, LOW: 2.0}, seeds=range(2))
    assert assayed().conditions[0].chosen == LOW


def test_ranks_and_alphas_get_rates_of_their_own(grid) -> None:
    grid({LOW: 1.0, HIGH: 2.0}, seeds=range(2), r=4)
    grid({LOW: 2.0, HIGH: 1.0}, seeds=range(2), r=64)
    grid({LOW: 1.0, HIGH: 2.0}, seeds=range(2), r=64, fields={"lora.alpha": 32.0})
    result = assayed()
    assert dict(zip(result.labels, result.table["learning_rate"], strict=True)) == {
        "lora r=4": LOW, "lora r=64, alpha 16": HIGH, "lora r=64, alpha 32": LOW,
    }  # fmt: skip


def test_controls(grid, make) -> None:
    """``frozen`` has no rate and reports on every seed; ``full`` is tuned like a variant, and neither is paired."""
    for seed in range(2):
        make(5.0, seed, variant=FROZEN, trainable_parameters=0, metrics={"test/loss": 5.0, "val/loss": 5.1})
    grid(BOWL, seeds=range(4), variant=FULL)
    grid(BOWL, seeds=range(4))
    result = assayed()
    assert result.labels == ["frozen", "full", "lora r=8"]
    assert list(result.table["n_seeds"]) == [2, 3, 3]
    assert [condition.chosen for condition in result.conditions] == [None, MIDDLE, MIDDLE]
    assert flagged(result, "frozen") == []
    assert flagged(result, "full") == ["only 3 seeds"]
    assert [view.contrasts for view in result.views] == [[], []]


def test_controls_alone(make) -> None:
    make(5.0, variant=FROZEN)
    result = assayed()
    assert result.labels == ["frozen"] and flagged(result, "frozen") == []


def test_a_failed_run_alone(make) -> None:
    make(**DIVERGED)
    result = assayed()
    assert flagged(result, "lora r=8") == ["one learning rate", "no finished report run", "1 diverged of 1 runs"]
    assert math.isnan(result.table["test_loss_mean"][0])


def test_the_grid_is_kept_rate_by_rate(grid) -> None:
    grid(BOWL, seeds=range(4), test=lambda rate, seed: 10 * rate + seed, ended={(HIGH, 3): "diverged"})
    rates = assayed().rates
    assert list(rates["learning_rate"]) == [LOW, MIDDLE, HIGH] and list(rates["chosen"]) == [False, True, False]
    assert list(rates["validation"]) == [2.2, 2.0, 2.1]
    assert list(rates["metric"]) == pytest.approx([10 * LOW + 2, 10 * MIDDLE + 2, 10 * HIGH + 1.5])
    assert rates[["tuning_runs", "report_runs", "not_ok"]].to_numpy().tolist() == [[1, 3, 0], [1, 3, 0], [1, 2, 1]]
