"""Drop activations by a mask that is a function of (the run's seed, step, layer, row, position, feature) and nothing else.

So a run drops the same entries alone or in company, at any padding, in any slot, on any device, and after a resume.
Torch's own dropout draws from one generator in the order of calls and cannot do this.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

_WORD = 0xFFFF_FFFF


def mix(x: torch.Tensor) -> torch.Tensor:
    """Hash int64 tensors that hold 32-bit words, elementwise, to 32 bits.

    Two rounds of xor-shift and multiply with the constants of C. Wellons' hash prospector (public domain); both are
    below 2^31, so no product leaves 63 bits.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & _WORD
    return x ^ (x >> 15)


def step_keys(seeds: Sequence[int], step: int) -> torch.Tensor:
    """Make a key for each run, [runs], for a 0-based step."""
    return mix(mix(torch.tensor(list(seeds))) ^ mix(torch.tensor(step + 1)))


def layer_key(name: str) -> int:
    """Hash a layer's name to its key, so that the key does not depend on which other layers are adapted."""
    return zlib.crc32(name.encode())


def drop(
    x: torch.Tensor, p: torch.Tensor, keys: torch.Tensor, layer: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Zero a share ``p`` of the entries of ``x`` and divide the others by ``1 - p``.

    Shapes: x [runs, tokens, features], p [runs], keys [runs], layer [], rows and positions [runs, tokens]. A row's number
    counts all rows of the run's step, so that gradient accumulation does not change a mask.
    """
    token = mix(mix(keys ^ layer)[:, None] ^ mix(mix(rows + 1) ^ positions))
    word = mix(token[:, :, None] ^ mix(torch.arange(1, x.shape[-1] + 1, device=x.device)))
    kept = word >= (p * 2.0**32).to(torch.int64)[:, None, None]
    return torch.where(kept, x * (1 / (1 - p)).to(x.dtype)[:, None, None], torch.zeros((), dtype=x.dtype, device=x.device))
