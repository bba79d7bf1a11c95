"""Compare the product over a 4-bit base with bitsandbytes' dequantized weight, and FP4's table with one by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.engine.packed.frozen import FourBit
from src.engine.packed.layer import FrozenLinear, StepContext
from src.variants import quantization
from src.variants.methods.point import VariantConfig
from tests.engine.packed.conftest import CPU

SIZES = [(64, 64), (40, 72), (7, 130)]  # the last two fill neither the last block of 64 weights nor the last of 256 scales


def layer_of(weight: torch.Tensor, precision: str, nested: bool) -> Any:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    variant = VariantConfig(base_precision=precision, double_quant=nested)
    return quantization._quantize(linear, variant, CPU, torch.float32)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("precision", ["nf4", "fp4"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_state_that_the_kernel_reads_is_what_bitsandbytes_dequantizes(
    size: tuple[int, int], precision: str, nested: bool
) -> None:
    """The kernel's arithmetic, in torch: ``code[index] * scale``, the scale of a double quantized one looked up first."""
    from bitsandbytes.functional import dequantize_4bit

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator) * torch.rand(size[0], 1, generator=generator)
    layer = layer_of(weight, precision, nested)
    held = FourBit(layer, torch.float32, fused=False)
    wanted = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(held.dense(), wanted)
    scales = held.absmax
    if nested:
        scales = held.code2[scales.long()] * held.absmax2.repeat_interleave(256)[: len(scales)] + held.offset
    bytes_ = held.packed.flatten().long()
    values = held.code[torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).flatten()[: weight.numel()]]
    assert torch.equal(values * scales.repeat_interleave(64)[: weight.numel()], wanted.flatten())


def test_fp4_by_hand() -> None:
    """E2M1 with a bias of 2, over its largest value of 12: a block of its values comes back as it was, others are rounded."""
    values = torch.tensor([0, 1 / 16, 2, 3, 4, 6, 8, 12]) / 12
    row = torch.cat([values, -values]).repeat(4)
    weight = torch.stack([row, row * 5])
    torch.testing.assert_close(FourBit(layer_of(weight, "fp4", False), torch.float32, False).dense(), weight, rtol=2e-7, atol=0)
    weight[:, 1], weight[:, 2] = weight[:, 7] * 5.2 / 12, weight[:, 7] * 0.9 / 12  # to 6 and to 1/16: from 1.03 it would be 2
    dense = FourBit(layer_of(weight, "fp4", False), torch.float32, False).dense()
    torch.testing.assert_close(dense[:, 1:3], weight[:, 7:8] * torch.tensor([[6, 1 / 16]]) / 12, rtol=2e-7, atol=0)


@pytest.mark.parametrize("precision", ["nf4", "fp4"])
def test_the_product_and_its_gradient_are_those_of_the_dense_weight(precision: str) -> None:
    generator = torch.Generator().manual_seed(1)
    held = FourBit(layer_of(torch.randn(40, 64, generator=generator), precision, True), torch.float32, fused=False)
    x = torch.randn(2, 5, 64, generator=generator, requires_grad=True)
    y = held(x, None, x)
    upstream = torch.randn(y.shape, generator=generator)
    y.backward(upstream)
    torch.testing.assert_close(y, x.detach() @ held.dense().T)
    torch.testing.assert_close(x.grad, upstream @ held.dense())


@pytest.mark.parametrize("rows", [(2, 5), (6,)], ids=str)
def test_a_quantized_layer_without_an_adapter_keeps_its_bias_and_its_shape(rows: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    layer = layer_of(torch.randn(40, 64, generator=generator), "nf4", True)
    layer.bias = torch.nn.Parameter(torch.randn(40, generator=generator), requires_grad=False)
    held, nobody = FourBit(layer, torch.float32, fused=False), torch.zeros(2, 1, dtype=torch.int64)
    x = torch.randn(*rows, 64, generator=generator)
    y = FrozenLinear(layer, held, StepContext(2, nobody[:, 0], nobody, nobody))(x)
    assert y.shape == (*rows, 40)
    torch.testing.assert_close(y, x @ held.dense().T + layer.bias)
