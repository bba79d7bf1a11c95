"""Check a pack before it trains: its forward passes have to be those of transformers and PEFT, for this base, here.

Twice, by the same comparison. ``check_code``: a copy of the base in fp32 with its first layers of each kind, one run and two,
rows up to the longest of the run; so a difference of 1e-4 shows, and so does all that depends on the length. ``Wiring``: the
pack that will train, all its layers, its kernels and its formats, on short rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...config.schema import Config
from ...data.batches import Item
from ...files.errors import ConfigError
from ...model.device import Numerics
from . import exchange
from .deviation import Gap, compare
from .members import member
from .model import PackedModel
from .reference import (
    Reference,
    bytes_of_shortened,
    draws_numbers,
    plain,
    references,
    shortened,
    without_dropout,
)

SHORT = (8, 13)  # tokens of the rows that go through all layers
# Longer rows are compared beside one short row alone: attention of rows end to end takes the square of their tokens.
LONG = 4096
MEMORY_SHARE = 0.5  # of what a device has left, for the copy in fp32


def _fill(model: PackedModel, slot: int, reference: Reference) -> None:
    bucket, row = model.bucket_of(slot)
    with torch.no_grad():
        for name, layer, kind in model.blocks.modules:
            for part in bucket.parts:
                value = reference.adapter[exchange.parameter_name(name, part)]
                bucket.of_run(bucket.values[:, row], row, layer, kind, part.name).copy_(value)


def check_code(network: Any, configs: Sequence[Config], rows: Sequence[Item], numerics: Numerics, free: float | None) -> str:
    """Compare one run and two with PEFT, in fp32, over the base's first layers of each kind; says what was seen.

    ``configs`` in slot order; ``rows``: all that will be read; ``free``: bytes that a copy may take, None if unknown.

    Raises:
        ConfigError: the pack does not compute what transformers and PEFT do, or the base has dropout of its own.
    """
    if free is not None and bytes_of_shortened(network) > MEMORY_SHARE * free:
        return "no memory for a copy in fp32"
    longest = max(rows, key=len)
    ids = [*longest.prompt, *longest.target]
    small, fp32 = shortened(network), Numerics(numerics.device, torch.float32, None)
    if draws_numbers(small, ids[: SHORT[1]]):
        raise ConfigError(f"engine=packed: {_dropout_of(small)}; engine=peft draws it anew for each run and step")
    other = configs[-1] if len(configs) > 1 else replace(configs[0], seed=configs[0].seed + 1)
    both = [without_dropout(plain(config)) for config in (configs[0], other)]
    short = [ids[:tokens] for tokens in SHORT if tokens < len(ids)]
    gap = _compare_copies(small, both, [*short, ids[:LONG]], fp32, shared=(False, True))
    if len(ids) > LONG:
        gap = max(gap, _compare_copies(small, both[:1], [*short[:1], ids], fp32, shared=(False,)), key=lambda each: each.share)
    layers = len(small.base_model.layers)
    return f"{gap.share:.2g} in fp32 ({layers} of {network.config.num_hidden_layers} layers, rows up to {len(ids)} tokens)"


def _compare_copies(
    small: Any, configs: Sequence[Config], texts: Sequence[Sequence[int]], fp32: Numerics, shared: Sequence[bool]
) -> Gap:
    """Compare a pack of the first of these configs, then one of the first two, and so on; raises ConfigError on a gap."""
    expected = references(small, configs, texts, fp32)
    layers, gap = small.base_model.layers, Gap()
    for count in range(1, len(configs) + 1):
        small.base_model.layers = copy.deepcopy(layers)
        model = PackedModel(small, configs[0], [member(config) for config in configs[:count]], fp32, fused=False)
        of_slot = dict(enumerate(expected[:count]))
        for slot, reference in of_slot.items():
            _fill(model, slot, reference)
        model.refresh()
        gap = max(gap, compare(model, of_slot, shared=shared), key=lambda each: each.share)
        small.base_model.layers = layers
        _refuse(gap, small.config.model_type, f"in fp32, with {count} run{'s' * (count > 1)}")
    return gap


class Wiring:
    """The reference of the pack that will train: take it before the engine changes the base, ``check`` once that is built."""

    def __init__(self, network: Any, configs: Sequence[Config], rows: Sequence[Item], numerics: Numerics) -> None:
        longest = max(rows, key=len)
        ids = [*longest.prompt, *longest.target]
        texts = [ids[:tokens] for tokens in SHORT if tokens < len(ids)] or [ids]
        self.slots = list(dict.fromkeys((0, len(configs) - 1)))
        self.expected = references(network, [configs[slot] for slot in self.slots], texts, numerics)

    @torch.no_grad()
    def check(self, engine: Any) -> str:
        """Compare the pack of ``engine``, a ``PackedEngine``, with the reference, and leave it as it was; says what was seen.

        Raises:
            ConfigError: a gap above the bound of rounding.
        """
        model, of_slot = engine.model, dict(zip(self.slots, self.expected, strict=True))
        rates = [(slots, slots.p.clone()) for block in model.backbone.decoder.layers for slots in block.slots]
        kept = {slot: model.bucket_of(slot)[0].values[:, model.bucket_of(slot)[1]].clone() for slot in of_slot}
        for slots, _ in rates:
            slots.p.zero_()
        for slot, reference in of_slot.items():
            _fill(model, slot, reference)
        model.refresh()
        try:
            gap = compare(model, of_slot, engine.softmax)
        finally:
            for slots, p in rates:
                slots.p.copy_(p)
            for slot, values in kept.items():
                bucket, row = model.bucket_of(slot)
                bucket.values[:, row] = values
            model.refresh()
            model.network.train()
        precision = engine.config.variant.base_precision
        _refuse(gap, model.backbone.config.model_type, f"over {precision}")
        return f"{gap.share:.2g} as it trains ({precision}, {str(model.dtype).removeprefix('torch.')}, all layers)"


def _refuse(gap: Gap, family: str, where: str) -> None:
    if not gap.share <= 1:
        raise ConfigError(
            f"engine=packed: does not compute what transformers and PEFT compute for this {family} base {where}: the gap is"
            f" {gap.share:.3g} times the bound of rounding ({gap.place}); use engine=peft"
        )


def _dropout_of(network: Any) -> str:
    values = network.config.to_dict()
    named = [f"{key}={value}" for key, value in values.items() if "drop" in key and isinstance(value, float) and value > 0]
    return f"the base drops numbers at random while it trains ({', '.join(named) or 'by no key of its config.json'})"
