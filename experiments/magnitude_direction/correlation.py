"""Correlate dD with dM, pooled in several ways, with intervals over seeds and over layers. Pure functions of arrays.

Arrays are X [S, T, L, K]: seeds, checkpoints, layers, kinds of module. A way of pooling correlates over some of the axes
T, L, K and averages the coefficients over the other axes, separately for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from src.compare.statistics import mean_interval

FloatArray = npt.NDArray[np.float64]
Coefficient = Callable[[FloatArray, FloatArray], FloatArray]
AXES = "STLK"
Z_MOST = 1 - 1e-9  # Fisher's z of a coefficient of 1 is infinite
DRAWS = 2000
MOST_TURNED = 1 - 1e-6  # just below a right angle, which no update across a weight reaches


@dataclass(frozen=True)
class Correlation:
    """A mean correlation over ``seeds`` (through Fisher's z), its 95% t interval, and its 95% bootstrap interval over layers.

    An interval is NaN where there is only one seed or one layer.
    """

    r: float
    low: float
    high: float
    layers_low: float
    layers_high: float
    seeds: int


def pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Compute Pearson's r over the last axis; NaN where x or y is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: FloatArray = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return r


def spearman(x: FloatArray, y: FloatArray) -> FloatArray:
    """Compute Spearman's rho over the last axis: Pearson's r of the ranks, ties at their mean rank."""
    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def per_seed(x: FloatArray, y: FloatArray, over: str, coefficient: Coefficient = pearson) -> FloatArray:
    """Correlate x and y [S, T, L, K] over the axes ``over`` (of "TLK") and average over the other axes: [S].

    Averages coefficients and not their z: within a layer four points can lie on a line, and its infinite z would dominate.
    Where x or y is constant there is no coefficient; the mean is of the others, NaN where there are none.
    """
    x, y = (_last(values, over) for values in (x, y))
    r = coefficient(x, y)
    r = r.reshape(len(r), -1)
    known = np.isfinite(r)
    count = known.sum(-1)
    mean: FloatArray = np.where(count > 0, np.where(known, r, 0.0).sum(-1) / np.maximum(count, 1), np.nan)
    return mean


def _last(values: FloatArray, over: str) -> FloatArray:
    """Merge the axes ``over`` into one last axis."""
    places = [AXES.index(axis) for axis in over]
    moved: FloatArray = np.moveaxis(values, places, range(-len(places), 0))
    return moved.reshape(*moved.shape[: -len(places)], -1)


def fisher_z(r: npt.ArrayLike) -> FloatArray:
    z: FloatArray = np.arctanh(np.clip(r, -Z_MOST, Z_MOST))
    return z


def over_seeds(r: npt.ArrayLike) -> tuple[float, float, float]:
    """Average one coefficient per seed: (mean, low, high) by Student's t of Fisher's z, back as r. NaN where any is NaN."""
    if not np.isfinite(r).all():
        return math.nan, math.nan, math.nan
    interval = mean_interval(fisher_z(r))
    mean, low, high = np.tanh([interval.mean, interval.low, interval.high]).tolist()
    return mean, low, high


def over_layers(
    x: FloatArray, y: FloatArray, over: str, coefficient: Coefficient = pearson, draws: int = DRAWS
) -> tuple[float, float]:
    """Bootstrap whole layers, the same for every seed: the 95% percentile interval of the mean over seeds.

    A layer keeps its checkpoints and modules, which are not independent of each other.
    """
    layers = x.shape[2]
    if layers < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    means = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(0, layers, layers)
        means[draw] = fisher_z(per_seed(x[:, :, chosen], y[:, :, chosen], over, coefficient)).mean()
    # A draw of one layer alone has no correlation over layers; of 30 layers that does not happen.
    if not np.isfinite(means).any():
        return math.nan, math.nan
    low, high = np.tanh(np.nanquantile(means, [0.025, 0.975])).tolist()
    return low, high


def correlate(x: FloatArray, y: FloatArray, over: str, coefficient: Coefficient = pearson, draws: int = DRAWS) -> Correlation:
    """Compute ``per_seed`` with both intervals."""
    r = per_seed(x, y, over, coefficient)
    return Correlation(*over_seeds(r), *over_layers(x, y, over, coefficient, draws), len(r))


def difference(a: FloatArray, b: FloatArray) -> tuple[float, float, float]:
    """Compare coefficients [S] paired by seed: (mean, low, high) of z(a) - z(b), a 95% t interval."""
    gaps = fisher_z(a) - fisher_z(b)
    if not np.isfinite(gaps).all():
        return math.nan, math.nan, math.nan
    interval = mean_interval(gaps)
    return interval.mean, interval.low, interval.high


def random_direction(dD: FloatArray, d_in: int) -> FloatArray:
    """Compute dM / mean |m_0| of an update in a random direction with this dD: the line of pure chance.

    With t = |delta| / |w|, the tangent of the angle between w and w + delta, dD = 1 - 1 / sqrt(1 + t^2), and the relative
    change of the length is normal with mean sqrt(1 + t^2) - 1 and standard deviation t / sqrt(d_in): a random direction has
    a part along w as well as the part across it that lengthens w. dM is the mean of its absolute value, a folded
    normal: sqrt(4 dD / (pi d_in)) for small updates, dD itself for large ones. Where the rows of a matrix move by
    unequal amounts, its dM is less.
    """
    t2 = (1 - np.clip(dD, 0, MOST_TURNED)) ** -2.0 - 1
    mean, deviation = np.sqrt(1 + t2) - 1, np.sqrt(t2 / d_in)
    ratio = np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
    relative_dM: FloatArray = deviation * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + mean * special.erf(
        ratio / math.sqrt(2)
    )
    return relative_dM
