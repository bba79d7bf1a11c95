"""Compute the reference of a pack: a few rows through transformers' own forward pass with PEFT's adapter, layer by layer.

A row is run alone and unpadded. Its adapter is random and has no zeros, so that every part of it shows.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...config.schema import Config
from ...model.device import Numerics
from ...variants import adapters
from ...variants.methods.point import VariantConfig, parts_of
from ...variants.methods.scaling import effective_scale
from ...variants.quantization import linear_layers

SCORED = 4  # last tokens of a row whose log-losses are compared: a head's products over a whole vocabulary are dear


@dataclass(frozen=True)
class Row:
    """One row under one run. ``states``: what enters each decoder layer, and what leaves the last, [layers + 1, T, d].

    ``losses`` [n] are the log-losses of the row's last n tokens, n = ``SCORED`` or all but the first; ``logits`` [n] the
    largest logit of each in size.
    """

    ids: torch.Tensor  # [T]
    states: torch.Tensor
    losses: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Reference:
    """The rows of one run. ``adapter`` has its tensors by PEFT's names."""

    config: Config
    adapter: dict[str, torch.Tensor]
    training: list[Row]
    scoring: list[Row]


def without_dropout(config: Config) -> Config:
    return replace(config, lora=replace(config.lora, dropout=0.0))


def references(network: Any, configs: Sequence[Config], rows: Sequence[Sequence[int]], numerics: Numerics) -> list[Reference]:
    """Run ``rows`` of token ids under each config, by PEFT on ``network``, which is as before afterwards."""
    return [_reference(network, without_dropout(config), rows, numerics, index) for index, config in enumerate(configs)]


def _reference(network: Any, config: Config, rows: Sequence[Sequence[int]], numerics: Numerics, seed: int) -> Reference:
    adapted = adapters.attach(network, config.variant, config.lora, seed)
    try:
        _randomize(adapted, config, seed)
        endings = tuple(part.parameter for part in parts_of(config.variant))
        adapter = {name: p.detach().clone() for name, p in adapted.named_parameters() if name.endswith(endings)}
        scoring = [_row(adapted, ids, numerics) for ids in rows]
        training = scoring
        if config.variant.base_precision == "int8":
            # On a processor bitsandbytes multiplies otherwise where a gradient is asked for.
            adapted.train()
            with torch.enable_grad():
                training = [_row(adapted, ids, numerics) for ids in rows]
    finally:
        inner = adapted.unload()
        if hasattr(inner, "peft_config"):
            del inner.peft_config  # or PEFT would warn of a second adapter
    return Reference(config, adapter, training, scoring)


@torch.no_grad()
def _randomize(adapted: nn.Module, config: Config, seed: int) -> None:
    """Fill B so that ``s B A x`` is about as large as x, and move each of DoRA's m by a tenth of itself."""
    adapted.eval()
    generator = torch.Generator().manual_seed(seed)
    size = 1 / (abs(effective_scale(config.variant.scaling, config.lora.alpha, config.lora.r)) * math.sqrt(config.lora.r))
    parts = {part.parameter: part.name for part in parts_of(config.variant)}
    for name, parameter in adapted.named_parameters():
        part = next((part for ending, part in parts.items() if name.endswith(ending)), None)
        noise = torch.randn(parameter.shape, generator=generator) if part in ("B", "m") else None
        if noise is not None:
            parameter.copy_(noise * size if part == "B" else parameter * (1 + 0.1 * noise.to(parameter)))


def _row(adapted: Any, ids: Sequence[int], numerics: Numerics) -> Row:
    model = adapted.get_base_model()
    tokens = torch.tensor([list(ids)], device=numerics.device)
    scored = min(SCORED, len(ids) - 1)
    keep = {"logits_to_keep": scored + 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    states: list[torch.Tensor] = []
    with _listening(model.base_model.layers, states), numerics.autocast():
        logits = model(input_ids=tokens, use_cache=False, **keep).logits[0, -scored - 1 : -1].detach()
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide, tokens[0, -scored:], reduction="none")
    return Row(tokens[0], torch.stack(states), losses, wide.abs().amax(1))


@contextmanager
def _listening(layers: nn.ModuleList, states: list[torch.Tensor]) -> Iterator[None]:
    """Keep what enters each layer and what leaves the last."""

    def enters(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        states.append((args[0] if args else options["hidden_states"])[0].detach().clone())

    def leaves(module: nn.Module, args: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0].detach().clone())

    hooks = [layer.register_forward_pre_hook(enters, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leaves))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _first_layers(network: Any) -> Iterator[int]:
    """Leave a decoder only its first layers, as many as it takes to have one of each kind; yields how many."""
    decoder, layers = network.base_model, network.base_model.layers
    kinds = list(getattr(network.config, "layer_types", None) or [""] * len(layers))
    count = 1 + max(kinds.index(kind) for kind in set(kinds))
    decoder.layers = layers[:count]
    try:
        yield count
    finally:
        decoder.layers = layers


def shortened(network: Any) -> Any:
    """Copy a base in fp32, with its first layers of each kind alone; quantized weights as what they stand for."""
    from peft.utils.integrations import dequantize_module_weight

    with _first_layers(network) as count:
        small = copy.deepcopy(network)
    small.config.num_hidden_layers = count
    if getattr(small.config, "layer_types", None):
        small.config.layer_types = list(small.config.layer_types)[:count]
    for name, layer in linear_layers(small):
        if type(layer) is not nn.Linear:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(dequantize_module_weight(layer).detach().float(), requires_grad=False)
            plain.bias = layer.bias
            owner, _, leaf = name.rpartition(".")
            setattr(small.get_submodule(owner), leaf, plain)
    for bits in (4, 8):
        if hasattr(small, f"is_loaded_in_{bits}bit"):
            setattr(small, f"is_loaded_in_{bits}bit", False)
    return small.float().eval()


def bytes_of_shortened(network: Any) -> int:
    """Estimate what ``shortened`` takes and what is computed with it: the weights in fp32, once more in their own format."""
    with _first_layers(network):
        return sum(6 * parameter.numel() for parameter in network.parameters())


def plain(config: Config) -> Config:
    """The same run over a base in fp32."""
    variant: VariantConfig = replace(config.variant, base_precision="fp32")
    return replace(config, variant=variant)


def draws_numbers(network: Any, ids: Sequence[int]) -> bool:
    """Tell whether a base that trains gives other numbers each time: it has dropout of its own."""
    tokens = torch.tensor([list(ids)], device=next(network.parameters()).device)
    with torch.no_grad(), torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
        network.train()
        first, second = (network(input_ids=tokens, use_cache=False).logits for _ in range(2))
        network.eval()
    return not torch.equal(first, second)
