"""Compute DoRA's row norms once per optimizer step (Liu et al. 2024, arXiv 2402.09353, section 4.3 and equation 5).

The norm is treated as a constant by the gradient, so it depends on parameters alone and does not change between two
optimizer steps. It is computed without building ``W + s B A``, row by row (j):

    ||w_j + s (B A)_j||^2 = ||w_j||^2 + 2 s sum_k B_jk U_jk + s^2 sum_k (B G)_jk B_jk,    U = W A^T,  G = A A^T
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .buffers import Blocks, Bucket, Kind

Dense = Callable[[str], torch.Tensor]  # the frozen weight [out, in] of a layer, dequantized


def squared_row_norms(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``||w_j||^2`` [out], summed in ``dtype``."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=dtype).square()


class _Gain(torch.autograd.Function):
    """Multiply ``y * g`` for each output. ``dg`` sums over tokens in two stages: one stage has too little to do at once."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(y, gain)
        return (y * gain[:, None, :]).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y, gain = ctx.saved_tensors
        scaled = (grad * gain[:, None, :]).to(y.dtype)
        # From ``scaled``, which is written anyway, and not from ``grad``, which may be the end of a longer expression.
        product = scaled.to(gain.dtype) * y.to(gain.dtype)
        tokens = product.shape[1]
        stage = next(size for size in (64, 32, 16, 8, 4, 2, 1) if tokens % size == 0)
        summed = product.unflatten(1, (tokens // stage, stage)).sum(2).sum(1)
        return scaled, summed / torch.where(gain == 0, torch.ones_like(gain), gain)


def apply_gain(y: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Multiply ``y`` [runs, tokens, out] by ``gain`` [runs, out], rounding once."""
    scaled: torch.Tensor = _Gain.apply(y, gain)  # type: ignore[no-untyped-call]
    return scaled


class RowNorms:
    """The term ``gain``: the reciprocal row norms of every DoRA run, [layers, runs, out] for each bucket and kind of module."""

    def __init__(self, buckets: Sequence[Bucket], blocks: Blocks, dense: Dense) -> None:
        self.buckets = list(buckets)
        self.dense = dense
        self.blocks = blocks
        self.kinds = list(blocks.kinds)
        self.frozen: dict[Kind, torch.Tensor] = {}
        self.inverse: dict[tuple[int, Kind], torch.Tensor] = {}
        for kind in self.kinds:
            dtype = self.buckets[0].values.dtype
            self.frozen[kind] = torch.stack([squared_row_norms(weight, dtype) for weight in self._weights(kind)])
            for bucket in self.buckets:
                self.inverse[bucket.first, kind] = self.frozen[kind].rsqrt()[:, None].repeat(1, bucket.runs, 1)

    def _weights(self, kind: Kind) -> Iterator[torch.Tensor]:
        return (self.dense(f"{prefix}.{kind.name}") for prefix in self.blocks.prefixes)

    @torch.no_grad()
    def start(self) -> None:
        """Give fresh runs their m: the norms of the frozen rows, as B is zero."""
        for bucket in self.buckets:
            for kind in self.kinds:
                bucket.all_layers(bucket.values, kind, "m").copy_(self.frozen[kind].sqrt()[:, None])

    def held(self, bucket: Bucket, kind: Kind, layer: int) -> torch.Tensor:
        """Return the reciprocal norms of one module, [runs, out], which ``update`` changes in place."""
        return self.inverse[bucket.first, kind][layer]

    @staticmethod
    def apply(y: torch.Tensor, vectors: Mapping[str, torch.Tensor], held: torch.Tensor) -> torch.Tensor:
        """Multiply ``y`` [runs, tokens, out] by ``m / ||W + s B A||``."""
        return apply_gain(y, vectors["m"] * held)

    @torch.no_grad()
    def update(self) -> None:
        """Bring the norms to the current A and B. Call it after each change of them."""
        for kind in self.kinds:
            crosses = self._crosses(kind)
            for bucket, cross_LKoR in zip(self.buckets, crosses, strict=True):
                A_LKRi = bucket.all_layers(bucket.values, kind, "A")
                B_LKoR = bucket.all_layers(bucket.values, kind, "B")
                s = bucket.scale[:, None, None]
                gram_LKRR = A_LKRi @ A_LKRi.transpose(-1, -2)
                squared = (B_LKoR * (2 * s * cross_LKoR + s**2 * (B_LKoR @ gram_LKRR))).sum(-1)
                torch.rsqrt((squared + self.frozen[kind][:, None]).clamp_min_(0), out=self.inverse[bucket.first, kind])

    def _crosses(self, kind: Kind) -> list[torch.Tensor]:
        """Return ``W A^T`` [layers, runs, out, R] of each bucket. Each weight is read, or dequantized, once for all runs."""
        sizes = [bucket.runs * bucket.rank for bucket in self.buckets]
        of_buckets = [bucket.all_layers(bucket.values, kind, "A").flatten(1, 2) for bucket in self.buckets]
        rows_LNi = torch.cat(of_buckets, dim=1) if len(of_buckets) > 1 else of_buckets[0]
        crosses_LoN: torch.Tensor | None = None
        for layer, weight in enumerate(self._weights(kind)):
            if crosses_LoN is None:
                rows_LNi = rows_LNi.to(weight.dtype)
                shape = (len(rows_LNi), weight.shape[0], rows_LNi.shape[1])
                crosses_LoN = torch.empty(shape, dtype=self.buckets[0].values.dtype, device=weight.device)
            _product(weight, rows_LNi[layer].t(), crosses_LoN[layer])
        assert crosses_LoN is not None
        return [
            part.unflatten(2, (bucket.runs, bucket.rank)).transpose(1, 2)
            for bucket, part in zip(self.buckets, torch.split(crosses_LoN, sizes, dim=2), strict=True)
        ]


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """Compute ``a @ b`` in the format of ``out``: on a GPU the product of 16-bit operands keeps its fp32 sums."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(a @ b)
