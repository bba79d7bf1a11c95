"""What every variant must do, over every YAML of conf/variant: against the base, against PEFT, against itself.

The products run in fp32 here, so that equalities are not blurred by bf16 rounding; the bases are in the variant's own
precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import nn

from src.command.cli import compose
from src.config.schema import CONF_FOLDER, Config
from src.data.batches import Batch, Item, collate, rows_at, tokenize
from src.data.datasets import Example
from src.engine.packed.engine import PackedEngine
from src.engine.peft import PeftEngine
from src.model import models
from src.model.device import Numerics
from src.model.fingerprint import fingerprint, frozen_tensors
from src.model.losses import target_losses
from src.train.checks import LiveChecks
from src.variants import adapters, counts, quantization
from tests.conftest import rounding

VARIANTS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml"))
ADAPTERS = [name for name in VARIANTS if name not in ("full", "frozen")]
# The engines that train a variant: PEFT's trains them all.
BOTH = [("packed", name) for name in ADAPTERS] + [("peft", name) for name in ADAPTERS]
ALL = [*BOTH, ("peft", "full"), ("peft", "frozen")]
TRAINED = [*BOTH, ("peft", "full")]
CPU = torch.device("cpu")
FP32 = Numerics(CPU, torch.float32, None)
EXAMPLES = [Example(str(n), f"The number after {n} is ", f"{n + 1}", str(n)) for n in range(16)]
# The tiny model multiplies with 14 matrices one after the other, then with the output head; its longest sum has 128 terms.
MATRICES, TERMS = 14, 128
EXACT = rounding(TERMS, MATRICES + 1)  # of logits: 2.2e-5
# A value rounded to 8 bits is off by a step of absmax / 127 over sqrt(12); absmax of 64 normal numbers is about 2.4 of their
# size, so each product is off by 0.55 % of its size, and the logits, 14 independent products later, by 2 %.
INT8 = 2.4 / 127 / 12**0.5 * MATRICES**0.5
_, TOKENIZER = models.load(compose(["model=tiny"]).model, torch.float32, CPU)
ITEMS = tokenize(EXAMPLES, TOKENIZER, 64, False)

Engine = PackedEngine | PeftEngine


def config_of(variant: str, *overrides: str) -> Config:
    return compose(["model=tiny", f"variant={variant}", "train.lr=0.01", "train.batch_size=4", "lora.r=4", *overrides])


def base_of(config: Config) -> Any:
    network, _ = models.load(config.model, torch.float32, CPU)
    return quantization.place(network, config.variant, CPU, None)


def build(config: Config) -> Any:
    """A variant as a model of PEFT's, or without an adapter."""
    network = base_of(config)
    if config.variant.trains == "adapter":
        return adapters.attach(network, config.variant, config.lora, config.seed)
    return network.requires_grad_(config.variant.trains == "all")


def engine_of(name: str, config: Config, steps: int, items: Sequence[Item] = ITEMS) -> Engine:
    if name == "packed":
        return PackedEngine(base_of(config), [config], items, TOKENIZER.pad_token_id, steps, FP32)
    return PeftEngine(build(config), config, items, TOKENIZER.pad_token_id, steps, FP32)


def train(name: str, config: Config, steps: int) -> tuple[Engine, list[float]]:
    engine = engine_of(name, config, steps)
    return engine, [step.loss[0] for step in engine.advance(0, steps)]


def batch_at(step: int, size: int = 4) -> Batch:
    return collate([ITEMS[row] for row in rows_at(step * size, size, len(ITEMS), 0)], TOKENIZER.pad_token_id, CPU)


def logits(model: nn.Module) -> torch.Tensor:
    """Of every token of a batch."""
    model.eval()
    batch = batch_at(0)
    with torch.no_grad():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    kept: torch.Tensor = output[batch.attention_mask.bool()]
    return kept


def outputs(engine: Engine) -> torch.Tensor:
    """Those of the engine's own model."""
    with engine.scored.evaluating():
        return logits(engine.network)


