"""How far a merged model is from the adapter that it was merged from, on the targets of examples, teacher-forced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data.batches import IGNORE, Batch, Item, collate
from ..measure.scorer import Solo

TOKENS_AT_ONCE = 2048  # with padding: two models' logits of this many tokens are held together


@dataclass(frozen=True)
class Gap:
    """Between two models over the same target tokens. Logits are in their own unit, the rest in nats or shares."""

    examples: int
    tokens: int
    logit_max: float
    logit_mean: float  # absolute, over tokens and vocabulary
    kl: float  # mean over tokens of KL(unmerged || merged), nats
    loss_unmerged: float  # mean log-loss per target token, nats
    loss_merged: float
    changed: float  # share of target positions whose most likely token is another one

    @property
    def loss_difference(self) -> float:
        return self.loss_merged - self.loss_unmerged


def logits_of(solo: Solo, batch: Batch) -> torch.Tensor:
    """Logits that predict the target tokens, fp32 [target tokens, vocabulary]."""
    with solo.evaluating():
        logits = solo.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, :-1]
    found: torch.Tensor = logits[batch.labels[:, 1:] != IGNORE].float()
    return found


def gap(unmerged: Solo, merged: Solo, items: Sequence[Item], pad: int) -> Gap:
    """Of two models that stand on one device."""
    device = unmerged.numerics.device
    order = sorted(items, key=len)
    sums = dict.fromkeys(("logit", "kl", "unmerged", "merged", "changed"), 0.0)
    largest, tokens, values = 0.0, 0, 0
    while order:
        rows = max(1, TOKENS_AT_ONCE // len(order[-1]))
        batch = collate(order[-rows:], pad, device)
        del order[-rows:]
        labels = batch.labels[:, 1:][batch.labels[:, 1:] != IGNORE]
        one, other = logits_of(unmerged, batch), logits_of(merged, batch)
        apart = (one - other).abs()
        log_p, log_q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        sums["kl"] += float((log_p.exp() * (log_p - log_q)).sum())
        sums["unmerged"] += float(F.nll_loss(log_p, labels, reduction="sum"))
        sums["merged"] += float(F.nll_loss(log_q, labels, reduction="sum"))
        sums["changed"] += float((one.argmax(-1) != other.argmax(-1)).sum())
        sums["logit"] += float(apart.double().sum())
        # A NaN must not vanish in a maximum.
        largest = math.nan if not bool(torch.isfinite(apart).all()) else max(largest, float(apart.max()))
        tokens += len(labels)
        values += apart.numel()
    return Gap(len(items), tokens, largest, sums["logit"] / values, sums["kl"] / tokens,
               sums["unmerged"] / tokens, sums["merged"] / tokens, sums["changed"] / tokens)  # fmt: skip
