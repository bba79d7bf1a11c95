"""Compare a pack with its reference, layer by layer, in training and in scoring; the bound is that of rounding.

Each layer is given what entered it in the reference, so that its error is its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...data.batches import IGNORE, Batch
from . import head
from .model import PackedModel
from .reference import SCORED, Reference, Row

PADDING = 3  # tokens behind the rows
# A decoder layer rounds some 16 times between its input and its output: two norms, seven products and the adapters' in three
# of them, rotation, softmax, activation. Two ways of computing may differ by twice that.
ROUNDINGS = 32


@dataclass(frozen=True)
class Rows:
    """Rows of one run as tensors, [sequences, W]. ``source``: a token's place in the rows put end to end; -1 is padding."""

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    source: torch.Tensor
    labels: torch.Tensor  # IGNORE where no loss is compared
    shared: bool

    @staticmethod
    def of(tokens: Sequence[torch.Tensor], shared: bool) -> Rows:
        """Lay rows of token ids into one sequence each, or all of them into one."""
        device = tokens[0].device
        width = PADDING + (sum if shared else max)(len(row) for row in tokens)
        shape = (1 if shared else len(tokens), width)
        ids, positions = (torch.zeros(shape, dtype=torch.long, device=device) for _ in range(2))
        rows, source = (torch.full(shape, -1, device=device) for _ in range(2))
        labels = torch.full(shape, IGNORE, device=device)
        start = done = 0
        for number, row in enumerate(tokens):
            place = (0 if shared else number, slice(start, start + len(row)))
            ids[place], rows[place] = row, number
            positions[place] = torch.arange(len(row), device=device)
            source[place] = positions[place] + done
            scored = min(SCORED, len(row) - 1)
            labels[place[0], start + len(row) - scored : start + len(row)] = row[-scored:]
            done += len(row)
            start = start + len(row) if shared else 0
        return Rows(ids, rows, positions, source, labels, shared)


@dataclass
class Gap:
    """The largest gap seen so far, as a share of its bound, and its place."""

    share: float = 0.0
    place: str = "nowhere"

    def take(self, error: torch.Tensor, bound: torch.Tensor, place: str) -> None:
        shares = error / bound.clamp_min(torch.finfo(bound.dtype).tiny)
        worst = float(shares.max()) if bool(torch.isfinite(shares).all()) else math.inf
        if worst >= self.share:
            self.share, self.place = worst, place


@dataclass(frozen=True)
class Bound:
    """Bounds of rounding. ``unit``: the unit roundoff of the layers' products; ``head``: that of the output head's."""

    unit: float
    head: float

    @staticmethod
    def of(model: PackedModel) -> Bound:
        # A product rounds its result once, and a sum of n terms in fp32 by about sqrt(n) units of fp32.
        terms = max(kind.in_features for kind in model.blocks.kinds)
        sums = math.sqrt(terms) * torch.finfo(torch.float32).eps / 2
        products = torch.finfo(model.dtype).eps / 2
        eight_bits = 1 / 254  # LLM.int8() rounds an input to 127 steps on either side of zero
        return Bound(sums + (eight_bits if model.int8 else products), sums + products)


def compare(
    model: PackedModel, of_slot: dict[int, Reference], softmax: head.Softmax = head.softmax_losses,
    shared: Sequence[bool] = (False, True),
) -> Gap:  # fmt: skip
    """Run the rows of ``of_slot`` through a pack that holds their adapters, in training and in scoring.

    The runs of the other slots are given the rows of the first. ``shared``: whether training rows are laid end to end, each
    value in turn.
    """
    gap, bound = Gap(), Bound.of(model)
    first = next(iter(of_slot.values()))
    model.network.train()
    with torch.no_grad(), torch.compiler.set_stance("force_eager") if model.backbone.compiled else nullcontext():
        for end_to_end in shared:
            name = "training, rows end to end" if end_to_end else "training, a row a sequence"
            rows = Rows.of([row.ids for row in first.training], end_to_end)
            with _forced(model, {slot: r.training for slot, r in of_slot.items()}, rows.source, gap, bound, name):
                losses = _training_losses(model, rows, softmax)
            _compare_losses(losses, {slot: r.training for slot, r in of_slot.items()}, gap, bound, name)
    rows = Rows.of([row.ids for row in first.scoring], shared=False)
    of_rows = {slot: reference.scoring for slot, reference in of_slot.items()}
    with model.evaluating(), _forced(model, of_rows, rows.source, gap, bound, "scoring"):
        losses, _ = model.target_losses(Batch(rows.ids, (rows.rows >= 0).long(), rows.labels))
    _compare_losses(losses, of_rows, gap, bound, "scoring")
    return gap


def _training_losses(model: PackedModel, rows: Rows, softmax: head.Softmax) -> torch.Tensor:
    """Give every run of the pack the same rows: log-losses [K, labeled tokens]."""
    ids, numbers, positions = (part.repeat(model.runs, 1) for part in (rows.ids, rows.rows, rows.positions))
    carries = rows.labels.flatten() != IGNORE
    labeled = (carries.nonzero()[:, 0] - 1).repeat(model.runs, 1)  # the token before predicts it
    targets = rows.labels.flatten()[carries].repeat(model.runs, 1)
    ones = torch.ones_like(targets, dtype=torch.float32)
    return model.training_losses(ids, numbers, positions, labeled, targets, ones, rows.shared, softmax)


def _compare_losses(losses: torch.Tensor, of_slot: dict[int, list[Row]], gap: Gap, bound: Bound, name: str) -> None:
    for slot, rows in of_slot.items():
        wanted, logits = (torch.cat([getattr(row, part) for row in rows]) for part in ("losses", "logits"))
        gap.take((losses[slot] - wanted).abs(), ROUNDINGS * bound.head * logits, f"{name}, log-losses")


@contextmanager
def _forced(
    model: PackedModel, of_slot: dict[int, list[Row]], source: torch.Tensor, gap: Gap, bound: Bound, name: str
) -> Iterator[None]:
    """Compare what enters each decoder layer with the reference, and give the layer that instead."""
    real, places = source >= 0, source.clamp_min(0)
    states = {slot: torch.cat([row.states for row in rows], 1) for slot, rows in of_slot.items()}
    in_order = [states.get(run, next(iter(states.values()))) for run in range(model.runs)]

    def replaced(x: torch.Tensor, layer: int) -> torch.Tensor:
        given = torch.stack([of_run[layer][places] * real[..., None] for of_run in in_order])  # [K, sequences, W, d]
        got = x.detach().view(given.shape)
        for slot in of_slot:
            wanted = given[slot][real].double()
            limit = 2 * bound.unit * _rms(wanted)
            if layer:
                limit = limit + ROUNDINGS * bound.unit * _rms(wanted - states[slot][layer - 1][places][real].double())
            place = f"{name}, {f'decoder layer {layer - 1}' if layer else 'embeddings'}"
            gap.take(_rms(got[slot][real].double() - wanted), limit, place)
        return given.to(x.dtype).view(x.shape)

    def enters(layer: int) -> Any:
        return lambda module, args: (replaced(args[0], layer), *args[1:])

    blocks = model.backbone.decoder.layers
    hooks = [block.register_forward_pre_hook(enters(layer)) for layer, block in enumerate(blocks)]
    hooks.append(blocks[-1].register_forward_hook(lambda module, args, output: replaced(output, len(blocks))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1).sqrt()
