"""Write results.csv as tables and a figure: ``python -m experiments.rank_stability.report [folder=FOLDER]``.

They are tables.md and rank_stability.png. A slope is that of log(quantity) against log(r) by least squares over the ranks,
one for each seed; then its mean over seeds with a 95% t interval. Means by rank are geometric, with the t interval of the
logarithm; those of losses are plain.

What theory says of slopes, with gamma = alpha/r or alpha/sqrt r and y = W x + gamma B A x:

Step 0. B = 0, so the loss's gradient G = dL/dW [out, in] of each module is the same at every rank, and dL/dB = gamma G A^T.
A's entries are independent with mean 0 and a variance v that does not depend on r (PEFT: uniform, v = 1 / (3 in)), so each of
the r columns of G A^T has an expected square of v ||G||^2: E ||dL/dB||^2 = gamma^2 r v ||G||^2. The norm goes as gamma sqrt r:
slope -1/2 for alpha/r and 0 for alpha/sqrt r. At one rank and seed the two differ by the factor sqrt r exactly, since A and
the rows are the same. dL/dA = gamma B^T G = 0. (Kalajdzievski 2023, arXiv 2312.03732, Theorem 3.2, and Figure 3.) So it stays
as long as B = 0: in step 1 as well, where a warm-up begins with a rate of 0.

First update. Adam moves each entry of B by about the learning rate, however small its gradient. Where the move is
eta sign(g (A x)^T), the change of the output, gamma sum_j dB_j (A_j x), has r terms of one sign: it goes as gamma r. Where the
signs are as good as random it goes as gamma sqrt r. So between -1/2 and 0 for alpha/r, between 0 and 1/2 for alpha/sqrt r: the
gradient is stable in the rank under one rule, what Adam makes of it may be so under the other (compare arXiv 2602.06204).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments import markdown, sheet
from src.command import cli
from src.command.words import Key, read
from src.compare.statistics import Interval, mean_interval
from src.compare.styles import style
from src.files.durable import write_atomically
from src.files.errors import ConfigError

HERE = Path(__file__).resolve().parent
SCALINGS = {"lora": "alpha/r", "rslora": "alpha/sqrt r"}
NAMES = {"lora": "LoRA", "rslora": "rsLoRA"}
RUN = ["form", "variant", "r", "seed"]
QUANTITIES = {
    "grad_B": "norm of dL/dB",
    "grad_A": "norm of dL/dA",
    "change": "change of s B A in one update, relative to W",
    "weight": "norm of s B A, relative to W",
    "activation": "RMS of s B A x, relative to W x",
}
LOSSES = {"train_loss": "training loss", "val_loss": "validation loss", "test_loss": "test loss"}
STEP_0 = {"lora": -0.5, "rslora": 0.0}  # slopes of ||dL/dB|| in theory
FORMS: dict[str, dict[str, Any]] = {"fixed": {"ls": "-"}, "best": {"ls": "--", "mfc": "white"}}
# Wide, so that what follows it does not hide it.
THEORY: dict[str, Any] = {"color": "#BDBDBD", "lw": 8, "zorder": 1, "solid_capstyle": "round"}


class Point(NamedTuple):
    """A quantity at a step."""

    quantity: str
    step: int

    @property
    def name(self) -> str:
        return f"{(QUANTITIES | LOSSES)[self.quantity]}, step {self.step}"


def load(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the rows of the runs that ended well, and a line for each that did not: it diverged, was stopped, or lacks rows.

    Raises:
        ConfigError: no results, or not such a table; one line.
    """
    table = sheet.read(path, [*RUN, "step", "module"], ["r", "seed", "step", *QUANTITIES, *LOSSES])
    rows = table.groupby(RUN)["step"].transform("size")
    ended = (table.groupby(RUN)["test_loss"].transform("count") > 0) & (rows == rows.max())
    if not ended.any():
        raise ConfigError(f"{path}: no run has a test loss")
    lost = [*table[~ended][RUN].drop_duplicates().itertuples(index=False), *sheet.lacking(table, RUN[:-1])]
    return table[ended], [f"{form}: {variant} r={r} seed={seed}" for form, variant, r, seed in lost]


def values(frame: pd.DataFrame, form: str, variant: str, point: Point, module: str = "all") -> pd.DataFrame:
    """Lay a quantity out as [seeds x ranks]; a run that is missing is NaN."""
    rows = frame[
        (frame["form"] == form) & (frame["variant"] == variant) & (frame["step"] == point.step) & (frame["module"] == module)
    ]
    return rows.pivot(index="seed", columns="r", values=point.quantity)


