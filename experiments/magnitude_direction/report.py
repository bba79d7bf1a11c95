"""``python -m experiments.magnitude_direction.report [folder=FOLDER]``: tables.md, directions.png, pooling.png.

Reads results.csv(.gz) and losses.csv of FOLDER (default: this one), trains nothing, and prints what it writes to tables.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import markdown, sheet
from experiments.magnitude_direction import figures
from experiments.magnitude_direction.correlation import (
    DRAWS,
    Correlation,
    FloatArray,
    correlate,
    difference,
    fisher_z,
    over_seeds,
    pearson,
    per_seed,
    random_direction,
    spearman,
)
from src.command import cli, words
from src.command.words import Key
from src.compare.statistics import mean_interval
from src.files.durable import write_atomically
from src.files.errors import ConfigError
from src.files.text import few

HERE = Path(__file__).resolve().parent
QUERY = "q_proj"
PUBLISHED = {"full": -0.62, "dora": -0.31, "lora": 0.83}  # arXiv 2402.09353, section 3.2: query matrices of VL-BART
NAMES = {"full": "full", "lora": "LoRA", "dora": "DoRA"}
Arm = tuple[str, int]  # variant, r
RUN = ["variant", "r", "seed", "step"]
MEASURED = [*RUN, "paper", "module", "layer", "d_in"]  # and CHANGES, which a run that diverged lacks
CHANGES = ["dM", "dD", "relative_dM"]
LOSSES = ["train", "val", "test"]


@dataclass(frozen=True)
class View:
    """A way of pooling: modules (None: all), checkpoints, and the axes that the coefficient is taken over."""

    name: str
    module: str | None
    papers_steps: bool
    over: str


VIEWS = (
    View("as the paper: query, 4 checkpoints x layers", QUERY, True, "TL"),
    View("query, all checkpoints x layers", QUERY, False, "TL"),
    View("query, over layers within a checkpoint", QUERY, True, "L"),
    View("query, over checkpoints within a layer", QUERY, False, "T"),
    View("all modules, 4 checkpoints x layers x modules", None, True, "TLK"),
    View("all modules, over layers within checkpoint and module", None, True, "L"),
)


class Measured:
    """dM, dD and relative dM of one variant and rank as arrays [S, T, L, K], for the seeds that have all of them."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.modules = list(dict.fromkeys(frame["module"]))
        self.steps = sorted(frame["step"].unique())
        self.papers = sorted(frame.loc[frame["paper"] == 1, "step"].unique())
        self.layers = sorted(frame["layer"].unique())
        self.d_in = dict(zip(frame["module"], frame["d_in"], strict=True))
        cells = len(self.steps) * len(self.layers) * len(self.modules)
        whole = {
            seed: len(rows) == cells and bool(np.isfinite(rows[CHANGES]).all(axis=None)) for seed, rows in frame.groupby("seed")
        }
        self.seeds = [seed for seed, good in whole.items() if good]
        self.left_out = [seed for seed, good in whole.items() if not good]
        order = pd.MultiIndex.from_product([self.seeds, self.steps, self.layers, self.modules])
        indexed = frame.set_index(["seed", "step", "layer", "module"]).loc[order]
        shape = (len(self.seeds), len(self.steps), len(self.layers), len(self.modules))
        self.values: dict[str, FloatArray] = {name: indexed[name].to_numpy(float).reshape(shape) for name in CHANGES}

    def of(self, view: View, name: str) -> FloatArray:
        return self.select(name, self.papers if view.papers_steps else self.steps, view.module)

    def select(self, name: str, steps: Sequence[int], module: str | None) -> FloatArray:
        values = self.values[name][:, [self.steps.index(step) for step in steps]]
        return values if module is None else values[..., [self.modules.index(module)]]


