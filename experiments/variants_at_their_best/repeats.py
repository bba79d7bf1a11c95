"""``python -m experiments.variants_at_their_best.repeats``: compare a second training with the first.

Writes again/repeats.md. Configs, seeds, rows and number formats are the same; code, packs, kernels, shapes and the order of
additions are not. No interval over seeds contains the effect of those.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

import pandas as pd

from experiments.markdown import table
from experiments.variants_at_their_best import results
from experiments.variants_at_their_best.cost import adapters, duration, under_way
from experiments.variants_at_their_best.differences import difference
from experiments.variants_at_their_best.questions import METRIC, NAMES, Study, name, study
from src.command import cli
from src.compare.columns import decimals, signed
from src.files.durable import write_atomically
from src.files.errors import ConfigError
from src.files.text import few

HERE = Path(__file__).resolve().parent
AGAIN = HERE / "again"


def main() -> int:
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return 0
    if sys.argv[1:]:
        raise ConfigError(f"{' '.join(sys.argv[1:])}: takes no word")
    if not (AGAIN / "results.csv").exists():
        raise ConfigError(f"{AGAIN / 'results.csv'}: not there; README.md says how a second table is made")
    text = compared(results.load(HERE / "results.csv"), results.load(AGAIN / "results.csv"))
    write_atomically(AGAIN / "repeats.md", text)
    print(text, end="")
    return 0


def compared(first: pd.DataFrame, again: pd.DataFrame) -> str:
    """Write tables: by cell at its best rate, by rate, by variant at the lowest rate, and the differences of both times."""
    both = paired(first, again)
    first_study, second_study = study(first), study(again)
    took = under_way(adapters(again))
    head = (
        "Written by `python -m experiments.variants_at_their_best.repeats` from results.csv and again/results.csv:"
        f" {len(both)} of {len(adapters(first))} runs were trained twice. A change is the second test loss minus the first, in"
        " nats. The controls were not trained again: both times they are the first ones."
        + ("" if took is None else f" The second time at least one of them was under way for {duration(took)}.")
    )
    titled = {
        "Each at the rate that the first time chose": at_best(first_study, both),
        "By rate": by_rate(both),
        "At the lowest rate, where runs differ least, by variant": at_lowest(both),
        "Differences, each at its own rate, report seeds": differences(first_study, second_study),
    }
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in titled.items())]) + "\n"


def paired(first: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Match the adapter runs that ended well both times: ``results.KEY`` and ``change``.

    Raises:
        ConfigError: a run of the second table is not in the first, or is the same record there, so it was trained once.
    """
    ended = [adapters(frame).query("status == 'ok'") for frame in (first, again)]
    both = ended[0].merge(ended[1], on=["run_id", *results.KEY], suffixes=("", " again"))
    if len(both) < len(ended[1]):
        strange = sorted(set(ended[1]["run_id"]) - set(both["run_id"]))
        raise ConfigError(f"{AGAIN / 'results.csv'}: {few(strange)}: not in the first table")
    if (same := both["started"] == both["started again"]).any():
        raise ConfigError(f"{both[same].iloc[0]['run_id']}: one and the same record in both tables")
    return both.assign(change=both[f"{METRIC} again"] - both[METRIC])[[*results.KEY, "change"]]


def at_best(first: Study, both: pd.DataFrame) -> str:
    twice, rows, every = replace(first, runs=both), [], []
    for cell in first.reported():
        if len(runs := twice.of(cell)):
            chosen = first.condition(cell).chosen
            changes = list(runs.loc[runs["learning_rate"] == chosen, "change"])
            every += changes
            rows.append({"": name(cell), "rate": f"{chosen:g}"} | _spread(changes))
    return table([*rows, {"": "all", "rate": ""} | _spread(every)])


def by_rate(both: pd.DataFrame) -> str:
    return table([{"rate": f"{rate:g}"} | _spread(list(runs["change"])) for rate, runs in both.groupby("learning_rate")])


def at_lowest(both: pd.DataFrame) -> str:
    lowest = both[both["learning_rate"] == both["learning_rate"].min()]
    return table(
        [{"": NAMES[variant]} | _spread(list(runs["change"])) for variant, runs in lowest.groupby("variant", sort=False)]
    )


def differences(first_study: Study, second_study: Study) -> str:
    """Write the differences of both times between cells whose rates were all tried on all tuning seeds."""
    first, again = _differences(first_study), _differences(second_study)
    return table([{"": pair, "first": text, "again": again.get(pair, "-")} for pair, text in first.items()])


def _differences(comparison: Study) -> dict[str, str]:
    ranks = [contrast for variant in comparison.variants for contrast in comparison.of_ranks(variant).contrasts]
    lowest = [contrast for contrast in ranks if comparison.cell(contrast.reference)[1] == comparison.ranks[0]]
    texts = {}
    for contrast in [
        *(each for r in comparison.ranks for each in comparison.of_variants(r).contrasts),
        *lowest,
        *comparison.to_full().contrasts,
    ]:
        pair = [comparison.cell(row) for row in (contrast.row, contrast.reference)]
        if not any(comparison.unseen(cell) for cell in pair):
            verdict = "" if math.isnan(contrast.p_holm) else f", {contrast.verdict}"  # a difference that only describes has none
            texts[" - ".join(map(name, pair))] = difference(contrast) + verdict
    return texts


def _spread(changes: list[float]) -> dict[str, str]:
    largest = max(changes, key=abs, default=None)
    return {
        "n": str(len(changes)),
        "mean change": signed(fmean(changes)) if changes else "-",
        "median size": decimals(median(map(abs, changes))) if changes else "-",
        "standard deviation": decimals(stdev(changes)) if len(changes) > 1 else "-",
        "largest": "-" if largest is None else signed(largest),
    }


if __name__ == "__main__":
    cli.run(main)
