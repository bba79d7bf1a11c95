"""Attention masks [sequences, 1, queries, keys] that are added to the scores: 0 where a token is seen, -inf where not."""

from __future__ import annotations

import torch


def causal(tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The mask [1, 1, tokens, tokens] by which a token sees what is before it, and itself."""
    return _added(_earlier(tokens, device)[None, None], dtype)


def rows_apart(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask [sequences, 1, W, W] of ``rows`` [sequences, W]: a token sees what is before it in its own row, and itself."""
    return _added((rows[:, None, :, None] == rows[:, None, None, :]) & _earlier(rows.shape[1], rows.device), dtype)


def prompts(real: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask [rows, 1, W, W] of left-padded prompts: a token sees real tokens up to itself.

    ``real`` [rows, W]. Padding sees itself too: attention to nothing would be NaN, which no mask hides later.
    """
    width = real.shape[1]
    itself = torch.eye(width, dtype=torch.bool, device=real.device)
    return _added((real[:, None, None] & _earlier(width, real.device)) | itself, dtype)


def _earlier(tokens: int, device: torch.device) -> torch.Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
