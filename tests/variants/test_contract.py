"""What every variant must do, over every YAML of conf/variant: against the base, against PEFT, against itself.

The products run in fp32 here, so that equalities are not blurred by bf16 rounding; the bases are in the variant's own
precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from src import models
from src.batches import Batch, collate, rows_at, tokenise
from src.cli import compose
from src.config import CONF_FOLDER, Config
from src.datasets import Example
from src.device import Numerics
from src.losses import target_losses
from src.train.checks import LiveChecks, fingerprint, frozen_tensors
from src.train.peft_engine import PeftEngine
from src.variants import adapters, counts, quantization

VARIANTS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml"))
ADAPTERS = [name for name in VARIANTS if name not in ("full", "frozen")]
CPU = torch.device("cpu")
FP32 = Numerics(CPU, torch.float32, None)
EXAMPLES = [Example(str(n), f"The number after {n} is ", f"{n + 1}", str(n)) for n in range(16)]
_, TOKENIZER = models.load(compose(["model=tiny"]).model, torch.float32, CPU)
ITEMS = tokenise(EXAMPLES, TOKENIZER, 64, False)


def config_of(variant: str, *overrides: str) -> Config:
    return compose(["model=tiny", f"variant={variant}", "train.lr=0.01", "train.batch_size=4", "lora.r=4", *overrides])


def base_of(config: Config) -> Any:
    network, _ = models.load(config.model, torch.float32, CPU)
    return quantization.place(network, config.variant, CPU, None)


def build(config: Config) -> Any:
    network = base_of(config)
    if config.variant.trains == "adapter":
        return adapters.attach(network, config.variant, config.lora, config.seed)
    return network.requires_grad_(config.variant.trains == "all")


def batch_at(step: int, size: int = 4) -> Batch:
    return collate([ITEMS[row] for row in rows_at(step * size, size, len(ITEMS), 0)], TOKENIZER.pad_token_id, CPU)


def train(config: Config, steps: int) -> tuple[Any, list[float]]:
    model = build(config)
    engine = PeftEngine(model, config.train, steps, config.seed, FP32)
    return model, [engine.step(step, [batch_at(step)]).loss for step in range(steps)]


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    batch = batch_at(0)
    with torch.no_grad():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    kept: torch.Tensor = output[batch.attention_mask.bool()]
    return kept


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_equals_the_base_at_step_0(variant: str) -> None:
    config = config_of(variant)
    # LLM.int8() rounds activations, so DoRA's factor, 1 up to an fp32 rounding, can tip a value over.
    tolerance = 1e-2 if config.variant.base_precision == "int8" else 1e-6
    assert relative(logits(build(config)), logits(base_of(config))) <= tolerance


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_the_variant_declares_gets_gradients(variant: str) -> None:
    config = config_of(variant)
    model = build(config)
    got = set()
    if config.variant.trains != "none":
        target_losses(model, batch_at(0))[0].sum().backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None}
    parts = {"adapter": ["lora_A", "lora_B"], "all": [""], "none": []}[config.variant.trains]
    if config.variant.magnitude == "dora":
        parts = [*parts, "lora_magnitude_vector"]
    assert got == {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


@pytest.mark.parametrize("variant", ADAPTERS)
def test_training_leaves_the_base_alone_and_the_live_checks_hold(variant: str) -> None:
    config = config_of(variant)
    network, _ = models.load(config.model, torch.float32, CPU)
    linears = adapters.linears_of(network)
    model = adapters.attach(quantization.place(network, config.variant, CPU, None), config.variant, config.lora, 0)
    trainable = counts.trainable_parameters(config.variant, config.lora, linears, 0)
    live = LiveChecks(model, config.variant, config.lora, trainable, sum(linear.count for linear in linears))
    engine = PeftEngine(model, config.train, 4, 0, FP32)
    before = fingerprint(frozen_tensors(model))
    for step in range(4):
        engine.step(step, [batch_at(step)])
        logits(model)  # an evaluation between two steps must not change the base either
    assert fingerprint(frozen_tensors(model)) == before
    assert {name: check["detail"] for name, check in live.judge().items() if not check["ok"]} == {}


@pytest.mark.parametrize("variant", ADAPTERS)
def test_merged_equals_unmerged(variant: str) -> None:
    """Merged into the base that the forward really multiplies with: a quantised base's dequantised weights."""
    config = config_of(variant)
    model, _ = train(config, 5)
    unmerged = logits(model)
    plain, _ = models.load(config.model, torch.float32, CPU)
    quantised = base_of(config)
    for name, linear in quantization.linear_layers(plain):
        linear.weight.data = dequantize_module_weight(quantised.get_submodule(name)).float()
    model.save_pretrained("adapter")
    merged = PeftModel.from_pretrained(plain, "adapter").merge_and_unload()
    # LLM.int8() also rounds its activations to 8 bits, which no merged weight can reproduce.
    tolerance = 3e-2 if config.variant.base_precision == "int8" else 1e-5
    assert relative(logits(merged), unmerged) <= tolerance


