"""Draw the figures of a comparison, as PNG and as SVG that is the same for the same records.

Only finished runs are drawn; a line under each figure counts the others. A color and a marker stand for one variant
in every figure. Drawn with matplotlib's Agg through its object interface, so no display and no global state is touched.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from ..measure import metrics
from .comparison import Comparison, column
from .notes import from_to, seed_count, subject
from .series import LINES, Series, safe, series

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "lora-assay",
    "text.parse_math": False,  # a "$" in a name is a dollar
    "figure.dpi": 150,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
SIZE = (7.2, 4.4)  # inches
PANELS_FROM = 5  # so many lines (variants x ranks) and the loss curves get a panel for each rank
MOST_TICKS = 8
RING: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "mew": 1.2}
SMOOTH_FROM = 40  # so many logged points and a running mean is drawn over them


def write(comparison: Comparison, curves: pd.DataFrame, folder: Path, rates: pd.DataFrame | None = None) -> list[Path]:
    """Draw the figures into ``folder``: PNG and SVG each. ``rates`` is the grid of learning rates, where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(SETTINGS):
        figures = {
            "quality_vs_rank": quality_vs_rank(comparison),
            "loss_curves": loss_curves(comparison, curves),
            "quality_vs_parameters": quality_vs_parameters(comparison),
        }
        if rates is not None and rates.groupby("row")["learning_rate"].nunique().gt(1).any():
            figures["learning_rates"] = learning_rates(comparison, rates)
        for name, figure in figures.items():
            _fix_layout(figure)
            figure.savefig(folder / f"{name}.png")
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            paths += [folder / f"{name}.png", folder / f"{name}.svg"]
    return paths


