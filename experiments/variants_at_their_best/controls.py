"""``python -m experiments.variants_at_their_best.controls [key=value ...]``: train full fine-tuning, and score the base.

These runs join the sweep of ``experiment=variants_at_their_best`` and are measured like its runs.
"""

from __future__ import annotations

import sys

from experiments import tuned
from experiments.variants_at_their_best.run import REPORT, SHARED, TUNE
from src.command import cli
from src.command.cli import compose
from src.sweep.launch import RunsFailed

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SPARE = (3e-6, 3e-3)  # tried where the best rate is the lowest or the highest


def main() -> int:
    more = sys.argv[1:]
    if "--help" in more:
        print(__doc__)
        return 0
    tuned.refuse(more, ("experiment", "variant"))
    try:
        tuned.launch_all([compose(["variant=frozen", *SHARED, *more])])
        (best,) = tuned.train([["variant=full", *SHARED, *more]], RATES, TUNE, REPORT, SPARE)
    except RunsFailed:
        return 1  # each failed run has printed its reason
    print(f"full: best rate {best:g}")
    return 0


if __name__ == "__main__":
    cli.run(main)
