"""One color and one marker for a variant, wherever it is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from src.compare.report import SYMBOLS
from src.compare.styles import DARK, OTHER, STYLES, style

ROOT = Path(__file__).resolve().parents[2]
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
# "lora": "#0072B2", in Python or in a notebook's JSON
NAMED_COLOR = re.compile(r'\\?"(' + "|".join(STYLES) + r')\\?": \(?\\?"(#[0-9A-Fa-f]{6})')


def test_no_two_variants_share_a_color_or_a_marker() -> None:
    for each in (*zip(*STYLES.values(), strict=True),):
        assert len({*each}) == len(STYLES)
    assert style("no such") == OTHER and not set(OTHER) & {part for style_of in STYLES.values() for part in style_of}
    assert {STYLES[name].color for name in ("full", "lora", "rslora", "dora", "qlora")} < OKABE_ITO
    assert DARK.keys() <= {style_of.color for style_of in STYLES.values()}
    assert {style_of.marker for style_of in STYLES.values()} <= SYMBOLS.keys()


@pytest.mark.parametrize("folder", ["src", "experiments", "notebooks", "benchmarks"])
def test_nothing_else_gives_a_variant_another_color(folder: str) -> None:
    paths = [path for kind in ("*.py", "*.ipynb") for path in (ROOT / folder).rglob(kind)]
    assert paths
    for path in paths:
        for variant, color in NAMED_COLOR.findall(path.read_text(encoding="utf-8")):
            assert color.upper() == STYLES[variant].color, f"{path.name}: {variant} is {color}"
