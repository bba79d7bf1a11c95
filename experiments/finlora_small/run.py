"""Train FinLoRA's comparison on SmolLM2: ``python -m experiments.finlora_small.run TASK FOLDER [key=value ...]``

TASK is formula, xbrl_term or tfns_nwgi; FOLDER is FinLoRA's ``data``. Further words override the config.
"""

from __future__ import annotations

import sys

from experiments import tuned
from src.command import cli
from src.files.errors import ConfigError
from src.sweep.launch import RunsFailed

# The published forms, and QLoRA at the effective scale 2. LoRA and DoRA have that scale anyway, and rsLoRA at r = 8 with
# alpha 2 sqrt(8) is LoRA with alpha 16 to the bit, so it is not trained again.
FORMS = {
    "8bits_r8": ("lora_8bit", 8, 16.0),
    "4bits_r4": ("qlora", 4, 16.0),
    "8bits_r8_dora": ("dora_8bit", 8, 16.0),
    "8bits_r8_rslora": ("rslora_8bit", 8, 16.0),
    "matched/4bits_r4": ("qlora", 4, 8.0),
}
RATES = (1e-4, 1e-3, 3e-3, 1e-2)  # the first is FinLoRA's, for all forms
SPARE = (3e-5, 3e-2)  # tried where a best rate is the lowest or the highest
TUNE, REPORT = range(3), range(3, 11)
# (FinLoRA's name of the task, rows of a micro-batch, micro-batches, overrides). 16 rows a step where FinLoRA has 32 or 64,
# so that a cut training set still makes some steps; the larger two are cut to 1,024 rows and one epoch.
TASKS = {
    "formula": ("formula", 4, 4, ()),
    "xbrl_term": ("xbrl_term", 8, 2, ("dataset.train_examples=1024", "eval.generate=false")),
    "tfns_nwgi": ("sentiment", 8, 2, ("dataset.train_examples=1024", "train.epochs=1")),
}


def conditions(task: str, folder: str, more: list[str]) -> list[list[str]]:
    name, rows, micro_batches, own = TASKS[task]
    shared = [
        *("model=smollm2_135m", f"dataset=finlora_{task}", f"dataset.path={folder}", "engine=packed"),
        *("train.optimizer=adamw", f"train.batch_size={rows}", f"train.grad_accum={micro_batches}"),
        *("eval.every=1000", "eval.batch_size=16"),
        *(f"sweep=finlora_{task}", "keep_weights=false", *own, *more),
    ]
    base = f"experiment=finlora/{name}_llama_3_1_8b_8bits_r8_dora"
    return [[base, f"variant={variant}", f"lora.r={r}", f"lora.alpha={alpha}", *shared] for variant, r, alpha in FORMS.values()]


def main() -> int:
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return 0
    if len(sys.argv) < 3 or sys.argv[1] not in TASKS:
        raise ConfigError(f"needs a task, one of {', '.join(TASKS)}, and the folder FinLoRA/data")
    task, folder, *more = sys.argv[1:]
    tuned.refuse(more, ("experiment", "variant", "dataset", "lora.r", "lora.alpha"))
    try:
        best = tuned.train(conditions(task, folder, more), RATES, TUNE, REPORT, SPARE)
    except RunsFailed:
        return 1  # each failed run has printed its reason
    for name, rate in zip(FORMS, best, strict=True):
        print(f"{name}: best rate {rate:g}")
    return 0


if __name__ == "__main__":
    cli.run(main)
