"""The figures: test loss and differences to LoRA by rank, each at its own best rate; validation loss by learning rate.

Colours and markers are those of a variant in every figure of ``python -m src.eval`` (Okabe and Ito's palette).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.variants_at_their_best.questions import MARGIN, NAMES, REFERENCE, Cell, Study
from src.eval.statistics import Interval, mean_interval
from src.eval.styles import STYLES

GREY, BAND = "#555555", "#EFEFEF"
FAR = 1.0  # a control further away than so many spans of the variants gets a strip of its own
RING: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "mew": 1.3}
CROSS: dict[str, Any] = {"ls": "", "marker": "x", "mew": 1.5}
HIGHEST = 1.0  # nats above the lowest validation loss that rates.png shows


def at_their_best(study: Study) -> Figure:
    """Test loss by rank with the controls as lines, beside the paired difference to LoRA and the band of equivalence."""
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 9])
    _by_rank(figure, grid, study)
    _to_lora(figure.add_subplot(grid[:, 1]), study)
    return figure


def _by_rank(figure: Figure, grid: Any, study: Study) -> None:
    lines = {
        variant: {r: mean_interval(found) for r in study.ranks if (found := study.losses((variant, r)))}
        for variant in study.variants
    }
    ends = [end for line in lines.values() for one in line.values() for end in (one.low, one.high, one.mean) if end == end]
    controls = {name: mean_interval(losses) for name in ("frozen", "full") if (losses := study.losses((name, None)))}
    far = [name for name, one in controls.items() if ends and one.mean - max(ends) > FAR * (max(ends) - min(ends))]
    axes = top = figure.add_subplot(grid[1, 0] if far else grid[:, 0])
    if far:
        top = _strip(figure, grid[0, 0], axes, controls[far[0]].mean)
    for variant, line in lines.items():
        if line:
            _series(axes, variant, _beside(variant, study.variants, list(line)), list(line.values()))
    for name, one in controls.items():
        _control(top if name in far[:1] else axes, name, one)
    _rank_axis(axes, study)
    axes.set_ylabel("test loss (nats per target token)")
    top.set_title("Test loss, each at its own best rate", loc="left")
    _labelled(axes, [(variant, list(line.values())[-1].mean) for variant, line in lines.items() if line])


def _strip(figure: Figure, above: Any, axes: Axes, at: float) -> Axes:
    """A piece of the axis for the base, which is far worse than all that was trained."""
    strip = figure.add_subplot(above, sharex=axes)
    room = 0.02 * abs(at)
    strip.set_ylim(at - room, at + room)
    strip.yaxis.set_major_locator(FixedLocator([at]))
    strip.set_yticklabels([f"{at:.2f}"])
    strip.grid(visible=False)
    strip.spines["bottom"].set_visible(False)
    strip.tick_params(bottom=False, labelbottom=False)
    for piece, end in ((strip, 0), (axes, 1)):  # slanted strokes where the axis is broken
        piece.plot([0], [end], transform=piece.transAxes, marker=[(-1, -0.6), (1, 0.6)], ms=9, color="k", mew=0.9, clip_on=False)
    return strip


def _control(axes: Axes, name: str, one: Interval) -> None:
    colour = STYLES[name][0]
    axes.axhline(one.mean, color=colour, ls=(0, (5, 3)) if name == "frozen" else (0, (1, 1.5)), lw=1.4, zorder=1.5)
    if one.n > 1:
        axes.axhspan(one.low, one.high, color=colour, alpha=0.08, lw=0, zorder=1)
    text = NAMES[name] if name == "frozen" else f"{NAMES[name]}, {one.mean:.3f}"
    axes.annotate(
        text, (0, one.mean), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8.5, color=colour
    )


def _to_lora(axes: Axes, study: Study) -> None:
    others = [variant for variant in study.variants if variant != REFERENCE]
    axes.axhspan(-MARGIN, MARGIN, color=BAND, lw=0, zorder=0)
    axes.axhline(0, color=STYLES[REFERENCE][0], lw=1.4, zorder=1.5)
    found = {(variant, r): one for r in study.ranks for one in study.of_variants(r).contrasts
             for variant in [study.cell(one.row)[0]]}  # fmt: skip
    labels = [(REFERENCE, 0.0)]
    for variant in others:
        mine = {r: found[variant, r] for r in study.ranks if (variant, r) in found and found[variant, r].test.n}
        if not mine:
            continue
        x = _beside(variant, others, list(mine))
        _series(axes, variant, x, [Interval(c.test.mean, c.test.low, c.test.high, c.test.sd, c.test.n) for c in mine.values()],
                [not c.marked for c in mine.values()])  # fmt: skip
        labels.append((variant, list(mine.values())[-1].test.mean))
    _rank_axis(axes, study)
    axes.set_ylabel("nats per target token, paired by seed")
    axes.set_title("Difference to LoRA at the same rank", loc="left")
    low, high = axes.get_ylim()
    low, high = min(low, -1.6 * MARGIN), max(high, 1.6 * MARGIN)
    axes.set_ylim(low - 0.1 * (high - low), high)  # room for the key
    _labelled(axes, labels)
    seeds = max((one.test.n for one in found.values()), default=0)
    key = (
        f"below 0: better than LoRA; bars: 95%, {seeds} seeds\n"
        f"band: within {MARGIN:g}; filled: differs (exact p < 0.05 after Holm)"
    )
    axes.annotate(key, (0, 0), (4, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=GREY)


def _series(
    axes: Axes, variant: str, x: Sequence[float], values: Sequence[Interval], hollow: Sequence[bool] | None = None
) -> None:
    """Means joined by a line, and their intervals; ``hollow`` points are only outlined."""
    colour, marker = STYLES[variant]
    means = np.array([one.mean for one in values])
    low, high = (np.array([one.mean if np.isnan(end) else end for one, end in zip(values, ends, strict=True)])
                 for ends in ([one.low for one in values], [one.high for one in values]))  # fmt: skip
    axes.errorbar(x, means, yerr=[means - low, high - means], fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5, zorder=2)
    axes.plot(x, means, color=colour, lw=1.4, zorder=3)
    for at, mean, open_ in zip(x, means, hollow or [False] * len(values), strict=True):
        face, edge = ("white", colour) if open_ else (colour, "white")
        axes.plot(at, mean, marker=marker, ms=6.5, color=colour, mfc=face, mec=edge, mew=1.2 if open_ else 0.8, zorder=4)


def _beside(variant: str, variants: Sequence[str], ranks: Sequence[int]) -> list[float]:
    """x of the variant's points: around each rank, so that intervals do not cover each other."""
    shift = 0.16 * (variants.index(variant) - (len(variants) - 1) / 2)  # octaves
    return [r * 2.0**shift for r in ranks]