def read(folder: Path) -> tuple[dict[Arm, Measured], pd.DataFrame]:
    """Read the measured arms, full first, and the losses.

    Raises:
        ConfigError: one line; there is nothing to report on, or no complete table of this study.
    """
    place = next((folder / name for name in ("results.csv.gz", "results.csv") if (folder / name).is_file()), None)
    if place is None or not (folder / "losses.csv").is_file():
        raise ConfigError(f"{folder}: holds no results.csv.gz and losses.csv; python -m experiments.magnitude_direction.measure")
    frame = sheet.read(place, MEASURED, [*RUN[1:], "paper", "layer", "d_in", *CHANGES])
    losses = sheet.read(folder / "losses.csv", [*RUN, "lr"], [*RUN[1:], "lr", *LOSSES])
    if strange := [name for name in frame["variant"].unique() if name not in NAMES]:
        raise ConfigError(f"{place}: {few(strange)}: no variant of this study")
    if len(twice := frame[frame.duplicated([*RUN, "module", "layer"])]):
        raise ConfigError(f"{place}: row {twice.index[0] + 1} is of a matrix, step and seed that an earlier row has")
    arms = {(str(variant), int(r)): Measured(rows) for (variant, r), rows in frame.groupby(["variant", "r"])}
    good = {arm: data for arm, data in arms.items() if data.seeds and QUERY in data.modules and data.papers}
    if not good:
        raise ConfigError(f"{place}: no seed is whole in any variant")
    return dict(sorted(good.items(), key=lambda item: (item[0][1], item[0][0] != "lora"))), losses


def label(arm: Arm) -> str:
    variant, r = arm
    return f"{NAMES.get(variant, variant)} r={r}" if r else NAMES.get(variant, variant)


def _signed(*values: float) -> str:
    """Write a mean and its interval, as far as they are known; a dash where the mean is not."""
    mean, *interval = values
    if not np.isfinite(mean):
        return "-"
    return f"{mean:+.2f} {_range(*interval)}"


def _range(low: float, high: float) -> str:
    return f"[{low:+.2f}, {high:+.2f}]" if np.isfinite([low, high]).all() else "[-]"


def sign(correlation: Correlation, published: float) -> str:
    """Compare the sign with the published one; undecided unless both intervals lie on one side of 0."""
    ends = [
        end for end in (correlation.low, correlation.high, correlation.layers_low, correlation.layers_high) if np.isfinite(end)
    ]
    if len(ends) < 4:
        return "one seed or layer: cannot say"
    if min(ends) <= 0 <= max(ends):
        return "undecided"
    return "as published" if (correlation.r > 0) == (published > 0) else "the opposite"


def papers_table(arms: dict[Arm, Measured], correlations: dict[tuple[Arm, str], Correlation]) -> str:
    rows = []
    for arm, data in arms.items():
        correlation, published = correlations[arm, VIEWS[0].name], PUBLISHED[arm[0]]
        seeds = f"{len(data.seeds)}" + (f" ({data.left_out} left out)" if data.left_out else "")
        layers = _range(correlation.layers_low, correlation.layers_high)
        rows.append(
            [
                label(arm),
                f"{published:+.2f}",
                _signed(correlation.r, correlation.low, correlation.high),
                layers,
                seeds,
                sign(correlation, published),
            ]
        )
    return markdown.under(["", "published", "r [95%, seeds]", "[95%, layers]", "seeds", "sign"], rows)


def views_table(arms: dict[Arm, Measured], correlations: dict[tuple[Arm, str], Correlation]) -> str:
    rows = []
    for view in VIEWS:
        cells = [correlations[arm, view.name] for arm in arms]
        rows.append([view.name, *(f"{_signed(f.r, f.low, f.high)} {_range(f.layers_low, f.layers_high)}" for f in cells)])
    return markdown.under(["pooling", *map(label, arms)], rows)


def by_step(arms: dict[Arm, Measured]) -> str:
    """Correlate over layers within each checkpoint: absolute dM, and dM as a share of the matrix's own mean magnitude."""
    rows = []
    for step in next(iter(arms.values())).steps:
        for name in ("dM", "relative_dM"):
            cells = [
                _seeds(per_seed(data.select("dD", [step], QUERY), data.select(name, [step], QUERY), "L"))
                for data in arms.values()
            ]
            rows.append([str(step), name.replace("_", " "), *cells])
    return markdown.under(["step", "with", *map(label, arms)], rows)


