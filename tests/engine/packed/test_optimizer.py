"""The packed AdamW against ``torch.optim.AdamW`` and ``clip_grad_norm_``, run by run."""

from __future__ import annotations

import math

import pytest
import torch

from src.engine.packed import optimizer
from src.engine.packed.exchange import named
from tests.engine.packed.conftest import FP64, config_of, in_slots, pack_of

pytestmark = pytest.mark.usefixtures("exact_norms")

STEPS = 20


def test_twenty_steps_are_torchs() -> None:
    """The gradients that the pack found go to torch's optimizer; the numbers must stay the same."""
    configs = in_slots([
        config_of("lora", "train.lr=0.01", "train.clip=0.05", "train.weight_decay=0.3", "lora.r=3"),
        config_of("lora", "train.lr=0.002", "train.clip=0", "train.schedule=cosine", "train.warmup=0.4", "seed=1"),
        config_of("dora", "train.lr=0.005", "train.clip=1000", "train.weight_decay=0.01", "train.schedule=constant", "seed=2"),
        config_of("dora", "train.lr=0.003", "train.clip=0.3", "lora.r=9", "seed=3"),
    ])  # fmt: skip
    pack = pack_of(configs, FP64, STEPS)
    stock = [{name: tensor.clone().requires_grad_() for name, tensor in pack.trained(run).items()} for run in range(4)]
    optimizers = [
        torch.optim.AdamW(tensors.values(), weight_decay=config.train.weight_decay)
        for tensors, config in zip(stock, configs, strict=True)
    ]
    clipped = [0] * 4
    for at in range(STEPS):
        (step,) = pack.advance(at, at + 1)
        for run, tensors in enumerate(stock):
            bucket, row = pack.model.bucket_of(run)
            for name, gradient in named(pack.model, run, bucket.grads[:, row]).items():
                tensors[name].grad = gradient.clone()
            clip = configs[run].train.clip or math.inf
            norm = torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
            assert step.grad_norm[run] == pytest.approx(float(norm), rel=1e-13)
            clipped[run] += float(norm) > clip
            optimizers[run].param_groups[0]["lr"] = step.lr[run]
            optimizers[run].step()
            for name, tensor in pack.trained(run).items():
                assert (tensor - tensors[name]).abs().max() <= 1e-13, (at, run, name)
    assert clipped[1] == clipped[2] == 0 < min(clipped[0], clipped[3])
    for run, tensors in enumerate(stock):
        state = pack.state(run)
        for name, tensor in tensors.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                wanted = optimizers[run].state[tensor][moment]
                assert (state[f"{moment}/{name}"] - wanted).norm() <= 1e-13 * wanted.norm()


def test_a_run_that_is_not_alive_keeps_its_numbers_whatever_its_gradients_are() -> None:
    generator = torch.Generator().manual_seed(0)
    values, grads, exp_avg = torch.randn(3, 2, 3, 5, generator=generator)  # [layers, runs, parameters] each
    exp_avg_sq = exp_avg.square()
    grads[:, 1] = torch.nan
    before = [tensor.clone() for tensor in (values, exp_avg, exp_avg_sq)]
    column = torch.full((3, 1), 0.1)
    factor = torch.tensor([[1.0], [torch.nan], [1.0]])
    alive = torch.tensor([[True], [False], [True]])
    optimizer.update(values, grads, exp_avg, exp_avg_sq, factor, column, column, column[0, 0], column[0, 0], alive)
    for tensor, old in zip((values, exp_avg, exp_avg_sq), before, strict=True):
        assert torch.equal(tensor[:, 1], old[:, 1])
        assert tensor.isfinite().all() and (tensor[:, [0, 2]] != old[:, [0, 2]]).all()
