"""Random weights quantized layer by layer are those of a model that was drawn whole."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.config.schema import Config
from src.model import models
from src.variants import quantization

CPU = torch.device("cpu")
UNTIED, BIASED = "model.shape.tie_word_embeddings=false", "model.shape.model_type=qwen2"
BASES = [(), (UNTIED,), (BIASED,)]


def built(config: Config, dtype: torch.dtype, whole: bool) -> Any:
    placing = None if whole else quantization.placing(config.variant, CPU, None)
    network, _ = models.load(config.model, dtype, CPU, placing)
    return quantization.place(network, config.variant, CPU, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overrides", BASES, ids=str)
@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_the_same_numbers_layer_by_layer(precision: str, overrides: tuple[str, ...], dtype: torch.dtype) -> None:
    config = compose(["model=tiny", f"variant.base_precision={precision}", *overrides])
    whole, parts = built(config, dtype, True), built(config, dtype, False)
    assert quantization.quantised_layers(parts) == quantization.quantised_layers(whole)
    wanted, drawn = whole.state_dict(), parts.state_dict()
    assert drawn.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(drawn[name], tensor) and drawn[name].dtype == tensor.dtype, name
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in parts.named_buffers())  # the rotary ones are not saved
    assert not any(p.requires_grad or p.is_meta for p in parts.parameters())
    assert (parts.lm_head.weight is parts.model.embed_tokens.weight) == (UNTIED not in overrides)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(parts(ids).logits, whole(ids).logits)


def test_one_layer_at_a_time_is_not_quantized_yet() -> None:
    """Bound the memory, as a 70B base needs: its 16-bit weights would not fit."""
    config = compose(["model=tiny", "variant=qlora"])
    inner = quantization.placing(config.variant, CPU, None)
    assert inner is not None
    drawn: list[weakref.ref[torch.nn.Linear]] = []

    def placing(linear: torch.nn.Linear) -> torch.nn.Module:
        assert not linear.weight.is_meta and not any(earlier() for earlier in drawn)
        drawn.append(weakref.ref(linear))
        return inner(linear)

    models.load(copy.deepcopy(config.model), torch.float32, CPU, placing)
    assert len(drawn) == 14