@pytest.mark.parametrize("variant", ADAPTERS)
def test_stock_peft_loads_what_was_saved(variant: str, folder: Path) -> None:
    config = config_of(variant)
    model, _ = train(config, 5)
    model.save_pretrained(folder / "adapter")
    loaded = PeftModel.from_pretrained(base_of(config), folder / "adapter")
    if config.variant.base_precision == "int8" and config.variant.magnitude == "dora":
        adapters._keep_int8_scales(loaded)  # stock PEFT cannot run DoRA on int8 twice on a CPU; loading is what is tested
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "frozen"])
def test_one_seed_gives_the_same_bits_and_another_does_not(variant: str) -> None:
    config = config_of(variant, "lora.dropout=0.1" if variant != "full" else "seed=0")
    (first, losses), (second, again) = train(config, 4), train(config, 4)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    if config.variant.trains == "adapter":
        config.seed = 1
        assert train(config, 4)[1] != losses


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "frozen"])
def test_the_loss_falls(variant: str) -> None:
    config = config_of(variant, "train.lr=0.02" if variant != "full" else "train.lr=0.003", "train.schedule=constant")
    model = build(config)
    engine = PeftEngine(model, config.train, 30, 0, FP32)
    losses = [engine.step(step, [batch_at(0)]).loss for step in range(30)]
    assert losses[-1] < 0.92 * losses[0]


@pytest.mark.parametrize(("rslora", "lora"), [("rslora", "lora"), ("dora_rs", "dora"), ("rsqlora", "qlora")])
@pytest.mark.parametrize("r", [4, 16])
def test_rslora_at_alpha_is_lora_at_alpha_sqrt_r_to_the_bit(rslora: str, lora: str, r: int) -> None:
    """alpha/sqrt(r) = (alpha sqrt(r))/r; for r = 4^k the root is exact in floating point."""
    first, losses = train(config_of(rslora, f"lora.r={r}", "lora.alpha=8"), 4)
    second, again = train(config_of(lora, f"lora.r={r}", f"lora.alpha={8 * int(r**0.5)}"), 4)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_nf4_layers_train_the_same_after_an_evaluation() -> None:
    """bitsandbytes repacks 4-bit weights on a CPU at the first evaluation, after which no gradient would pass."""
    config = config_of("qdora")
    plain, interrupted = build(config), build(config)
    logits(interrupted)
    engines = [PeftEngine(model, config.train, 3, 0, FP32) for model in (plain, interrupted)]
    losses = [[engine.step(step, [batch_at(step)]).loss for step in range(3)] for engine in engines]
    assert losses[0] == losses[1]


def test_adapters_are_fp32_over_a_bf16_base() -> None:
    for variant in ("lora", "dora"):
        config = config_of(variant)
        network, _ = models.load(config.model, torch.bfloat16, CPU)
        model = adapters.attach(quantization.place(network, config.variant, CPU, None), config.variant, config.lora, 0)
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
