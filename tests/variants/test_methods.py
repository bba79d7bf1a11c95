"""The table of parts: LoRA+ and a frozen A against PEFT, and that no entry of the table is dead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer

from src.config.schema import CONF_FOLDER, Config
from src.config.values import CHOICES
from src.data.batches import collate, micro_batches
from src.engine.packed.buffers import Blocks, Bucket, Kind
from src.engine.packed.engine import PackedEngine
from src.engine.packed.members import member
from src.engine.peft import PeftEngine
from src.engine.schedule import learning_rate
from src.model.losses import target_losses
from src.record.records import identity, run_id
from src.train.checks import LiveChecks
from src.variants import adapters, counts
from src.variants.methods import factors, magnitude, point, scaling
from src.variants.methods.part import A, B
from src.variants.methods.scaling import Scaling
from tests.engine.packed.conftest import (
    CPU,
    FP32,
    FP64,
    ITEMS,
    LOGITS,
    PAD,
    WEIGHTS,
    base_of,
    config_of,
    in_slots,
    pack_of,
    peft_of,
    trace,
)

TABLES: dict[str, dict[str, Any]] = {
    "scaling": scaling.SCALINGS,
    "magnitude": magnitude.MAGNITUDES,
    "factors": factors.FACTORS,
}
VARIANTS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml") if path.stem not in ("full", "frozen"))
# Variants that differ from LoRA in the table; a variant that differs in its base's precision alone has LoRA's entries.
IN_THE_TABLE = [name for name in VARIANTS if any(getattr(config_of(name).variant, a) != point.default(a) for a in TABLES)]
BLOCKS = Blocks(("model.layers.0",), (Kind("mlp.up_proj", 4, 6),))
BUILDERS = {"packed": lambda config: pack_of([config]), "peft": peft_of}


def peft_reference(config: Config, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """PEFT's own model and optimizer for ``config``: (losses, adapter by name). Nothing of our engines is used."""
    network = adapters.attach(base_of(config, FP32), config_of("lora").variant, config.lora, config.seed)
    train = config.train
    if config.variant.factors == "loraplus":
        optimizer = create_loraplus_optimizer(
            network, torch.optim.AdamW, lr=train.lr, loraplus_lr_ratio=16, loraplus_weight_decay=0.0, weight_decay=0.0
        )
    else:
        for name, parameter in network.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=train.lr, weight_decay=0.0)
    ratios = [group["lr"] / train.lr for group in optimizer.param_groups]
    losses = []
    network.train()
    for step in range(steps):
        rows = micro_batches(step, train, len(ITEMS), config.data_seed)[0]
        batch = collate([ITEMS[row] for row in rows], PAD, CPU)
        loss = target_losses(network, batch)[0].sum() / batch.target_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], train.clip)
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = ratio * learning_rate(train, step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in network.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("engine", list(BUILDERS))
@pytest.mark.parametrize("variant", ["loraplus", "lora_frozen_a"])
def test_twenty_steps_equal_pefts_own(variant: str, engine: str) -> None:
    """PEFT's modules, its LoRA+ optimizer, or A without gradients; the bounds are those of LoRA's own equality."""
    config = config_of(variant, "train.lr=0.002")
    ours = trace(BUILDERS[engine](config))[0]
    losses, adapter = peft_reference(config, 20)
    assert max(abs(a - b) for a, b in zip(ours.losses.tolist(), losses, strict=True)) <= LOGITS
    for name, tensor in ours.trained.items():
        # WEIGHTS is for a rate of 0.01; the highest here is LoRA+'s of B, 16 x 0.002.
        assert (tensor - adapter[name]).abs().max() <= 3.2 * WEIGHTS, name
    plain = trace(BUILDERS[engine](config_of("lora", "train.lr=0.002")))[0]
    assert (plain.losses - ours.losses).abs().max() > 1e-2  # a dead variant would be LoRA


@pytest.mark.parametrize("variant", ["loraplus", "lora_frozen_a"])
def test_a_packed_run_equals_the_same_run_alone(variant: str) -> None:
    """Beside LoRA in one bucket, or in a bucket of its own; fp64, with dropout."""
    configs = [config_of(name, f"seed={seed}", "lora.dropout=0.1") for name, seed in ((variant, 0), ("lora", 1), ("dora", 2))]
    ordered = in_slots(configs)
    together = trace(pack_of(ordered, FP64))
    for config, run in zip(ordered, together, strict=True):
        assert trace(pack_of([config], FP64))[0].gap(run) <= 1e-12


def test_a_frozen_a_stays_as_it_was_drawn_and_is_saved() -> None:
    config = config_of("lora_frozen_a")
    engine = pack_of([config])
    drawn = {name: tensor.clone() for name, tensor in pack_of([config_of("lora")]).trained(0).items() if "lora_A" in name}
    trace(engine)
    engine.save_adapter(0, config, Path("adapter"))
    loaded = PeftModel.from_pretrained(base_of(config, FP32), "adapter").state_dict()
    assert len(drawn) > 0 and all(torch.equal(loaded[name], tensor) for name, tensor in drawn.items())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in engine.trained(0).items())


