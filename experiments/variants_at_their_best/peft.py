"""``python -m experiments.variants_at_their_best.peft [out=FOLDER] [key=value ...]``: time the runs with PEFT.

Each variant at each rank trains a few steps of its run of seed 0, on the study's rows, eagerly, as PEFT's documentation
has it. ``out`` (default: this folder) gets ``peft.csv``, a line for each, and ``peft.json``, the machine; tokens/s are those
of the timed steps, without padding, without evaluation and start-up.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from experiments import folders, tuned
from experiments.variants_at_their_best.run import cells
from src.command import cli, words
from src.command.cli import compose
from src.command.words import Key
from src.config.schema import Config
from src.files.durable import dump_json, write_atomically
from src.files.terminal import quiet_libraries
from src.model import device
from src.train import session

WARM_UP, TIMED = 5, 30  # steps
TABLE, MACHINE = "peft.csv", "peft.json"
COLUMNS = ("variant", "r", "steps", "tokens", "seconds", "tokens_per_second", "peak_gib")
HERE = Path(__file__).resolve().parent
KEYS = {"out": Key(Path, "FOLDER")}


def sample(config: Config) -> dict[str, Any]:
    """Measure seconds and tokens, prompts included, of ``TIMED`` steps of this run on its device."""
    engine = session.open([config], steps=WARM_UP + TIMED).engine
    engine.advance(0, WARM_UP)
    measure.synchronize()
    started = time.perf_counter()
    steps = engine.advance(WARM_UP, WARM_UP + TIMED)
    measure.synchronize()
    seconds, tokens = time.perf_counter() - started, sum(step.tokens[0] for step in steps)
    peak, _ = device.peak_memory(engine.numerics.device)
    return {
        "variant": config.variant.name, "r": config.lora.r, "steps": TIMED, "tokens": tokens, "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 1), "peak_gib": round(peak / 2**30, 2),
    }  # fmt: skip


def main() -> int:
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__)
        return 0
    own = [word for word in arguments if word.startswith("out=")]
    more = [word for word in arguments if word not in own]
    tuned.refuse(more, ("experiment", "variant", "lora.r", "engine"))
    out = Path(words.read(own, KEYS)[0].get("out", HERE))
    configs = [
        compose([f"variant={variant}", f"lora.r={r}", "experiment=variants_at_their_best", "engine=peft", "seed=0", *more])
        for variant, r in cells()[0]
    ]
    folders.fresh(out, TABLE, MACHINE)
    quiet_libraries()
    rows = []
    for config in configs:
        rows.append(sample(config))
        measure.free()
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / TABLE, text.getvalue())
    write_atomically(out / MACHINE, dump_json(measure.machine()))
    return 0


if __name__ == "__main__":
    cli.run(main)
