"""The scaling rules against their formulas and against what PEFT applies."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from src.config.values import CHOICES
from src.files.errors import ConfigError
from src.variants.methods.scaling import SCALINGS, effective_scale


@pytest.mark.parametrize(
    ("scaling", "alpha", "r", "expected"),
    [
        ("alpha_over_r", 16, 16, 1.0),
        ("alpha_over_r", 16, 4, 4.0),
        ("alpha_over_r", 16, 256, 0.0625),
        ("alpha_over_sqrt_r", 16, 16, 4.0),
        ("alpha_over_sqrt_r", 16, 4, 8.0),
        ("alpha_over_sqrt_r", 16, 256, 1.0),
        ("alpha_over_sqrt_r", 0.5, 1, 0.5),
    ],
)
def test_golden(scaling: str, alpha: float, r: int, expected: float) -> None:
    assert effective_scale(scaling, alpha, r) == expected


@pytest.mark.parametrize("r", [1, 3, 8, 64])
@pytest.mark.parametrize("alpha", [16, 7])
@pytest.mark.parametrize(("scaling", "use_rslora"), [("alpha_over_r", False), ("alpha_over_sqrt_r", True)])
def test_equals_peft(scaling: str, use_rslora: bool, alpha: int, r: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    adapted = get_peft_model(model, LoraConfig(r=r, lora_alpha=alpha, use_rslora=use_rslora, target_modules=["0"]))
    (layer,) = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert effective_scale(scaling, alpha, r) == layer.scaling["default"]


def test_at_one_rank_rslora_is_lora_at_another_alpha() -> None:
    assert effective_scale("alpha_over_sqrt_r", 16, 64) == effective_scale("alpha_over_r", 16 * 8, 64)


def test_every_choice_of_the_schema_has_a_rule() -> None:
    assert set(SCALINGS) == set(CHOICES["variant.scaling"])


def test_refuses_an_unknown_rule_and_an_impossible_rank() -> None:
    with pytest.raises(ConfigError, match=r"variant\.scaling=alpha: choose one of alpha_over_r"):
        effective_scale("alpha", 16, 4)
    with pytest.raises(ConfigError, match=r"lora\.r=0"):
        effective_scale("alpha_over_r", 16, 0)
