"""Measure the change of a weight in magnitude and in direction: DoRA's analysis (arXiv 2402.09353, section 3.2, eq. 3 and 4).

The paper splits a weight W [d, k] of ``h = W x`` into a magnitude for each of its "columns" and their directions. Its
authors' code and PEFT's take the norm over ``dim=1`` of torch's weight [out, in]: a vector here is a row, which makes one
output, and a matrix has ``out`` of them. W' is the weight that the trained model multiplies with:

    LoRA    W' = W_0 + s B A
    DoRA    W' = m (W_0 + s B A) / ||W_0 + s B A||    (equation 5: its direction is that of V = W_0 + s B A)
    full    W' = the trained W

All arithmetic is fp32 and avoids differences of nearly equal numbers: after a few steps ``1 - cos`` is 1e-8, and fp32's
resolution near 1 is 6e-8.
"""

from __future__ import annotations

import torch

from src.engine.packed.engine import PackedEngine
from src.engine.packed.gain import RowNorms

TINY = 1e-30  # in place of the norm of a row that is all zeros, which has no direction


def row_norms(w: torch.Tensor) -> torch.Tensor:
    """Compute ``||w_n||`` [..., out] of a weight [..., out, in], the paper's magnitude vector."""
    norms: torch.Tensor = torch.linalg.vector_norm(w, dim=-1)
    return norms


def magnitude_change(w: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Compute equation 3 [...]: the mean over rows n of ``| ||w_n + delta_n|| - ||w_n|| |``; both [..., out, in].

    Computed as ``(2 w + delta) . delta / (||w + delta|| + ||w||)``, the difference of the squares over the sum.
    """
    squares = ((2 * w + delta) * delta).sum(-1)
    return (squares / (row_norms(w + delta) + row_norms(w)).clamp_min(TINY)).abs().mean(-1)


def direction_change(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Compute equation 4 [...]: the mean over rows n of ``1 - cos(v_n, w_n)``; both [..., out, in].

    Computed as ``| v/||v|| - w/||w|| |^2 / 2``, which is the same number for unit vectors.
    """
    gap = v / row_norms(v).clamp_min(TINY)[..., None] - w / row_norms(w).clamp_min(TINY)[..., None]
    return gap.square().sum(-1).mean(-1) / 2


Change = tuple[str, int, int, float, float, float]  # (module, layer, in_features, dM, dD, mean of m_0)


def of_weights(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> list[Change]:
    """Measure the changes of linear modules, by names such as ``model.layers.3.self_attn.q_proj``, from ``before`` to ``now``."""
    changes = []
    for name, w in before.items():
        delta = now[name].detach() - w
        changes.append(torch.stack([magnitude_change(w, delta), direction_change(now[name].detach(), w), row_norms(w).mean()]))
    values = torch.stack(changes).tolist()
    return [(*_place(name), before[name].shape[1], *numbers) for name, numbers in zip(before, values, strict=True)]


@torch.no_grad()
def of_pack(engine: PackedEngine) -> list[list[Change]]:
    """Measure the changes of each run of a pack, from the frozen weights and the current adapters, which stay as they are.

    DoRA's dM is the change of the trained ``m`` itself, which starts at ``||W_0||``.
    """
    model = engine.model
    gain = model.terms.get("gain")
    norms = gain if isinstance(gain, RowNorms) else None
    changes: list[torch.Tensor] = []  # of each module [runs, 3]
    for name, layer, kind in model.blocks.modules:
        w = model.dense(name).float()
        parts = []
        for bucket in model.buckets:
            a, b = (bucket.all_layers(bucket.values, kind, part)[layer] for part in "AB")
            delta = bucket.scale[:, None, None] * (b @ a)  # [runs, out, in]
            if norms is not None and bucket in norms.buckets:
                start = norms.frozen[kind][layer].sqrt()
                dM = (bucket.all_layers(bucket.values, kind, "m")[layer] - start).abs().mean(-1)
            else:
                dM = magnitude_change(w, delta)
            parts.append(torch.stack([dM, direction_change(w + delta, w), row_norms(w).mean().expand_as(dM)], dim=1))
        changes.append(torch.cat(parts))
    values = torch.stack(changes, dim=1).tolist()
    modules = [(*_place(name), kind.in_features) for name, _, kind in model.blocks.modules]
    return [[(*module, *numbers) for module, numbers in zip(modules, run, strict=True)] for run in values]


def _place(name: str) -> tuple[str, int]:
    """Split a name into (kind of module, decoder layer): ``model.layers.3.self_attn.q_proj``."""
    parts = name.split(".")
    return parts[-1], int(parts[parts.index("layers") + 1])
