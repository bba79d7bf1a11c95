"""Greedy decoding with every tensor in place, so that one recorded step serves all tokens of all batches that fit."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from .speed import Graphs

SLOTS = 32  # the cache grows by so many: batches come by rising length, and each new width is recorded anew
LOOK = 8  # tokens between two looks at whether all sequences have ended, each of which waits for the device


class KeyValues:
    """Keys and values of all decoder layers, [layers, N, heads, slots, head_dim], as attention layers expect a cache.

    ``slots`` [tokens] says where the tokens of the next pass go, ``seen`` how many slots attention is given.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, slots: torch.Tensor) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=slots.device)
        self.values = torch.zeros_like(self.keys)
        self.slots = slots
        self.seen = shape[3]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What transformers' attention asks of a cache: keep [N, heads, tokens, head_dim] of a layer, and give all it holds."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        return keys[:, :, : self.seen], values[:, :, : self.seen]


class Decoded(Protocol):
    """What decoding needs to know of a packed model."""

    runs: int
    numerics: Any
    dtype: torch.dtype

    @property
    def cache_shape(self) -> tuple[int, int, int]: ...

    @property
    def head_weight(self) -> torch.Tensor: ...

    def hidden(self, ids: torch.Tensor, position_ids: Any, mask: Any, cache: Any, /) -> torch.Tensor: ...


class Sequences:
    """The state of N = runs * rows sequences of up to ``width`` tokens. Nothing in it ever moves."""

    def __init__(self, model: Decoded, rows: int, width: int) -> None:
        self.model, self.rows, self.width = model, rows, width
        count, device = model.runs * rows, model.numerics.device
        layers, heads, head_dim = model.cache_shape
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # the slot of the newest token
        self.cache = KeyValues((layers, count, heads, width, head_dim), model.dtype, self.at)
        self.mask = torch.zeros(count, 1, 1, width, dtype=model.dtype, device=device)  # added to the attention's scores
        self.tokens = torch.zeros(count, width, dtype=torch.int64, device=device)  # chosen ones, by slot
        self.positions = torch.zeros(count, 1, dtype=torch.int64, device=device)  # of the newest token
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.pad, self.eos = self.at.new_zeros(()), self.at.new_zeros(())

    def begin(self, ids: torch.Tensor, real: torch.Tensor, pad: int, eos: int) -> None:
        """Read prompts [rows, tokens], the same for each run, and choose the first token; ``real`` is false at padding."""
        prompt = ids.shape[1]
        # What was there is masked, but a number that is not finite would outlive even a weight of zero.
        self.cache.keys.zero_()
        self.cache.values.zero_()
        self.pad.fill_(pad)
        self.eos.fill_(eos)
        self.ended.fill_(False)
        runs = self.model.runs
        positions = (real.cumsum(1) - 1).clamp_min_(0).repeat(runs, 1)
        mask = prompt_mask(real, self.model.dtype).repeat(runs, 1, 1, 1)
        self.cache.slots, self.cache.seen = torch.arange(prompt, device=ids.device), prompt
        hidden = self.model.hidden(ids.repeat(runs, 1), positions, mask, self.cache)
        self.cache.slots, self.cache.seen = self.at, self.width
        self.mask.fill_(-torch.inf)
        self.mask[..., :prompt] = mask[:, :, -1:]
        self.positions.copy_(positions[:, -1:])
        self.at.fill_(prompt - 1)
        self._choose(hidden[:, -1])

    def step(self) -> None:
        """One more token. It looks at no number and makes nothing that the next step needs: it can be recorded."""
        self.mask.index_fill_(3, self.at, 0)
        newest = self.tokens.index_select(1, self.at)
        self._choose(self.model.hidden(newest, self.positions, self.mask, self.cache)[:, -1])

    def _choose(self, hidden: torch.Tensor) -> None:
        chosen = F.linear(hidden, self.model.head_weight).argmax(-1)
        chosen = torch.where(self.ended, self.pad, chosen)
        self.ended |= chosen == self.eos
        self.at += 1
        self.positions += 1
        self.tokens.index_copy_(1, self.at, chosen[:, None])


class GreedyDecoder:
    """Continues prompts under all runs of a pack. ``recorded``: by a CUDA graph of the step, otherwise eagerly."""

    def __init__(self, model: Decoded, recorded: bool) -> None:
        self.model = model
        self.held: Sequences | None = None
        self.graphs = Graphs(self._step, enabled=recorded)

    def generate(
        self, ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int, pad_token_id: int, eos_token_id: int
    ) -> torch.Tensor:
        """Continuations [runs, rows, new tokens] of left-padded prompts [rows, tokens]; after its end a row holds padding."""
        rows, prompt = ids.shape
        held = self._room(rows, prompt + max_new_tokens)
        # Copies of a prompt fill a smaller batch: they end when it does.
        ids, real = (torch.cat([part, part[:1].expand(held.rows - rows, -1)]) for part in (ids, mask.bool()))
        held.begin(ids, real, pad_token_id, eos_token_id)
        made = 1
        while made < max_new_tokens and not (made % LOOK == 0 and bool(held.ended.all())):
            self.graphs.run((held.rows, held.width), ())
            made += 1
        return held.tokens[:, prompt : prompt + made].unflatten(0, (self.model.runs, held.rows))[:, :rows].clone()

    def release(self) -> None:
        """Give back the memory of the sequences and of the recording."""
        if self.held is not None:
            self.held = None
            self.graphs.release()

    def _step(self) -> None:
        assert self.held is not None
        self.held.step()

    def _room(self, rows: int, width: int) -> Sequences:
        """What is held, if the batch fits into it; otherwise as many rows or more, and slots."""
        if self.held is None or self.held.rows < rows or self.held.width < width:
            if self.held is not None:
                rows, width = max(rows, self.held.rows), max(width, self.held.width)
            self.release()
            self.held = Sequences(self.model, rows, -(-width // SLOTS) * SLOTS)
        return self.held


def prompt_mask(real: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask [rows, 1, W, W] of left-padded prompts: a token sees real tokens up to itself.

    ``real`` [rows, W]. Padding sees itself too: attention to nothing would be NaN, which no mask hides later.
    """
    width = real.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=real.device)
    seen = (real[:, None, None] & earlier) | itself
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill_(~seen, -torch.inf)