def by_module(arms: dict[Arm, Measured], over: str) -> str:
    """Correlate each kind of module at the paper's checkpoints ``over`` layers and checkpoints (TL) or layers alone (L)."""
    rows = []
    for module in next(iter(arms.values())).modules:
        cells = [
            _seeds(per_seed(data.select("dD", data.papers, module), data.select("dM", data.papers, module), over))
            for data in arms.values()
        ]
        rows.append([module, *cells])
    return markdown.under(["module", *map(label, arms)], rows)


def other_measures(arms: dict[Arm, Measured]) -> str:
    """Pool as the paper does, by Spearman's coefficient, with dM relative to the matrix's mean magnitude, and by chance."""
    rows = []
    for title, name, coefficient in (("Spearman", "dM", spearman), ("Pearson, relative dM", "relative_dM", pearson)):
        cells = [
            _seeds(per_seed(d.select("dD", d.papers, QUERY), d.select(name, d.papers, QUERY), "TL", coefficient))
            for d in arms.values()
        ]
        rows.append([title, *cells])
    rows.append(["Pearson, dM of a random update with the same dD", *(_seeds(_by_chance(data)) for data in arms.values())])
    return markdown.under(["as the paper pools, by", *map(label, arms)], rows)


def _by_chance(data: Measured) -> FloatArray:
    """Compute the paper's coefficient for each seed if each matrix had moved as far in direction, but at random."""
    dD, dM, relative = (data.select(name, data.papers, QUERY) for name in ("dD", "dM", "relative_dM"))
    magnitude = np.divide(dM, relative, out=np.ones_like(dM), where=relative > 0)  # its mean over the rows of a matrix
    return per_seed(dD, random_direction(dD, data.d_in[QUERY]) * magnitude, "TL")


def without_a_layer(arms: dict[Arm, Measured]) -> str:
    """Leave out the layer of the query matrices whose absence changes the coefficient most, in Fisher's z."""
    rows = []
    for view in (VIEWS[0], VIEWS[2]):
        cells = []
        for data in arms.values():
            x, y = data.of(view, "dD"), data.of(view, "dM")
            if len(data.layers) < 3:
                cells.append("-")
                continue
            whole = fisher_z(per_seed(x, y, view.over)).mean()
            left = [per_seed(np.delete(x, index, 2), np.delete(y, index, 2), view.over) for index in range(len(data.layers))]
            most = int(np.argmax([abs(fisher_z(r).mean() - whole) for r in left]))
            cells.append(f"{_seeds(left[most])} without layer {data.layers[most]}")
        rows.append([view.name, *cells])
    return markdown.under(["pooling", *map(label, arms)], rows)


def _seeds(r: FloatArray) -> str:
    return _signed(*over_seeds(r))


def differences(arms: dict[Arm, Measured]) -> str:
    """Compare pairs of arms by seed, in Fisher's z, in the paper's pooling and within checkpoints."""
    rows = []
    pairs = [(a, b) for a in arms for b in arms if a[0] == "lora" and (b[0] == "full" or (b[0] == "dora" and b[1] == a[1]))]
    for a, b in pairs:
        common = [seed for seed in arms[a].seeds if seed in arms[b].seeds]
        for view in (VIEWS[0], VIEWS[2]):
            both = []
            for arm in (a, b):
                data = arms[arm]
                keep = [data.seeds.index(seed) for seed in common]
                both.append(per_seed(data.of(view, "dD"), data.of(view, "dM"), view.over)[keep])
            rows.append([f"{label(a)} - {label(b)}", view.name, _signed(*difference(both[0], both[1])), str(len(common))])
    return markdown.under(["", "pooling", "difference of z [95%, seeds]", "seeds"], rows)


