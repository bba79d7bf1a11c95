"""Refuse runs of other studies: this one has the runs of README.md's commands, on any of its bases, at any rate and seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from src.command.cli import compose
from src.compare.audit import HELD, in_words
from src.compare.frame import flatten
from src.files.errors import ConfigError
from src.record.records import RUNS, default_of, identity, with_defaults

SETTINGS = ("lora.r=16", "train.steps=300", "train.batch_size=16", "eval.generate=false")
BASES = ("bf16", "int8", "nf4", "fp4")
# Holding a dequantized copy of the base changes no number.
VARIED = {"variant.base_precision", "variant.double_quant", "train.lr", "seed", "data_seed", HELD}


def refuse_foreign(rows: Iterable[dict[str, Any]]) -> None:
    """Raise ConfigError, one line, at the first row of ``gather`` that differs from the study in more than ``VARIED``."""
    prose = dict(flatten({"forgetting": default_of("forgetting")}))  # an identity leaves out the default
    studied = {
        trains: prose | with_defaults(dict(flatten(identity(compose([f"variant={name}", *SETTINGS])))))
        for trains, name in (("adapter", "lora"), ("none", "frozen"))
    }
    for row in rows:
        run, fields = RUNS / row["run_id"], prose | row["fields"]
        study = studied.get(row["trains"], studied["adapter"])
        # Fields of the variant first: another variant has other fields.
        for name in sorted({*fields, *study} - VARIED, key=lambda name: (not name.startswith("variant."), name)):
            if fields.get(name) != study.get(name):
                raise ConfigError(f"{run}: {name} is {in_words(fields.get(name))}, and {in_words(study.get(name))} in this study")
        if row["base_precision"] not in BASES:
            raise ConfigError(f"{run}: variant.base_precision is {row['base_precision']}, none of {', '.join(BASES)}")
        if row["data_seed"] != row["seed"]:
            raise ConfigError(f"{run}: data_seed is {row['data_seed']}, not its seed, {row['seed']}")
