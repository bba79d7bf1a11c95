"""``python -m experiments.finlora_small.report [records [more]] [folder=FOLDER]``: results.csv, tables.md, ranking.png.

All three files are in FOLDER (default: this one). With the word ``records`` results.csv is written from the runs in ``runs/``;
without it, results.csv is read. With ``more`` those rows of results.csv are kept unchanged whose records are on another
machine.
Differences are to LoRA on 8 bits and paired by seed; p is of the exact sign-flip test, after Holm over a task's contrasts.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from experiments import sheet
from experiments.finlora_small.run import FORMS, RATES, REPORT, TASKS, TUNE
from src.command import cli, words
from src.command.words import Key
from src.compare.statistics import holm, mean_interval, paired
from src.compare.styles import line, style
from src.files.durable import write_atomically
from src.files.errors import ConfigError
from src.files.text import few
from src.record.records import RUNS, RunFolder

HERE = Path(__file__).resolve().parent
METRICS = {
    **{"val_loss": "val/loss", "test_loss": "test/loss", "exact_match": "test/exact_match", "macro_f1": "test/macro_f1"},
    **{"parse_failures": "test/parse_failures", "prose_before": "forgetting/before", "prose_after": "forgetting/after"},
}
NAMES = {"8bits_r8": "LoRA, 8 bits", "4bits_r4": "QLoRA, alpha 16", "8bits_r8_dora": "DoRA, 8 bits",
         "8bits_r8_rslora": "rsLoRA, 8 bits", "matched/4bits_r4": "QLoRA, alpha 8"}  # fmt: skip
# A method has the same color and marker in all figures, whatever the precision of its base.
LOOKS_LIKE = {"8bits_r8": "lora", "4bits_r4": "qlora", "8bits_r8_dora": "dora", "8bits_r8_rslora": "rslora",
              "matched/4bits_r4": "qlora"}  # fmt: skip
REFERENCE = "8bits_r8"
KEY = ["task", "form", "learning_rate", "seed"]
PUBLISHED = [form for form in FORMS if not form.startswith("matched/")]
MARGIN = 0.01  # nats
# FinLoRA's table for Llama-3.1-8B-Instruct, one seed: accuracy in percent on TFNS and NWGI, and on Financial Math.
THEIRS = {
    "tfns_nwgi": "TFNS: LoRA 88.0, QLoRA 83.8, rsLoRA 59.5, DoRA 59.1; NWGI: LoRA 54.2, QLoRA 50.0, rsLoRA 35.8, DoRA 19.6",
    "formula": "rsLoRA 34.5, LoRA 30.0, DoRA 28.5, QLoRA 26.5",
    "xbrl_term": "BERTScore: rsLoRA .630, QLoRA .606, DoRA .606, LoRA .599",
}


def from_records() -> pd.DataFrame:
    """Collect a row for each run of the three sweeps from their records."""
    rows = []
    by_settings = {(variant, r, alpha): form for form, (variant, r, alpha) in FORMS.items()}
    for path in sorted(RUNS.glob("*/result.json")):
        result = RunFolder(path.parent.name).result()
        task = str(result and result["sweep"]).removeprefix("finlora_")
        if result is None or task not in TASKS or result["model"] != "smollm2_135m":
            continue
        form = by_settings.get((result["variant"], result["r"], result["alpha"]))
        if form is not None:
            rows.append(_row(result, form))
    if not rows:
        raise ConfigError(f"{RUNS.absolute()}: holds no run of this study")
    return once(pd.DataFrame(rows).sort_values(KEY, ignore_index=True), str(RUNS.absolute()))


def once(runs: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check that no two runs have the same task, form, rate and seed; raises ConfigError."""
    twice = runs[runs.duplicated(KEY, keep=False)]
    if len(twice):
        ids = ", ".join(twice.run_id[:2])
        raise ConfigError(f"{where}: {ids}: one form, rate and seed twice, so something else differs between them")
    return runs


def load(path: Path) -> pd.DataFrame:
    """The runs of results.csv. Raises ConfigError, one line, where it is not there, or no such table."""
    if not path.exists():
        raise ConfigError(f"{path}: not there; the word records alone makes it from runs/")
    return read(path)


