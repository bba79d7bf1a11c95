"""The check at load: it passes what equals PEFT and refuses every kind of forward pass that does not, before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from src.config.schema import Config, named_variants
from src.engine.packed import backbone, deviation, gain, masks, selfcheck
from src.engine.packed.backbone import Backbone
from src.engine.packed.engine import PackedEngine
from src.engine.packed.model import PackedModel
from src.files.errors import ConfigError
from tests.engine.packed.conftest import BF16, FP32, ITEMS, PAD, base_of, config_of, in_slots, rows
from tests.engine.packed.test_backbone import network_of

LONG = rows(4, prompt=(30, 40))
VARIANTS = sorted(name for point, name in named_variants().items() if point[0] == "adapter")


def built(network: Any, configs: list[Config], numerics: Any = FP32) -> tuple[PackedEngine, str]:
    """Build a pack as a session does, with both checks."""
    seen = selfcheck.check_code(network, configs, [*ITEMS, *LONG], numerics, None)
    wiring = selfcheck.Wiring(network, configs, ITEMS, numerics)
    engine = PackedEngine(network, configs, ITEMS, PAD, 4, numerics)
    return engine, f"{seen}; {wiring.check(engine)}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes(variant: str) -> None:
    config = config_of(variant)
    built(base_of(config, FP32), [config])


@pytest.mark.parametrize("variants", [("lora", "dora"), ("qlora", "qdora"), ("lora_8bit", "dora_8bit")])
def test_a_mixed_pack_passes_in_16_bits(variants: tuple[str, ...]) -> None:
    configs = in_slots([config_of(name, f"seed={seed}", f"lora.r={3 + seed}") for seed, name in enumerate(variants)])
    built(base_of(configs[0], BF16), configs, BF16)


def test_the_pack_is_left_as_it_was() -> None:
    configs = in_slots([config_of("dora", "lora.dropout=0.5"), config_of("lora", "seed=1"), config_of("dora", "seed=2")])
    checked, _ = built(base_of(configs[0], FP32), configs)
    fresh = PackedEngine(base_of(configs[0], FP32), configs, ITEMS, PAD, 4, FP32)
    assert checked.digests() == fresh.digests()
    steps = [engine.advance(0, 3) for engine in (checked, fresh)]
    assert steps[0] == steps[1]


def test_the_longest_rows_are_compared_without_a_mask_of_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "LONG", 16)
    config, made = config_of("lora"), []
    rows_apart = masks.rows_apart
    monkeypatch.setattr(masks, "rows_apart", lambda rows, dtype: made.append(rows.shape[1]) or rows_apart(rows, dtype))
    seen = selfcheck.check_code(base_of(config, FP32), [config], LONG, FP32, None)
    assert f"rows up to {max(len(item) for item in LONG)} tokens" in seen
    assert made and max(made) == 8 + 13 + 16 + deviation.PADDING


def test_it_says_what_was_seen() -> None:
    config = config_of("lora")
    _, seen = built(base_of(config, FP32), [config])
    longest = max(len(item) for item in LONG)
    assert f"in fp32 (1 of 2 layers, rows up to {longest} tokens)" in seen and "all layers" in seen


Fault = Callable[[pytest.MonkeyPatch], None]


def without_a_causal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = Backbone.hidden

    def seeing_all(self: Any, ids: Any, positions: Any = None, mask: Any = None) -> Any:
        tokens = ids.shape[1]
        return hidden(self, ids, positions, torch.zeros(1, 1, tokens, tokens) if mask is None else mask)

    monkeypatch.setattr(Backbone, "hidden", seeing_all)


def rows_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "rows_apart", lambda rows, dtype: masks.causal(rows.shape[1], dtype, rows.device))


def stretched_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = Backbone.hidden

    def stretched(self: Any, ids: Any, positions: Any = None, mask: Any = None) -> Any:
        return hidden(self, ids, None if positions is None else 2 * positions, mask)

    monkeypatch.setattr(Backbone, "hidden", stretched)


def doras_gain_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain.RowNorms, "apply", lambda self, y, vectors, held: y)


def stale_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedModel, "refresh", lambda self: None)


def another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backbone.Backbone, "head_weight", property(lambda self: self.network.get_output_embeddings().weight * 1.01)
    )


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (without_a_causal_mask, "decoder layer 0"),
        (rows_that_see_each_other, "training, rows end to end, decoder layer 0"),
        (stretched_positions, "decoder layer 0"),
        (doras_gain_forgotten, "decoder layer 0"),
        (stale_norms, "decoder layer 0"),
        (another_head, "log-losses"),
    ],
)
def test_a_forward_pass_that_is_wrong_is_refused(fault: Fault, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("dora")
    network = base_of(config, FP32)
    fault(monkeypatch)
    with pytest.raises(ConfigError, match=r"engine=packed: does not compute .* times the bound of rounding") as refused:
        selfcheck.check_code(network, [config], [*ITEMS, *LONG], FP32, None)
    assert place in str(refused.value)


def test_adapters_in_each_others_slots_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two runs show it."""
    config = config_of("lora")
    network, fill = base_of(config, FP32), selfcheck._fill
    monkeypatch.setattr(selfcheck, "_fill", lambda model, slot, reference: fill(model, model.runs - 1 - slot, reference))
    with pytest.raises(ConfigError, match="in fp32, with 2 runs"):
        selfcheck.check_code(network, [config], ITEMS, FP32, None)


