"""Say where the base of a row is held in its precision only in part, as recorded by its runs: ``{"nf4": 0.31, "bf16": 0.69}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..files.text import few
from ..variants.methods.precision import QUANTIZED

if TYPE_CHECKING:
    import pandas as pd

ROUNDED = 3  # decimals of a share; what differs less is rounding, or a few norms


def read_shares(value: Any) -> dict[str, float] | None:
    """Read the share of the base's parameters in each format; None where a record has none, or none that can be used."""
    if not isinstance(value, dict) or not value:
        return None
    if not all(isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1 for share in value.values()):
        return None
    return {str(name)[:20]: round(float(share), ROUNDED) for name, share in value.items()}


def notes(runs: pd.DataFrame, labels: Mapping[int, str]) -> list[str]:
    """Write a note for each model whose rows hold unlike shares of it in one precision, or quantized at all.

    ``labels``: the name of each row.
    """
    sentences = []
    known = runs[runs["base_share"].notna()]
    for model, of_model in known.groupby("model", sort=False):
        quantized = of_model[of_model["base_precision"].isin(QUANTIZED)]
        sentences += _note(model, "quantized", quantized, QUANTIZED, labels)
        for precision, of_precision in of_model.groupby("base_precision", sort=False):
            if precision not in QUANTIZED:
                sentences += _note(model, f"in {precision}", of_precision, (str(precision),), labels)
    return sentences


def _note(model: Any, what: str, runs: pd.DataFrame, formats: tuple[str, ...], labels: Mapping[int, str]) -> list[str]:
    rows_of: dict[float, list[str]] = {}
    for row, shares in zip(runs["row"], runs["base_share"], strict=True):
        share = round(sum(shares.get(name, 0.0) for name in formats), ROUNDED)
        rows_of.setdefault(share, []).append(labels[row])
    if len(rows_of) < 2:
        return []
    parts = [f"{share:.1%} in {few(names)}" for share, names in sorted(rows_of.items())]
    return [f"Unlike shares of the base's parameters are {what} in rows of {model}: {', '.join(parts)}."]