def live(engine: PackedEngine | PeftEngine, config: Config) -> dict[str, Any]:
    """Train and judge."""
    linears = adapters.linears_of(base_of(config_of("lora"), FP32))
    trainable = counts.trainable_parameters(config.variant, config.lora, linears, 0)
    checks = LiveChecks(engine, [config], [trainable], sum(linear.count for linear in linears))
    losses = [step.loss for step in engine.advance(0, 6)]
    return checks.judge(0) | {"losses": losses}


@pytest.mark.parametrize("engine", list(BUILDERS))
@pytest.mark.parametrize("variant", IN_THE_TABLE)
def test_a_variant_with_loras_entry_trains_other_numbers_and_fails_its_live_check(
    variant: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each axis on which the variant differs from LoRA: its entry is replaced by LoRA's but for the proof."""
    config = config_of(variant)
    alive = live(BUILDERS[engine](config), config)
    assert [name for name, check in alive.items() if name != "losses" and not check["ok"]] == []
    changed = [axis for axis in TABLES if getattr(config.variant, axis) != point.default(axis)]
    for axis in changed:
        with monkeypatch.context() as patch:
            table, value = TABLES[axis], getattr(config.variant, axis)
            patch.setitem(table, value, replace(table[point.default(axis)], proof=table[value].proof))
            dead = live(BUILDERS[engine](config), config)
        assert dead["losses"] != alive["losses"], axis
        assert [name for name, check in dead.items() if name != "losses" and not check["ok"]] != [], axis


def test_a_rule_that_peft_lacks_is_exported_with_the_alpha_that_gives_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING's recipe for a third scaling rule: stock PEFT reads the adapter at the scale it was trained with."""
    quarter = Scaling(lambda alpha, r: alpha / r**0.25, scaling._times(0.25))
    monkeypatch.setitem(scaling.SCALINGS, "alpha_over_r_quarter", quarter)
    config = config_of("lora")
    config.variant.scaling = "alpha_over_r_quarter"
    engine = pack_of([config], steps=5)
    trace(engine)
    assert engine.scales(0) == {float(torch.tensor(16 / 4**0.25))}
    engine.save_adapter(0, config, Path("adapter"))
    loaded = PeftModel.from_pretrained(base_of(config, FP32), "adapter")
    batch = collate(ITEMS[:4], PAD, CPU)
    with torch.no_grad(), engine.scored.evaluating():
        ours = engine.scored.target_losses(batch)[0][0]
        theirs = target_losses(loaded.eval(), batch)[0]
    # Sums over at most 64 terms in fp32, through two layers: (64 + 64) eps each way is 3e-5 at most.
    torch.testing.assert_close(ours, theirs, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("engine", list(BUILDERS))
def test_the_hook_on_gradients_changes_them_before_they_are_clipped(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform that takes A's gradient away is a frozen A, whose gradient is in no norm."""

    def without_a(gradients: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], scales: torch.Tensor) -> None:
        assert gradients["A"].shape == values["A"].shape and scales.shape == gradients["A"].shape[1:2]
        gradients["A"].zero_()

    frozen = trace(BUILDERS[engine](config_of("lora_frozen_a")))[0]
    monkeypatch.setitem(factors.FACTORS, "both", replace(factors.FACTORS["both"], gradients=without_a))
    hooked = trace(BUILDERS[engine](config_of("lora")))[0]
    # PEFT's norm is a norm of norms, in which zeros may change the order of the sum: some roundings of fp32 a step.
    torch.testing.assert_close(hooked.losses, frozen.losses, rtol=LOGITS, atol=0)
    torch.testing.assert_close(hooked.norms, frozen.norms, rtol=LOGITS, atol=0)


def test_legal_values_are_those_of_the_table() -> None:
    assert CHOICES["variant.scaling"] == ("alpha_over_r", "alpha_over_sqrt_r")
    assert CHOICES["variant.magnitude"] == ("none", "dora")
    assert CHOICES["variant.factors"] == ("both", "loraplus", "frozen_a")
    assert CHOICES["variant.base_precision"] == ("bf16", "fp32", "int8", "nf4", "fp4")
    assert CHOICES["variant.trains"] == ("adapter", "all", "none")


def test_an_axis_that_came_later_leaves_the_ids_of_earlier_runs_alone() -> None:
    config = config_of("lora")
    assert "factors" not in identity(config)["variant"]
    assert identity(config_of("loraplus"))["variant"]["factors"] == "loraplus"
    assert len({run_id(config_of(name)) for name in VARIANTS}) == len(VARIANTS)


def test_parts_have_the_shapes_of_the_papers() -> None:
    assert A.shape(4, 10, 6) == (4, 6) and B.shape(4, 10, 6) == (10, 4)
    assert [p.name for p in point.parts_of(config_of("dora").variant)] == ["A", "B", "m"]
    assert math.prod(point.parts_of(config_of("dora").variant)[2].shape(4, 10, 6)) == 10
    assert point.parts_of(point.VariantConfig(trains="all")) == ()


def test_a_model_with_dora_though_none_was_asked_for_fails_its_check() -> None:
    """What is seen is read off the model, not off the table that the config points to."""
    asked, other = config_of("lora"), config_of("dora")
    engine = peft_of(other)
    engine.config = asked
    failed = [name for name, check in live(engine, asked).items() if name != "losses" and not check["ok"]]
    assert failed == ["trainable_parameters", "magnitude"]


@pytest.mark.parametrize("engine", list(BUILDERS))
@pytest.mark.parametrize("ratio", [0.1, 4.2])
def test_a_ratio_that_fp32_rounds_is_proven_too(engine: str, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = factors.Factors((A, replace(B, rate=ratio)), factors._at_ratio(ratio))
    monkeypatch.setitem(factors.FACTORS, "loraplus", entry)
    config = config_of("loraplus")
    assert [name for name, check in live(BUILDERS[engine](config), config).items() if name != "losses" and not check["ok"]] == []


def test_runs_of_two_transforms_share_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions of one name, as a factory makes them."""
    for name, scale in (("both", 0.5), ("loraplus", 2.0)):
        monkeypatch.setitem(
            factors.FACTORS, name, replace(factors.FACTORS["both"], gradients=lambda g, v, s, scale=scale: g["A"].mul_(scale))
        )
    first, second = (member(config_of(name)) for name in ("lora", "loraplus"))
    assert first.bucket != second.bucket
    with pytest.raises(ValueError, match="the same transform"):
        Bucket(0, [first, replace(second, gradients_of=first.gradients_of)], BLOCKS, 1, torch.float32, CPU)
    with pytest.raises(ValueError, match="the same parts"):
        Bucket(0, [first, replace(first, parts=(A, replace(B, scaled=False)))], BLOCKS, 1, torch.float32, CPU)


@pytest.mark.parametrize("engine", list(BUILDERS))
def test_a_checkpoint_holds_a_frozen_a(engine: str) -> None:
    """A run that goes on under another version of the initializer keeps its A."""
    config = config_of("lora_frozen_a")
    first = BUILDERS[engine](config)
    whole = [step.loss for step in first.advance(0, 3)]
    state = {name: tensor.clone() for name, tensor in first.state(0).items()}
    whole += [step.loss for step in first.advance(3, 6)]
    other = BUILDERS[engine](config_of("lora_frozen_a", "seed=7", "data_seed=0"))
    other.load_state(0, state)
    assert [step.loss for step in other.advance(3, 6)] == whole[3:]


def test_an_exporter_leaves_the_config_of_the_running_model_alone() -> None:
    engine = pack_of([config_of("lora")])
    shell = engine.exporter.peft.get_base_model().config
    assert shell is not engine.network.config and shell._attn_implementation == engine.model.backbone.attention


def test_from_peft_takes_the_value_that_says_most(monkeypatch: pytest.MonkeyPatch) -> None:
    more = replace(magnitude.MAGNITUDES["none"], peft={"use_dora": False, "use_more": True})
    monkeypatch.setitem(magnitude.MAGNITUDES, "more", more)
    assert point.from_peft({"use_more": True}).magnitude == "more"
    assert point.from_peft({"use_rslora": True}) == point.VariantConfig(scaling="alpha_over_sqrt_r")
    assert point.from_peft({"use_dora": True}).magnitude == "dora"
