"""Fingerprint a model's weights, so that a record can say which weights it was trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..variants.methods.point import all_parts


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Hash tensors on their own devices: per tensor, the XOR and the sum of its bytes as 64-bit words."""
    digest = []
    for tensor in tensors:
        raw = tensor.detach().contiguous().flatten().view(torch.uint8)
        words = torch.cat([raw, raw.new_zeros(-raw.numel() % 8)]).view(torch.int64)
        digest.append(hash((int(words.sum()), int(torch.hash_tensor(words).view(torch.int64)))))
    return f"{hash(tuple(digest)) & (2**64 - 1):016x}"


def frozen_tensors(model: nn.Module) -> list[torch.Tensor]:
    """The base's weights: what does not train and is no part of an adapter, which may hold parts that stand still too."""
    adapters = tuple(part.parameter for part in all_parts().values())
    return [p for name, p in model.named_parameters() if not p.requires_grad and not name.endswith(adapters)]