def test_a_layer_that_is_wired_wrongly_is_refused() -> None:
    """The copy has its own wiring: this is seen in the pack that will train."""
    config = config_of("lora")
    network = base_of(config, FP32)
    wiring = selfcheck.Wiring(network, [config], ITEMS, FP32)
    engine = PackedEngine(network, [config], ITEMS, PAD, 4, FP32)
    first, second = engine.model.backbone.decoder.layers
    first, second = first.layer.self_attn.o_proj, second.layer.self_attn.o_proj
    first.frozen, second.frozen = second.frozen, first.frozen
    with pytest.raises(ConfigError, match=r"over bf16: the gap is .* times the bound of rounding"):
        wiring.check(engine)


@pytest.mark.parametrize(
    ("family", "lost"), [("granite", {}), ("gemma2", {"final_logit_softcapping": 3.0})]
)  # fmt: skip
def test_a_factor_or_cap_of_the_head_that_is_lost_is_refused(family: str, lost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "FAMILIES", ("granite", "gemma2"))
    config = config_of("lora")
    monkeypatch.setattr(Backbone, "_head_transform", lambda self: None)
    with pytest.raises(ConfigError, match="log-losses"):
        selfcheck.check_code(network_of(family, torch.float32, **lost), [config], ITEMS, FP32, None)


def test_scaled_embeddings_that_are_lost_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "FAMILIES", ("granite",))
    network, config = network_of("granite", torch.float32), config_of("lora")
    hidden = Backbone.hidden

    def unscaled(self: Any, *arguments: Any) -> Any:
        self.decoder.embedding_multiplier = 1.0
        return hidden(self, *arguments)

    monkeypatch.setattr(Backbone, "hidden", unscaled)
    with pytest.raises(ConfigError, match="embeddings"):
        selfcheck.check_code(network, [config], ITEMS, FP32, None)


@pytest.mark.parametrize("long", [4096, 20])
def test_rope_that_depends_on_the_longest_row_of_a_batch_is_refused(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers widens dynamic rope for a whole batch, so a short row beside a long one gets other angles than alone."""
    monkeypatch.setattr(selfcheck, "LONG", long)
    network = network_of("llama", torch.float32, max_position_embeddings=24,
                         rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})  # fmt: skip
    with pytest.raises(ConfigError, match="decoder layer 0"):
        selfcheck.check_code(network, [config_of("lora")], [*ITEMS, *LONG], FP32, None)
    selfcheck.check_code(network, [config_of("lora")], [item for item in ITEMS if len(item) <= 13], FP32, None)


@pytest.mark.parametrize("variant", ["lora", "qlora"])
def test_dropout_inside_the_base_is_refused_by_name(variant: str) -> None:
    config = config_of(variant)
    network = base_of(config, FP32)
    network.config.attention_dropout = 0.1
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"drops numbers at random while it trains \(attention_dropout=0.1\)"):
        selfcheck.check_code(network, [config], ITEMS, FP32, None)


def test_without_memory_for_a_copy_only_the_pack_itself_is_checked() -> None:
    config = config_of("lora")
    assert selfcheck.check_code(base_of(config, FP32), [config], ITEMS, FP32, 1000.0) == "no memory for a copy in fp32"
