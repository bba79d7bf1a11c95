"""The optimizers of engine peft where their moments are on a GPU, or paged between its memory and the CPU's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from src.config.schema import TrainConfig
from src.engine import peft_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

GPU = torch.device("cuda")
# bitsandbytes pages moments of 100,000 numbers and more, quantizes those of 4,096 and more, and leaves the rest in fp32.
SHAPES = {"paged": (400, 300), "quantized": (96, 64), "small": (32,)}
PAGED = {"adamw": set(), "adamw_bnb_8bit": set(), "paged_adamw_8bit": {"paged"}}
Parameters = dict[str, nn.Parameter]


def parameters(dtype: torch.dtype = torch.float32) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(GPU, dtype)) for name, shape in SHAPES.items()}


def advance(trained: torch.optim.Optimizer, named: Parameters, first: int, last: int) -> None:
    """Advance by gradients that depend on the step alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in named.values():
            parameter.grad = (torch.randn(parameter.shape, generator=generator) + 0.5).to(parameter)
        trained.step()


def build(name: str, named: Parameters) -> torch.optim.Optimizer:
    return peft_optimizer.build(TrainConfig(optimizer=name, lr=1e-2), [{"params": list(named.values())}], GPU)


@pytest.mark.parametrize("name", PAGED)
def test_an_optimizer_stays_near_fp64(name: str) -> None:
    ours, exact, before = parameters(), parameters(torch.float64), parameters()
    advance(build(name, ours), ours, 0, 20)
    advance(torch.optim.AdamW(exact.values(), lr=1e-2, weight_decay=TrainConfig().weight_decay), exact, 0, 20)
    for key, value in ours.items():
        moved = (exact[key] - before[key]).norm()
        assert (value - exact[key]).norm() / moved < (1e-4 if name == "adamw" or key == "small" else 0.03)


@pytest.mark.parametrize("name", PAGED)
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str) -> None:
    whole, first = parameters(), parameters()
    advance(build(name, whole), whole, 0, 9)
    built = build(name, first)
    advance(built, first, 0, 4)
    assert {key for key, value in first.items() if getattr(built.state[value].get("state1"), "is_paged", False)} == PAGED[name]
    saved = {key: value.cpu().clone() for key, value in peft_optimizer.state(built, first).items()}
    again = {key: nn.Parameter(value.detach().clone()) for key, value in first.items()}
    rebuilt = build(name, again)
    peft_optimizer.load_state(rebuilt, again, saved)
    advance(rebuilt, again, 4, 9)
    for key, value in whole.items():
        assert torch.equal(again[key], value)
