"""Tell apart runs of one config that read other contents: data, tokens, base weights, number format, prose.

A config names files and models, and a file can change under its name. The record has a fingerprint of what was really read.
Fingerprints only compare where the config asks for the same: what is named otherwise is other anyway, and the config says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..files.text import few
from .audit import CONFOUND, Line

SHOWN = 8  # digits of a fingerprint in a table
Row = Mapping[str, Any]  # a run, or the known values of a row's runs: ``fields``, recorded facts and fingerprints


@dataclass(frozen=True)
class Content:
    """Something that a run reads, under a name that does not say which contents it has.

    key: the column of the frame with its fingerprint; fields: beginnings of the config's fields that ask for it, but for those
    of ``besides``; facts: other columns that decide it; meaning: what it means that two fingerprints differ.
    """

    key: str
    name: str
    meaning: str
    fields: tuple[str, ...]
    besides: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    def asked(self, row: Row) -> str:
        """Write down all that has to agree before two fingerprints can be compared."""
        fields = {
            key: value
            for key, value in row["fields"].items()
            if key.startswith(self.fields) and key not in self.besides and value is not None
        }
        facts = [None if pd.isna(row[fact]) else row[fact] for fact in self.facts]
        return json.dumps([fields, facts, row["trains"] == "all"], sort_keys=True, default=str)


DATA = Content(
    "data_fingerprint", "data", "other contents of the same files", ("dataset.",), ("dataset.max_length", "dataset.chat_template")
)
TOKENS = Content(
    "token_fingerprint", "tokens", "other tokens of the same texts",
    ("dataset.", "model.", "eval.val_examples", "eval.test_examples"), ("model.hold_dequantised",), (DATA.key,),
)  # fmt: skip
# The format that products are computed in: a 16-bit base is fp32 on a processor without bf16 products.
FORMAT = Content(
    "number_format",
    "number format",
    "other products of the same base precision",
    ("variant.base_precision",),
    (),
    ("device_type",),
)
# The fingerprint is of the weights as they were placed: in another precision, or on another kind of device, it is another one.
BASE = Content(
    "base_fingerprint", "base weights", "other weights under the same name",
    ("model.", "variant.base_precision", "variant.double_quant"), ("model.hold_dequantised",),
    ("device_type", "hold_dequantised", FORMAT.key),
)  # fmt: skip
# Only what measures forgetting reads prose.
PROSE = Content("prose_fingerprint", "prose", "other contents of the same text", ("forgetting.path",))
ALWAYS = (DATA, TOKENS, FORMAT, BASE)
NAMES = {content.name: content for content in (*ALWAYS, PROSE)}


def read_by(metric: str) -> tuple[Content, ...]:
    """List the contents that a metric depends on."""
    return (*ALWAYS, PROSE) if metric.startswith("forgetting/") else ALWAYS


def unlike(a: Row, b: Row, contents: Sequence[Content] = ALWAYS) -> tuple[str, ...]:
    """Name the contents that two rows are known to have read differently."""
    return tuple(
        content.name
        for content in contents
        if known(a[content.key])
        and known(b[content.key])
        and a[content.key] != b[content.key]
        and content.asked(a) == content.asked(b)
    )


def known(value: Any) -> bool:
    return isinstance(value, str)


def columns(table: pd.DataFrame) -> list[str]:
    """List the contents that a table has a column of, because its rows differ in them."""
    return [name for name in NAMES if name in table]


def shown(value: Any) -> str | None:
    return value[:SHOWN] if known(value) else None


def several(rows: Sequence[Row], content: Content) -> list[int]:
    """List the rows that agree in all that the config asks for with another row of other contents."""
    by_asked: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if known(row[content.key]):
            by_asked.setdefault(content.asked(row), []).append(index)
    apart = [indices for indices in by_asked.values() if len({rows[index][content.key] for index in indices}) > 1]
    return sorted(index for indices in apart for index in indices)


def differing(rows: Sequence[Row], contents: Sequence[Content] = ALWAYS) -> list[str]:
    """Name the contents in which rows differ that ask for the same."""
    return [content.name for content in contents if several(rows, content)]


def lines(rows: Sequence[Row], labels: Sequence[str], contents: Sequence[Content] = ALWAYS) -> list[Line]:
    """Make a confound of each content in which rows differ, whether or not they are tested: they stand in one table."""
    confounds = []
    for content in contents:
        rows_of: dict[str, list[str]] = {}
        for index in several(rows, content):
            rows_of.setdefault(str(shown(rows[index][content.key])), []).append(labels[index])
        if rows_of:
            text = "; ".join(f"{value} in {few(names)}" for value, names in rows_of.items())
            confounds.append(Line(content.name, f"{content.meaning}: {text}", CONFOUND, paired=False))
    return confounds


def of_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Take the known values of each row of a comparison, from the first of its runs that has one."""
    columns = ["fields", "trains", "device_type", "hold_dequantised", *(content.key for content in NAMES.values())]
    firsts = runs.groupby("row", sort=True)[columns].first()
    # Runs of a row that read unlike prose have none in common; all else is the same in all runs of a row.
    mixed = runs.groupby("row", sort=True)[PROSE.key].nunique() > 1
    firsts.loc[mixed, PROSE.key] = None
    return [{str(key): value for key, value in row.items()} for row in firsts.to_dict("records")]