def read(path: Path | str, text: str | None = None) -> pd.DataFrame:
    """The runs of a CSV, or of ``text`` that came from ``path``."""
    numbers = ("learning_rate", "seed", "effective_scale", *METRICS)
    runs = once(sheet.read(path, ("run_id", "status", *KEY, "effective_scale"), numbers, text=text), str(path))
    if strange := [form for form in runs.form.unique() if form not in FORMS]:
        raise ConfigError(f"{path}: {few(strange)}: no form of this study")
    if (lost := (runs.status == "ok") & ~np.isfinite(runs[["val_loss", "test_loss"]]).all(axis=1)).any():
        raise ConfigError(f"{path}: row {lost.argmax() + 1} ended well, and has no val_loss and test_loss that are finite")
    for task, rows in runs.groupby("task"):
        if task not in TASKS or REFERENCE not in chosen(rows) or at_rate(rows, REFERENCE, RATES[0], TUNE).empty:
            raise ConfigError(f"{path}: {task} is no task of this study, or has no tuning runs of {NAMES[REFERENCE]}")
    return runs


def _row(result: dict[str, Any], form: str) -> dict[str, Any]:
    kept = ("run_id", "variant", "r", "alpha", "effective_scale", "learning_rate", "seed", "steps", "status", "device")
    metrics = {name: result["metrics"].get(key) for name, key in METRICS.items()}
    return {"task": result["dataset"].removeprefix("finlora_"), "form": form, **{key: result[key] for key in kept}, **metrics}


def tuned(runs: pd.DataFrame) -> pd.Series[float]:
    """Average the validation loss over the tuning seeds by form and rate; NaN where a seed did not end well."""
    losses = runs[(runs.status == "ok") & runs.seed.isin(TUNE)].groupby(["form", "learning_rate"]).val_loss.agg(["mean", "count"])
    return losses["mean"].where(losses["count"] == len(TUNE))


def chosen(runs: pd.DataFrame) -> dict[str, float]:
    """Choose each form's rate with the lowest mean validation loss; a rate that lacks a tuning seed is excluded."""
    whole = tuned(runs).dropna()
    return {form: float(whole[form].idxmin()) for form in FORMS if form in whole.index}


def at_rate(runs: pd.DataFrame, form: str, rate: float, seeds: range) -> pd.DataFrame:
    """Select the runs at this rate that ended well, by seed."""
    tried = _tried(runs, form, rate, seeds)
    return tried[tried.status == "ok"].set_index("seed").sort_index()


def _tried(runs: pd.DataFrame, form: str, rate: float, seeds: range) -> pd.DataFrame:
    return runs[(runs.form == form) & np.isclose(runs.learning_rate, rate) & runs.seed.isin(seeds)]


def trained(runs: pd.DataFrame, rates: dict[str, float], seeds: range) -> dict[str, float]:
    """Keep the ``rates`` at which all ``seeds`` were trained and one ended well: a stopped sweep may lack some."""
    return {
        form: rate
        for form, rate in rates.items()
        if len(_tried(runs, form, rate, seeds)) == len(seeds) and len(at_rate(runs, form, rate, seeds))
    }


class Rates(NamedTuple):
    """Learning rates by form. chosen: lowest validation loss; published: FinLoRA's; best: the chosen with all report seeds."""

    chosen: dict[str, float]
    published: dict[str, float]
    best: dict[str, float]


def rates_of(runs: pd.DataFrame) -> Rates:
    best = chosen(runs)
    published = {form: RATES[0] for form in best if len(at_rate(runs, form, RATES[0], TUNE))}
    return Rates(best, published, trained(runs, best, REPORT))


def contrasts(runs: pd.DataFrame, rates: dict[str, float], seeds: range) -> dict[str, Any]:
    """Test each form's paired test-loss difference to the reference: {form: (test, p after Holm)}; empty without that."""
    if REFERENCE not in rates:
        return {}
    wanted = at_rate(runs, REFERENCE, rates[REFERENCE], seeds).test_loss
    tests = {
        form: paired((at_rate(runs, form, rates[form], seeds).test_loss - wanted).dropna().to_numpy(), MARGIN)
        for form in rates
        if form != REFERENCE
    }
    adjusted = holm([test.p_flip for test in tests.values()])
    return {form: (test, p) for (form, test), p in zip(tests.items(), adjusted, strict=True)}


