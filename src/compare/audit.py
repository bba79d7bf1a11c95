"""Audit for confounds: name every field, other than the variant's own, in which rows that are compared differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..files.text import counted, few, plain
from ..variants.methods.scaling import effective_scale

# What a comparison is about, or chose by itself: no confound.
OWN = ("variant.", "lora.r", "train.lr")
# What tells where and with which code a run was made, or decides its speed alone: it may explain a difference.
ORIGIN = {"device": "device", "commit": "commit", "versions": "versions", "hold_dequantised": "dequantised base held"}
FACTS = {"engine": "engine", "device_type": "kind of device"}
HELD = "model.hold_dequantised"  # as ordered; what was held in the end is an origin
CONFOUND, NOTE = "confound", "note"


@dataclass(frozen=True)
class Line:
    """A field in which compared rows differ, and their values."""

    field: str
    text: str  # "16 in lora r=4; 32 in dora r=4, dora r=8"
    severity: str  # confound | note
    paired: bool = True  # False: such rows are never paired with each other, but they stand in one table


@dataclass(frozen=True)
class Audit:
    """The fields in which the rows of some pairs differ.

    pairs: how many pairs of rows were compared; rescaled: in how many of them the variant's rule gives another effective scale
    at one rank.
    """

    lines: list[Line]
    pairs: int
    rescaled: int = 0

    @property
    def confounds(self) -> list[Line]:
        return [line for line in self.lines if line.severity == CONFOUND]

    @property
    def clean(self) -> bool:
        return not self.confounds

    @property
    def summary(self) -> str:
        if not self.pairs and self.clean:
            return self.detail
        return f"{self.verdict}: {self.detail}"

    @property
    def verdict(self) -> str:
        """Sum up in three words or fewer, in line with the flag about scales that are confounded with the variant."""
        if not self.clean:
            return "Confounded"
        return "No confound but the scale" if self.rescaled else "No confound"

    @property
    def detail(self) -> str:
        """Return the summary without the verdict, which stands beside it."""
        pairs = f"{counted(self.pairs, 'compared pair')} of rows"
        if self.confounds:
            paired, apart = ([line.field for line in self.confounds if line.paired == wanted] for wanted in (True, False))
            sentences = []
            if paired:
                sentences.append(f"{pairs} differ{'s' * (self.pairs == 1)} in more than the variant: {', '.join(paired)}.")
            if apart:
                sentences.append(f"rows that ask for the same have read other contents, and are not paired: {', '.join(apart)}.")
            return " Besides, ".join(sentences)
        if not self.pairs:
            return "No two rows that share a seed are compared with each other, so there is nothing to confound."
        clean = f"within the {pairs} nothing differs but the variant, its rank and, where tuned, its rate."
        if not self.rescaled:
            return clean
        return f"{clean} In {self.rescaled} of them it is another effective scale too, which another alpha would give as well."


RATES = "learning rates tried"


def audit(
    pairs: Iterable[tuple[int, int]],
    fields: Sequence[dict[str, Any]],
    recorded: pd.DataFrame,
    labels: Sequence[str],
    grids: Sequence[tuple[float, ...]],
) -> Audit:
    """Compare the rows of each pair. A rate that each tuned over the same grid is no difference; unequal grids are one.

    Args:
        pairs: (row, reference row).
        fields: the identity fields of each row, dotted.
        recorded: for each row the values that its runs recorded for the keys of ``FACTS`` and ``ORIGIN``, None where unknown.
        labels: the name of each row.
        grids: the learning rates that were tried for each row.
    """
    pairs = sorted(set(pairs))
    values: dict[str, dict[int, Any]] = {}
    for row, other in pairs:
        for name in differing(fields[row], fields[other]):
            if name != HELD:
                values.setdefault(name, {}).update({index: fields[index].get(name) for index in (row, other)})
        if grids[row] != grids[other]:
            both = {index: " ".join(f"{rate:g}" for rate in grids[index]) for index in (row, other)}
            values.setdefault(RATES, {}).update(both)
        for fact, name in (FACTS | ORIGIN).items():
            value, other_value = recorded[fact].iloc[row], recorded[fact].iloc[other]
            if known(value) and known(other_value) and value != other_value:
                values.setdefault(name, {}).update({row: value, other: other_value})
    notes = ORIGIN.values()
    lines = [
        Line(name, _text(abbreviated(name, by_row), labels), NOTE if name in notes else CONFOUND)
        for name, by_row in sorted(values.items())
    ]
    rescaled = sum(_rescaled(fields[row], fields[other]) for row, other in pairs)
    return Audit(sorted(lines, key=lambda line: line.severity), len(pairs), rescaled)


def _rescaled(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether two configs would differ at one rank in the factor before B A.

    Rows of unlike ranks, paired for their equal number of parameters, differ in it by their ranks too, which the summary names;
    so their rules are compared at the rank of the first.
    """
    keys = ("variant.scaling", "lora.alpha", "lora.r")
    if any(key not in fields for key in keys for fields in (a, b)):
        return False
    return not math.isclose(*(effective_scale(fields["variant.scaling"], fields["lora.alpha"], a["lora.r"]) for fields in (a, b)))


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """List the fields in which two configs differ, other than the variant's own. Both must have a field for it to differ."""
    both = [name for name in a if name in b and not name.startswith(OWN)]
    return [name for name in both if json.dumps(a[name], sort_keys=True) != json.dumps(b[name], sort_keys=True)]


def known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and value != value)


def in_words(value: Any) -> str:
    return "none" if value is None else plain(value)


def abbreviated(name: str, by_row: dict[int, Any]) -> dict[int, str]:
    """Shorten the values of a field: commits to their beginning, versions to those that are not the same in all rows."""
    if name == ORIGIN["commit"]:
        return {row: str(value)[:10] for row, value in by_row.items()}
    if name != ORIGIN["versions"]:
        return {row: in_words(value) for row, value in by_row.items()}
    versions = {row: json.loads(value) for row, value in by_row.items()}
    packages = sorted({package for of_row in versions.values() for package in of_row})
    apart = [package for package in packages if len({in_words(of_row.get(package)) for of_row in versions.values()}) > 1]
    return {
        row: ", ".join(f"{package} {of_row.get(package) or 'absent'}" for package in apart) for row, of_row in versions.items()
    }


def _text(by_row: dict[int, str], labels: Sequence[str]) -> str:
    rows_of: dict[str, list[str]] = {}
    for row, value in sorted(by_row.items()):
        rows_of.setdefault(value, []).append(labels[row])
    return "; ".join(f"{value} in {few(names)}" for value, names in rows_of.items())
