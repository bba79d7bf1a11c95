"""Measure the runs of a pack, outside the recorded step: gradients, updates of the weights, activations.

Shapes: K runs in slot order, L decoder layers, M kinds of adapted modules (``q_proj``, ...), R the padded rank.
Padded rows of A and columns of B are zero, so no norm sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from src.data.batches import Batch
from src.engine.packed.buffers import Bucket
from src.engine.packed.model import PackedModel

Spread = dict[str, list[float]]  # of "all" and of each kind of module, a number for each run


def product_norms(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Compute the Frobenius norms [...] of ``left @ right``, for left [..., out, r] and right [..., r, in].

    ||L R||_F^2 = tr(R^T L^T L R) = sum_ij (L^T L)_ij (R R^T)_ij, so the product [out, in] is never formed.
    """
    grams: torch.Tensor = (left.transpose(-1, -2) @ left) * (right @ right.transpose(-1, -2))
    norms: torch.Tensor = grams.sum((-1, -2)).clamp(min=0).sqrt()
    return norms


def _norms(tensor_LKxx: torch.Tensor) -> torch.Tensor:
    """Compute 2-norms [K], summed in fp64 without a copy in it."""
    norms: torch.Tensor = torch.linalg.vector_norm(tensor_LKxx, dim=(0, 2, 3), dtype=torch.float64)
    return norms


class Norms:
    """Norms of ``model`` as it is when asked. Activations are measured on ``batch``, the same rows at every step."""

    def __init__(self, model: PackedModel, batch: Batch) -> None:
        self.model = model
        self.kinds = model.blocks.kinds
        self.leaves = [kind.leaf for kind in self.kinds]
        self.layers: list[list[Any]] = [
            [model.network.get_submodule(f"{prefix}.{kind.name}") for kind in self.kinds] for prefix in model.blocks.prefixes
        ]
        self.frozen_LM = torch.tensor(
            [[float(layer.frozen.dense().double().norm()) for layer in row] for row in self.layers], dtype=torch.float64
        )
        self.batch = batch
        self.real = batch.attention_mask.bool()  # [rows, tokens]: padding is no activation

    def gradients(self, part: str) -> Spread:
        """Compute 2-norms of the last gradient of ``part``, A or B, before clipping: over all modules, and over each kind."""
        norms_KM = torch.cat(
            [
                torch.stack([_norms(bucket.all_layers(bucket.grads, kind, part)) for kind in self.kinds], 1)
                for bucket in self.model.buckets
            ]
        )
        by_kind = {leaf: norms_KM[:, kind].tolist() for kind, leaf in enumerate(self.leaves)}
        return {"all": norms_KM.norm(dim=1).tolist()} | by_kind

    def weights(self) -> Spread:
        """Compute ||s B A||_F / ||W||_F, its mean over modules."""
        return self._over_modules(lambda bucket, layer, kind: self._parts(bucket, bucket.values, layer, kind))

    def values(self) -> list[torch.Tensor]:
        """Copy what is trained, for ``changes``."""
        return [bucket.values.clone() for bucket in self.model.buckets]

    def changes(self, before: Sequence[torch.Tensor]) -> Spread:
        """Compute ||s B' A' - s B A||_F / ||W||_F between ``before`` (B, A) and now (B', A'), its mean over modules.

        B' A' - B A = (B' - B) A' + B (A' - A) = [B' - B, B] [A'; A' - A]: the difference is taken of the factors, where it
        is exact, and not of two large norms.
        """
        old = {bucket.first: copy for bucket, copy in zip(self.model.buckets, before, strict=True)}

        def factors(bucket: Bucket, layer: int, kind: Any) -> tuple[torch.Tensor, torch.Tensor]:
            b_new, a_new = self._parts(bucket, bucket.values, layer, kind)
            b_old, a_old = self._parts(bucket, old[bucket.first], layer, kind)
            return torch.cat([b_new - b_old, b_old], -1), torch.cat([a_new, a_new - a_old], -2)

        return self._over_modules(factors)

    def activations(self) -> Spread:
        """Compute the RMS of s B A x over that of W x, over all real tokens of ``batch`` and all outputs; its mean over modules.

        x is what the module really reads under its run, so the adapters of earlier layers are in it.
        """
        model, batch = self.model, self.batch
        ratios_KLM = torch.zeros(model.runs, len(self.layers), len(self.kinds), dtype=torch.float64)
        with model.evaluating(), self._watched(ratios_KLM):
            model.backbone.hidden(batch.input_ids.repeat(model.runs, 1))
        return self._means(ratios_KLM)

    @staticmethod
    def _parts(bucket: Bucket, buffer: torch.Tensor, layer: int, kind: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy (B, A) of one module in fp64."""
        b, a = (bucket.all_layers(buffer, kind, part)[layer].double() for part in ("B", "A"))
        return b, a

    def _over_modules(self, factors: Callable[[Bucket, int, Any], tuple[torch.Tensor, torch.Tensor]]) -> Spread:
        rows = []
        for bucket in self.model.buckets:
            scale_K = bucket.scale.double()
            norms_LMK = torch.stack(
                [
                    torch.stack([product_norms(*factors(bucket, layer, kind)) * scale_K for kind in self.kinds])
                    for layer in range(len(self.layers))
                ]
            )
            rows.append(norms_LMK.permute(2, 0, 1).cpu())
        return self._means(torch.cat(rows) / self.frozen_LM)

    def _means(self, ratios_KLM: torch.Tensor) -> Spread:
        by_kind = {leaf: ratios_KLM[:, :, kind].mean(1).tolist() for kind, leaf in enumerate(self.leaves)}
        return {"all": ratios_KLM.mean((1, 2)).tolist()} | by_kind

    @contextmanager
    def _watched(self, ratios_KLM: torch.Tensor) -> Iterator[None]:
        """While this is open, a forward pass writes the ratio of each module into ``ratios_KLM``."""
        ratios: dict[tuple[int, int], torch.Tensor] = {}

        def watch(layer: int, place: int) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
            def hook(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                ratios[layer, place] = self._ratio(module, args[0])

            return hook

        hooks = [
            module.register_forward_hook(watch(layer, place))
            for layer, row in enumerate(self.layers)
            for place, module in enumerate(row)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for (layer, place), ratio_K in ratios.items():
            ratios_KLM[:, layer, place] = ratio_K.cpu()

    def _ratio(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Compute the ratio [K] of one module. ``slots`` hold A, and B with the scale in it, as the module has just used them."""
        x_KTi = x.reshape(self.model.runs, -1, x.shape[-1])
        base_K = self._squares(module.frozen(x_KTi, None, x))
        added = [
            self._squares(torch.bmm(slots.shrink(module.kind, x, x_part), slots.B[module.kind].transpose(1, 2)))
            for x_part, slots in zip(torch.split(x_KTi, module.sizes), module.shared, strict=True)
        ]
        return (torch.cat(added) / base_K).sqrt()

    def _squares(self, y_KTo: torch.Tensor) -> torch.Tensor:
        """Sum squares [K] over real tokens and outputs."""
        return (y_KTo.float().square().sum(-1) * self.real.flatten()).double().sum(-1)
