"""How far a weight moved in magnitude and in direction: DoRA's analysis (arXiv 2402.09353, section 3.2, equations 3 and 4).

The paper splits a weight W [d, k] of ``h = W x`` into a magnitude for each of its "columns" and their directions. Its
authors' code and PEFT's take the norm over ``dim=1`` of torch's weight [out, in]: a vector here is what makes one output,
and a matrix has ``out`` of them. W' is the weight that the trained model multiplies with:

    LoRA    W' = W_0 + s B A
    DoRA    W' = m (W_0 + s B A) / ||W_0 + s B A||    (equation 5: its direction is that of V = W_0 + s B A)
    full    W' = the trained W

All arithmetic is fp32, without a difference of nearly equal numbers: after a few steps ``1 - cos`` is 1e-8, where fp32's
``1 - x`` knows steps of 6e-8.
"""

from __future__ import annotations

import torch

from src.engine.packed.engine import PackedEngine
from src.engine.packed.gain import RowNorms

TINY = 1e-30  # in place of the norm of a row that is all zeros, which has no direction


def row_norms(w: torch.Tensor) -> torch.Tensor:
    """``||w_n||`` [..., out] of a weight [..., out, in], the paper's magnitude vector."""
    found: torch.Tensor = torch.linalg.vector_norm(w, dim=-1)
    return found


def magnitude_change(w: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Equation 3 [...]: the mean over rows n of ``| ||w_n + delta_n|| - ||w_n|| |``; both [..., out, in].

    As ``(2 w + delta) . delta / (||w + delta|| + ||w||)``, the difference of the squares over the sum.
    """
    squares = ((2 * w + delta) * delta).sum(-1)
    return (squares / (row_norms(w + delta) + row_norms(w)).clamp_min(TINY)).abs().mean(-1)


def direction_change(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Equation 4 [...]: the mean over rows n of ``1 - cos(v_n, w_n)``; both [..., out, in].

    As ``| v/||v|| - w/||w|| |^2 / 2``, which is the same number for unit vectors.
    """
    apart = v / row_norms(v).clamp_min(TINY)[..., None] - w / row_norms(w).clamp_min(TINY)[..., None]
    return apart.square().sum(-1).mean(-1) / 2


Change = tuple[str, int, int, float, float, float]  # (module, layer, in_features, dM, dD, mean of m_0)


def of_weights(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> list[Change]:
    """The changes of linear modules, by names such as ``model.layers.3.self_attn.q_proj``, from ``before`` to ``now``."""
    found = []
    for name, w in before.items():
        delta = now[name].detach() - w
        found.append(torch.stack([magnitude_change(w, delta), direction_change(now[name].detach(), w), row_norms(w).mean()]))
    values = torch.stack(found).tolist()
    return [(*_place(name), before[name].shape[1], *numbers) for name, numbers in zip(before, values, strict=True)]


@torch.no_grad()
def of_pack(engine: PackedEngine) -> list[list[Change]]:
    """The changes of each run of a pack, from its frozen weights and its adapters as they are now. Nothing is written.

    DoRA's dM is that of the trained ``m`` itself, whose start is ``||W_0||``.
    """
    model = engine.model
    gain = model.terms.get("gain")
    norms = gain if isinstance(gain, RowNorms) else None
    found: list[torch.Tensor] = []  # of each module [runs, 3]
    for name, at, kind in model.blocks.modules:
        w = model.dense(name).float()
        parts = []
        for bucket in model.buckets:
            a, b = (bucket.all_layers(bucket.values, kind, part)[at] for part in "AB")
            delta = bucket.scale[:, None, None] * (b @ a)  # [runs, out, in]
            if norms is not None and bucket in norms.buckets:
                start = norms.frozen[kind][at].sqrt()
                dM = (bucket.all_layers(bucket.values, kind, "m")[at] - start).abs().mean(-1)
            else:
                dM = magnitude_change(w, delta)
            parts.append(torch.stack([dM, direction_change(w + delta, w), row_norms(w).mean().expand_as(dM)], dim=1))
        found.append(torch.cat(parts))
    values = torch.stack(found, dim=1).tolist()
    modules = [(*_place(name), kind.in_features) for name, _, kind in model.blocks.modules]
    return [[(*module, *numbers) for module, numbers in zip(modules, run, strict=True)] for run in values]


def _place(name: str) -> tuple[str, int]:
    """(kind of module, decoder layer) of a name such as ``model.layers.3.self_attn.q_proj``."""
    parts = name.split(".")
    return parts[-1], int(parts[parts.index("layers") + 1])
