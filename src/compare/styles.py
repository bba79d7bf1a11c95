"""Give each variant one color and one marker for every figure: the product's, the page's and the experiments'.

Okabe and Ito's palette for the variants met most often, Tol's "muted" for the rest. Markers tell them apart as well, in gray
or to eyes that see few colors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..config.schema import named_variants


class Style(NamedTuple):
    color: str
    marker: str  # matplotlib's letter


STYLES = {
    "frozen": Style("#7F7F7F", "_"), "full": Style("#000000", "*"),
    "lora": Style("#0072B2", "o"), "rslora": Style("#E69F00", "s"), "dora": Style("#009E73", "^"),
    "qlora": Style("#D55E00", "v"), "lora_8bit": Style("#CC79A7", "P"), "qdora": Style("#56B4E9", "X"),
    "dora_rs": Style("#882255", "D"), "rsqlora": Style("#999933", "<"), "rslora_8bit": Style("#332288", ">"),
    "dora_8bit": Style("#117733", "p"), "dora_rs_8bit": Style("#AA4499", "h"), "qdora_rs": Style("#44AA99", "H"),
}  # fmt: skip
# For variants that came later, in the order of their names.
SPARE = (Style("#661100", "1"), Style("#6699CC", "2"), Style("#DDCC77", "3"), Style("#888800", "4"))
OTHER = Style("#8C6D46", "d")  # a variant that has none of its own

# Lines that lie on each other: LoRA's is wide and pale, so that it shows under DoRA's dashes.
LINES: dict[str, dict[str, Any]] = {
    "lora": {"color": (STYLES["lora"].color, 0.5), "lw": 3.4},
    "dora": {"ls": (0, (5, 2)), "lw": 1.4},
}

# Lighter shades for a dark page, where the palette's own would be too dark.
DARK = {
    "#0072B2": "#56B4E9", "#000000": "#F0F0F0", "#882255": "#D98AB0", "#332288": "#9A8FE0", "#117733": "#5DBB78",
    "#7F7F7F": "#A0A0A0", "#D55E00": "#F28C4A", "#009E73": "#2CC79A", "#AA4499": "#D58AC8", "#56B4E9": "#8FD0F5",
}  # fmt: skip


def style(variant: str) -> Style:
    later = sorted(name for name in named_variants().values() if name not in STYLES)
    return (STYLES | dict(zip(later, SPARE, strict=False))).get(variant, OTHER)


def line(variant: str) -> dict[str, Any]:
    """Return the style of a variant's line in the studies, as arguments of ``plot``."""
    color, marker = style(variant)
    usual = {"color": color, "lw": 1.6, "marker": marker, "ms": 6, "mfc": color, "mec": color}
    return usual | LINES.get(variant, {})
