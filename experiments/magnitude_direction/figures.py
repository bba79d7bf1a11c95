"""The figures: dD against dM as in DoRA's figure 2, and the correlation by way of pooling. matplotlib's Agg, no display."""

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

from experiments.magnitude_direction.correlation import Found, random_direction

SETTINGS: dict[Any, Any] = {
    "figure.dpi": 150, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.titlesize": 10, "legend.frameon": False,
}  # fmt: skip
COLOURS = {"full": "#000000", "lora": "#0072B2", "dora": "#009E73"}  # as src/eval/series.py has them
MARKS = ("o", "s", "D")  # ranks


def _new(width: float, height: float) -> Figure:
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def directions(arms: Mapping[Any, Any], label: Callable[[Any], str], module: str, path: Path) -> None:
    """One column for each arm, a dot for each layer, seed and checkpoint of the paper's four, colour by checkpoint.

    Above on linear axes, as the paper has it. Below dM as a share of the matrix's mean magnitude, on logarithmic axes, with
    the line on which updates of random direction lie.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = _new(2.6 * len(arms) + 0.4, 5.4)
        axes = figure.subplots(2, len(arms), squeeze=False)
        for column, (arm, data) in enumerate(arms.items()):
            colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(data.papers)))
            above, below = axes[:, column]
            for step, colour in zip(data.papers, colours, strict=True):
                dD, dM, relative = (data.at(name, [step], module).ravel() for name in ("dD", "dM", "relative_dM"))
                above.scatter(dD, dM, s=7, color=colour, alpha=0.6, linewidths=0, label=f"step {step}")
                below.scatter(dD, relative, s=7, color=colour, alpha=0.6, linewidths=0)
            every = data.at("dD", data.papers, module)
            if (every > 0).any():
                ends = np.geomspace(every[every > 0].min(), every.max())
                below.plot(ends, random_direction(ends, data.d_in[module]), color="#888888", lw=1, label="random update")
                below.set(xscale="log", yscale="log")
                for scale in (below.xaxis, below.yaxis):
                    scale.set_major_locator(ticker.LogLocator(subs=(1, 3), numticks=6))
                    scale.set_major_formatter(lambda value, _: f"{value:.0e}")
                    scale.set_minor_formatter(ticker.NullFormatter())
                below.tick_params(labelsize=7)
            above.set(title=label(arm), xlabel="dD")
            above.ticklabel_format(axis="both", style="sci", scilimits=(-2, 3))
            below.set(xlabel="dD, logarithmic")
        axes[0, 0].set_ylabel("dM")
        axes[1, 0].set_ylabel("dM / mean $m_0$, logarithmic")
        axes[0, 0].legend(loc="best", fontsize=7, markerscale=1.5)
        axes[1, 0].legend(loc="best", fontsize=7)
        figure.savefig(path, metadata={"Software": None})


def pooling(
    arms: Mapping[Any, Any],
    label: Callable[[Any], str],
    views: Sequence[str],
    found: Mapping[tuple[Any, str], Found],
    published: Mapping[str, float],
    path: Path,
) -> None:
    """A row for each way of pooling: r, a thick bar for 95% over seeds, a thin one over layers; hollow: as published."""
    ranks = sorted({r for _, r in arms if r})
    with matplotlib.rc_context(SETTINGS):
        figure = _new(7.6, 0.95 * len(views) + 1.2)
        axis = figure.subplots()
        spread = np.linspace(-0.28, 0.28, len(arms)) if len(arms) > 1 else np.zeros(1)
        for row, view in enumerate(views):
            for offset, arm in zip(spread, arms, strict=True):
                one, y, colour = found[arm, view], row + offset, COLOURS.get(arm[0], "#8C6D46")
                axis.plot([one.layers_low, one.layers_high], [y, y], color=colour, lw=1)
                axis.plot([one.low, one.high], [y, y], color=colour, lw=3.5, alpha=0.55, solid_capstyle="butt")
                axis.plot(one.r, y, color=colour, marker=_mark(arm, ranks), ms=5, ls="")
                if row == 0:
                    axis.plot(published[arm[0]], y, color=colour, marker=_mark(arm, ranks), ms=7, ls="", mfc="none")
        axis.axvline(0, color="#444444", lw=0.8)
        axis.set(xlim=(-1.05, 1.05), ylim=(len(views) - 0.5, -0.5), xlabel="correlation of dD with dM")
        axis.set_yticks(range(len(views)), [textwrap.fill(view, 30) for view in views])
        lines = [Line2D([], [], color=COLOURS.get(a[0], "#8C6D46"), marker=_mark(a, ranks), ls="", label=label(a)) for a in arms]
        lines += [
            Line2D([], [], color="#666666", lw=3.5, alpha=0.55, label="95%, seeds"),
            Line2D([], [], color="#666666", lw=1, label="95%, layers"),
            Line2D([], [], color="#666666", marker="o", mfc="none", ms=7, ls="", label="published"),
        ]
        figure.legend(handles=lines, loc="outside upper center", ncols=min(4, len(lines)), fontsize=8)
        figure.savefig(path, metadata={"Software": None})


def _mark(arm: Any, ranks: Sequence[int]) -> str:
    return MARKS[ranks.index(arm[1]) % len(MARKS)] if arm[1] else "^"