def png(draw: Callable[..., Figure], *arguments: Any) -> bytes:
    """Draw one figure as PNG, for a notebook: ``png(quality_vs_rank, comparison)``."""
    with matplotlib.rc_context(SETTINGS):
        figure = draw(*arguments)
        _fix_layout(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Lay out once and round: the layout's solver differs in the last bit from call to call, and SVG ids hash it."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(part, 5) for part in axes.get_position().bounds])  # type: ignore[arg-type]
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((round(x, 5), round(y, 5)))


def quality_vs_rank(comparison: Comparison) -> Figure:
    """Plot the metric against rank: a line through the means, a small point for each seed, controls as horizontal lines."""
    ranks = comparison.table["r"].astype(float)
    all_lines = series(comparison)
    figure, axes, lines, controls = _begin_figure(
        comparison, [line for line in all_lines if ranks[line.rows].notna().all()], all_lines
    )
    if axes is None:
        return _empty_figure(figure, comparison, f"No finished run has {comparison.metrics[0]}.")
    ticks = sorted({int(rank) for line in lines for rank in ranks[line.rows]})
    if ticks:
        axes.set_xscale("log", base=2)
        # Neighbors in rank are an octave apart or more; the lines stand side by side around each, to be told apart.
        room = 0.75 if len(ticks) < 3 else 0.5
        octaves = float(np.log2(ticks[-1] / ticks[0])) + 2 * room
        step = (0.025 if len(ticks) > 1 else 0.05) * octaves
        width = min([step * (len(lines) - 1), 1.4 * room, *(0.25 * np.diff(np.log2(ticks)))])
        for shift, line in zip(np.linspace(-width / 2, width / 2, len(lines)) if width else [0.0], lines, strict=True):
            _draw_line(axes, comparison, line, ranks * 2.0**shift)
        axes.set_xlim(ticks[0] / 2**room, ticks[-1] * 2**room)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    beside = " (lines set side by side around each rank)" if len(lines) > 1 else ""
    axes.set(xlabel=f"rank r{beside}")
    entries = [line.entry() for line in lines] + controls
    return _finish_figure(figure, comparison, entries, f"{_title(comparison.metrics[0])} by rank")


def quality_vs_parameters(comparison: Comparison) -> Figure:
    """Plot the metric against the number of trained parameters; a control that trains none is a horizontal line."""
    counts = comparison.table["trainable_parameters"].astype(float)
    all_lines = [line for line in series(comparison) if counts[line.rows].notna().all()]
    figure, axes, lines, controls = _begin_figure(
        comparison, [line for line in all_lines if (counts[line.rows] > 0).all()], all_lines
    )
    if axes is None:
        return _empty_figure(
            figure, comparison, f"No finished run has {comparison.metrics[0]} and a count of trained parameters."
        )
    if lines:
        axes.set_xscale("log")
        seen = counts[[row for line in lines for row in line.rows]]
        room = max(1.25, (seen.max() / seen.min()) ** 0.06)
        axes.set_xlim(seen.min() / room, seen.max() * room)  # before the lines: matplotlib warns of a range of one number
        for line in lines:
            _draw_line(axes, comparison, line, counts, beside=0.0)
        _log_ticks(axes, seen.max() / seen.min() * room**2)
    axes.set(xlabel="trainable parameters")
    entries = [line.entry() for line in lines] + controls
    return _finish_figure(figure, comparison, entries, f"{_title(comparison.metrics[0])} by trained parameters")


def learning_rates(comparison: Comparison, rates: pd.DataFrame) -> Figure:
    """Plot validation loss against learning rate, a panel for each rank: it shows why each variant needs its own rate.

    ``rates`` is ``assay.rates``. A ring marks the rate that was chosen; a ring at the end of a line is on the grid's edge.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    tried = rates[rates["validation"].notna()]
    lines = series(comparison, sorted(tried["row"].unique()))
    rank_of = comparison.table["r"].astype(float)
    panels = sorted({rank for line in lines for row in line.rows if pd.notna(rank := rank_of[row])}) or [float("nan")]
    grid = _grid(figure, len(panels), "learning rate")
    for axes, panel in zip(grid.flat, panels, strict=False):
        for line in lines:
            for row in line.rows:
                if pd.isna(rank_of[row]) or rank_of[row] == panel:
                    of_row = tried[tried["row"] == row].sort_values("learning_rate")
                    axes.plot(of_row["learning_rate"], of_row["validation"], zorder=3, **line.look)
                    chosen = of_row[of_row["chosen"]]
                    axes.plot(chosen["learning_rate"], chosen["validation"], color=line.color, ms=12, zorder=4, **RING)
        axes.set_xscale("log")
        ticks = sorted(tried["learning_rate"].unique())
        if len(ticks) <= MOST_TICKS:
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            _log_ticks(axes, ticks[-1] / ticks[0])
        if len(panels) > 1:
            axes.set_title(f"r = {panel:g}", fontsize=9.5)
    figure.supylabel(metrics.label("val/loss"), fontsize=9.5)
    ring = Line2D([], [], color="#555555", ms=10, label="the chosen rate", **RING)
    entries, what = [*(line.entry() for line in lines), ring], "Validation loss of the tuning seeds by learning rate"
    return _finish_figure(figure, comparison, entries, what, from_to(sorted(tried["tuning_runs"])))


def loss_curves(comparison: Comparison, curves: pd.DataFrame) -> Figure:
    """Plot training loss by step: faint for each run, bold for the mean of a row's runs; validation losses as markers."""
    figure = Figure(figsize=SIZE, layout="constrained")
    ok = comparison.runs[comparison.runs["status"] == "ok"]
    logged = curves.merge(ok[["run_id", "row"]], on="run_id")
    training = logged[logged["metric"] == "train/loss"]
    lines = series(comparison, sorted(training["row"].unique()))
    if not lines:
        return _empty_figure(figure, comparison, "No finished run logged a training loss.")
    of_row = {row: line for line in lines for row in line.rows}
    rank_of = {row: int(rank) for row, rank in comparison.table["r"][list(of_row)].items() if pd.notna(rank)}
    ranks = sorted(set(rank_of.values()))
    # Line style can say the rank or which line of a variant it is, not both; many lines need room besides.
    apart = len(ranks) > 1 and (len(of_row) >= PANELS_FROM or any(line.turn for line in lines))
    panels = [*ranks] if apart else [0]
    grid = _grid(figure, len(panels), "optimizer step")
    window = _window(training)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for row, line in of_row.items():
            # A run without a rank, such as full fine-tuning, is drawn in every panel, to compare with.
            if apart and rank_of.get(row, panel) != panel:
                continue
            turn = line.turn if apart or len(ranks) < 2 else ranks.index(rank_of.get(row, ranks[0]))
            _draw_curve(axes, logged[logged["row"] == row], line, LINES[turn % len(LINES)], window)
        if apart:
            axes.set_title(f"r = {panel}", fontsize=9.5)
    if 0 < 5 * training["value"].min() < training["value"].max():
        grid[0, 0].set_yscale("log")
        _plain_log_y(grid[0, 0])
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    smooth = f"\nrunning mean over {window} logged points (faint: as logged)" if window > 1 else ""
    figure.supylabel(f"training loss ({metrics.metric('train/loss').unit}){smooth}", fontsize=9.5, ma="center")
    entries = [Line2D([], [], label=line.label, **line.look | {"mfc": "white", "mec": line.color, "ms": 5}) for line in lines]
    if len(ranks) > 1 and not apart:
        styles = [LINES[turn % len(LINES)] for turn in range(len(ranks))]
        entries += [Line2D([], [], color="#555555", ls=ls, label=f"r = {rank}") for ls, rank in zip(styles, ranks, strict=True)]
    if (ok["row"].value_counts() > 1).any():
        entries.append(Line2D([], [], color="#555555", lw=1.6, label="mean of seeds"))
        entries.append(Line2D([], [], color="#555555", lw=0.6, alpha=0.5, label="one seed"))
    if (logged["metric"] == "val/loss").any():
        entries.append(Line2D([], [], color="#555555", marker="o", mfc="white", ls="", ms=5, label="validation loss"))
    return _finish_figure(figure, comparison, entries, "Training loss")


def _grid(figure: Figure, count: int, xlabel: str) -> np.ndarray:
    """Make ``count`` axes with common scales, in rows of at most three."""
    across = 2 if count == 4 else min(count, 3)
    down = -(-count // across)
    if count > 1:
        figure.set_size_inches(2.3 + 3.1 * across, 1.6 + 2.9 * down)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, count - across) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel)
    return grid


