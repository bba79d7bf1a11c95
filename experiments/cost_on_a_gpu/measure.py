"""``python -m experiments.cost_on_a_gpu.measure [out=FOLDER] [seconds=N] [cases=NAME,...]``: time steps of ours and PEFT.

Random weights of the real shapes, every token labeled, r=16 on all linear layers. ``seconds`` (default 540) is the budget:
no case starts after it. A case that ``results.csv`` has from the same kind of machine is not measured again. Without a CUDA
GPU only ``cases=tiny`` runs, and into another folder.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import cases
from benchmarks.step import Case
from experiments import folders
from src.command import cli, words
from src.command.words import Key
from src.files.errors import ConfigError

HERE = Path(__file__).resolve().parent
SINGLE = ("variant.double_quant=false",)
B8 = Case("llama_3_1_8b", "lora", 1, 2, 1024)
B1 = Case("llama_3_2_1b", "lora", 8, 4, 512)
B70 = Case("llama_3_1_70b", "qlora", 1, 1, 512, steps=2)
TINY = Case("tiny", "lora", 2, 2, 16, steps=1)  # only to try the study on a CPU within a minute


def pair(case: Case) -> list[Case]:
    """Pair our case with PEFT's, which trains one run at a time."""
    return [case, replace(case, engine="peft", runs=1)]


# PEFT's LLM.int8() waits for the device in every layer, so a timing is of fewer steps.
GROUPS: dict[str, list[Case]] = {
    "8b": [c for variant in ("lora", "qlora", "dora") for c in pair(replace(B8, variant=variant))],
    "70b": pair(B70),
    "1b": [c for variant in ("lora", "qlora", "dora") for c in pair(replace(B1, variant=variant))],
    "8b_int8": pair(replace(B8, variant="lora_8bit", steps=2)),
    "1b_int8": pair(replace(B1, variant="lora_8bit", steps=2)),
    "rslora": [*pair(replace(B8, variant="rslora")), *pair(replace(B1, variant="rslora"))],
    "8b_qdora": pair(replace(B8, variant="qdora")),
    "tiny": [c for variant in ("lora", "qlora", "lora_8bit") for c in pair(replace(TINY, variant=variant))],
}
KEYS = {
    "out": Key(str, "FOLDER"),
    "seconds": Key(words.whole(1, 10**6), "540"),
    "cases": Key(str, "8b,70b"),
}


def refuse_without_a_gpu(instead: str) -> None:
    """Raise ConfigError, one line, where there is no GPU to measure; ``instead`` names what a CPU can try."""
    if not torch.cuda.is_available():
        raise ConfigError(f"no CUDA GPU on this machine, which is what is measured; a processor can try {instead} out=FOLDER")


def main() -> int:
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(f"{__doc__}\ncases: {', '.join(GROUPS)}; default: all but tiny, in this order")
        return 0
    values, _ = words.read(arguments, KEYS)
    out, seconds = Path(values.get("out", HERE)), float(values.get("seconds", 540))
    names = values["cases"].split(",") if "cases" in values else [name for name in GROUPS if name != "tiny"]
    if unknown := [name for name in names if name not in GROUPS]:
        raise ConfigError(f"cases={','.join(unknown)}: choose from {', '.join(GROUPS)}")
    if "tiny" in names and "out" not in values:
        raise ConfigError("cases=tiny: needs out=FOLDER, since its numbers are none of this study's")
    if names != ["tiny"]:
        refuse_without_a_gpu("cases=tiny")
    folders.fresh(out)  # its table may exist: cases in it are not measured again
    started, table = time.monotonic(), out / "results.csv"
    cases.run(list(dict.fromkeys(case for name in names for case in GROUPS[name])), table, seconds)
    cases.note(table, started)
    return 0


if __name__ == "__main__":
    cli.run(main)
