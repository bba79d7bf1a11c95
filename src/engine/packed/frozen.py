"""Multiply by the frozen weight of an adapted layer, ``x W^T``, in every base precision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...files.errors import ConfigError
from . import int8
from .kernels import dequantize_four_bit

AT_ONCE = 2**26  # inputs that evaluation rounds at once: about 1 GB of copies


class Frozen(nn.Module):
    """A product with a frozen weight. ``forward(x, rows, read)``: x [runs, tokens, in] to [runs, tokens, out], without bias.

    ``rows`` [runs, tokens] is negative at padding, None where there is none; only LLM.int8() uses it. ``read`` is the
    tensor that the module was called on: modules called on the same tensor may share a product.
    """

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None, read: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """Give the weight [out, in] in the format of the products."""
        raise NotImplementedError


class Plain(Frozen):
    """A weight held in the format of the products: 16 or 32 bits, or a held copy of a quantized one."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None, read: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def dense(self) -> torch.Tensor:
        return self.weight


class Joint(nn.Module):
    """The stacked weights of modules that read the same input: a single product serves all of them."""

    weight: torch.Tensor

    def __init__(self, products: Sequence[Plain]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([product.weight for product in products]), persistent=False)
        self.close()

    def close(self) -> None:
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None

    def product(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        if self.last is None or self.last[0] is not read:
            self.last = (read, F.linear(x, self.weight))
        return self.last[1]


class Share(Frozen):
    """One module's share of a joint product: its rows ``start`` to ``start + out``."""

    def __init__(self, joint: Joint, start: int, out: int) -> None:
        super().__init__()
        self.joint, self.start, self.out = joint, start, out

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None, read: torch.Tensor) -> torch.Tensor:
        return self.joint.product(x, read).narrow(2, self.start, self.out)

    def dense(self) -> torch.Tensor:
        return self.joint.weight.narrow(0, self.start, self.out)


def join(products: Sequence[Plain]) -> list[Share]:
    """Stack the weights of ``products`` and give each as a part. The weights are copied: release the old ones."""
    joint = Joint(products)
    outs = [len(product.weight) for product in products]
    return [Share(joint, start, out) for start, out in zip(accumulate(outs, initial=0), outs, strict=False)]


