"""``python -m experiments.four_bits.report [folder=FOLDER]``: write Markdown and figures from measure.py's tables.

Reads errors.csv, bits.csv, memory.csv and training.csv, as far as they exist; writes tables.md, errors.png, training.png.
Intervals: 95 %, t over seeds. Each precision gets the rate with the lowest mean validation loss over ``TUNING`` seeds, and
reports on the other seeds, paired with bf16's.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from experiments import markdown, sheet
from src.command import cli, words
from src.command.words import Key
from src.compare.statistics import Interval, holm, mean_interval, paired
from src.compare.styles import OTHER, style
from src.files.errors import ConfigError

HERE = Path(__file__).resolve().parent
TUNING = (0, 1, 2)
MARGIN = 0.01  # nats that count as no difference in the test of equivalence
ORDER = ("bf16", "int8", "nf4", "nf4, double", "fp4", "fp4, double")
# A precision looks like the variant that trains on it, fp4 like none of them; hollow and dashed without double quantization.
STYLE_OF = {"bf16": style("lora"), "int8": style("lora_8bit"), "nf4": style("qlora"), "fp4": OTHER}
AXES: dict[Any, Any] = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip
PAIRS = (("nf4, double", "nf4"), ("fp4, double", "nf4, double"))  # the cost of double quantization; the two 4-bit formats
ERRORS = ["bits", "norm", "rms", "largest"]
PARTS = ("weights", "scales", "tables")
PAPER = {"nf4": 4.5, "nf4, double": 4.127, "fp4": 4.5, "fp4, double": 4.127}  # bits a weight, arXiv 2305.14314, section 3


def errors(frame: pd.DataFrame) -> list[str]:
    """Write each format's error: over seeds on Gaussian weights, pooled over the matrices of the embedded base."""
    if not np.isfinite(frame[ERRORS]).all(axis=None):
        raise ConfigError("errors.csv: not all errors are finite")
    sizes = list(dict.fromkeys(frame.loc[frame["weights"] == "gaussian", "matrix"]))
    if not sizes:
        raise ConfigError("errors.csv: has no Gaussian weights")
    real = frame[frame["weights"] != "gaussian"]
    rows = []
    for name in dict.fromkeys(frame["format"]):
        of_format = frame[frame["format"] == name]
        row = {"format": name, "bits": f"{of_format['bits'].min():.3f}" + ("+" if of_format["bits"].nunique() > 1 else "")}
        for size in sizes:
            row[f"gaussian {size}"] = _interval(mean_interval(of_format.loc[of_format["matrix"] == size, "rms"]), 5)
        of_base = real[real["format"] == name]
        row[f"smollm2_135m, {len(of_base)} matrices"] = f"{pooled(of_base):.5f}"
        row["worst matrix"] = f"{of_base['rms'].max():.4f}"
        row["largest error, gaussian"] = f"{of_format.loc[of_format['weights'] == 'gaussian', 'largest'].max():.3f}"
        row["largest error, smollm2_135m"] = f"{of_base['largest'].max():.3f}"
        rows.append(row)
    kinds = [
        {"module": kind} | {name: f"{pooled(part):.4f}" for name, part in group.groupby("format", sort=False)}
        for kind, group in real.groupby("matrix", sort=False)
    ]
    text = "Root mean square error over that of the weights; pooled: over all weights of all matrices at once."
    return [
        "## Quantisation error",
        text,
        markdown.table(rows),
        "By module kind of smollm2_135m, pooled over its layers:",
        markdown.table(kinds),
    ]


def pooled(part: pd.DataFrame) -> float:
    """Pool relative errors: the root of (summed squared errors over summed squared weights)."""
    return math.sqrt(((part["rms"] * part["norm"]) ** 2).sum() / (part["norm"] ** 2).sum())


def bits(frame: pd.DataFrame) -> list[str]:
    frame = frame.assign(label=labels(frame))
    rows = []
    for name, of in frame.groupby("label", sort=False):
        if sorted(of["part"]) != sorted(PARTS):
            raise ConfigError(f"bits.csv: {name}: needs a row for each of {', '.join(PARTS)}, as a whole measurement has")
        each = of.set_index("part")["bits"]
        row = {"precision": name} | {f"{part}, bits": f"{each[part]:.4f}" for part in each.index}
        row["weights and scales"] = f"{each['weights'] + each['scales']:.4f}"
        row["the paper's"] = f"{PAPER[name]:.3f}" if name in PAPER else "-"
        row["all that is held"] = f"{each.sum():.4f}"
        rows.append(row)
    total = frame[frame["part"] != "tables"].groupby("label")["bits"].sum()
    saved = [
        f"{kind}: {total[kind] - total[f'{kind}, double']:.4f}"
        for kind in ("nf4", "fp4")
        if {kind, f"{kind}, double"} <= {*total.index}
    ]
    return [
        "## Bits a weight",
        markdown.table(rows),
        f"Saved by double quantisation, bits a weight: {', '.join(saved)} (the paper's: 0.373).",
    ]


