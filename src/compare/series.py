"""Join rows of a comparison to the lines of a figure, with the color and marker that a variant has in every figure."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from ..files.text import clean
from . import contents
from .comparison import Comparison, column
from .styles import style

LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Series:
    """The rows of one variant that differ in rank (and in alpha with it) only, by rank."""

    variant: str
    label: str
    rows: list[int]
    turn: int  # its number among the lines of the variant: 0 is solid with filled markers

    @property
    def color(self) -> str:
        return style(self.variant).color

    @property
    def marker(self) -> str:
        return style(self.variant).marker

    @property
    def look(self) -> dict[str, Any]:
        """Return the style of its line of means, as arguments of ``plot``."""
        face = "white" if self.turn % 2 else self.color
        edge = self.color if self.turn % 2 or self.marker in "PX*_" else "white"
        style = LINES[self.turn % len(LINES)]
        line = {"color": self.color, "ls": style, "lw": 1.5}
        return line | {"marker": self.marker, "ms": 6.5, "mfc": face, "mec": edge, "mew": 0.8}

    def entry(self) -> Line2D:
        return Line2D([], [], label=self.label, **self.look)


def series(comparison: Comparison, drawn: list[int] | None = None) -> list[Series]:
    """Join rows to lines: rows of one line differ in rank and alpha only, and no rank comes twice.

    ``drawn`` are the rows to join; without it all that have a number for the metric.
    """
    table = comparison.table
    if drawn is None:
        drawn = [row for row in table.index if pd.notna(table[f"{column(comparison.metrics[0])}_mean"][row])]
    lines: dict[str, list[int]] = {}
    for row in drawn:
        lines.setdefault(_fields_without(comparison, row, ("lora.r", "lora.alpha")), []).append(row)
    parts: list[tuple[list[int], bool]] = []
    for rows in lines.values():
        if table["r"][rows].dropna().is_unique:
            parts.append((rows, False))
            continue
        by_alpha_too: dict[str, list[int]] = {}
        for row in rows:
            by_alpha_too.setdefault(_fields_without(comparison, row, ("lora.r",)), []).append(row)
        parts += [(rows_of_alpha, True) for rows_of_alpha in by_alpha_too.values()]
    turns: Counter[str] = Counter()
    joined = []
    for rows, by_alpha in parts:
        variant = table["variant"][rows[0]]
        joined.append(Series(variant, _label(comparison, rows[0], by_alpha), rows, turns[variant]))
        turns[variant] += 1
    return joined


def _is_tuned(comparison: Comparison) -> bool:
    """Tell whether each row has a learning rate of its own choice, so that the rate is no name of a line."""
    return "rates_tried" in comparison.table


def _fields_without(comparison: Comparison, row: int, keys: tuple[str, ...]) -> str:
    keys = (*keys, "train.lr") if _is_tuned(comparison) else keys
    kept = {key: value for key, value in comparison.fields[row].items() if key not in keys}
    known = ("device", "engine", "hold_dequantised", *contents.columns(comparison.table))
    facts = [str(comparison.table.get(name, {}).get(row)) for name in known]
    return json.dumps([kept, facts], sort_keys=True)


def _label(comparison: Comparison, row: int, by_alpha: bool) -> str:
    """Name a line: the variant, and the fields in which it differs from the others of the table."""
    table = comparison.table
    parts = [f"{key.split('.')[-1] if key.split('.')[-1] != 'name' else key.split('.')[0]} {table[key][row]}"
             for key in comparison.differing if pd.notna(table[key][row])]  # fmt: skip
    if not _is_tuned(comparison) and table["learning_rate"].nunique() > 1 and pd.notna(table["learning_rate"][row]):
        parts.insert(0, f"lr {table['learning_rate'][row]:g}")
    if by_alpha:
        parts.insert(0, f"alpha {table['alpha'][row]:g}")
    text = safe(", ".join([table["variant"][row], *parts]))
    return textwrap.fill(text, 30, max_lines=3, placeholder=" ...")


def safe(value: str) -> str:
    """Keep what the figures' font can draw; a leading underscore would hide a legend entry."""
    return "".join(c if ord(c) < 0x250 else "?" for c in clean(value)).lstrip("_") or "?"
