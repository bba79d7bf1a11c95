"""The base-precision axis: the format that the frozen base is held in."""

from __future__ import annotations

FOUR_BIT = ("nf4", "fp4")  # one layout, two tables of 16 values
QUANTIZED = ("int8", *FOUR_BIT)
PRECISIONS = ("bf16", "fp32", *QUANTIZED)