def memory(frame: pd.DataFrame) -> list[str]:
    rows = []
    for _, case in frame.iterrows():
        row = {"model": case["model"], "precision": _precision(case), "rows": f"{case['rows']} x {case['length']}"}
        if pd.isna(case["ms/step"]):
            rows.append(row | {"note": str(case["note"])})
            continue
        row |= {"ms a step": f"{case['ms/step']:.1f} (± {case['spread ms']:.1f})", "tokens/s": f"{case['tokens/s']:,.0f}"}
        row |= {"speed": case["speed"]}
        for column in ("held GiB", "peak GiB", "building GiB"):
            row[column] = "-" if pd.isna(case[column]) else f"{case[column]:.2f}"
        rows.append(row | {"note": "-"})
    what = (
        "Held: before the first step, base, adapter, gradients, AdamW. Spread: half the distance of the quartiles of 5 timings."
    )
    return ["## Memory and time of a training step", what, markdown.table(rows)]


def _precision(case: pd.Series) -> str:
    kind = {"lora": "bf16", "qlora": "nf4", "lora_8bit": "int8"}.get(case["variant"], case["variant"])
    double = "double_quant=false" not in str(case["options"])
    return f"{kind}, double" if kind == "nf4" and double else kind


def labels(frame: pd.DataFrame) -> pd.Series:
    double = frame["double_quant"].astype(str).str.lower().eq("true") & frame["precision"].isin(["nf4", "fp4"])
    return frame["precision"].where(~double, frame["precision"] + ", double")


def training(frame: pd.DataFrame) -> list[str]:
    frame = frame.assign(label=labels(frame))
    if not np.isfinite(frame.loc[frame["status"] == "ok", "test/loss"]).all():
        raise ConfigError("training.csv: a run that ended well has no test loss")
    frozen = before(frame)
    best, reported = chosen(frame)
    grid = sorted(frame["lr"].dropna().unique())
    rows = []
    for name in (name for name in ORDER if name in reported):
        values = reported[name]["test/loss"]
        row = {"precision": name, "before training": _number(frozen.get(name)), "best rate": f"{best[name]:g}"}
        row["on the grid's edge"] = "yes" if best[name] in (grid[0], grid[-1]) else "no"
        row |= {"test loss": _interval(mean_interval(values), 4), "n": str(len(values))}
        if "test/exact_match" in reported[name] and reported[name]["test/exact_match"].notna().all():
            row["exact match"] = _interval(mean_interval(reported[name]["test/exact_match"]), 4)
        rows.append(row)
    trained = frame[~frame["variant"].str.startswith("frozen")]
    rates = [
        {"precision": name} | {f"{lr:g}": _mean(part.loc[part["lr"] == lr, "test/loss"]) for lr in grid}
        for name in ORDER
        if len(part := trained[trained["label"] == name])
    ]
    bad = trained["status"].value_counts().drop("ok", errors="ignore")
    failed = f"Runs that did not end well: {', '.join(f'{n} {status}' for status, n in bad.items()) or 'none'} of {len(trained)}."
    if lacking := sheet.lacking(trained, ("label", "lr")):
        failed += f" Not there: {'; '.join(f'{name} at {lr:g}, seed {seed}' for name, lr, seed in lacking)}."
    heading = (
        f"Test loss in nats per target token; rates chosen on seeds {', '.join(map(str, TUNING))}; TOST within {MARGIN} nats."
    )
    means = "Mean test loss by learning rate, all seeds; -: a seed did not end well:"
    after = {name: runs["test/loss"] for name, runs in reported.items()}
    every = {
        name: part[part["lr"] == best[name]].set_index("seed")["test/loss"]
        for name, part in trained.groupby("label")
        if name in reported
    }
    parts = ["## Before and after training", heading, markdown.table(rows), failed, means, markdown.table(rates)]
    for seeds, losses in (("the report seeds", after), ("all seeds, those that chose the rates too", every)):
        if tests := differences(frozen, losses):
            floor = "Paired by seed; two-sided sign flips over n seeds give no p below 2 / 2^n; Holm over the table."
            parts += [f"Differences of test loss after training, {seeds}. {floor}", markdown.table(tests)]
    return parts