def losses_table(arms: dict[Arm, Measured], losses: pd.DataFrame) -> str:
    """Write the losses at the last checkpoint, nats per target token."""
    last = losses[losses["step"] == losses["step"].max()]
    rows = []
    for variant, r in arms:
        some = last[(last["variant"] == variant) & (last["r"] == r)]
        rates = "/".join(f"{rate:g}" for rate in sorted(some["lr"].unique()))
        cells = []
        for name in LOSSES:
            values = some[name].to_numpy(float)
            interval = mean_interval(values[np.isfinite(values)])
            cells.append(f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
        diverged = int((~np.isfinite(some[["train", "val"]])).any(axis=1).sum())
        rows.append([label((variant, r)), rates, *cells, f"{len(some)}" + (f" ({diverged} diverged)" if diverged else "")])
    return markdown.under(["", "rate", "train", "val", "test", "seeds"], rows)


def matched(arms: dict[Arm, Measured], losses: pd.DataFrame) -> str:
    """Correlate over layers at each arm's first checkpoint whose mean validation loss is at most the worst arm's last."""
    mean = losses.groupby(["variant", "r", "step"])["val"].mean()
    curves = {arm: mean[arm] for arm in arms if arm in mean.index.droplevel("step")}
    worst = max(float(curve.iloc[-1]) for curve in curves.values())
    rows = []
    for arm, curve in curves.items():
        step = int(curve.index[curve.to_numpy() <= worst][0])
        data = arms[arm]
        x, y = data.select("dD", [step], QUERY), data.select("dM", [step], QUERY)
        sizes = [f"{float(values.mean()):.3g}" for values in (y, data.select("relative_dM", [step], QUERY), x)]
        rows.append([label(arm), str(step), f"{curve[step]:.3f}", _seeds(per_seed(x, y, "L")), *sizes])
    return markdown.under(["", "step", "val loss", "r over layers [95%, seeds]", "mean dM", "mean relative dM", "mean dD"], rows)


def against_chance(arms: dict[Arm, Measured]) -> str:
    """Divide relative dM by that of a random update at the same dD, last checkpoint: the median of layers and seeds."""
    rows = []
    modules = next(iter(arms.values())).modules
    for arm, data in arms.items():
        cells = []
        for module in modules:
            dD, dM = (data.select(name, data.steps[-1:], module) for name in ("dD", "relative_dM"))
            cells.append(f"{float(np.median(dM / np.maximum(random_direction(dD, data.d_in[module]), 1e-30))):.2f}")
        rows.append([label(arm), *cells])
    return markdown.under(["", *modules], rows)


def report(folder: Path, draws: int = DRAWS) -> str:
    """Write the tables and figures of ``folder`` into it, and return the tables."""
    arms, losses = read(folder)
    correlations = {
        (arm, view.name): correlate(data.of(view, "dD"), data.of(view, "dM"), view.over, draws=draws)
        for arm, data in arms.items()
        for view in VIEWS
    }
    sections = [
        (
            "Correlation of dD with dM, pooled as the paper pools (query matrices, 4 checkpoints, all layers)",
            papers_table(arms, correlations),
        ),
        ("By way of pooling: Pearson r [95%, seeds] [95%, layers]", views_table(arms, correlations)),
        ("The paper's pooling, other measures: [95%, seeds]", other_measures(arms)),
        ("Without the layer that changes it most: [95%, seeds]", without_a_layer(arms)),
        ("Differences, paired by seed", differences(arms)),
        ("Query matrices over layers, checkpoint by checkpoint: [95%, seeds]", by_step(arms)),
        ("Each kind of module, pooled as the paper pools: [95%, seeds]", by_module(arms, "TL")),
        ("Each kind of module, over layers within a checkpoint: [95%, seeds]", by_module(arms, "L")),
        ("At matched validation loss, query matrices", matched(arms, losses)),
        ("Relative dM over that of a random update with the same dD, last checkpoint, median", against_chance(arms)),
        ("Losses at the last checkpoint, nats per target token: [95%, seeds]", losses_table(arms, losses)),
    ]
    text = "\n".join(f"## {title}\n\n{table}\n" for title, table in sections)
    write_atomically(folder / "tables.md", text)
    figures.directions(arms, label, QUERY, folder / "directions.png")
    figures.pooling(arms, label, [view.name for view in VIEWS], correlations, PUBLISHED, folder / "pooling.png")
    return text


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments:
        print(__doc__)
        return 0
    values, _ = words.read(arguments, {"folder": Key(Path, "FOLDER")})
    print(report(values.get("folder", HERE)))
    return 0


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
