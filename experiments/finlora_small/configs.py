"""Write FinLoRA's named configs to conf/experiment/finlora/: ``python -m experiments.finlora_small.configs``.

Source: Open-Finance-Lab/FinLoRA, lora/finetune_configs.json (39 names) and lora/finetune_configs_plain.json (8 names), with
the settings that lora/finetune.py fixes for all. ``matched/`` has each config again with the alpha that gives every variant the
same effective scale: in the published configs it is 2, 4 or 5.66, so a variant is confounded with its scale.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "experiment" / "finlora"
GPUS = 4  # of the published runs, each with its own batch; one GPU accumulates four times as many micro-batches
SCALE = 2.0  # of the matched configs, as in most published ones: 16 / 8


@dataclass(frozen=True)
class Task:
    """A task's epochs, its rows per GPU (``batch``) and its micro-batches per step (``accum``)."""

    name: str
    epochs: int
    batch: int
    accum: int


@dataclass(frozen=True)
class Method:
    suffix: str
    variant: str
    r: int
    alpha: int
    optimizer: str
    tasks: tuple[str, ...]

    @property
    def matched_alpha(self) -> float:
        """Compute alpha from alpha/r = SCALE, or from alpha/sqrt(r) = SCALE for rsLoRA (arXiv 2312.03732)."""
        return SCALE * (math.sqrt(self.r) if "rslora" in self.variant else self.r)


TASKS = {
    task.name: task
    for task in (
        Task("sentiment", 4, 8, 2),
        Task("headline", 4, 8, 2),
        Task("ner", 4, 8, 2),
        Task("finer", 4, 1, 8),
        Task("xbrl_extract", 1, 1, 8),
        Task("financebench", 4, 1, 2),
        Task("formula", 1, 4, 2),
        Task("xbrl_term", 1, 4, 2),
        Task("cfa", 4, 4, 2),
    )
}
LABELS = ("sentiment", "headline", "ner")
REPORTING = ("finer", "xbrl_extract", "financebench", "formula", "xbrl_term")
METHODS = (
    Method("4bits_r4", "qlora", 4, 16, "paged_adamw_8bit", ("sentiment", *REPORTING, "cfa")),
    Method("8bits_r8", "lora_8bit", 8, 16, "adamw_bnb_8bit", (*REPORTING, "cfa")),
    Method("8bits_r8_dora", "dora_8bit", 8, 16, "adamw_bnb_8bit", (*LABELS, *REPORTING, "cfa")),
    Method("8bits_r8_dora_a32", "dora_8bit", 8, 32, "adamw_bnb_8bit", (*LABELS, *REPORTING)),
    Method("8bits_r8_rslora", "rslora_8bit", 8, 16, "adamw_bnb_8bit", (*LABELS, *REPORTING, "cfa")),
    Method("fp16_r8", "lora", 8, 16, "adamw", (*LABELS, *REPORTING)),
)

TEXT = """\
# @package _global_
# FinLoRA's {name}{form}. Written by experiments/finlora_small/configs.py.
defaults:
  - override /model: llama_3_1_8b
  - override /variant: {variant}
  - override /dataset: finlora_{task}
engine: peft
seed: 42
lora:
  r: {r}
  alpha: {alpha}
  dropout: 0.05
  target_modules: [q_proj, k_proj, v_proj]
dataset:
  max_length: 4096
  val_share: 0.02
train:
  epochs: {epochs}
  batch_size: {batch}
  grad_accum: {accum}  # {published} on each of {gpus} GPUs
  lr: 0.0001
  schedule: cosine
  warmup_steps: 10
  optimizer: {optimizer}
"""


def configs() -> Iterator[tuple[str, str]]:
    """Yield (path below ``FOLDER``, content) of every file."""
    for method in METHODS:
        for task in (TASKS[name] for name in method.tasks):
            name = f"{task.name}_llama_3_1_8b_{method.suffix}"
            for folder, form, alpha in (
                ("", "", method.alpha),
                ("matched/", f", at the effective scale {SCALE:g}", method.matched_alpha),
            ):
                text = TEXT.format(
                    name=name, form=form, variant=method.variant, task=task.name, r=method.r, alpha=alpha, epochs=task.epochs,
                    batch=task.batch, accum=task.accum * GPUS, published=task.accum, gpus=GPUS, optimizer=method.optimizer,
                )  # fmt: skip
                yield f"{folder}{name}.yaml", text


def main() -> None:
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return
    for name, text in configs():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
