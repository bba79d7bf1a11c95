"""Compute intervals, tests and fronts for comparisons: pure functions of arrays, nothing is read or written here.

All values must be finite, since a mean over the seeds that happened to converge is not the mean of a variant: what to do
with a diverged run is the caller's to say. Suffixes of arrays: S seeds, I items, C clusters of items, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

POWER = 0.8
# Sign-flip tests are exact while 2**n is at most this (n <= 16), and Monte Carlo with as many draws above.
FLIPS = 99_999
# Bounds the memory of the bootstrap: at most this many resampled items at once.
CELLS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Interval:
    """Mean of ``n`` values, its interval from ``low`` to ``high``, and the sample standard deviation (n - 1)."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


@dataclass(frozen=True)
class Paired:
    """The results of ``paired``; all but the p-values and ``n`` are in the unit of the metric.

    mean, sd, low, high: as in ``Interval``. p_flip: exact sign-flip test. p_t: paired t test. p_tost: the larger p of the
    two one-sided tests of equivalence. equivalent: p_tost < alpha. mde: the smallest true difference that the t test
    finds with 80 % power.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p_flip: float
    p_t: float
    p_tost: float
    equivalent: bool
    mde: float


@dataclass(frozen=True)
class Resampled:
    """A bootstrap's point estimate, percentile interval, and standard deviation over the draws (``standard_error``)."""

    mean: float
    low: float
    high: float
    standard_error: float
    seeds: int
    units: int  # items, or clusters of items


class Discordant(NamedTuple):
    """Items that only one of two models answers correctly, and the p-value of McNemar's test."""

    only_a: int
    only_b: int
    p: float


def mean_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Compute Student's t interval of the mean of values [n]. sd, low and high are NaN for n < 2, and so is the mean for n = 0.

    With one value for each seed it speaks of other seeds on the same test items; ``bootstrap`` speaks of other items, too.
    Values that agree to within rounding have sd = 0 and an interval of no width.

    Raises:
        ValueError: for a value that is not finite.
    """
    x = _finite(values, 1)
    n, mean = len(x), float(x.mean()) if len(x) else np.nan
    if n < 2:
        return Interval(mean, np.nan, np.nan, np.nan, n)
    sd = _sd(x)
    if sd == 0:
        return Interval(mean, mean, mean, sd, n)
    from scipy import stats

    low, high = stats.t.interval(level, n - 1, loc=mean, scale=sd / math.sqrt(n))
    return Interval(mean, float(low), float(high), sd, n)


def paired(differences: npt.ArrayLike, margin: float, level: float = 0.95, alpha: float = 0.05) -> Paired:
    """Test the differences [n] of two variants, one difference for each seed that they share.

    A difference is claimed by ``p_flip`` or ``p_t``; equality only by ``equivalent``: a large p is no evidence of equality.
    Below n = 2 all is NaN but the mean. Differences that are all the same c give the limits for sd -> 0: interval [c, c],
    mde 0, p_t 0 (1 if c = 0), p_tost 0 if |c| < margin, else 1; p_flip stays exact, 2 / 2**n (1 if c = 0).

    Args:
        margin: the largest difference that counts as none, in the unit of the metric.
        level: of the t interval.
        alpha: of the equivalence test (Schuirmann 1987; the 1 - 2 alpha interval lies within the margin), and of the
            two-sided t test whose detectable difference is ``mde``.

    Raises:
        ValueError: for a value that is not finite, or a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, not {margin}")
    x = _finite(differences, 1)
    mean = mean_interval(x, level)
    p_flip, p_t, p_tost, mde = (np.nan,) * 4
    if mean.n >= 2:
        p_flip, mde = _sign_flip(x), mean.sd * detectable_effect(mean.n, alpha)
        if mean.sd == 0:
            p_t, p_tost = float(mean.mean == 0), float(abs(mean.mean) >= margin)
        else:
            from statsmodels.stats.weightstats import DescrStatsW

            sample = DescrStatsW(x)
            p_t, p_tost = float(sample.ttest_mean(0.0)[1]), float(sample.ttost_mean(-margin, margin)[0])
    return Paired(mean.n, mean.mean, mean.sd, mean.low, mean.high, p_flip, p_t, p_tost, p_tost < alpha, mde)


