"""``python -m experiments.cost_on_a_gpu.report [folder=FOLDER]``: results.csv as tables.md and cost.png."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments import markdown, sheet
from src.command import cli, words
from src.command.words import Key
from src.compare.styles import style
from src.files.errors import ConfigError

HERE = Path(__file__).resolve().parent
MODELS = {"llama_3_2_1b": "Llama-3.2-1B", "llama_3_1_8b": "Llama-3.1-8B", "llama_3_1_70b": "Llama-3.1-70B"}
VARIANTS = {
    "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "qlora": "QLoRA", "qdora": "QDoRA", "lora_8bit": "LoRA on int8",
}  # fmt: skip
CASE = ["model", "variant", "options", "rows", "length", "r"]
FILLED = ["model", "variant", "engine", "rows", "length", "r", "runs"]
NUMBERS = ["rows", "length", "r", "runs", "ms/step", "spread ms", "tokens/s", "share of peak", "peak GiB", "peak TFLOP/s"]
ENGINES = {"peft": 0.4, "ours": 1.0}  # opacity of a bar; its color is the variant's


def load(folder: Path) -> pd.DataFrame:
    """Read the cases in the order of sizes and variants; of a case that was measured several times, the last."""
    path = folder / "results.csv"
    if not path.is_file():
        raise ConfigError(f"folder={folder}: no results.csv there")
    frame = sheet.read(path, FILLED, NUMBERS, ("options", "note"))
    frame = frame.drop_duplicates([*CASE, "engine", "runs"], keep="last")
    places = {name: place for place, name in enumerate([*MODELS, *VARIANTS])}
    return frame.sort_values(
        ["model", "variant", "options"], key=lambda column: column.map(lambda text: places.get(text, len(places))), kind="stable"
    )


def tables(frame: pd.DataFrame) -> str:
    """Write a table with our engine beside PEFT, a line for each model and variant, then the machines."""
    rows = []
    for case, both in frame.groupby(CASE, sort=False):
        engines = {engine: both[both["engine"] == engine] for engine in ENGINES}
        model, variant, options, batch, length, r = case
        row = {"model": MODELS.get(model, model), "variant": f"{VARIANTS.get(variant, variant)} {options}".strip()}
        row |= {"rows of a run": f"{batch} x {length}", "r": str(r)}
        for engine, rows_of_engine in engines.items():
            name = {"peft": "PEFT", "ours": "ours"}[engine]
            case_row: Any = rows_of_engine.iloc[0] if len(rows_of_engine) else None
            failed = case_row is None or pd.isna(case_row["ms/step"])
            missing = "not measured" if case_row is None else str(case_row["note"])
            row |= {f"{name}: runs": "-" if case_row is None else str(case_row["runs"])}
            row |= {f"{name}: ms a step": missing if failed else f"{case_row['ms/step']:.1f} (± {case_row['spread ms']:.1f})"}
            row |= {f"{name}: tokens/s": "-" if failed else f"{case_row['tokens/s']:,.0f}"}
            row |= {f"{name}: of peak": "-" if failed else f"{100 * case_row['share of peak']:.1f} %"}
            row |= {f"{name}: peak GiB": "-" if failed or pd.isna(case_row["peak GiB"]) else f"{case_row['peak GiB']:.1f}"}
        peaks = dict.fromkeys(f"{peak:.0f}" for peak in both["peak TFLOP/s"].dropna())  # two where the case ran on two machines
        row |= {"bf16 peak, TFLOP/s": " and ".join(peaks) or "-"}
        ratio = _first(engines["ours"]) / _first(engines["peft"])
        rows.append(row | {"tokens/s, ours over PEFT's": "-" if pd.isna(ratio) else f"{ratio:.2f}"})
    about = ["gpu", "python", "torch", "transformers", "peft", "bitsandbytes", "triton", "commit"]
    machines = frame[[name for name in about if name in frame]].drop_duplicates()
    about_machines = [", ".join(f"{key} {value}" for key, value in machine.items()) for _, machine in machines.iterrows()]
    return "\n\n".join([markdown.table(rows), *about_machines])


def _first(cases: pd.DataFrame) -> float:
    return float(cases["tokens/s"].iloc[0]) if len(cases) else float("nan")


def draw(frame: pd.DataFrame) -> Figure:
    """Draw tokens/s beside peak memory, a row of plots for each model, its height by the number of variants."""
    models = list(dict.fromkeys(frame["model"]))
    plain = frame[frame["options"] == ""]
    heights = [plain.loc[plain["model"] == model, "variant"].nunique() for model in models]
    figure = Figure(figsize=(8.6, 0.9 + 0.55 * sum(heights) + 0.55 * len(models)), layout="constrained")
    plots = figure.subplots(len(models), 2, squeeze=False, gridspec_kw={"height_ratios": [0.4 + height for height in heights]})
    for axes, model in zip(plots, models, strict=True):
        cases = plain[plain["model"] == model]
        for plot, column in zip(axes, ("tokens/s", "peak GiB"), strict=True):
            _bars(plot, cases, column)
        axes[0].set_title(f"{MODELS.get(model, model)}: {_runs_of_a_step(cases)}", fontsize=10, loc="left")
        axes[1].set_yticklabels([])
    plots[-1, 0].set_xlabel("tokens/s, all runs together")
    plots[-1, 1].set_xlabel("peak memory, GiB")
    entries = [Patch(color="#444444", alpha=ENGINES[engine], label=name) for engine, name in (("peft", "PEFT"), ("ours", "ours"))]
    figure.legend(handles=entries, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def _runs_of_a_step(frame: pd.DataFrame) -> str:
    """Describe the runs and tokens of a step of each engine."""
    parts = []
    for engine, cases in frame.groupby("engine", sort=False):
        case = cases.iloc[0]
        runs = f"{case['runs']:.0f} run{'s' if case['runs'] != 1 else ''}"
        parts.append(f"{'PEFT' if engine == 'peft' else 'ours'} {runs} of {case['rows']:.0f} x {case['length']:.0f} tokens")
    return ", ".join(sorted(parts))


def _bars(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    variants = list(dict.fromkeys(frame["variant"]))
    for place, (engine, solid) in enumerate(ENGINES.items()):
        cases = frame[frame["engine"] == engine].set_index("variant")
        for n, variant in enumerate(variants):
            value, y = float(cases[column].get(variant, float("nan"))), n + 0.38 * place - 0.19
            if value != value:
                note = str(cases["note"].get(variant, "")) if variant in cases.index else "not measured"
                text, value = (note if note and len(note) <= 24 else "failed" if note else "not measured"), 0
            else:
                text = f"{value:,.0f}" if column == "tokens/s" else f"{value:.1f}"
            axes.barh(y, value, 0.36, color=style(variant).color, alpha=solid, lw=0)
            axes.annotate(text, (value, y), (3, 0), textcoords="offset points", va="center", fontsize=8.5, color="#333333")
    axes.set_yticks(range(len(variants)), [VARIANTS.get(variant, variant) for variant in variants])
    axes.set_ylim(len(variants) - 0.45, -0.55)
    axes.set_xlim(0, 1.2 * max(frame[column].max(), 1e-9) if frame[column].notna().any() else 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> int:
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return 0
    values, _ = words.read(sys.argv[1:], {"folder": Key(str, "FOLDER")})
    folder = Path(values.get("folder", HERE))
    frame = load(folder)
    text = tables(frame)
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    draw(frame).savefig(folder / "cost.png", dpi=150)
    return 0


if __name__ == "__main__":
    cli.run(main)
