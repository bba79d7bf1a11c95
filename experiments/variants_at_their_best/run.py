"""``python -m experiments.variants_at_their_best.run [key=value ...]``: train the 464 of 1,232 runs that are needed.

All rates of all (variant, rank) on seeds 0-2, then the best of each on seeds 3-10; they are runs of
``experiment=variants_at_their_best`` and of its sweep. Where a best rate is the lowest or the highest of the seven, all get
another rate. Writes ``best_rates.csv``, beside the ``runs`` folder: variant, r, learning_rate.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from omegaconf import OmegaConf

from experiments import tuned
from src.command import cli
from src.config.schema import CONF_FOLDER
from src.files.durable import write_atomically
from src.sweep.launch import RunsFailed

EXPERIMENT = CONF_FOLDER / "experiment" / "variants_at_their_best.yaml"
SPARE = (8e-5, 1.25e-1)
TUNE, REPORT = range(3), range(3, 11)
SHARED = ("experiment=variants_at_their_best", "sweep=variants_at_their_best")


def cells() -> tuple[list[tuple[str, int]], list[float]]:
    """Read (each variant at each rank, the rates) from the experiment's grid."""
    grid = OmegaConf.load(EXPERIMENT).hydra.sweeper.params
    variants, ranks = grid.variant.split(","), [int(r) for r in str(grid["lora.r"]).split(",")]
    return [(variant, r) for variant in variants for r in ranks], [float(rate) for rate in grid["train.lr"].split(",")]


def main() -> int:
    more = sys.argv[1:]
    if "--help" in more:
        print(__doc__)
        return 0
    tuned.refuse(more, ("experiment", "variant", "lora.r"))
    conditions, rates = cells()
    try:
        best = tuned.train([[f"variant={v}", f"lora.r={r}", *SHARED, *more] for v, r in conditions], rates, TUNE, REPORT, SPARE)
    except RunsFailed:
        return 1  # each failed run has printed its reason
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("variant", "r", "learning_rate"))
    writer.writerows((v, r, f"{rate:g}") for (v, r), rate in zip(conditions, best, strict=True))
    write_atomically(Path("best_rates.csv"), text.getvalue())
    print(text.getvalue(), end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