def differences(frozen: pd.Series, losses: dict[str, pd.Series]) -> list[dict[str, str]]:
    """Test the difference of each precision to bf16, and of ``PAIRS``, before and after training, paired by seed.

    Closed: the share of the difference before training that training removes.
    """
    pairs = [(name, "bf16") for name in ORDER if name != "bf16"] + list(PAIRS)
    gaps = {(a, b): (losses[a] - losses[b]).dropna() for a, b in pairs if a in losses and b in losses}
    tests = {pair: paired(gap.to_numpy(), MARGIN) for pair, gap in gaps.items() if len(gap) > 1}
    adjusted = holm([test.p_flip for test in tests.values()])
    rows = []
    for ((a, b), test), p in zip(tests.items(), adjusted, strict=True):
        start = frozen.get(a, float("nan")) - frozen.get(b, float("nan"))
        row = {"difference": f"{a} - {b}", "before training": _number(start, "+")}
        row["after training"] = f"{test.mean:+.4f} [{test.low:+.4f}, {test.high:+.4f}], n = {test.n}"
        row["closed"] = f"{1 - test.mean / start:.1%}" if b == "bf16" and start > 0 else "-"
        row |= {"p (sign flips)": f"{test.p_flip:.4f}", "p (Holm)": f"{p:.4f}", "p (TOST)": f"{test.p_tost:.4f}"}
        rows.append(row)
    return rows


def before(frame: pd.DataFrame) -> pd.Series:
    """Look up the test loss of each precision's base without training, which depends on no seed."""
    return frame[frame["variant"].str.startswith("frozen")].groupby("label")["test/loss"].mean()


def chosen(frame: pd.DataFrame) -> tuple[dict[str, float], dict[str, pd.DataFrame]]:
    """Choose each precision's (rate, report runs by seed). A rate with a missing or failed tuning run is excluded."""
    trained = frame[~frame["variant"].str.startswith("frozen")]
    best, reported = {}, {}
    for name, part in trained.groupby("label"):
        sound = part.groupby("lr")["status"].transform(lambda status: (status == "ok").all())
        tuned = part[sound & part["seed"].isin(TUNING)].groupby("lr")["val/loss"].agg(["mean", "count"])
        tuned = tuned.loc[tuned["count"] == len(TUNING), "mean"]
        if len(tuned):
            best[name] = float(tuned.idxmin())
            reported[name] = part[(part["lr"] == best[name]) & ~part["seed"].isin(TUNING)].set_index("seed").sort_index()
    return best, {name: runs for name, runs in reported.items() if len(runs)}


def draw_errors(frame: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    names = [name for name in dict.fromkeys(frame["format"]) if name not in ("bf16", "int8")]
    largest = frame.loc[frame["weights"] == "gaussian", "matrix"].iloc[-1]
    for kind, marker, face, beside in (("gaussian", "o", "#333333", -0.13), ("smollm2_135m", "s", "white", 0.13)):
        of = frame[(frame["weights"] == kind) & ((kind != "gaussian") | (frame["matrix"] == largest))]
        values = [pooled(of[of["format"] == name]) for name in names]
        label = f"Gaussian, {largest}" if kind == "gaussian" else "SmolLM2-135M, which was Q4_1"
        places = [index + beside for index in range(len(names))]  # side by side, so that equal values are both visible
        axes.plot(values, places, marker, label=label, ms=7, color="#333333", mfc=face, mew=1.3)
    each = frame.groupby("format")["bits"].min()
    axes.set_yticks(range(len(names)), [f"{name} ({each[name]:.3f} bits)" for name in names])
    axes.invert_yaxis()
    axes.set_xlim(left=-0.003)
    axes.set_xlabel("root mean square error of the weights, relative to theirs")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="upper left")
    return figure