def slopes(table: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Fit the slope of log(value) against log(r), for each seed that has a value above 0 at every rank."""
    whole = table[(table > 0).all(axis=1)]
    x = np.log(np.asarray(table.columns, dtype=float))
    if len(x) < 2 or whole.empty:
        return np.empty(0)
    x -= x.mean()
    fitted: np.ndarray[Any, np.dtype[np.float64]] = np.log(whole.to_numpy(dtype=float)) @ x / (x @ x)
    return fitted


def by_rank(table: pd.DataFrame, quantity: str) -> dict[int, Interval]:
    """Average over seeds at each rank, with an interval: geometric, and plain for losses. Without values: none."""
    averages = {}
    for r, column in table.items():
        numbers = column.dropna().to_numpy(dtype=float)
        if quantity in LOSSES:
            averages[int(r)] = mean_interval(numbers)
        elif len(numbers) and (numbers > 0).all():
            logs = mean_interval(np.log(numbers))
            mean, low, high = (float(np.exp(value)) for value in (logs.mean, logs.low, logs.high))
            averages[int(r)] = Interval(mean, low, high, logs.sd, logs.n)  # sd: of the logarithm
    return averages


class Study:
    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.forms = [form for form in FORMS if (frame["form"] == form).any()]
        whole = frame[frame["module"] == "all"]
        self.logged = sorted(whole.loc[whole["grad_B"].notna(), "step"].unique())
        self.last = int(whole["step"].max())
        moved = whole.loc[whole["change"] > 0, "step"]
        self.moved = int(moved.min()) if len(moved) else self.logged[0]  # in step 0 of a warm-up the rate is 0

    def slope(self, form: str, variant: str, point: Point, module: str = "all") -> Interval:
        return mean_interval(slopes(values(self.frame, form, variant, point, module)))

    def points(self) -> list[Point]:
        """List all that is logged, without what is 0 at every rank, as all but the gradient is at first."""
        whole = self.frame[self.frame["module"] == "all"]
        return [
            Point(quantity, int(step))
            for quantity in QUANTITIES
            for step in self.logged
            if (whole.loc[whole["step"] == step, quantity] > 0).any()
        ]

    def key_points(self) -> list[Point]:
        """List the points of the figure."""
        after = next((step for step in self.logged if step > self.moved), self.last)
        return [
            Point("grad_B", self.logged[0]),
            Point("change", self.moved),
            Point("activation", int(after)),
            Point("grad_B", self.last),
            Point("activation", self.last),
            Point("test_loss", self.last),
        ]


def shown(value: Interval, digits: str = "+.3f") -> str:
    if not value.n:
        return "-"
    if value.n < 2:
        return f"{value.mean:{digits}}"
    return f"{value.mean:{digits}} [{value.low:{digits}}, {value.high:{digits}}]"


def slope_table(study: Study, form: str) -> str:
    rows = [
        [point.name, *(shown(study.slope(form, variant, point)) for variant in SCALINGS), _expected(study, form, point)]
        for point in study.points()
    ]
    return markdown.under(["slope in r of", *SCALINGS.values(), "theory"], rows)


def _expected(study: Study, form: str, point: Point) -> str:
    if point.quantity == "grad_B" and point.step <= study.moved:
        return "-1/2; 0"
    if point == Point("change", study.moved) and form == "fixed":  # in the other form the rate differs between ranks
        return "-1/2 to 0; 0 to 1/2"
    return ""


def module_table(study: Study, form: str) -> str:
    """Tabulate slopes by kind of module at the points of the figure: k and v may be narrower than the highest rank."""
    points = [point for point in study.key_points() if point.quantity in QUANTITIES]
    modules = [name for name in study.frame["module"].unique() if name != "all"]
    rows = [
        [module, *(f"{shown(study.slope(form, v, point, module))}" for point in points for v in SCALINGS)] for module in modules
    ]
    return markdown.under(["module", *(f"{point.name}, {rule}" for point in points for rule in SCALINGS.values())], rows)


def rank_table(study: Study, form: str) -> str:
    rows = []
    for point in dict.fromkeys([*study.key_points(), Point("weight", study.last), Point("val_loss", study.last)]):
        digits = ".4f" if point.quantity in LOSSES else ".3g"
        for variant, rule in SCALINGS.items():
            averages = by_rank(values(study.frame, form, variant, point), point.quantity)
            rows += [[point.name, rule, str(r), shown(value, digits), str(value.n)] for r, value in averages.items()]
    return markdown.under(["quantity", "scaling", "r", "mean [95% interval]", "n"], rows)


def differences(study: Study, form: str) -> dict[int, Interval]:
    """Compute the test loss under alpha/sqrt r minus that under alpha/r, by rank, paired by seed."""
    ours, theirs = (values(study.frame, form, variant, Point("test_loss", study.last)) for variant in ("rslora", "lora"))
    return {int(r): mean_interval(column.dropna().to_numpy(dtype=float)) for r, column in (ours - theirs).items()}


def gain(study: Study, form: str, variant: str) -> tuple[int, int, Interval]:
    """Compute (lowest rank, highest rank, test loss at the highest minus at the lowest, paired by seed)."""
    table = values(study.frame, form, variant, Point("test_loss", study.last))
    low, high = min(table.columns), max(table.columns)
    return int(low), int(high), mean_interval((table[high] - table[low]).dropna().to_numpy(dtype=float))


def root_error(study: Study, form: str) -> float:
    """Find the largest |ratio - 1| over ranks and seeds of ||dL/dB|| at step 0, rsLoRA's to LoRA's, over sqrt r."""
    ours, theirs = (values(study.frame, form, variant, Point("grad_B", 0)) for variant in ("rslora", "lora"))
    ratio = ours / theirs / np.sqrt(np.asarray(ours.columns, dtype=float))
    return float((ratio - 1).abs().max().max())


def findings(study: Study) -> list[str]:
    lines = []
    for form in study.forms:
        for variant, rule in SCALINGS.items():
            for point in study.key_points():
                if point.quantity in QUANTITIES:
                    value = study.slope(form, variant, point)
                    line = f"{form}, {rule}: slope of {point.name}: {shown(value)}, n = {value.n}"
                    if point == Point("grad_B", 0) and value.n > 1:
                        inside = value.low <= STEP_0[variant] <= value.high
                        line += f"; theory {STEP_0[variant]:+g} is {'inside' if inside else 'outside'}"
                    lines.append(line)
            low, high, value = gain(study, form, variant)
            lines.append(f"{form}, {rule}: test loss, r={high} minus r={low}: {shown(value, '+.4f')}, n = {value.n}")
        for r, value in differences(study, form).items():
            lines.append(f"{form}: test loss, alpha/sqrt r minus alpha/r, r={r}: {shown(value, '+.4f')}, n = {value.n}")
        if 0 in study.logged and form == "fixed":
            lines.append(
                f"{form}: dL/dB at step 0, alpha/sqrt r over alpha/r: sqrt r to within {100 * root_error(study, form):.2g}%"
            )
    return lines


def draw(study: Study, path: Path) -> None:
    """Draw panels: a quantity against the rank, a line for each scaling and form, 95% intervals as bars."""
    settings: dict[Any, Any] = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.2, 6), layout="constrained")
        FigureCanvasAgg(figure)
        points = list(dict.fromkeys(study.key_points()))  # of a short run the first update may be the last
        panels = list(figure.subplots(2, 3).flat)
        for axes, point in zip(panels, points, strict=False):
            _panel(axes, study, point)
        for axes in panels[len(points) :]:
            axes.remove()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        about = f"bars: 95% over {study.frame['seed'].nunique()} seeds"
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), title=about, frameon=False)
        figure.savefig(path)


def _panel(axes: Axes, study: Study, point: Point) -> None:
    for form in study.forms:
        for variant, rule in SCALINGS.items():
            averages = by_rank(values(study.frame, form, variant, point), point.quantity)
            if not averages:
                continue
            ranks, means = list(averages), [value.mean for value in averages.values()]
            bars = np.nan_to_num([[v.mean - v.low for v in averages.values()], [v.high - v.mean for v in averages.values()]])
            rule = f"{NAMES[variant]}, {rule}"
            label = rule if study.forms == ["fixed"] else f"{rule}, {'one rate' if form == 'fixed' else 'its best rate'}"
            color, marker = style(variant)
            look: dict[str, Any] = {"color": color, "marker": marker, "ms": 5, "lw": 1.4, "capsize": 2} | FORMS[form]
            beside = 1.0 if form == "fixed" else 1.12  # so that its bars can be seen
            axes.errorbar([r * beside for r in ranks], means, bars, label=label, **look)
            if form == "fixed" and point == Point("grad_B", 0):
                theory = [means[0] * (r / ranks[0]) ** STEP_0[variant] for r in ranks]
                legend = "theory at step 0: slopes -1/2 and 0" if variant == "rslora" else None
                axes.plot(ranks, theory, label=legend, **THEORY)
    ticks = sorted(int(r) for r in study.frame["r"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(r) for r in ticks])
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("rank r")
    axes.set_title(point.name, fontsize=9)
    if point.quantity in QUANTITIES:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        fitted = {rule: study.slope("fixed", variant, point) for variant, rule in SCALINGS.items() if "fixed" in study.forms}
        shown_slopes = ", ".join(f"{slope.mean:+.2f} ({rule})" for rule, slope in fitted.items() if slope.n)
        axes.set_title(f"{point.name}\nslope {shown_slopes}" if shown_slopes else point.name, fontsize=8)
    else:
        axes.set_ylabel("nats per target token")


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if "--help" in words:
        print(__doc__)
        return 0
    folder = Path(read(words, {"folder": Key(str, "FOLDER")})[0].get("folder", HERE))
    frame, lost = load(folder / "results.csv")
    study = Study(frame)
    parts = [f"Lost, because they diverged or were cut off: {'; '.join(lost)}.\n"] if lost else []
    for form in study.forms:
        rate = "one learning rate for all" if form == "fixed" else "each (variant, rank) at its own learning rate"
        parts += [
            f"## Form `{form}`: {rate}\n",
            slope_table(study, form) + "\n",
            "Slopes by kind of module:\n",
            module_table(study, form) + "\n",
            rank_table(study, form) + "\n",
        ]
    lines = findings(study)
    write_atomically(folder / "tables.md", "\n".join(["# Tables of report.py\n", *parts, *(f"- {line}" for line in lines), ""]))
    draw(study, folder / "rank_stability.png")
    print("\n".join([*(f"lost: {line}" for line in lost), *lines]))
    return 0


if __name__ == "__main__":
    cli.run(main)