def _rank_axis(axes: Axes, study: Study) -> None:
    if study.ranks:
        axes.set_xscale("log", base=2)
        axes.set_xlim(study.ranks[0] / 2**0.6, study.ranks[-1] * 2**0.6)
    axes.set_xticks(study.ranks, [str(r) for r in study.ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rank r (variants side by side)")


def _labelled(axes: Axes, ends: Sequence[tuple[str, float]]) -> None:
    """Each variant's name in its colour beside the end of its line, moved apart where two would meet."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    ordered = sorted(ends, key=lambda end: end[1])
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    places = apart([value for _, value in ordered], gap)
    for (variant, _), y in zip(ordered, places, strict=True):
        axes.annotate(NAMES[variant], (1, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
                      fontsize=9, color=STYLES[variant][0], annotation_clip=False)  # fmt: skip


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Ascending values moved as little as it takes for neighbours to be ``gap`` apart: those that meet share their centre."""
    groups: list[list[float]] = []  # [sum of the values, how many]
    for value in values:
        groups.append([value, 1])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    return [_bottom(group, gap) + at * gap for group in groups for at in range(int(group[1]))]


def _bottom(group: list[float], gap: float) -> float:
    return group[0] / group[1] - gap * (group[1] - 1) / 2


def _top(group: list[float], gap: float) -> float:
    return group[0] / group[1] + gap * (group[1] - 1) / 2


def rates(study: Study) -> Figure:
    """Validation loss of the tuning seeds by learning rate, a panel for each rank; rings: the best rates, crosses: diverged."""
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    across = 2 if len(study.ranks) > 1 else 1
    grid = figure.subplots(max(1, -(-len(study.ranks) // across)), across, sharex=True, sharey=True, squeeze=False)
    tried = study.result.rates
    tried = tried[tried["row"].isin([row for (_, r), row in study.rows.items() if r is not None])]
    ticks, known = sorted(tried["learning_rate"].unique()), tried["validation"].dropna()
    low = known.min() if len(known) else 0.0
    top = min(known.max(), low + HIGHEST) if len(known) else 1.0
    for axes in grid.flat[len(study.ranks) :]:
        axes.set_visible(False)
    for axes, r in zip(grid.flat, study.ranks, strict=False):
        for variant in study.variants:
            if (variant, r) in study.rows:
                _rate_line(axes, study, (variant, r), top)
        axes.set_title(f"r = {r}", loc="left")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{tick:g}" for tick in ticks], fontsize=8)
    room = 0.06 * (top - low) or 0.1
    grid[0, 0].set_ylim(low - room, top + room)
    figure.supxlabel("learning rate", fontsize=9.5)
    seeds = len(study.result.selection.split.tuning)
    figure.supylabel(f"validation loss (nats per target token), {seeds} tuning seeds", fontsize=9.5)
    entries = [Line2D([], [], color=STYLES[v][0], marker=STYLES[v][1], ms=6, lw=1.4, label=NAMES[v]) for v in study.variants]
    entries.append(Line2D([], [], color=GREY, ms=10, label="best rate", **RING))
    if (tried["not_ok"] > 0).any():
        entries.append(Line2D([], [], color=GREY, ms=6, label="a tuning seed diverged", **CROSS))
    figure.legend(handles=entries, loc="outside upper center", ncols=len(entries))
    return figure


def _rate_line(axes: Axes, study: Study, cell: Cell, top: float) -> None:
    """The means of the rates that could be chosen; a line that rises above ``top`` leaves the panel."""
    (colour, marker), condition, runs = STYLES[cell[0]], study.condition(cell), study.of(cell)
    seeds = [seed for seed, _ in study.result.selection.split.tuning]
    means, size = condition.validation, 9 + 3 * study.variants.index(cell[0])  # so that rings of one rate do not hide each other
    if means:
        axes.plot(list(means), list(means.values()), color=colour, marker=marker, ms=5, lw=1.4, mec="white", mew=0.6, zorder=3)
    if condition.chosen in means and not study.unseen(cell):
        axes.plot(condition.chosen, means[condition.chosen], color=colour, ms=size, zorder=4, **RING)
    lost = runs[runs["seed"].isin(seeds) & ~runs["status"].isin(["ok", "missing"])]["learning_rate"].unique()
    beside = 1.13 ** (study.variants.index(cell[0]) - (len(study.variants) - 1) / 2)
    axes.plot(lost * beside, [top] * len(lost), color=colour, ms=6, zorder=4, **CROSS)