def _values(comparison: Comparison, row: int) -> list[float]:
    runs = comparison.runs
    return list(runs[comparison.metrics[0]][(runs["row"] == row) & (runs["status"] == "ok")].dropna())


def _begin_figure(
    comparison: Comparison, lines: list[Series], drawn: list[Series]
) -> tuple[Figure, Axes | None, list[Series], list[Line2D]]:
    """Begin a figure whose y axis holds the metric; series without a place on the x axis are horizontal lines.

    A control far from everything else gets a strip of its own behind a break of the axis: on one axis it would press
    the differences between the variants, which the figure is for, into a corner.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    if not drawn:
        return figure, None, lines, []
    means = comparison.table[f"{column(comparison.metrics[0])}_mean"]
    controls = [(line, means[row]) for line in drawn if line not in lines for row in line.rows]
    values = [value for line in lines for row in line.rows for value in _values(comparison, row)]
    far = [(control, mean) for control, mean in controls if _is_far(mean, values)]
    far = [(control, mean) for control, mean in far if (mean > max(values)) == (far[0][1] > max(values))]
    if far:
        above = far[0][1] > max(values)
        parts = figure.subplots(2, 1, sharex=True, height_ratios=[1, 7] if above else [7, 1])
        axes, strip = (parts[1], parts[0]) if above else (parts[0], parts[1])
        _draw_strip(strip, [mean for _, mean in far], above)
        if not above:
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(bottom=False, labelbottom=False)
    else:
        axes = strip = figure.add_subplot()
    entries = []
    for control, mean in controls:
        style = (0, (5, 3)) if control.variant.startswith("frozen") else (0, (1, 1.5))
        place = strip if (control, mean) in far else axes
        entries.append(place.axhline(mean, color=control.color, ls=style, lw=1.4, zorder=1.5, label=control.label))
    axes.set_ylabel(metrics.label(comparison.metrics[0]))
    if not lines:
        axes.set_xticks([])
    return figure, axes, lines, entries


def _is_far(value: float, values: list[float]) -> bool:
    span = max(values) - min(values) if len(values) > 1 else 0.0
    return span > 0 and max(value - max(values), min(values) - value) > 1.5 * span


def _draw_strip(axes: Axes, values: list[float], above: bool) -> None:
    room = max(0.5 * (max(values) - min(values)), 0.01 * abs(values[0]), 1e-6)
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.yaxis.set_major_locator(FixedLocator(values[:2]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.grid(visible=False)
    edge = 0 if above else 1
    if above:
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(bottom=False, labelbottom=False)
    # Two slanted strokes where the axis is broken.
    axes.plot([0], [edge], transform=axes.transAxes, marker=[(-1, -0.6), (1, 0.6)], ms=9, color="k", mew=0.9, clip_on=False)


def _draw_line(axes: Axes, comparison: Comparison, line: Series, x: pd.Series, beside: float = 5.5) -> None:
    """Draw the means of a series, and its seeds, ``beside`` points of ink to the right of their mean."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    shifted = axes.transData + ScaledTranslation(beside / 72, 0, figure.dpi_scale_trans)
    for row in line.rows:
        values = _values(comparison, row)
        if len(values) > 1:
            places = [x[row]] * len(values)
            axes.plot(places, values, color=line.color, marker="o", ms=3, mew=0, alpha=0.5, ls="", zorder=2.5, transform=shifted)
            axes.update_datalim(np.column_stack([places, values]))  # matplotlib leaves shifted points out of the axis' range
    means = comparison.table[f"{column(comparison.metrics[0])}_mean"][line.rows]
    if "interval_low" in comparison.table:
        low, high = (comparison.table[f"interval_{end}"][line.rows].fillna(means) for end in ("low", "high"))
        axes.errorbar(
            x[line.rows], means, yerr=[means - low, high - means], fmt="none", ecolor=line.color, elinewidth=1.2, capsize=2.5
        )
    axes.plot(x[line.rows], means, zorder=3, **line.look)


