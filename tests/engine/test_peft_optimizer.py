"""Compare 8-bit optimizers of engine peft with AdamW's own arithmetic, and resume them from checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from src.command.cli import compose
from src.config.schema import TrainConfig
from src.engine import peft_optimizer
from src.files.errors import ConfigError
from tests.conftest import TINY, Run

EIGHT_BITS = ["adamw_bnb_8bit", "paged_adamw_8bit"]
CPU = torch.device("cpu")


def parameters() -> dict[str, nn.Parameter]:
    """One above bitsandbytes' 4,096 numbers, whose moments are quantized, and one below."""
    torch.manual_seed(0)
    return {"large": nn.Parameter(torch.randn(96, 64)), "small": nn.Parameter(torch.randn(32))}


def advance(trained: torch.optim.Optimizer, named: dict[str, nn.Parameter], first: int, last: int) -> None:
    """Advance by gradients that depend on the step alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator) + 0.5
        trained.step()


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_the_first_step_is_adams_own_and_later_ones_stay_near(name: str) -> None:
    """The first update is lr * (g / |g| + decay * w) whatever the moments are held in; the rest is compared with fp64."""
    train = TrainConfig(optimizer=name, lr=1e-2, weight_decay=0.1)
    ours = parameters()
    before = {key: value.detach().clone() for key, value in ours.items()}
    built = peft_optimizer.build(train, list(ours.values()), CPU)
    advance(built, ours, 0, 1)
    for key, value in ours.items():
        assert value.grad is not None
        wanted = before[key] - 1e-2 * (value.grad.sign() + 0.1 * before[key])
        torch.testing.assert_close(value.detach(), wanted, atol=1e-5, rtol=0)

    exact = {key: nn.Parameter(value.double()) for key, value in before.items()}
    reference = torch.optim.AdamW(exact.values(), lr=1e-2, weight_decay=0.1)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for parameter in exact.values():
            parameter.grad = (torch.randn(parameter.shape, generator=generator) + 0.5).double()
        reference.step()
    advance(built, ours, 1, 20)
    moved = (exact["large"] - before["large"]).norm()
    assert (ours["large"] - exact["large"]).norm() / moved < 0.03
    torch.testing.assert_close(ours["small"].detach().double(), exact["small"].detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["adamw", *EIGHT_BITS])
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str) -> None:
    train = TrainConfig(optimizer=name, lr=1e-2)
    whole, first = parameters(), parameters()
    advance(peft_optimizer.build(train, list(whole.values()), CPU), whole, 0, 9)
    built = peft_optimizer.build(train, list(first.values()), CPU)
    advance(built, first, 0, 4)
    saved = {key: value.clone() for key, value in peft_optimizer.state(built, first).items()}
    again = {key: nn.Parameter(value.detach().clone()) for key, value in first.items()}
    rebuilt = peft_optimizer.build(train, list(again.values()), CPU)
    peft_optimizer.load_state(rebuilt, again, saved)
    advance(rebuilt, again, 4, 9)
    for key, value in whole.items():
        assert torch.equal(again[key], value)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_a_run_trains_with_it_and_its_record_says_so(run: Run, name: str) -> None:
    record, result = run("variant=lora_8bit", "engine=peft", f"train.optimizer={name}", "train.checkpoint_every=2", "lora.r=8")
    assert result["status"] == "ok", result["reason"]
    assert result["optimizer"] == name == result["identity"]["train"]["optimizer"]
    assert len(record.metrics.read_text().splitlines()) >= 3


def test_the_packed_engine_refuses_it_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^train\.optimizer=adamw_bnb_8bit: needs engine=peft"):
        compose([*TINY, "train.optimizer=adamw_bnb_8bit"])


def test_tables_name_the_optimizer_and_the_audit_flags_a_difference(run: Run) -> None:
    from src.compare.assay import assay
    from src.compare.frame import gather

    eight = run("variant=rslora", "engine=peft", "train.optimizer=adamw_bnb_8bit")[0]
    plain = run("variant=lora", "engine=peft")[0]
    result = assay(gather([eight.run_id, plain.run_id]), "test/loss", "lora", None, None)
    assert "train.optimizer" in result.comparison.differing
    assert set(result.comparison.table["train.optimizer"]) == {"adamw", "adamw_bnb_8bit"}
    assert [line.field for line in result.audit.confounds] == ["train.optimizer"]
    assert "optimizer" not in json.loads((plain.path / "result.json").read_text())["identity"]["train"]