class FourBit(Frozen):
    """bitsandbytes' NF4 or FP4, dequantized for each product, forward and backward (QLoRA, arXiv 2305.14314, equation 5)."""

    packed: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    absmax2: torch.Tensor
    code2: torch.Tensor
    offset: torch.Tensor

    def __init__(self, layer: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        state = layer.weight.quant_state
        nothing = torch.empty(0, device=layer.weight.device)
        tensors = {"packed": layer.weight.data, "absmax": state.absmax, "code": state.code}
        tensors |= {
            "absmax2": state.state2.absmax if state.nested else nothing,
            "code2": state.state2.code if state.nested else nothing,
            "offset": state.offset.reshape(1) if state.nested else nothing,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.size = (layer.out_features, layer.in_features)
        self.dtype = dtype
        self.fused = fused
        self.quant_type: str = state.quant_type

    def _state(self) -> tuple[torch.Tensor, ...]:
        return self.packed, self.absmax, self.code, self.absmax2, self.code2, self.offset

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None, read: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = four_bit_product(x, *self._state(), self.size[0], self.fused, self.quant_type)
        return y

    def dense(self) -> torch.Tensor:
        return _dense(self._state(), *self.size, self.dtype, self.fused, self.quant_type)


class Int8(Frozen):
    """LLM.int8(): all runs share the products, each with the outlier columns that it has alone."""

    weight: torch.Tensor
    absmax: torch.Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.threshold: float = layer.state.threshold
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        self.register_buffer("weight", layer.weight.data, persistent=False)
        self.register_buffer("absmax", scales.flatten(), persistent=False)

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None, read: torch.Tensor) -> torch.Tensor:
        if self.training and not self.rounds(x):
            y: torch.Tensor = int8.dense_product(x, self.weight, self.absmax)
            return y
        # Rounding takes copies in 32 bits. Training counts on them; evaluation, of many more tokens, takes some runs at a time.
        at_once = len(x) if torch.is_grad_enabled() else max(1, AT_ONCE // x[0].numel())
        real = [None] * len(x) if rows is None else (rows >= 0).split(at_once)
        outputs = [
            int8.product(part, *int8.split(part, which, self.threshold), self.weight, self.absmax)
            for part, which in zip(x.split(at_once), real, strict=False)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @staticmethod
    def rounds(x: torch.Tensor) -> bool:
        """Tell if training rounds its inputs to 8 bits: bitsandbytes has products of 8 bits on GPUs only."""
        return x.device.type != "cpu"

    def dense(self) -> torch.Tensor:
        return int8.dense(self.weight, self.absmax, torch.float32)


def frozen(layer: Any, dtype: torch.dtype, hold: bool, fused: bool) -> Frozen:
    """Choose the product for a base layer, quantized or not.

    Raises:
        ConfigError: a layer of a kind that does not pack.
    """
    kind = type(layer).__name__
    if kind == "Linear4bit":
        quantized = FourBit(layer, dtype, fused)
        return Plain(quantized.dense()) if hold else quantized
    if kind == "Linear8bitLt":
        return Int8(layer)
    if isinstance(layer, nn.Linear):
        return Plain(layer.weight.data)
    raise ConfigError(f"engine=packed: a {kind} cannot be packed; use engine=peft")


def _dense(
    state: tuple[torch.Tensor, ...], rows: int, columns: int, dtype: torch.dtype, fused: bool, quant_type: str
) -> torch.Tensor:
    packed, absmax, code, absmax2, code2, offset = state
    if fused:
        return dequantize_four_bit(packed, absmax, code, absmax2, code2, offset, rows, columns, dtype)
    from bitsandbytes.functional import QuantState, dequantize_4bit

    nested = None
    if len(absmax2):
        nested = QuantState(absmax=absmax2, code=code2, blocksize=256, dtype=torch.float32)
    whole = QuantState(
        absmax=absmax, shape=torch.Size((rows, columns)), code=code, blocksize=64, quant_type=quant_type, dtype=dtype,
        offset=offset[0] if len(offset) else None, state2=nested,
    )  # fmt: skip
    weight: torch.Tensor = dequantize_4bit(packed, whole)
    return weight


# Operators of their own, so that no compiler sees the dequantized weight and keeps it for the backward pass.
@torch.library.custom_op("lora_assay::four_bit_product", mutates_args=())
def four_bit_product(
    x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, absmax2: torch.Tensor,
    code2: torch.Tensor, offset: torch.Tensor, out_features: int, fused: bool, quant_type: str,
) -> torch.Tensor:  # fmt: skip
    weight = _dense((packed, absmax, code, absmax2, code2, offset), out_features, x.shape[-1], x.dtype, fused, quant_type)
    return F.linear(x, weight)


@four_bit_product.register_fake
def _(x, packed, absmax, code, absmax2, code2, offset, out_features, fused, quant_type):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("lora_assay::four_bit_product_backward", mutates_args=())
def four_bit_product_backward(
    grad: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, absmax2: torch.Tensor,
    code2: torch.Tensor, offset: torch.Tensor, in_features: int, fused: bool, quant_type: str,
) -> torch.Tensor:  # fmt: skip
    weight = _dense((packed, absmax, code, absmax2, code2, offset), grad.shape[-1], in_features, grad.dtype, fused, quant_type)
    return grad @ weight


@four_bit_product_backward.register_fake
def _(grad, packed, absmax, code, absmax2, code2, offset, in_features, fused, quant_type):  # type: ignore[no-untyped-def]
    return grad.new_empty(*grad.shape[:-1], in_features)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *state, _, fused, quant_type = inputs
    ctx.save_for_backward(*state)
    ctx.in_features, ctx.fused, ctx.quant_type = x.shape[-1], fused, quant_type


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad_x = four_bit_product_backward(grad.contiguous(), *ctx.saved_tensors, ctx.in_features, ctx.fused, ctx.quant_type)
    return grad_x, *[None] * 9


four_bit_product.register_autograd(_backward, setup_context=_save)
