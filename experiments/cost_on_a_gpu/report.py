"""``python -m experiments.cost_on_a_gpu.report [folder=FOLDER]``: results.csv as tables.md and cost.png."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments import markdown, sheet
from src import cli
from src.config import ConfigError
from src.eval import words
from src.eval.words import Key

HERE = Path(__file__).resolve().parent
MODELS = {"llama_3_2_1b": "Llama-3.2-1B", "llama_3_1_8b": "Llama-3.1-8B", "llama_3_1_70b": "Llama-3.1-70B"}
VARIANTS = {
    "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "qlora": "QLoRA", "qdora": "QDoRA", "lora_8bit": "LoRA on int8",
}  # fmt: skip
CASE = ["model", "variant", "options", "rows", "length", "r"]
FILLED = ["model", "variant", "engine", "rows", "length", "r", "runs"]
NUMBERS = ["rows", "length", "r", "runs", "ms/step", "spread ms", "tokens/s", "share of peak", "peak GiB"]
ENGINES = {"peft": "#999999", "ours": "#0072b2"}


def load(folder: Path) -> pd.DataFrame:
    """The cases, in the order of sizes and variants; of several machines or versions the last measured."""
    path = folder / "results.csv"
    if not path.is_file():
        raise ConfigError(f"folder={folder}: no results.csv there")
    frame = sheet.read(path, FILLED, NUMBERS, ("options", "note"))
    frame = frame.drop_duplicates([*CASE, "engine", "runs"], keep="last")
    places = {name: at for at, name in enumerate([*MODELS, *VARIANTS])}
    return frame.sort_values(
        ["model", "variant", "options"], key=lambda column: column.map(lambda text: places.get(text, len(places))), kind="stable"
    )


def tables(frame: pd.DataFrame) -> str:
    """Ours beside PEFT's, one line for each model and variant; then every case."""
    rows = []
    for case, both in frame.groupby(CASE, sort=False):
        engines = {engine: both[both["engine"] == engine] for engine in ENGINES}
        model, variant, options, batch, length, r = case
        row = {"model": MODELS.get(model, model), "variant": f"{VARIANTS.get(variant, variant)} {options}".strip()}
        row |= {"rows of a run": f"{batch} x {length}", "r": str(r)}
        for engine, found in engines.items():
            name = {"peft": "PEFT", "ours": "ours"}[engine]
            one: Any = found.iloc[0] if len(found) else None
            failed = one is None or pd.isna(one["ms/step"])
            missing = "not measured" if one is None else str(one["note"])
            row |= {f"{name}: runs": "-" if one is None else str(one["runs"])}
            row |= {f"{name}: ms a step": missing if failed else f"{one['ms/step']:.1f} (± {one['spread ms']:.1f})"}
            row |= {f"{name}: tokens/s": "-" if failed else f"{one['tokens/s']:,.0f}"}
            row |= {f"{name}: of peak": "-" if failed else f"{100 * one['share of peak']:.1f} %"}
            row |= {f"{name}: peak GiB": "-" if failed or pd.isna(one["peak GiB"]) else f"{one['peak GiB']:.1f}"}
        ratio = _first(engines["ours"]) / _first(engines["peft"])
        rows.append(row | {"tokens/s, ours over PEFT's": "-" if pd.isna(ratio) else f"{ratio:.2f}"})
    about = ["gpu", "python", "torch", "transformers", "peft", "bitsandbytes", "triton", "commit"]
    machines = frame[[name for name in about if name in frame]].drop_duplicates()
    said = [", ".join(f"{key} {value}" for key, value in machine.items()) for _, machine in machines.iterrows()]
    return "\n\n".join([markdown.table(rows), *said])


def _first(found: pd.DataFrame) -> float:
    return float(found["tokens/s"].iloc[0]) if len(found) else float("nan")


def draw(frame: pd.DataFrame) -> Figure:
    """Tokens/s above, peak memory below; a column of plots for each model."""
    models = list(dict.fromkeys(frame["model"]))
    plain = frame[frame["options"] == ""]
    widths = [max(2, plain.loc[plain["model"] == model, "variant"].nunique()) for model in models]
    figure = Figure(figsize=(2.5 + 1.05 * sum(widths), 5.6), layout="constrained")
    plots = figure.subplots(2, len(models), squeeze=False, gridspec_kw={"width_ratios": widths})
    for at, model in enumerate(models):
        of = plain[plain["model"] == model]
        variants = list(dict.fromkeys(of["variant"]))
        for row, (column, title) in enumerate((("tokens/s", "tokens/s, all runs"), ("peak GiB", "peak memory, GiB"))):
            axes = plots[row, at]
            for place, (engine, colour) in enumerate(ENGINES.items()):
                found = of[of["engine"] == engine].set_index("variant")
                values = [float(found[column].get(variant, float("nan"))) for variant in variants]
                where = [n + 0.4 * place - 0.2 for n in range(len(variants))]
                runs = int(found["runs"].max()) if len(found) else 0
                label = f"{'PEFT' if engine == 'peft' else 'ours'}, {runs} run{'s' * (runs != 1)}"
                axes.bar(where, [0 if value != value else value for value in values], 0.38, color=colour, label=label)
                for x, value in zip(where, values, strict=True):
                    text = "-" if value != value else f"{value:,.0f}" if column == "tokens/s" else f"{value:.1f}"
                    axes.annotate(text, (x, 0 if value != value else value), ha="center", va="bottom", fontsize=7)
            axes.set_xticks(range(len(variants)), [VARIANTS.get(variant, variant) for variant in variants], fontsize=8)
            axes.margins(y=0.12)
            if at == 0:
                axes.set_ylabel(title)
            if row == 0:
                axes.set_title(MODELS.get(model, model), fontsize=10)
                axes.legend(frameon=False, fontsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


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
