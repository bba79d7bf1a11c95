"""The rank that matches a budget: worked out by hand for SmolLM2-135M, and compared with every other rank."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from src.command.cli import compose
from src.config.schema import Config
from src.files.errors import ConfigError
from src.variants import counts
from src.variants.__main__ import shape_of
from src.variants.match import Match, matching_rank

# Each of SmolLM2-135M's 30 layers has 7 linear layers whose inputs and outputs sum to 10,176, and 5,184 outputs.
PER_RANK, MAGNITUDES = 30 * 10_176, 30 * 5_184


def match(config: Config, budget: int) -> Match:
    shape = shape_of(config)
    chosen = counts.targets(counts.linears(shape), config.lora.target_modules, config.model.name)
    return matching_rank(config.variant, config.lora, chosen, counts.total_parameters(shape), budget)


@pytest.mark.parametrize(
    ("variant", "budget", "r", "trainable"),
    [
        ("lora", 16 * PER_RANK, 16, 4_884_480),
        ("lora", PER_RANK, 1, 305_280),
        ("lora", 4_800_000, 16, 4_884_480),  # 15.7 ranks
        ("lora", 4_700_000, 15, 4_579_200),  # 15.4 ranks
        ("dora", 16 * PER_RANK, 15, 15 * PER_RANK + MAGNITUDES),  # ratios 0.96934 and 1.03184: 15 is nearer by a hair
        ("qdora_rs", 4 * PER_RANK, 4, 4 * PER_RANK + MAGNITUDES),  # ratios 0.877 and 1.127, whose logarithms are -0.131 and 0.120
        ("lora", 15 * PER_RANK + MAGNITUDES, 16, 4_884_480),  # 15.5094 ranks
    ],
)
def test_by_hand(variant: str, budget: int, r: int, trainable: int) -> None:
    found = match(compose([f"variant={variant}"]), budget)
    assert (found.r, found.trainable_parameters) == (r, trainable)
    assert found.ratio == pytest.approx(trainable / budget, rel=1e-15)


def test_nearest_means_by_ratio() -> None:
    # Half way between ranks 1 and 2 by difference, where 2/1.5 = 1.33 is nearer to 1 than 1.5/1.
    assert match(compose([]), PER_RANK * 3 // 2).r == 2
    # sqrt(2) is half way by ratio.
    assert match(compose([]), math.floor(PER_RANK * math.sqrt(2))).r == 1
    assert match(compose([]), math.ceil(PER_RANK * math.sqrt(2))).r == 2


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize("targets", ["all-linear", "[q_proj,v_proj]"])
@pytest.mark.parametrize("budget", [500_000, 777_777, 1_234_567, 10_000_001])
def test_no_rank_is_nearer(variant: str, targets: str, budget: int) -> None:
    config = compose([f"variant={variant}", f"lora.target_modules={targets}"])
    shape = shape_of(config)
    chosen = counts.targets(counts.linears(shape), config.lora.target_modules, config.model.name)
    gaps = {}
    for r in range(1, 400):
        lora = replace(config.lora, r=r)
        gaps[r] = abs(math.log(counts.trainable_parameters(config.variant, lora, chosen, 0) / budget))
    assert match(config, budget).r == min(gaps, key=lambda r: gaps[r]) < 399


def test_the_highest_rank_is_the_last() -> None:
    assert match(compose([]), 65_536 * PER_RANK).r == 65_536
    with pytest.raises(ConfigError, match="lora trains only 20,006,830,080 parameters at its highest rank, 65536"):
        match(compose([]), 65_536 * PER_RANK + 1)


def test_what_cannot_be_matched() -> None:
    with pytest.raises(ConfigError, match="dora trains 460,800 parameters at its lowest rank, 1, already"):
        match(compose(["variant=dora"]), 460_799)
    for name in ("full", "frozen"):
        with pytest.raises(ConfigError, match=f"{name} has no rank to choose"):
            match(compose([f"variant={name}"]), 10**6)