def _draw_curve(axes: Axes, logged: pd.DataFrame, line: Series, style: Any, window: int) -> None:
    """Draw the loss of a row's runs: each run faint, their mean bold where all of them have the step."""
    by_run = logged[logged["metric"] == "train/loss"].pivot_table(index="step", columns="run_id", values="value")
    if len(by_run.columns) > 1 or window > 1:
        axes.plot(by_run.index, by_run.to_numpy(), color=line.color, lw=0.6, alpha=0.2, zorder=2)
    mean = by_run.dropna().mean(axis=1).rolling(window, center=True, min_periods=1).mean()
    axes.plot(mean.index, mean, color=line.color, ls=style, lw=1.6, zorder=3)
    validation = logged[logged["metric"] == "val/loss"].pivot_table(index="step", columns="run_id", values="value").dropna()
    axes.plot(validation.index, validation.mean(axis=1), color=line.color, marker=line.marker, mfc="white", ms=5, ls="", zorder=4)


def _window(training: pd.DataFrame) -> int:
    """Choose how many logged points the running mean takes: 1, which is none, for short runs."""
    points = int(training.groupby("run_id").size().max())
    return 1 if points < SMOOTH_FROM else max(3, points // 20) | 1


def _log_ticks(axes: Axes, ratio: float) -> None:
    subs = (1.0, 2.0, 5.0) if ratio < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs) if ratio >= 4 else MaxNLocator(nbins=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _plain_log_y(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _short(value: float) -> str:
    """Shorten a number: 4_884_480 to ``4.88M``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _title(metric: str) -> str:
    words = metrics.words(metric)
    return words[:1].upper() + words[1:]


def _finish_figure(figure: Figure, comparison: Comparison, entries: list[Line2D], what: str, seeds: str | None = None) -> Figure:
    """Add the title, the legend, and the line about runs that are not drawn. ``seeds``: default, those of the table."""
    about = f"{safe(subject(comparison.runs))}, {seeds or seed_count(comparison.table)}"
    figure.suptitle("\n".join([what, *textwrap.wrap(about, 70, max_lines=3, placeholder=" ...")]), fontsize=10.5)
    if entries:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, max(height, 1.2 + 0.17 * sum(1 + str(entry.get_label()).count("\n") for entry in entries)))
        figure.legend(handles=entries, loc="outside right center")
    undrawn = comparison.runs[comparison.runs["status"] != "ok"]
    if len(undrawn):
        kinds = ", ".join(f"{count} {safe(status)[:40]}" for status, count in undrawn["status"].value_counts().items())
        figure.text(0.01, 0.008, f"Runs not drawn: {kinds}.", fontsize=8, color="#555555", va="bottom")
        low = 0.25 / figure.get_size_inches()[1]
        figure.get_layout_engine().set(rect=(0, low, 1, 1 - low))  # type: ignore[union-attr,call-arg]
    return figure


def _empty_figure(figure: Figure, comparison: Comparison, why: str) -> Figure:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, safe(why), ha="center", va="center", color="#555555")
    return _finish_figure(figure, comparison, [], "Nothing to draw")
