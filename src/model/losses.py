"""Compute the log-loss of target tokens, which training minimizes and the tables report."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..data.batches import IGNORE, Batch


def target_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the log-loss of each target token in fp32, and its row in the batch; both [target tokens]."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, :-1]
    labels = batch.labels[:, 1:]
    carries = labels != IGNORE
    rows = carries.nonzero()[:, 0]
    return F.cross_entropy(logits[carries].float(), labels[carries], reduction="none"), rows