def same_bits(first: Engine, second: Engine) -> bool:
    mine, other = first.trained(0), second.trained(0)
    return mine.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_the_output_equals_the_base_at_step_0(name: str, variant: str) -> None:
    config = config_of(variant)
    # LLM.int8() rounds activations, so DoRA's factor, 1 up to an fp32 rounding, can tip a value over, and that one others.
    tolerance = INT8 if config.variant.base_precision == "int8" else EXACT
    assert relative(outputs(engine_of(name, config, 1)), logits(base_of(config))) <= tolerance


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_the_variant_declares_gets_gradients(variant: str) -> None:
    config = config_of(variant)
    model = build(config)
    got = set()
    if config.variant.trains != "none":
        target_losses(model, batch_at(0))[0].sum().backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None}
    parts = {"adapter": ["lora_A", "lora_B"], "all": [""], "none": []}[config.variant.trains]
    if config.variant.factors == "frozen_a":
        parts = ["lora_B"]
    if config.variant.magnitude == "dora":
        parts = [*parts, "lora_magnitude_vector"]
    assert got == {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


@pytest.mark.parametrize("variant", ADAPTERS)
def test_both_engines_train_the_same_parameters_over_the_same_base(variant: str) -> None:
    config = config_of(variant)
    packed, peft = engine_of("packed", config, 1), engine_of("peft", config, 1)
    wanted = peft.trained(0)
    assert packed.trained(0).keys() == wanted.keys()
    for key, tensor in packed.trained(0).items():  # as they start
        # PEFT multiplies int8 rows with their scales in another order, which shows in the magnitude: the root of a sum.
        tolerance = rounding(TERMS) / 2 if config.variant.base_precision == "int8" and "magnitude" in key else 0.0
        torch.testing.assert_close(tensor, wanted[key], rtol=tolerance, atol=0.0)
    assert fingerprint(frozen_tensors(packed.network)) == fingerprint(frozen_tensors(peft.network))


@pytest.mark.parametrize(("name", "variant"), BOTH)
def test_training_leaves_the_base_alone_and_the_live_checks_hold(name: str, variant: str) -> None:
    config = config_of(variant)
    linears = adapters.linears_of(models.load(config.model, torch.float32, CPU)[0])
    engine = engine_of(name, config, 4)
    trainable = counts.trainable_parameters(config.variant, config.lora, linears, 0)
    live = LiveChecks(engine, [config], [trainable], sum(linear.count for linear in linears))
    before = fingerprint(frozen_tensors(engine.network))
    for step in range(4):
        engine.advance(step, step + 1)
        outputs(engine)  # an evaluation between two steps must not change the base either
    assert fingerprint(frozen_tensors(engine.network)) == before
    assert {check: found["detail"] for check, found in live.judge(0).items() if not found["ok"]} == {}


@pytest.mark.parametrize("name", ["packed", "peft"])
@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_layer_that_is_quantized_though_16_bits_were_asked_for_fails_its_check(name: str, precision: str) -> None:
    asked, other = config_of("lora"), config_of("lora", f"variant.base_precision={precision}")
    linears = adapters.linears_of(models.load(asked.model, torch.float32, CPU)[0])
    count = sum(linear.count for linear in linears)
    engine = engine_of(name, other, 1)
    found = LiveChecks(engine, [asked], [0], count).judge(0)["quantised_layers"]
    assert not found["ok"] and f"{count} of 0 {precision} layers" in found["detail"]


@pytest.mark.parametrize(("name", "variant"), BOTH)
def test_merged_equals_unmerged(name: str, variant: str) -> None:
    """Merged into the base that the forward really multiplies with: a quantized base's dequantized weights."""
    config = config_of(variant)
    engine, _ = train(name, config, 5)
    plain, _ = models.load(config.model, torch.float32, CPU)
    quantized = base_of(config)
    for layer, linear in quantization.linear_layers(plain):
        linear.weight.data = dequantize_module_weight(quantized.get_submodule(layer)).float()
    engine.save_adapter(0, config, Path("adapter"))
    merged = PeftModel.from_pretrained(plain, "adapter").merge_and_unload()
    # LLM.int8() also rounds its activations to 8 bits, which no merged weight can reproduce.
    tolerance = INT8 if config.variant.base_precision == "int8" else EXACT
    assert relative(logits(merged), outputs(engine)) <= tolerance


@pytest.mark.parametrize(("name", "variant"), BOTH)
def test_stock_peft_loads_what_was_saved(name: str, variant: str, folder: Path) -> None:
    config = config_of(variant)
    engine, _ = train(name, config, 5)
    engine.save_adapter(0, config, folder / "adapter")
    layers = len(quantization.linear_layers(models.load(config.model, torch.float32, CPU)[0]))
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(saved) == layers * (3 if config.variant.magnitude == "dora" else 2)
    loaded = PeftModel.from_pretrained(base_of(config), folder / "adapter")
    if config.variant.base_precision == "int8" and config.variant.magnitude == "dora":
        adapters._keep_int8_scales(loaded)  # stock PEFT cannot run DoRA on int8 twice on a CPU; loading is what is tested
    if name == "peft":
        assert torch.equal(logits(loaded), outputs(engine))
        return
    known = loaded.state_dict()
    assert all(torch.equal(known[key], tensor) for key, tensor in engine.trained(0).items())
    # The packed engine sums in another order, which LLM.int8() can turn into another rounding of an activation.
    assert relative(logits(loaded), outputs(engine)) <= (INT8 if config.variant.base_precision == "int8" else EXACT)


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_one_seed_gives_the_same_bits_and_another_does_not(name: str, variant: str) -> None:
    config = config_of(variant, "lora.dropout=0.1" if variant != "full" else "seed=0")
    (first, losses), (second, again) = train(name, config, 4), train(name, config, 4)
    assert losses == again
    assert same_bits(first, second)
    if config.variant.trains == "adapter":
        config.seed = 1
        assert train(name, config, 4)[1] != losses


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_the_loss_falls(name: str, variant: str) -> None:
    """Adam's step is about lr sign(g), which lowers the loss by lr |g|_1 to first order, and that is at least lr |g|_2.

    So at every step, of the same four rows, at a rate where the first order decides: |g|_1 is some 20 times |g|_2 here. At
    40 times this rate the loss jumps up and down, and a processor's rounding decides where it is after 30 steps.
    """
    rate = {"full": 0.00005, "loraplus": 0.0005 / 2}.get(variant, 0.0005)
    count = 5 if variant == "loraplus" else 30  # its B learns at 16 times the rate, so its gradient is small sooner
    config = config_of(variant, f"train.lr={rate}", "train.schedule=constant", "train.warmup=0")
    steps = engine_of(name, config, count, ITEMS[:4]).advance(0, count)
    for before, after in pairwise(steps):
        assert before.loss[0] - after.loss[0] >= rate * before.grad_norm[0] > 10 * EXACT


@pytest.mark.parametrize("name", ["packed", "peft"])
@pytest.mark.parametrize(("rslora", "lora"), [("rslora", "lora"), ("dora_rs", "dora"), ("rsqlora", "qlora")])
@pytest.mark.parametrize("r", [4, 16])
def test_rslora_at_alpha_is_lora_at_alpha_sqrt_r_to_the_bit(name: str, rslora: str, lora: str, r: int) -> None:
    """alpha/sqrt(r) = (alpha sqrt(r))/r; for r = 4^k the root is exact in floating point."""
    first, losses = train(name, config_of(rslora, f"lora.r={r}", "lora.alpha=8"), 4)
    second, again = train(name, config_of(lora, f"lora.r={r}", f"lora.alpha={8 * int(r**0.5)}"), 4)
    assert losses == again
    assert same_bits(first, second)


@pytest.mark.parametrize("name", ["packed", "peft"])
def test_nf4_layers_train_the_same_after_an_evaluation(name: str) -> None:
    """bitsandbytes repacks 4-bit weights on a CPU at the first evaluation, after which no gradient would pass."""
    config = config_of("qdora")
    plain, interrupted = engine_of(name, config, 3), engine_of(name, config, 3)
    outputs(interrupted)
    assert [step.loss for step in plain.advance(0, 3)] == [step.loss for step in interrupted.advance(0, 3)]


def test_adapters_are_fp32_over_a_bf16_base() -> None:
    for variant in ("lora", "dora"):
        config = config_of(variant)
        network, _ = models.load(config.model, torch.bfloat16, CPU)
        model = adapters.attach(quantization.place(network, config.variant, CPU, None), config.variant, config.lora, 0)
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
