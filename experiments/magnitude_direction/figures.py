"""Draw dD against dM as in DoRA's figure 2, and the correlation by way of pooling. matplotlib's Agg, no display."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.magnitude_direction.correlation import Correlation, random_direction
from src.compare.styles import style

SETTINGS: dict[Any, Any] = {
    "figure.dpi": 150, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.titlesize": 10, "legend.frameon": False,
}  # fmt: skip
SHADE = "#F5F5F5"  # behind every other way of pooling
TICK: dict[str, Any] = {"marker": "|", "ms": 13, "mew": 2.5, "ls": ""}  # the published values


def _new(width: float, height: float) -> Figure:
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def directions(arms: Mapping[Any, Any], label: Callable[[Any], str], module: str, path: Path) -> None:
    """Draw a column for each arm, a dot for each layer, seed and checkpoint of the paper's four; color by checkpoint.

    Top: linear axes, as in the paper. Bottom: dM as a share of the matrix's mean magnitude on logarithmic axes, with the line
    of updates in a random direction.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = _new(max(5.0, 1.65 * len(arms) + 0.8), 4.9)
        above, below = figure.subplots(2, len(arms), squeeze=False)
        for other in below[1:]:
            other.sharex(below[0])
            other.sharey(below[0])
        spans = [dD_all[dD_all > 0] for data in arms.values() if (dD_all := data.select("dD", data.papers, module)).any()]
        for (arm, data), top, low in zip(arms.items(), above, below, strict=True):
            colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(data.papers)))
            for step, color in zip(data.papers, colors, strict=True):
                dD, dM, relative = (data.select(name, [step], module).ravel() for name in ("dD", "dM", "relative_dM"))
                top.scatter(dD, dM, s=7, color=color, alpha=0.6, linewidths=0, label=f"step {step}")
                low.scatter(dD, relative, s=7, color=color, alpha=0.6, linewidths=0)
            if spans:
                ends = np.geomspace(min(each.min() for each in spans), max(each.max() for each in spans))
                low.plot(ends, random_direction(ends, data.d_in[module]), color="#666666", lw=1.2, label="random update")
                low.set(xscale="log", yscale="log")
            for scale in (top.xaxis, top.yaxis):
                scale.set_major_locator(ticker.MaxNLocator(4))
                scale.set_major_formatter(lambda value, _: f"{1000 * value:g}")
            top.set_title(label(arm), color=style(arm[0]).color, fontweight="bold")
            top.set_xlabel("dD (thousandths)")
            low.set_xlabel("dD")
            low.label_outer()
        for scale in (below[0].xaxis, below[0].yaxis) if spans else ():
            scale.set_major_locator(ticker.LogLocator(numticks=6))
            scale.set_major_formatter(ticker.LogFormatterMathtext())
            scale.set_minor_formatter(ticker.NullFormatter())
        above[0].set_ylabel("dM (thousandths)")
        below[0].set_ylabel("dM / mean $m_0$, log axes")
        entries = [Line2D([], [], ls="", marker="o", ms=5, mew=0, color=dots.get_facecolor()[0], label=str(dots.get_label()))
                   for dots in above[0].collections]  # fmt: skip
        figure.legend(handles=[*entries, *below[0].lines[:1]], loc="outside lower center", ncols=len(entries) + 1)
        figure.savefig(path, metadata={"Software": None})


def pooling(
    arms: Mapping[Any, Any],
    label: Callable[[Any], str],
    views: Sequence[str],
    correlations: Mapping[tuple[Any, str], Correlation],
    published: Mapping[str, float],
    path: Path,
) -> None:
    """Draw a row for each way of pooling: r, a thick bar for 95% over seeds, a thin bar for layers; ticks: published values."""
    ranks = sorted({r for _, r in arms if r})
    with matplotlib.rc_context(SETTINGS):
        figure = _new(8.0, 0.8 * len(views) + 1.3)
        axis = figure.subplots()
        axis.grid(visible=False, axis="y")
        spread = np.linspace(-0.3, 0.3, len(arms)) if len(arms) > 1 else np.zeros(1)
        for row, view in enumerate(views):
            if row % 2:
                axis.axhspan(row - 0.5, row + 0.5, color=SHADE, lw=0, zorder=0)
            for offset, arm in zip(spread, arms, strict=True):
                point, y, look = correlations[arm, view], row + offset, _look(arm, ranks)
                axis.plot([point.layers_low, point.layers_high], [y, y], color=look["color"], lw=1)
                axis.plot([point.low, point.high], [y, y], color=look["color"], lw=3.5, alpha=0.5, solid_capstyle="butt")
                if row == 0:
                    axis.plot(published[arm[0]], y, color=look["color"], **TICK)
                axis.plot(point.r, y, zorder=3, **look)
        axis.axvline(0, color="#444444", lw=0.8)
        axis.set(xlim=(-1.05, 1.05), ylim=(len(views) - 0.5, -0.5), xlabel="correlation of dD with dM")
        axis.set_yticks(range(len(views)), [textwrap.fill(view, 30) for view in views])
        axis.tick_params(axis="y", length=0)
        lines = [Line2D([], [], label=label(arm), **_look(arm, ranks)) for arm in arms]
        lines += [
            Line2D([], [], color="#666666", lw=3.5, alpha=0.5, label="95%, seeds"),
            Line2D([], [], color="#666666", lw=1, label="95%, layers"),
            Line2D([], [], color="#666666", label="published", **TICK),
        ]
        figure.legend(handles=lines, loc="outside upper center", ncols=min(4, len(lines)), fontsize=9)
        figure.savefig(path, metadata={"Software": None})


def _look(arm: Any, ranks: Sequence[int]) -> dict[str, Any]:
    """Look up a variant's color and marker; the lowest of its ranks is hollow."""
    color, marker = style(arm[0])
    hollow = len(ranks) > 1 and arm[1] == ranks[0]
    return {
        "color": color,
        "marker": marker,
        "mec": color,
        "mfc": "white" if hollow else color,
        "ms": 8 if marker == "*" else 6,
        "ls": "",
    }