def draw_training(frame: pd.DataFrame) -> Figure:
    """Draw test loss by rate, all seeds; each precision minus bf16, before training and after it at its own best rate."""
    frame = frame.assign(label=labels(frame))
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = frame[~frame["variant"].str.startswith("frozen") & (frame["status"] == "ok")]
    names = [name for name in ORDER if (trained["label"] == name).any()]
    for index, name in enumerate(names):
        means = trained[trained["label"] == name].groupby("lr")["test/loss"].apply(mean_interval)
        center = [interval.mean for interval in means]
        reach = [interval.mean - interval.low for interval in means]
        beside = 1.05 ** (index - (len(names) - 1) / 2)
        left.errorbar(means.index * beside, center, yerr=reach, capsize=2, **_look(name))
    left.set_xscale("log")
    left.xaxis.set_major_locator(FixedLocator(sorted(trained["lr"].unique())))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    seeds = trained.groupby(["label", "lr"])["seed"].nunique()
    left.set_xlabel("learning rate (precisions side by side)")
    left.set_ylabel("nats per target token")
    left.set_title(f"Test loss by learning rate, 95%, n = {seeds.max() if len(seeds) else 0}")
    frozen = before(frame)
    _, reported = chosen(frame)
    shown = [name for name in ORDER if name in reported and name in frozen.index and name != "bf16"]
    count = 0
    if "bf16" in reported and "bf16" in frozen.index:
        for index, name in enumerate(shown):
            right.plot(frozen[name] - frozen["bf16"], index, "D", color="0.55", ms=6)
            gap = mean_interval((reported[name]["test/loss"] - reported["bf16"]["test/loss"]).dropna())
            count = max(count, gap.n)
            right.errorbar(gap.mean, index, xerr=[[gap.mean - gap.low], [gap.high - gap.mean]], capsize=3, **_look(name))
            right.annotate(f"{gap.mean:+.4f}", (gap.mean, index), (0, 8), textcoords="offset points", ha="center", fontsize=8.5,
                           bbox={"fc": "white", "ec": "none", "pad": 0.5})  # fmt: skip
    right.axvline(0, color=_look("bf16")["color"], lw=1.2)
    right.set_yticks(range(len(shown)), shown)
    right.set_ylim(len(shown) - 0.5, -0.6)
    right.grid(visible=False, axis="y")
    right.margins(x=0.12)
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.set_xlabel("nats per target token")
    right.set_title(f"Test loss less bf16's, 95%, n = {count}")
    entries = [Line2D([], [], label=name, **_look(name)) for name in names]
    entries += [Line2D([], [], ls="", marker="D", color="0.55", ms=6, label="before training")] * bool(count)
    figure.legend(handles=entries, loc="outside upper center", ncols=4)
    return figure


def _look(name: str) -> dict[str, Any]:
    """Look up the plot style of a precision, as arguments of ``plot``."""
    kind, _, double = name.partition(", ")
    color, marker = STYLE_OF[kind]
    single = kind in ("nf4", "fp4") and not double
    dashed = {"ls": (0, (4, 2)), "mfc": "white"} if single else {}
    return {"color": color, "marker": marker, "mec": color, "ms": 5.5, "lw": 1.4} | dashed


def _interval(interval: Interval, digits: int) -> str:
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _mean(values: pd.Series) -> str:
    return "-" if values.isna().any() or values.empty else f"{values.mean():.4f}"


def _number(value: Any, sign: str = "") -> str:
    return "-" if value is None or pd.isna(value) else f"{value:{sign}.4f}"


TABLES = {"errors": errors, "bits": bits, "memory": memory, "training": training}
# Columns to read of each: those that every row fills, numbers, and those that may be empty.
COLUMNS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "errors": (["weights", "matrix", "format", *ERRORS], ERRORS, []),
    "bits": (["precision", "double_quant", "part", "bits"], ["bits"], []),
    "memory": (
        ["model", "variant", "rows", "length"],
        ["rows", "length", "ms/step", "spread ms", "tokens/s", "held GiB", "peak GiB", "building GiB"],
        ["options", "speed", "note"],
    ),
    "training": (["variant", "precision", "double_quant", "seed", "status"], ["lr", "seed", "val/loss", "test/loss"], []),
}
FIGURES = {"errors": draw_errors, "training": draw_training}


def main() -> int:
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return 0
    values, _ = words.read(sys.argv[1:], {"folder": Key(str, "FOLDER")})
    folder = Path(values.get("folder", HERE))
    paths = {name: folder / f"{name}.csv" for name in TABLES}
    frames = {name: sheet.read(path, *COLUMNS[name]) for name, path in paths.items() if path.is_file()}
    if not frames:
        raise ConfigError(f"folder={folder}: none of {', '.join(f'{name}.csv' for name in TABLES)} is there")
    text = "\n\n".join(part for name, frame in frames.items() for part in TABLES[name](frame))
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    for name, draw in FIGURES.items():
        if name in frames:
            with matplotlib.rc_context(AXES):
                draw(frames[name]).savefig(folder / f"{name}.png", dpi=150)
    return 0


if __name__ == "__main__":
    cli.run(main)
