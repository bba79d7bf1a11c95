"""Draw test loss and differences to LoRA by rank, each at its own best rate, and validation loss by learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from experiments.variants_at_their_best.questions import MARGIN, NAMES, REFERENCE, Cell, Study
from src.compare.statistics import Interval, mean_interval
from src.compare.styles import line, style
from src.files.text import few

GRAY, BAND = "#555555", "#EFEFEF"
FAR = 1.0  # a control higher above the variants than this many times their span is named at the edge, not drawn
RING: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "mew": 1.3}
DOTTED = (0, (1, 1.2))  # full fine-tuning's line
CROSS: dict[str, Any] = {"ls": "", "marker": "x", "mew": 1.5}
HIGHEST = 1.0  # nats above the lowest validation loss that rates.png shows
WIDTH = 8.0  # inches: at 100 pixels an inch, as wide as a page shows it


def at_their_best(study: Study) -> Figure:
    """Draw test loss by rank, a line for each variant; full fine-tuning and the base as horizontal lines where they are near."""
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    axes = figure.subplots()
    marked = {
        cell for r in study.ranks for value in study.of_variants(r).contrasts if value.marked for cell in [study.cell(value.row)]
    }
    drawn = {}
    for variant in study.variants:
        by_rank = {r: mean_interval(losses) for r in study.ranks if (losses := study.losses((variant, r)))}
        if by_rank:
            drawn[variant] = by_rank
            hollow = [variant != REFERENCE and (variant, r) not in marked for r in by_rank]
            _series(axes, variant, _beside(variant, study.variants, list(by_rank)), list(by_rank.values()), hollow)
    shown = [value for by_rank in drawn.values() for value in by_rank.values()]
    labels = [(variant, max(by_rank), by_rank[max(by_rank)].mean) for variant, by_rank in drawn.items()]
    for name in ("full", "frozen"):
        if (losses := study.losses((name, None))) and (y := _control(axes, name, mean_interval(losses), shown)) is not None:
            labels.append((name, study.ranks[-1] if study.ranks else 0, y))
    _rank_axis(axes, study)
    _labeled(axes, study, labels)
    axes.set_ylabel("test loss (nats per target token)")
    key = f"Filled: differs from {NAMES[REFERENCE]} at that rank (paired by seed, exact sign-flip p < 0.05 after Holm)."
    _titled(axes, "Test loss by rank, each variant at its own best learning rate", _subtitle(study, shown), key)
    return figure


def _titled(axes: Axes, title: str, below: str, key: str) -> None:
    """Add a title, a line below it and the key under the plot, all aligned with the plot's left edge."""
    axes.set_title(title, loc="left", fontsize=13, pad=26)
    axes.annotate(below, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", fontsize=9.5, color=GRAY)
    axes.annotate(key, (0, 0), (0, -38), xycoords="axes fraction", textcoords="offset points", va="top", fontsize=8.5, color=GRAY)


def _subtitle(study: Study, shown: Sequence[Interval]) -> str:
    model, data = (few([str(value) for value in study.runs[key].dropna().unique()]) for key in ("model", "dataset"))
    split, counts = study.result.selection.split, sorted({value.n for value in shown})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(*counts)
    others = f"rates chosen on {len(split.tuning)} others" if split.disjoint else "the same seeds chose the rates"
    return f"{model} on {data}, mean and 95% interval of {seeds} seeds, {others}"


def _control(axes: Axes, name: str, level: Interval, shown: Sequence[Interval]) -> float | None:
    """Draw a control as a line with its interval and return its mean; None where it is far above and is named at the edge."""
    ends = [end for each in shown for end in (each.low, each.high, each.mean) if end == end]
    color = style(name).color
    if ends and level.mean - max(ends) > FAR * max(max(ends) - min(ends), 0.05):
        axes.margins(y=0.1)  # room for it
        below = -2 - 13 * len(axes.texts)  # below the other control, if that is far above too
        axes.annotate(f"\u2191 {NAMES[name]}: {level.mean:.2f}", (0, 1), (4, below), xycoords="axes fraction",
                      textcoords="offset points", va="top", fontsize=9.5, color=GRAY)  # fmt: skip
        return None
    axes.axhline(level.mean, color=color, ls=DOTTED, lw=1.8, zorder=1.5)
    if level.n > 1:
        axes.axhspan(level.low, level.high, color=color, alpha=0.08, lw=0, zorder=1)
    return level.mean


def to_lora(study: Study) -> Figure:
    """Draw the paired difference to LoRA at the same rank, with its interval, over the band that counts as no difference."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    others = [variant for variant in study.variants if variant != REFERENCE]
    axes.axhspan(-MARGIN, MARGIN, color=BAND, lw=0, zorder=0)
    axes.axhline(0, color=style(REFERENCE).color, lw=1.6, zorder=1.5)
    contrasts = {
        study.cell(contrast.row): contrast for r in study.ranks for contrast in study.of_variants(r).contrasts if contrast.test.n
    }
    labels = [(REFERENCE, study.ranks[-1] if study.ranks else 0, 0.0)]
    for variant in others:
        by_rank = {r: contrasts[variant, r] for r in study.ranks if (variant, r) in contrasts}
        if by_rank:
            x, tests = _beside(variant, others, list(by_rank)), [contrast.test for contrast in by_rank.values()]
            means = [Interval(test.mean, test.low, test.high, test.sd, test.n) for test in tests]
            _series(axes, variant, x, means, [not contrast.marked for contrast in by_rank.values()])
            labels.append((variant, max(by_rank), tests[-1].mean))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1.6 * MARGIN), max(high, 1.6 * MARGIN))
    _rank_axis(axes, study)
    _labeled(axes, study, labels)
    axes.set_ylabel("nats per target token")
    seeds = max((contrast.test.n for contrast in contrasts.values()), default=0)
    below = f"mean and 95% interval of the differences of {seeds} seeds; below 0: better than {NAMES[REFERENCE]}"
    key = f"Filled: differs (exact sign-flip p < 0.05 after Holm). Band: within {MARGIN:g} nats."
    _titled(axes, f"Test loss less {NAMES[REFERENCE]}'s at the same rank, each at its own best learning rate", below, key)
    return figure


def _series(axes: Axes, variant: str, x: Sequence[float], values: Sequence[Interval], hollow: Sequence[bool]) -> None:
    """Draw means joined by a line, and their intervals; ``hollow`` points are only outlined."""
    color, marker = style(variant)
    means = np.array([value.mean for value in values])
    low, high = (np.array([value.mean if np.isnan(end) else end for value, end in zip(values, ends, strict=True)])
                 for ends in ([value.low for value in values], [value.high for value in values]))  # fmt: skip
    axes.errorbar(x, means, yerr=[means - low, high - means], fmt="none", ecolor=color, elinewidth=1.3, capsize=3, zorder=2)
    axes.plot(x, means, zorder=3, **line(variant) | {"marker": ""})
    for place, mean, open_ in zip(x, means, hollow, strict=True):
        face, edge = ("white", color) if open_ else (color, "white")
        axes.plot(place, mean, marker=marker, ms=8, color=color, mfc=face, mec=edge, mew=1.5 if open_ else 0.8, zorder=4)


def _beside(variant: str, variants: Sequence[str], ranks: Sequence[int]) -> list[float]:
    """Place the variant's points around each rank, so that intervals do not cover each other."""
    shift = 0.12 * (variants.index(variant) - (len(variants) - 1) / 2)  # octaves
    return [r * 2.0**shift for r in ranks]


def _rank_axis(axes: Axes, study: Study) -> None:
    if study.ranks:
        axes.set_xscale("log", base=2)
        axes.set_xlim(study.ranks[0] / 2**0.5, study.ranks[-1] * 2**0.5)
    axes.set_xticks(study.ranks, [str(r) for r in study.ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("rank r (variants side by side)")


def _labeled(axes: Axes, study: Study, ends: Sequence[tuple[str, int, float]]) -> None:
    """Write each name in its color where its line ends: (name, rank, y). Names that would overlap are moved apart."""
    last = study.ranks[-1] if study.ranks else 0
    for variant, r, y in ends:
        if r < last:
            x = _beside(variant, study.variants, [r])[0]
            axes.annotate(NAMES[variant], (x, y), (9, 0), textcoords="offset points", va="center", color=style(variant).color)
    ordered = sorted(((variant, y) for variant, r, y in ends if r == last), key=lambda end: end[1])
    low, high = axes.get_ylim()
    places = apart([value for _, value in ordered], 0.06 * (high - low))
    for (variant, mean), y in zip(ordered, places, strict=True):
        text = f"{NAMES[variant]}\n{mean:.3f}" if variant == "full" else NAMES[variant]
        axes.annotate(text, (1, y), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
                      fontsize=10.5, color=style(variant).color, annotation_clip=False)  # fmt: skip


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Move ascending values as little as possible until neighbors are ``gap`` apart: those that meet share their center."""
    groups: list[list[float]] = []  # [sum of the values, their number]
    for value in values:
        groups.append([value, 1])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    return [_bottom(group, gap) + index * gap for group in groups for index in range(int(group[1]))]


def _bottom(group: list[float], gap: float) -> float:
    return group[0] / group[1] - gap * (group[1] - 1) / 2


def _top(group: list[float], gap: float) -> float:
    return group[0] / group[1] + gap * (group[1] - 1) / 2


def rates(study: Study) -> Figure:
    """Draw validation loss of the tuning seeds by rate, a panel for each rank; rings: best rates, crosses: diverged.

    A loss above the panel is an arrow with its value over the rate. Full fine-tuning is a line at its own best rate.
    """
    figure = Figure(figsize=(9.0, 7.6), layout="constrained")
    across = 2 if len(study.ranks) > 1 else 1
    grid = figure.subplots(max(1, -(-len(study.ranks) // across)), across, sharex=True, sharey=True, squeeze=False)
    tried = study.result.rates
    tried = tried[tried["row"].isin([row for (_, r), row in study.rows.items() if r is not None])]
    ticks, known = sorted(tried["learning_rate"].unique()), tried["validation"].dropna()
    full = _best(study, ("full", None))
    lowest = min([*known, *([] if full is None else [full])], default=0.0)
    top = min(known.max(), known.min() + HIGHEST) if len(known) else 1.0
    for axes in grid.flat[len(study.ranks) :]:
        axes.set_visible(False)
    for axes, r in zip(grid.flat, study.ranks, strict=False):
        above: dict[float, int] = {}  # number of values already written above the panel at each rate
        for variant in study.variants:
            if (variant, r) in study.rows:
                _rate_line(axes, study, (variant, r), top, above)
        if full is not None:
            axes.axhline(full, color=style("full").color, ls=DOTTED, lw=1.5, zorder=1.5)
        axes.set_title(f"r = {r}", loc="left")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    room = 0.06 * (top - lowest) or 0.1
    grid[0, 0].set_ylim(lowest - room, top + room)
    figure.supxlabel("learning rate (variants side by side)", fontsize=9.5)
    seeds = len(study.result.selection.split.tuning)
    figure.supylabel(f"validation loss (nats per target token), {seeds} tuning seeds", fontsize=9.5)
    entries = [Line2D([], [], label=NAMES[v], **line(v)) for v in study.variants]
    if full is not None:
        entries.append(Line2D([], [], color=style("full").color, ls=DOTTED, lw=1.5, label=f"{NAMES['full']}, {full:.3f}"))
    entries.append(Line2D([], [], color=GRAY, ms=10, label="best rate", **RING))
    if (tried["not_ok"] > 0).any():
        entries.append(Line2D([], [], color=GRAY, ms=6, label="a tuning seed diverged", **CROSS))
    if (known > top).any():
        entries.append(Line2D([], [], ls="", label="\u2191 a loss above the panel"))
    figure.legend(handles=entries, loc="outside upper center", ncols=-(-len(entries) // 2) if len(entries) > 6 else len(entries))
    return figure


def _best(study: Study, cell: Cell) -> float | None:
    """Look up the validation loss at the cell's best rate; None where not all rates were tried."""
    if cell not in study.rows or study.unseen(cell):
        return None
    condition = study.condition(cell)
    return None if condition.chosen is None else condition.validation.get(condition.chosen)


def _rate_line(axes: Axes, study: Study, cell: Cell, top: float, above: dict[float, int]) -> None:
    """Draw the mean at each rate that could be chosen; a line that rises above ``top`` leaves the panel."""
    color, condition, runs = style(cell[0]).color, study.condition(cell), study.of(cell)
    seeds = [seed for seed, _ in study.result.selection.split.tuning]
    index = study.variants.index(cell[0])
    beside, size = 1.06 ** (index - (len(study.variants) - 1) / 2), 9 + 3 * index  # rings of one rate do not hide each other
    means = condition.validation
    if means:
        x = [rate * beside for rate in means]
        axes.plot(x, list(means.values()), zorder=3, **line(cell[0]))
    if (best := _best(study, cell)) is not None:
        axes.plot(condition.chosen * beside, best, color=color, ms=size, zorder=4, **RING)  # type: ignore[operator]
    lost = runs[runs["seed"].isin(seeds) & ~runs["status"].isin(["ok", "missing"])]["learning_rate"].unique()
    axes.plot(lost * beside, [top] * len(lost), color=color, ms=6, zorder=4, **CROSS)
    for rate, mean in means.items():
        if mean > top:
            axes.annotate(f"\u2191 {mean:.2f}", (rate, 1), (0, 2 + 11 * above.get(rate, 0)), xycoords=("data", "axes fraction"),
                          textcoords="offset points", ha="center", fontsize=8.5, color=color)  # fmt: skip
            above[rate] = above.get(rate, 0) + 1
