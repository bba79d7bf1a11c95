"""Time a learning-rate x rank x seed sweep, from the command to the records: ``python -m benchmarks.sweep``.

48 runs of SmolLM2-135M on ``cldr_names``: r 4 and 64, alpha/r and alpha/sqrt r, three learning rates, four seeds; 300
steps of 16 rows, then the whole test split and generated answers for each. Beside it PEFT's seconds for the steps alone
of the same runs one after another: measured on two short runs, extrapolated, and marked so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

SWEEP = [
    "variant=lora,rslora",
    "lora.r=4,64",
    "train.lr=3e-4,1e-3,3e-3",
    "seed=0,1,2,3",
    "train.steps=300",
    "train.batch_size=16",
]
SAMPLE = ["engine=peft", "variant=lora", "lora.r=4,64", "train.steps=40", "eval.test_examples=8", "eval.generate=false"]
SAMPLE += ["train.batch_size=16", "eval.val_examples=8"]
RUNS, STEPS = 48, 300


def command(folder: Path, overrides: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Run a sweep; gives (seconds from the command to its end, the results). One that fails says why and ends this process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "src.train", "-m", "tracking=disabled", *overrides], cwd=folder)
    if done.returncode:
        sys.exit(done.returncode)
    seconds = time.perf_counter() - started
    return seconds, [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]


def main() -> int:
    extra = sys.argv[1:]
    if "--help" in extra or "-h" in extra:
        print(f"{__doc__}\nWords after it are added to the sweep's: {' '.join(SWEEP)}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        seconds, results = command(Path(folder), [*SWEEP, *extra])
    assert len(results) == RUNS and all(result["status"] in ("ok", "diverged") for result in results)
    first = results[0]
    rows: list[dict[str, Any]] = [
        {
            "what": "ours: from the command to the records",
            "runs": RUNS,
            "in one pack": first["pack_size"],
            "seconds": seconds,
            "steps alone": first["train_seconds"],
            "tokens/s": first["pack_tokens_per_second"],
            "speed": first["speed"],
            "peak GiB": first["peak_memory_bytes"] / 2**30,
        }
    ]
    measure.write("sweep", rows)
    with tempfile.TemporaryDirectory() as folder:
        _, sample = command(Path(folder), [*SAMPLE, *[e for e in extra if not e.startswith(("pack.", "train."))]])
    per_step = [r["train_seconds"] / r["steps"] for r in sample]
    speed = len(sample) / sum(1 / r["tokens_per_second"] for r in sample)  # of equal work at each rank
    tokens = sum(r["train_tokens"] for r in results)
    rows.append(
        {
            "what": "PEFT eager, one run after another; extrapolated from two of 40 steps",
            "runs": RUNS,
            "in one pack": 1,
            "steps alone": tokens / speed,
            "tokens/s": speed,
            "speed": "eager",
            "peak GiB": max(r["peak_memory_bytes"] for r in sample) / 2**30,
        }
    )
    print("PEFT s/step with the first step:", per_step)
    measure.write("sweep", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
