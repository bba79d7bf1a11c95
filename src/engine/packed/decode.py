"""Decode greedily with every tensor in place, so that one recorded step serves all tokens of all batches that fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import masks
from .backbone import Backbone
from .speed import Graphs

SLOTS = 32  # the cache grows in steps of this: batches come by rising length, and each new width is recorded anew
LOOK = 8  # tokens between two checks that all sequences have ended: a check waits for the device


class KeyValues:
    """Keys and values of all decoder layers, [layers, N, heads, slots, head_dim], as attention layers expect a cache.

    ``slots`` [tokens] are those of the tokens of the next pass; attention is given the first ``seen``.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, slots: torch.Tensor) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=slots.device)
        self.values = torch.zeros_like(self.keys)
        self.slots = slots
        self.seen = shape[3]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's keys and values [N, heads, tokens, head_dim], and give all that it holds: transformers' interface."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        return keys[:, :, : self.seen], values[:, :, : self.seen]


class Sequences:
    """The state of N = runs * rows sequences of up to ``width`` tokens, and up to ``stops`` ids that end one. Nothing in it
    ever moves.
    """

    def __init__(self, backbone: Backbone, runs: int, rows: int, width: int, stops: int) -> None:
        self.backbone, self.runs, self.rows, self.width, self.stops = backbone, runs, rows, width, stops
        count, device = runs * rows, backbone.device
        layers, heads, head_dim = backbone.cache_shape
        self.newest = torch.zeros(1, dtype=torch.int64, device=device)  # the slot of the newest token
        self.cache = KeyValues((layers, count, heads, width, head_dim), backbone.dtype, self.newest)
        self.mask = torch.zeros(count, 1, 1, width, dtype=backbone.dtype, device=device)  # added to the attention's scores
        self.tokens = torch.zeros(count, width, dtype=torch.int64, device=device)  # chosen ones, by slot
        self.positions = torch.zeros(count, 1, dtype=torch.int64, device=device)  # of the newest token
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.pad, self.stop = self.newest.new_zeros(()), self.newest.new_zeros(stops)

    def begin(self, ids: torch.Tensor, real: torch.Tensor, pad: int, stop: list[int]) -> None:
        """Read prompts [rows, tokens], the same for each run, and choose the first token; ``real`` is false at padding."""
        prompt = ids.shape[1]
        # Old entries are masked, but a number that is not finite would outlive even a weight of zero.
        self.cache.keys.zero_()
        self.cache.values.zero_()
        self.pad.fill_(pad)
        self.stop.fill_(stop[0])  # what is not needed repeats the first
        self.stop[: len(stop)] = torch.tensor(stop)
        self.ended.fill_(False)
        positions = (real.cumsum(1) - 1).clamp_min_(0).repeat(self.runs, 1)
        mask = masks.prompts(real, self.backbone.dtype).repeat(self.runs, 1, 1, 1)
        self.cache.slots, self.cache.seen = torch.arange(prompt, device=ids.device), prompt
        hidden = self.backbone.hidden(ids.repeat(self.runs, 1), positions, mask, self.cache)
        self.cache.slots, self.cache.seen = self.newest, self.width
        self.mask.fill_(-torch.inf)
        self.mask[..., :prompt] = mask[:, :, -1:]
        self.positions.copy_(positions[:, -1:])
        self.newest.fill_(prompt - 1)
        self._choose(hidden[:, -1])

    def step(self) -> None:
        """Decode one more token. It waits for no number and allocates nothing that the next step needs: it can be recorded."""
        self.mask.index_fill_(3, self.newest, 0)
        tokens = self.tokens.index_select(1, self.newest)
        self._choose(self.backbone.hidden(tokens, self.positions, self.mask, self.cache)[:, -1])

    def _choose(self, hidden: torch.Tensor) -> None:
        chosen = self.backbone.logits(hidden).argmax(-1)
        chosen = torch.where(self.ended, self.pad, chosen)
        self.ended |= (chosen[:, None] == self.stop).any(1)
        self.newest += 1
        self.positions += 1
        self.tokens.index_copy_(1, self.newest, chosen[:, None])


class GreedyDecoder:
    """Continues prompts under all runs of a pack. ``recorded``: by a CUDA graph of the step, otherwise eagerly."""

    def __init__(self, backbone: Backbone, runs: int, recorded: bool) -> None:
        self.backbone, self.runs = backbone, runs
        self.held: Sequences | None = None
        self.graphs = Graphs(self._step, enabled=recorded)

    def generate(
        self, ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int, pad_token_id: int, eos_token_id: int | Sequence[int]
    ) -> torch.Tensor:
        """Continue left-padded prompts [rows, tokens] to [runs, rows, new tokens].

        A row ends at any of ``eos_token_id``, one id or several, as in transformers; after its end it holds padding.
        """
        rows, prompt = ids.shape
        stop = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        held = self._room(rows, prompt + max_new_tokens, len(stop))
        # Copies of a prompt fill a smaller batch: they end when it does.
        ids, real = (torch.cat([part, part[:1].expand(held.rows - rows, -1)]) for part in (ids, mask.bool()))
        held.begin(ids, real, pad_token_id, stop)
        made = 1
        while made < max_new_tokens and not (made % LOOK == 0 and bool(held.ended.all())):
            self.graphs.run((held.rows, held.width), ())
            made += 1
        return held.tokens[:, prompt : prompt + made].unflatten(0, (self.runs, held.rows))[:, :rows].clone()

    def release(self) -> None:
        """Give back the memory of the sequences and of the recording."""
        if self.held is not None:
            self.held = None
            self.graphs.release()

    def _step(self) -> None:
        assert self.held is not None
        self.held.step()

    def _room(self, rows: int, width: int, stops: int) -> Sequences:
        """Give sequences that the batch fits into: those held, or new ones that are no smaller."""
        if self.held is None or self.held.rows < rows or self.held.width < width or self.held.stops < stops:
            if self.held is not None:
                rows, width, stops = max(rows, self.held.rows), max(width, self.held.width), max(stops, self.held.stops)
            self.release()
            self.held = Sequences(self.backbone, self.runs, rows, -(-width // SLOTS) * SLOTS, stops)
        return self.held
