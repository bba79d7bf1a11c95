"""Statistics against SciPy and statsmodels asked in another way, against brute force, and against cases worked out by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from src.compare import statistics
from src.compare.statistics import (
    bootstrap,
    detectable_effect,
    holm,
    item_standard_error,
    mcnemar,
    mean_interval,
    paired,
    pareto_front,
    probability_of_improvement,
    smallest_p,
)

ROOT = Path(__file__).parents[2]
DIFFERENCES = [0.031, -0.012, 0.044, 0.025, 0.008, 0.051, -0.003, 0.019]


def test_importing_costs_neither_scipy_nor_statsmodels() -> None:
    code = "import src.compare.statistics, sys; sys.exit(bool({'scipy', 'statsmodels', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Means and their intervals


def test_mean_interval_by_hand_and_as_statsmodels_has_it() -> None:
    results = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # the 97.5 % quantile of t with 2 degrees of freedom, from any table
    assert (results.mean, results.sd, results.n) == (2.0, 1.0, 3)
    assert (results.low, results.high) == pytest.approx((2 - half, 2 + half), abs=1e-6)
    wide = mean_interval(DIFFERENCES, level=0.99)
    assert (wide.low, wide.high) == pytest.approx(DescrStatsW(DIFFERENCES).tconfint_mean(alpha=0.01), rel=1e-12)


def test_fewer_than_two_values_have_no_spread() -> None:
    single, none = mean_interval([3.0]), mean_interval([])
    assert single.mean == 3.0 and np.isnan([single.low, single.high, single.sd]).all() and single.n == 1
    assert np.isnan([none.mean, none.low, none.high, none.sd]).all() and none.n == 0
    results = paired([0.2], margin=1.0)
    assert np.isnan([results.sd, results.low, results.high, results.p_flip, results.p_t, results.p_tost, results.mde]).all()
    assert results.mean == 0.2 and results.equivalent is False


@pytest.mark.parametrize("bad", [[0.1, float("nan")], [0.1, float("inf")], [[0.1, 0.2]]])
def test_what_is_not_a_finite_sample_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(bad)
    with pytest.raises(ValueError, match="finite"):
        paired(bad, margin=0.1)


def test_t_interval_covers_and_sign_flips_reject_at_their_nominal_rates() -> None:
    # 2,000 samples: the standard error of either rate is sqrt(.05 * .95 / 2000) = 0.5 points, so these are 3 to 4 of them.
    # With 8 seeds the sign-flip test can only reject at multiples of 2/256; the largest below 5 % is 12/256 = 4.7 %.
    samples = np.random.default_rng(20).normal(0.3, 1.7, (2_000, 8))
    covered = [results.low <= 0.3 <= results.high for results in map(mean_interval, samples)]
    assert 0.93 <= np.mean(covered) <= 0.97
    rejected = [statistics._sign_flip(sample - 0.3) < 0.05 for sample in samples]
    assert 0.035 <= np.mean(rejected) <= 0.065


# Paired tests


def brute_force_flips(whole: list[int]) -> float:
    """Share of all sign patterns whose sum is as far from 0 as the observed one: whole numbers, so ties are exact."""
    sums = [abs(sum(s * x for s, x in zip(signs, whole, strict=True))) for signs in itertools.product((1, -1), repeat=len(whole))]
    return sum(s >= abs(sum(whole)) for s in sums) / len(sums)


@pytest.mark.parametrize(
    "whole",
    [[1, 1, 1, 1, 1, 1], [1, 2, -3], [1, 2, -3, 4, -4], [3, 1, -4, 2, 2, -1, 5], [2, 0, 0, 1], [7, -7], [1, 2, 4, 8, 16, 32, -1],
     [5, 5, -5, 3, 3, 1, 1, 1, -2, 4]],
)  # fmt: skip
def test_sign_flip_is_exact_also_where_sums_tie(whole: list[int]) -> None:
    assert paired(whole, margin=1.0).p_flip == brute_force_flips(whole)


@pytest.mark.parametrize(
    ("items", "right", "whole"),
    [(1319, [675, 684, 684, 681, 673], [0, -4, 3, 0, -3]), (872, [785, 797, 796, 787, 801], [4, -3, 2, 1, 4])],
)
def test_sign_flip_sees_ties_between_rounded_accuracies(items: int, right: list[int], whole: list[int]) -> None:
    # Equal differences of accuracies differ in their last digits: SciPy alone gives 0.5 for 0.75, and 0.25 for 0.3125.
    a, b = (np.array(right) + whole) / items, np.array(right) / items
    assert paired(a - b, margin=1.0).p_flip == brute_force_flips(whole)


def test_six_equal_differences_are_the_smallest_p() -> None:
    assert paired([1.0] * 6, margin=2.0).p_flip == smallest_p(6) == 2 / 64
    assert [smallest_p(n) for n in (0, 1, 5, 8)] == [1.0, 1.0, 0.0625, 0.0078125]


def test_sign_flip_of_many_seeds_is_near_the_exact_one() -> None:
    whole = [9, -4, 7, 3, -8, 6, 5, 2, -1, 8, 4, -6, 7, 1, -3, 5, 2, 9, -7, 6]
    sums = Counter({0: 1})
    for x in whole:  # 2**20 patterns, one number at a time
        sums = sum((Counter({index + step: times for index, times in sums.items()}) for step in (x, -x)), Counter())
    exact = sum(times for index, times in sums.items() if abs(index) >= sum(whole)) / 2**20
    error = np.sqrt(exact * (1 - exact) / statistics.FLIPS)
    assert paired(whole, margin=1.0).p_flip == pytest.approx(exact, abs=4 * 2 * error)  # SciPy doubles one tail


def test_paired_t_and_equivalence_are_scipys_one_sample_tests() -> None:
    for margin in (0.005, 0.03, 0.037, 0.05, 0.2):
        results = paired(DIFFERENCES, margin)
        above = stats.ttest_1samp(DIFFERENCES, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(DIFFERENCES, margin, alternative="less").pvalue
        assert results.p_tost == pytest.approx(max(above, below), rel=1e-10)
        assert results.p_t == pytest.approx(stats.ttest_1samp(DIFFERENCES, 0).pvalue, rel=1e-10)
        inner = mean_interval(DIFFERENCES, level=0.9)
        assert results.equivalent == (-margin < inner.low and inner.high < margin)
    assert paired(DIFFERENCES, 0.037).equivalent and not paired(DIFFERENCES, 0.037, alpha=0.01).equivalent
    with pytest.raises(ValueError, match="margin"):
        paired(DIFFERENCES, 0.0)


def test_equal_differences_give_the_limits() -> None:
    zero = paired([0.0] * 6, margin=0.1)
    assert (zero.low, zero.high, zero.p_flip, zero.p_t, zero.p_tost, zero.mde) == (0, 0, 1, 1, 0, 0) and zero.equivalent
    # numpy gives 0.1 six times a standard deviation of 1.5e-17.
    within, beyond = paired([0.1] * 6, margin=0.2), paired([0.1] * 6, margin=0.05)
    assert (within.low, within.high) == pytest.approx((0.1, 0.1))
    assert (within.sd, within.p_t, within.p_tost, within.mde) == (0, 0, 0, 0) and within.equivalent
    assert (beyond.p_t, beyond.p_tost) == (0, 1) and not beyond.equivalent
    assert paired([0.25] * 6, margin=0.25).p_tost == 1


@pytest.mark.parametrize(
    ("n", "effect", "at_a_fourth"),
    [(3, 3.26, 6.55), (5, 1.68, 2.48), (6, 1.43, 2.01), (8, 1.16, 1.53), (10, 1.00, 1.28), (16, 0.75, 0.93), (20, 0.66, 0.81)],
)
def test_detectable_effect_is_the_published_table(n: int, effect: float, at_a_fourth: float) -> None:
    assert detectable_effect(n) == pytest.approx(effect, abs=0.006)
    assert detectable_effect(n, 0.05 / 4) == pytest.approx(at_a_fourth, abs=0.006)
    assert TTestPower().power(detectable_effect(n), n, 0.05) == pytest.approx(0.8, abs=1e-6)


def test_detectable_effect_is_found_four_times_in_five() -> None:
    # Where statsmodels' solve_power is silently wrong; the standard error of the rate is 0.3 points.
    samples = np.random.default_rng(1).normal(detectable_effect(3, 0.0125), 1.0, (20_000, 3))
    assert np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.0125) == pytest.approx(0.8, abs=0.01)
    results = paired(DIFFERENCES, 0.1)
    assert results.mde == pytest.approx(1.15604 * results.sd, rel=1e-4)


def test_holm_by_hand_with_a_missing_test() -> None:
    # Four tests: 4 x .005, 3 x .01, 2 x .03, and .04, which may not be below the one before it.
    assert holm([0.01, 0.04, np.nan, 0.03, 0.005]) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert np.isnan(holm([np.nan, np.nan])).all() and holm([]).shape == (0,)


# Seeds and items


def crossed(rng: np.random.Generator, seeds: int, items: int, noise: float = 0.5) -> np.ndarray:
    """Differences with mean 0: an effect of each seed, one of each item that all seeds share, and noise."""
    return rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 1, items) + rng.normal(0, noise, (seeds, items))


def test_bootstrap_variance_is_that_of_resampled_rows_and_columns() -> None:
    # A resampled mean is the mean plus means of resampled row effects, column effects and residuals, all uncorrelated.
    d = crossed(np.random.default_rng(3), 6, 15, noise=2.0)
    rows, columns = d.mean(axis=1) - d.mean(), d.mean(axis=0) - d.mean()
    residuals = d - d.mean() - rows[:, None] - columns
    variance = np.mean(rows**2) / 6 + np.mean(columns**2) / 15 + np.mean(residuals**2) / (6 * 15)
    results = bootstrap(d, draws=100_000)
    assert results.mean == pytest.approx(d.mean()) and (results.seeds, results.units) == (6, 15)
    assert results.standard_error == pytest.approx(np.sqrt(variance), rel=0.01)  # 100,000 draws give it to 0.2 %


@pytest.mark.parametrize("clusters", [None, ["x", "y", "x"]])
def test_bootstrap_with_weights_is_every_possible_draw(clusters: list[str] | None) -> None:
    d, tokens = np.array([[3.0, -1.0, 4.0], [1.0, 5.0, -9.0]]), np.array([2.0, 7.0, 1.0])
    members = [[0], [1], [2]] if clusters is None else [[0, 2], [1]]
    every = []
    for seeds in itertools.product(range(2), repeat=2):
        for units in itertools.product(members, repeat=len(members)):
            items = [item for unit in units for item in unit]
            every.append(sum(d[s, i] for s in seeds for i in items) / (2 * sum(tokens[i] for i in items)))
    results = bootstrap(d, tokens, clusters, draws=200_000, level=0.8)
    assert results.mean == pytest.approx(3 / 20)
    assert results.units == len(members)
    assert results.standard_error == pytest.approx(np.std(every), rel=0.01)
    assert (results.low, results.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9], method="inverted_cdf")))


def test_seeds_that_agree_add_nothing_about_items() -> None:
    single = np.random.default_rng(4).normal(0.2, 1, 200)
    results = [bootstrap(np.tile(single, (seeds, 1)), draws=20_000).standard_error for seeds in (1, 8)]
    assert results == pytest.approx([single.std() / np.sqrt(200)] * 2, rel=0.02)


def test_bootstrap_interval_covers_a_crossed_truth_where_pooling_does_not() -> None:
    # 20 seeds and 100 items: the expected variance is within 1 % of the true one, so about 94.5 % are covered, a little below
    # the level for want of a t quantile; 400 simulations give this to 1.1 points. Taken as 2,000 independent items, the
    # standard error is 0.026 for a true 0.121, which covers 33 %; over seeds alone it is 0.068, which covers 76 %.
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        d = crossed(rng, 20, 100)
        results = (bootstrap(d, draws=400), bootstrap(d.reshape(1, 2_000), draws=400), mean_interval(d.mean(axis=1)))
        covered.append([interval.low <= 0 <= interval.high for interval in results])
    both, pooled, seeds_alone = np.mean(covered, axis=0)
    assert 0.91 <= both <= 0.975
    assert pooled < 0.45 and seeds_alone < 0.85


def test_bootstrap_repeats_whatever_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    d = crossed(np.random.default_rng(6), 3, 10)
    results = bootstrap(d, draws=500)
    monkeypatch.setattr(statistics, "CELLS_AT_ONCE", 70)
    assert bootstrap(d, draws=500).standard_error == pytest.approx(results.standard_error, rel=1e-12)
    assert bootstrap(d, draws=500, seed=1) != results


def test_bootstrap_refuses_what_it_cannot_resample() -> None:
    d = np.ones((2, 3))
    for weights, clusters in (([1, 1], None), ([1, 1, 0], None), (None, [1, 1])):
        with pytest.raises(ValueError, match="items"):
            bootstrap(d, weights, clusters)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap(np.ones((0, 3)))
    alone = bootstrap(d, clusters=["a"] * 3)
    assert alone.mean == 1.0 and np.isnan([alone.low, alone.high, alone.standard_error]).all()


def test_item_standard_error_by_hand() -> None:
    # Mean 2; squares 4 + 0 + 0 + 4 = 8, so the variance is 8/3 and the standard error sqrt(8/12).
    d = [0.0, 2.0, 2.0, 4.0]
    assert item_standard_error(d) == pytest.approx(np.sqrt(8 / 12))
    # Clusters {0, 2} and {2, 4}: cross terms 2 x (-2 x 0) + 2 x (0 x 2) = 0. Clusters {0, 4}, {2, 2}: 2 x (-2 x 2) = -8.
    assert item_standard_error(d, ["a", "a", "b", "b"]) == pytest.approx(np.sqrt(8 / 12))
    assert item_standard_error(d, ["a", "b", "b", "a"]) == pytest.approx(np.sqrt(8 / 12 - 8 / 16))
    assert item_standard_error(d, [1, 2, 3, 4]) == item_standard_error(d)
    assert np.isnan(item_standard_error([1.0])) and np.isnan(item_standard_error(d, [1, 1, 1, 1]))


def test_clustered_standard_error_is_the_sandwich_of_a_regression() -> None:
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(50), 12)
    d = rng.normal(0, 1, 50)[clusters] + rng.normal(0, 0.5, 600)
    options = {"groups": clusters, "use_correction": False}
    sandwich = sm.OLS(d, np.ones(600)).fit(cov_type="cluster", cov_kwds=options).bse[0]
    # The two differ in n - 1 for n in the terms of single items alone.
    assert item_standard_error(d, clusters) ** 2 == pytest.approx(sandwich**2 + d.var() / 600 / 599, rel=1e-10)
    assert item_standard_error(d, clusters) > 2.5 * item_standard_error(d)


def test_mcnemar_is_a_binomial_test_of_the_discordant() -> None:
    a = [True] * 9 + [False] * 2 + [True] * 5 + [False] * 4
    b = [False] * 9 + [True] * 2 + [True] * 5 + [False] * 4
    results = mcnemar(a, b)
    assert (results.only_a, results.only_b) == (9, 2)
    assert results.p == pytest.approx(stats.binomtest(9, 11).pvalue, rel=1e-12)
    assert mcnemar(a, a) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="different items"):
        mcnemar([True], [True, False])


# Fronts and pairs


def test_pareto_front_by_hand() -> None:
    nan = float("nan")
    #         cheap  best  beaten  dear, as good  twin  twin  no quality  no cost
    cost = [1, 5, 4, 6, 3, 3, 0, nan]
    quality = [1, 9, 2, 9, 4, 4, nan, 99]
    assert pareto_front(cost, quality).tolist() == [True, True, False, False, True, True, False, False]
    assert pareto_front([2, 2], [1, 3]).tolist() == [False, True]
    assert pareto_front([], []).tolist() == []


def test_probability_of_improvement_is_mann_whitneys() -> None:
    a, b = [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 1.0]
    # 1 beats 2 and 3 and ties 1; each 2 beats 3 and ties 2; 5 beats none: 4 wins and 3 ties of 12 pairs.
    assert probability_of_improvement(a, b) == pytest.approx(5.5 / 12)
    assert probability_of_improvement(a, b) == pytest.approx(stats.mannwhitneyu(b, a).statistic / 12)
    assert probability_of_improvement([-0.1, 0.0, 0.2, -0.3], [0.0]) == pytest.approx(2.5 / 4)
    assert np.isnan(probability_of_improvement([], b))