def table(runs: pd.DataFrame, rates: dict[str, float], seeds: range) -> list[str]:
    lines = ["| form | scale | rate | n | test loss | right answers | no answer | minus LoRA on 8 bits | p (Holm) | verdict |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    differences = contrasts(runs, rates, seeds)
    for form, rate in rates.items():
        own = at_rate(runs, form, rate, seeds)
        loss = mean_interval(own.test_loss.to_numpy())
        edge = " (highest)" if rate == runs.learning_rate.max() else " (lowest)" if rate == min(RATES) and seeds == REPORT else ""
        parts = [NAMES[form], f"{own.effective_scale.iloc[0]:.3g}", f"{rate:g}{edge}", str(loss.n)]
        parts += [f"{loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}]", _mean(own.exact_match), _mean(own.parse_failures)]
        if form in differences:
            test, p = differences[form]
            verdict = "differs" if p < 0.05 else "equivalent" if test.equivalent else "undecided"
            parts += [
                f"{test.mean:+.4f} [{test.low:+.4f}, {test.high:+.4f}]",
                *([f"{p:.4f}", verdict] if test.n >= 6 else ["-", "n < 6"]),
            ]
        else:
            parts += ["-"] * 3
        lines.append("| " + " | ".join(parts) + " |")
    return lines


def _mean(values: pd.Series[float]) -> str:
    return "-" if values.isna().all() else f"{100 * values.mean():.1f}%"


def orders(runs: pd.DataFrame, rates: dict[str, float], seeds: range) -> list[str]:
    """Rank the published forms by test loss, lowest first, for each seed that all of them have."""
    losses = pd.DataFrame({form: at_rate(runs, form, rates[form], seeds).test_loss for form in PUBLISHED if form in rates})
    whole = losses.dropna()
    return [" < ".join(NAMES[form].split(",")[0] for form in row.sort_values().index) for _, row in whole.iterrows()]


def tables(everything: pd.DataFrame) -> str:
    lines = [f"Written by `python -m experiments.finlora_small.report` from results.csv: {len(everything)} runs, "
             f"{(everything.status != 'ok').sum()} not ok."]  # fmt: skip
    for task, runs in everything.groupby("task", sort=False):
        rates, published, best = rates_of(runs)
        bad = runs[runs.status != "ok"]
        lost = [f"{NAMES[run.form]} at {run.learning_rate:g}, seed {run.seed} ({run.status})" for run in bad.itertuples()]
        lines += ["", f"## {task}", "", f"FinLoRA: {THEIRS[str(task)]}.", ""]
        lacking = sheet.lacking(runs[runs.seed.isin(TUNE)], ("form", "learning_rate"))
        if lacking:
            absent = "; ".join(f"{NAMES[form]} at {rate:g}, seed {seed}" for form, rate, seed in lacking)
            lines += [f"Not there, so their rates are no candidates: {absent}.", ""]
        if lost:
            lines += [f"Not ok, so in no number and no choice of a rate: {'; '.join(lost)}.", ""]
        lines += [f"At FinLoRA's rate, {RATES[0]:g}, the tuning seeds:", "", *table(runs, published, TUNE), ""]
        lines += ["Each at its own best rate, the report seeds:", "", *table(runs, best, REPORT), ""]
        lines += [
            f"{NAMES[form]}: its best rate is {rates[form]:g}; its report seeds are not all trained.\n"
            for form in rates
            if form not in best
        ]
        for name, by_form, seeds in (("at FinLoRA's rate", published, TUNE), ("at its own best rate", best, REPORT)):
            orders_of_seeds = orders(runs, by_form, seeds)
            counted = f"{len(set(orders_of_seeds))} order{'s' * (len(set(orders_of_seeds)) > 1)} in {len(orders_of_seeds)} seeds"
            lines.append(f"Published forms by test loss, seed by seed, {name}: {counted}:\n")
            ranked = sorted(set(orders_of_seeds), key=lambda order: (-orders_of_seeds.count(order), order))
            lines += [f"- {orders_of_seeds.count(order)} x {order}" for order in ranked]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def figure(everything: pd.DataFrame) -> Figure:
    """Draw a row for each task: validation loss by learning rate; test loss minus the reference's at two choices of the rate."""
    tasks = list(everything.groupby("task", sort=False))
    drawing = Figure(figsize=(9, 3.1 * len(tasks) + 0.6), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(len(tasks), 2, squeeze=False, width_ratios=[1, 1.05])
    for (task, runs), (left, right) in zip(tasks, axes, strict=True):
        _by_rate(left, runs)
        _differences(right, runs)
        left.set_title(f"{task}: validation loss by learning rate", loc="left", fontsize=10)
        right.set_title(f"{task}: test loss minus that of LoRA, 8 bits", loc="left", fontsize=10)
    axes[-1, 0].set_xlabel(f"learning rate, forms side by side (FinLoRA's: {RATES[0]:g})")
    axes[-1, 1].set_xlabel("nats per target token (logarithmic beyond 0.02)")
    entries = [Line2D([], [], label=NAMES[form], **_look(form)) for form in FORMS if (everything.form == form).any()]
    entries += [Line2D([], [], ls="", label=" ")] * (len(entries) % 2)  # so that the forms fill whole columns
    entries += [
        Line2D([], [], color="grey", marker="D", ms=5, ls="", mfc=face, label=f"{name}, {len(seeds)} seeds, 95%")
        for name, face, seeds in ((f"all at {RATES[0]:g}", "white", TUNE), ("each at its best", "grey", REPORT))
    ]
    drawing.legend(handles=entries, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return drawing


def _look(form: str) -> dict[str, Any]:
    dotted = {"ls": (0, (1, 1.3)), "mfc": "white"} if form.startswith("matched/") else {}
    return line(LOOKS_LIKE[form]) | {"ms": 5.5} | dotted


def _by_rate(axes: Axes, runs: pd.DataFrame) -> None:
    tuning, losses = runs[runs.seed.isin(TUNE)], tuned(runs)
    forms = [form for form in FORMS if form in losses.index]
    for index, form in enumerate(forms):
        means = losses[form]
        beside = 1.045 ** (index - (len(forms) - 1) / 2)
        axes.plot(means.index * beside, means, zorder=3, **_look(form))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(tuning.learning_rate.unique())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yscale("log")
    ticks = [tick for tick in (0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6) if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_ylabel(f"nats per target token, {len(TUNE)} seeds")
    axes.spines[["top", "right"]].set_visible(False)


def _differences(axes: Axes, runs: pd.DataFrame) -> None:
    tuned, published, best = rates_of(runs)
    forms = [form for form in tuned if form != REFERENCE]
    for shift, hollow, rates, seeds in ((0.15, True, published, TUNE), (-0.15, False, best, REPORT)):
        differences = contrasts(runs, rates, seeds)
        for index, form in ((index, form) for index, form in enumerate(forms) if form in differences):
            test, _ = differences[form]
            (color, marker), y = style(LOOKS_LIKE[form]), len(forms) - index + shift
            axes.errorbar(test.mean, y, xerr=[[test.mean - test.low], [test.high - test.mean]], fmt=marker, color=color, ms=6,
                          mfc="white" if hollow else color, capsize=2)  # fmt: skip
    axes.axvline(0, color=style(LOOKS_LIKE[REFERENCE]).color, lw=1.2)
    axes.set_xscale("symlog", linthresh=0.02)
    axes.set_xlim(-3, 3)
    axes.set_xticks(ticks := [-1, -0.1, -0.01, 0, 0.01, 0.1, 1], [f"{tick:g}" for tick in ticks])
    axes.set_yticks([len(forms) - index for index in range(len(forms))], [NAMES[form] for form in forms])
    axes.set_ylim(0.4, len(forms) + 0.6)
    axes.grid(axis="x", color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> int:
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return 0
    values, free_words = words.read(sys.argv[1:], {"folder": Key(Path, "FOLDER")}, free="a word")
    folder = values.get("folder", HERE)
    if free_words not in ([], ["records"], ["records", "more"]):
        raise ConfigError(f"{' '.join(free_words)}: takes no word but records, and after it more")
    place, written, counted = folder / "results.csv", None, None
    if free_words:
        where = str(RUNS.absolute())
        old = load(place) if "more" in free_words else None
        written = from_records().to_csv(index=False, float_format="%.6g")
        if old is not None:
            where = f"{place} and {where}"
            written, counted = sheet.merged(place, written, KEY)
        runs = read(where, written)
    else:
        runs = load(place)
    text, picture = tables(runs), io.BytesIO()
    figure(runs).savefig(picture, format="png", dpi=150)
    if written is not None:  # replace files only when all of them can be written
        write_atomically(place, written)
    write_atomically(folder / "tables.md", text)
    (folder / "ranking.png").write_bytes(picture.getvalue())
    if counted is not None:
        print(counted)
    print(text, end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
