"""DoRA's norms and gradients against the dense formulas, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from src.config.schema import Config
from src.data.batches import IGNORE, collate, rows_at
from src.engine.packed import terms
from src.engine.packed.buffers import Blocks, Bucket, Kind, buckets_of
from src.engine.packed.exchange import named
from src.engine.packed.gain import RowNorms, apply_gain
from src.engine.packed.members import member
from tests.engine.packed.conftest import CPU, FP64, ITEMS, PAD, Tensors, base_of, config_of, in_slots, moved, pack_of

NAMES = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
BLOCKS = Blocks(("model.layers.0", "model.layers.1"), (Kind("mlp.up_proj", 12, 10), Kind("mlp.down_proj", 10, 12)))


def weights(generator: torch.Generator) -> Tensors:
    sizes = {kind.name: (kind.out_features, kind.in_features) for kind in BLOCKS.kinds}
    return {
        f"{prefix}.{name}": torch.randn(*size, generator=generator, dtype=torch.float64)
        for prefix in BLOCKS.prefixes
        for name, size in sizes.items()
    }


def test_row_norms_are_those_of_the_dense_sum() -> None:
    """Three buckets, two of them DoRA's with padded ranks, before and after A and B change."""
    generator = torch.Generator().manual_seed(0)
    dense = weights(generator)
    runs = [("lora", 4), ("dora", 3), ("dora_rs", 5), ("dora", 20), ("dora_rs", 17)]
    members = [member(config_of(variant, f"lora.r={r}")) for variant, r in runs]
    buckets = buckets_of(members, BLOCKS, 4, torch.float64, CPU)
    norms = terms.build(buckets, BLOCKS, dense.__getitem__)["gain"]
    assert isinstance(norms, RowNorms)
    assert [bucket.rank for bucket in norms.buckets] == [8, 20]
    checked = 0
    for _ in range(2):
        for bucket in buckets:
            fill(bucket, generator)
        norms.update()
        for bucket in norms.buckets:
            for run, one in enumerate(bucket.members):
                for name, at, kind in BLOCKS.modules:
                    A, B = (bucket.of_run(bucket.values[:, run], run, at, kind, part) for part in ("A", "B"))
                    wanted = torch.linalg.norm(dense[name] + one.scale * (B @ A), dim=1)
                    torch.testing.assert_close(1 / norms.inverse[bucket.first, kind][at, run], wanted, rtol=1e-13, atol=0)
                    checked += 1
    assert checked == 2 * 4 * 4


def fill(bucket: Bucket, generator: torch.Generator) -> None:
    for run in range(bucket.runs):
        for _, at, kind in BLOCKS.modules:
            for part in bucket.parts:
                view = bucket.of_run(bucket.values[:, run], run, at, kind, part.name)
                view.copy_(torch.randn(view.shape, generator=generator, dtype=torch.float64))


def test_a_fresh_magnitude_is_the_norm_of_the_frozen_rows() -> None:
    """So that the output is the base's at step 0."""
    pack = pack_of([config_of("dora")], FP64)
    base = base_of(config_of("dora"), FP64)
    for name, tensor in pack.trained(0).items():
        if name.endswith(NAMES["m"]):
            weight = base.get_parameter(name.removeprefix("base_model.model.").replace(NAMES["m"], "weight"))
            torch.testing.assert_close(tensor, torch.linalg.norm(weight, dim=1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("tokens", [1, 7, 12, 64, 192])
def test_apply_gain_and_its_gradients(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    y = torch.randn(2, tokens, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(2, tokens, 3, generator=generator, dtype=torch.float64)
    found, wanted = apply_gain(y, gain), y * gain[:, None]
    assert torch.equal(found, wanted)
    for mine, theirs in zip(
        torch.autograd.grad(found, (y, gain), outer), torch.autograd.grad(wanted, (y, gain), outer), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-14)
    if tokens < 64:
        assert torch.autograd.gradcheck(apply_gain, (y, gain))


def test_a_16_bit_product_keeps_its_format_and_gives_the_gain_an_fp32_gradient() -> None:
    y = torch.ones(1, 4096, 2, dtype=torch.bfloat16, requires_grad=True)
    gain = torch.ones(1, 2, requires_grad=True)
    found = apply_gain(y, gain)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.bfloat16 and y.grad is not None and y.grad.dtype == torch.bfloat16
    assert gain.grad is not None and gain.grad.tolist() == [[4096, 4096]]  # summed in bf16 it would stop at 256


@pytest.mark.parametrize("variant", ["lora", "dora", "dora_rs"])
@pytest.mark.usefixtures("exact_norms")
def test_gradients_are_those_of_the_dense_model(variant: str) -> None:
    """The whole model with ``W`` replaced by ``m / ||W + s B A|| (W + s B A)``, the norm a constant (section 4.3)."""
    configs = in_slots([config_of(variant, "lora.r=5", "train.clip=0.01"), config_of("dora", "lora.r=3", "seed=4")])
    pack = pack_of(configs, FP64)
    for run in range(2):
        pack.load_state(run, moved(pack.state(run), seed=run))
    values = {name: tensor.clone().requires_grad_() for name, tensor in pack.trained(0).items()}
    (step,) = pack.advance(0, 1)
    found = named(pack.model, 0, pack.model.bucket_of(0)[0].grads[:, 0])
    loss = dense_loss(configs[0], values, constant=True)
    assert step.loss[0] == pytest.approx(loss.item(), rel=1e-13)
    wanted = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))
    assert max(float((found[name] - g).norm() / g.norm()) for name, g in wanted.items()) <= 1e-12
    if variant != "lora":
        other = torch.autograd.grad(dense_loss(configs[0], values, constant=False), list(values.values()))
        worst = max(float((found[name] - g).norm() / g.norm()) for name, g in zip(values, other, strict=True))
        assert worst > 0.1  # what a norm with a gradient would give is far away


def dense_loss(config: Config, values: Tensors, constant: bool) -> torch.Tensor:
    """The loss of the run's first batch, its adapters added into the base's weights."""
    network: Any = base_of(config, FP64)
    scale = member(config).scale
    replaced = {}
    for name, weight in network.named_parameters():
        stem = f"base_model.model.{name.removesuffix('weight')}"
        if stem + NAMES["A"] not in values:
            continue
        summed = weight + scale * values[stem + NAMES["B"]] @ values[stem + NAMES["A"]]
        if stem + NAMES["m"] in values:
            norm = torch.linalg.norm(summed, dim=1)
            summed = (values[stem + NAMES["m"]] / (norm.detach() if constant else norm))[:, None] * summed
        replaced[name] = summed
    batch = collate([ITEMS[row] for row in rows_at(0, 3, len(ITEMS), config.data_seed)], PAD, CPU)
    logits = functional_call(network, replaced, kwargs={"input_ids": batch.input_ids}).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