@cache
def detectable_effect(n: int, alpha: float = 0.05) -> float:
    """Compute the true mean / sd that a two-sided paired t test of n >= 2 differences finds with 80 % power.

    statsmodels' ``TTestPower.solve_power`` does the same, but gives wrong answers without a warning where SciPy's noncentral
    t is NaN in the far tail (n = 3 at alpha 0.0125: 5.00, with a power of 61 %, for 6.55). That tail is mirrored here.
    """
    from scipy import optimize, stats

    critical = float(stats.t.isf(alpha / 2, n - 1))

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift)) - POWER

    return float(optimize.brentq(lacking, 0.0, 10 * critical + 10)) / math.sqrt(n)


def smallest_p(n: int) -> float:
    """Compute the smallest two-sided p that an exact sign-flip test of n differences can give: 2 / 2**n, 0.03125 for n = 6."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjust p-values [m] for their number (Holm 1979). NaN stays NaN and does not count toward the family."""
    p = np.asarray(p_values, np.float64)
    adjusted, tested = np.full_like(p, np.nan), ~np.isnan(p)
    if tested.any():
        from statsmodels.stats.multitest import multipletests

        adjusted[tested] = multipletests(p[tested], method="holm")[1]
    return adjusted


def bootstrap(
    differences: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Resampled:
    """Resample seeds and items at once: the crossed, "pigeonhole" bootstrap (Owen 2007, Ann. Appl. Stat. 1).

    The interval is of percentiles. The statistic is the sum of the differences over seeds and items / (seeds * sum of
    weights). A draw resamples seeds, and items (or whole clusters of items) once for all its seeds: every seed is scored on
    the same items, so an item that is odd is odd under each of them. Items drawn anew for each seed (nested) would average
    that away, and give the variance due to items as one S-th of what it is.

    ``mean_interval`` over seeds is the main interval: it speaks of other seeds on these test items, this one of other seeds
    and other items like these. Below 10 seeds this one is too narrow where seeds differ much, since percentiles know no t
    quantile and S resampled seeds have (S - 1) / S of the variance. Noise of single cells (seed x item) counts three times,
    which errs on the safe side. One seed: the interval is for that seed alone. One item or cluster: NaN.

    Args:
        differences: [S, I], of two variants, summed per item, such as nats of its target.
        weights: [I], all above 0, such as target tokens (then the statistic is nats per token). None: every item counts 1.
        clusters: [I], labels. None: every item by itself.

    Raises:
        ValueError: for a value that is not finite, shapes that do not agree, or a weight that is not above 0.
    """
    d_SI = _finite(differences, 2)
    seeds, items = d_SI.shape
    w_I = np.ones(items) if weights is None else _finite(weights, 1)
    of_I = _codes(clusters, items)
    if not d_SI.size or len(w_I) != items or not (w_I > 0).all():
        raise ValueError(f"needs at least one seed and item, and a weight above 0 for each of the {items} items")
    mean = float(d_SI.sum() / (seeds * w_I.sum()))
    # Clusters are drawn whole, so their sums are all that matters.
    d_SC, w_C = np.stack([np.bincount(of_I, row) for row in d_SI]), np.bincount(of_I, w_I)
    units = len(w_C)
    if units < 2:
        return Resampled(mean, np.nan, np.nan, np.nan, seeds, units)
    rng = np.random.default_rng(seed)
    seeds_DS, mean_D = _times_drawn(rng, draws, seeds), np.empty(draws)
    step = max(1, CELLS_AT_ONCE // units)
    for first in range(0, draws, step):
        block = slice(first, min(first + step, draws))
        units_DC = _times_drawn(rng, block.stop - first, units)
        mean_D[block] = ((units_DC @ d_SC.T) * seeds_DS[block]).sum(axis=1) / (seeds * (units_DC @ w_C))
    low, high = np.quantile(mean_D, [(1 - level) / 2, (1 + level) / 2])
    return Resampled(mean, float(low), float(high), float(mean_D.std(ddof=1)), seeds, units)


def item_standard_error(differences: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> float:
    """Compute the standard error of the mean difference of two models over items [I], paired by item (Miller 2024, 2411.00640).

    sqrt(var / I) with the sample variance (section 4.2); with labels of clusters [I], covariances within a cluster are
    added to it (section 2.2). It says nothing about other seeds. NaN below 2 items or 2 clusters.
    """
    x = _finite(differences, 1)
    n, of_I = len(x), _codes(clusters, len(x))
    if len(np.unique(of_I)) < 2:
        return np.nan
    centered = x - x.mean()
    squares = float(centered @ centered)
    sums_C = np.bincount(of_I, centered)
    return float(np.sqrt(squares / (n * (n - 1)) + (float(sums_C @ sums_C) - squares) / n**2))


def mcnemar(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> Discordant:
    """Test whether two models answer the same items [I] correctly equally often: McNemar's exact two-sided test.

    Raises:
        ValueError: if the two do not have the same items.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.shape != b.shape:
        raise ValueError(f"the two models answered different items: {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return Discordant(only_a, only_b, float(test([[0, only_a], [only_b, 0]], exact=True).pvalue))


def pareto_front(cost: npt.ArrayLike, quality: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Mark the points [n] that no other point beats: none is as cheap and as good, and cheaper or better.

    Lower cost and higher quality are better. Equal points are on the front together; a point with a NaN never is.
    """
    c, q = np.asarray(cost, np.float64), np.asarray(quality, np.float64)
    as_good = (c[:, None] <= c) & (q[:, None] >= q)
    better = (c[:, None] < c) | (q[:, None] > q)
    beaten = (as_good & better).any(axis=0)
    return np.asarray(~beaten & ~np.isnan(c) & ~np.isnan(q))


def probability_of_improvement(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Compute the share of all pairs of a run of a [n] and a run of b [m] in which a is lower (better); ties count half.

    Agarwal et al. 2021 (2108.13264), the Mann-Whitney statistic over n m. For runs that are paired by seed, as in
    Bouthillier et al. 2021 (2103.03098), give their differences as a and [0] as b. NaN if either is empty.
    """
    x, y = _finite(a, 1)[:, None], _finite(b, 1)
    return float(np.mean((x < y) + 0.5 * (x == y))) if x.size and y.size else np.nan


def _sign_flip(x: FloatArray) -> float:
    """Compute the two-sided p of the sign-flip test of a mean of 0; exact for n <= 16."""
    size = float(np.abs(x).sum())
    if size == 0:
        return 1.0

    def whole(sums: FloatArray) -> FloatArray:
        # Sums that are equal on paper differ in the last digits, more than SciPy allows for where they cancel: compare
        # whole numbers, 2**-30 of the largest sum apart. A power of 2, since sums of counts then never fall on a half.
        return np.rint(sums / size * 2.0**30)

    if 2 ** len(x) > FLIPS:
        return _drawn_sign_flip(x, whole)
    from scipy import stats

    test = stats.permutation_test(
        (x,), lambda flipped, axis: whole(flipped.sum(axis=axis)), permutation_type="samples", vectorized=True, n_resamples=FLIPS
    )
    return float(test.pvalue)


def _drawn_sign_flip(x: FloatArray, whole: Callable[[FloatArray], FloatArray]) -> float:
    """Estimate the same p from drawn flips, the observed one counted with them (Phipson and Smyth 2010, arXiv 1603.05766).

    As products with random signs: SciPy draws its flips one by one, a second each for a hundred seeds.
    """
    rng, observed, beyond = np.random.default_rng(0), np.abs(whole(x.sum(keepdims=True))), 0
    for first in range(0, FLIPS, 10_000):
        signs = rng.integers(0, 2, (min(10_000, FLIPS - first), len(x)), dtype=np.int8).astype(np.float64) * 2 - 1
        beyond += int((np.abs(whole(signs @ x)) >= observed).sum())
    return (beyond + 1) / (FLIPS + 1)


def _times_drawn(rng: np.random.Generator, draws: int, n: int) -> FloatArray:
    """Count how often each of n things comes up in n draws with replacement: [draws, n]. 10 times as fast as ``multinomial``."""
    drawn = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _sd(x: FloatArray) -> float:
    """Compute the sample standard deviation, 0 where values differ by rounding alone: [0.1] * 6 has 1e-17, and t = 1e16."""
    return 0.0 if np.ptp(x) <= 1e-12 * np.abs(x).max() else float(x.std(ddof=1))


def _codes(clusters: npt.ArrayLike | None, items: int) -> npt.NDArray[np.intp]:
    """Number the clusters of the items, from 0."""
    if clusters is None:
        return np.arange(items)
    labels = np.asarray(clusters)
    if labels.shape != (items,):
        raise ValueError(f"clusters must name one for each of {items} items, not {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def _finite(values: npt.ArrayLike, dimensions: int) -> FloatArray:
    x = np.asarray(values, np.float64)
    if x.ndim != dimensions:
        raise ValueError(f"needs finite numbers in {dimensions} dimensions, not shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"needs finite numbers: {int((~np.isfinite(x)).sum())} of {x.size} are not")
    return x
