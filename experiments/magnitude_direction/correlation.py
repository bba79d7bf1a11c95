"""Correlations of dD with dM by way of pooling, and their intervals over seeds and over layers. Pure functions of arrays.

Arrays are X [S, T, L, K]: seeds, checkpoints, layers, kinds of module. A way of pooling correlates over some of the axes
T, L, K and averages the coefficients over the rest of them, for each seed by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from src.eval.statistics import mean_interval

FloatArray = npt.NDArray[np.float64]
Coefficient = Callable[[FloatArray, FloatArray], FloatArray]
AXES = "STLK"
Z_MOST = 1 - 1e-9  # Fisher's z of a coefficient of 1 is infinite
DRAWS = 2000


@dataclass(frozen=True)
class Found:
    """The mean over ``seeds`` (through Fisher's z), its 95% t interval over them, its 95% bootstrap interval over layers.

    NaN where there is one seed, or one layer.
    """

    r: float
    low: float
    high: float
    layers_low: float
    layers_high: float
    seeds: int


def pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Pearson's r over the last axis; NaN where either is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return found


def spearman(x: FloatArray, y: FloatArray) -> FloatArray:
    """Spearman's rho over the last axis: Pearson's of the ranks, ties at their mean rank."""
    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def per_seed(x: FloatArray, y: FloatArray, over: str, coefficient: Coefficient = pearson) -> FloatArray:
    """The coefficient [S] over the axes ``over`` (of "TLK") of x and y [S, T, L, K], averaged over the others.

    A mean of coefficients and not of their z: within a layer four points can lie on a line, and its z would be all. Where
    x or y is constant there is no coefficient, and the mean is of the others; NaN where there is none.
    """
    x, y = (_last(values, over) for values in (x, y))
    found = coefficient(x, y)
    found = found.reshape(len(found), -1)
    known = np.isfinite(found)
    count = known.sum(-1)
    mean: FloatArray = np.where(count > 0, np.where(known, found, 0.0).sum(-1) / np.maximum(count, 1), np.nan)
    return mean


def _last(values: FloatArray, over: str) -> FloatArray:
    """The axes ``over`` as one, the last."""
    places = [AXES.index(axis) for axis in over]
    moved: FloatArray = np.moveaxis(values, places, range(-len(places), 0))
    return moved.reshape(*moved.shape[: -len(places)], -1)


def fisher_z(r: npt.ArrayLike) -> FloatArray:
    found: FloatArray = np.arctanh(np.clip(r, -Z_MOST, Z_MOST))
    return found


def over_seeds(r: npt.ArrayLike) -> tuple[float, float, float]:
    """(mean, low, high) of one coefficient per seed: Student's t interval of Fisher's z, turned back. NaN where one is."""
    if not np.isfinite(r).all():
        return math.nan, math.nan, math.nan
    found = mean_interval(fisher_z(r))
    mean, low, high = np.tanh([found.mean, found.low, found.high]).tolist()
    return mean, low, high


def over_layers(
    x: FloatArray, y: FloatArray, over: str, coefficient: Coefficient = pearson, draws: int = DRAWS
) -> tuple[float, float]:
    """95% percentile interval of the mean over seeds when whole layers are drawn anew, the same ones for every seed.

    A layer keeps its checkpoints and modules: they are not independent of each other.
    """
    layers = x.shape[2]
    if layers < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    found = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(0, layers, layers)
        found[draw] = fisher_z(per_seed(x[:, :, chosen], y[:, :, chosen], over, coefficient)).mean()
    # A draw of one layer alone has no correlation over layers; of 30 layers that does not happen.
    if not np.isfinite(found).any():
        return math.nan, math.nan
    low, high = np.tanh(np.nanquantile(found, [0.025, 0.975])).tolist()
    return low, high


def correlate(x: FloatArray, y: FloatArray, over: str, coefficient: Coefficient = pearson, draws: int = DRAWS) -> Found:
    """``per_seed`` with both intervals."""
    r = per_seed(x, y, over, coefficient)
    return Found(*over_seeds(r), *over_layers(x, y, over, coefficient, draws), len(r))


def difference(a: FloatArray, b: FloatArray) -> tuple[float, float, float]:
    """(mean, low, high) of z(a) - z(b) of coefficients [S] that are paired by seed: a 95% t interval."""
    apart = fisher_z(a) - fisher_z(b)
    if not np.isfinite(apart).all():
        return math.nan, math.nan, math.nan
    found = mean_interval(apart)
    return found.mean, found.low, found.high


def random_direction(dD: FloatArray, d_in: int) -> FloatArray:
    """dM / mean |m_0| that a small update of a random direction would have at this dD: the line that says "as by chance".

    To first order dM / |m_0| is |cos(delta, w)| |delta| / |w|, and dD is (|delta| / |w|)^2 / 2 less that part's square; in
    ``d_in`` dimensions the mean of |cos| is sqrt(2 / (pi d_in)). So dM / |m_0| = sqrt(4 dD / (pi d_in)) where all rows of a
    matrix move alike; where they do not, its mean over rows is less.
    """
    found: FloatArray = np.sqrt(4 * dD / (math.pi * d_in))
    return found
