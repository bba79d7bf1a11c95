"""Measure how far a merged model is from the adapter it was merged from, on the targets of examples, teacher-forced."""

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
    """The differences of two models over the same target tokens. Logits are in their own unit, the rest in nats or shares."""

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
    """Return the logits that predict the target tokens, fp32 [target tokens, vocabulary]."""
    with solo.evaluating():
        logits = solo.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, :-1]
    target_logits: torch.Tensor = logits[batch.labels[:, 1:] != IGNORE].float()
    return target_logits


def gap(unmerged: Solo, merged: Solo, items: Sequence[Item], pad: int) -> Gap:
    """Measure the gap of two models that are on the same device. ``pad``: the id of the padding token."""
    device = unmerged.numerics.device
    order = sorted(items, key=len)
    sums = dict.fromkeys(("logit", "kl", "unmerged", "merged", "changed"), 0.0)
    largest, tokens, values = 0.0, 0, 0
    while order:
        rows = max(1, TOKENS_AT_ONCE // len(order[-1]))
        batch = collate(order[-rows:], pad, device)
        del order[-rows:]
        labels = batch.labels[:, 1:][batch.labels[:, 1:] != IGNORE]
        logits_p, logits_q = logits_of(unmerged, batch), logits_of(merged, batch)
        difference = (logits_p - logits_q).abs()
        log_p, log_q = logits_p.double().log_softmax(-1), logits_q.double().log_softmax(-1)
        sums["kl"] += float((log_p.exp() * (log_p - log_q)).sum())
        sums["unmerged"] += float(F.nll_loss(log_p, labels, reduction="sum"))
        sums["merged"] += float(F.nll_loss(log_q, labels, reduction="sum"))
        sums["changed"] += float((logits_p.argmax(-1) != logits_q.argmax(-1)).sum())
        sums["logit"] += float(difference.double().sum())
        # A NaN must not vanish in a maximum.
        largest = math.nan if not bool(torch.isfinite(difference).all()) else max(largest, float(difference.max()))
        tokens += len(labels)
        values += difference.numel()
    return Gap(len(items), tokens, largest, sums["logit"] / values, sums["kl"] / tokens,
               sums["unmerged"] / tokens, sums["merged"] / tokens, sums["changed"] / tokens)  # fmt: skip
