"""The closed forms against published numbers, and against PEFT, transformers and bitsandbytes themselves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.config.schema import ALL_LINEAR, CONF_FOLDER, LoraSettings, Shape
from src.config.values import CHOICES
from src.files.errors import ConfigError
from src.variants import counts
from src.variants.counts import Linear
from src.variants.methods.point import VariantConfig

# PEFT 0.21 still reads the old name of a transformers attribute.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA, DORA = VariantConfig(), VariantConfig(magnitude="dora")
TOTALS = {
    "llama_3_1_70b": 70_553_706_496,
    "llama_3_1_8b": 8_030_261_248,
    "llama_3_2_1b": 1_235_814_400,
    "llama_3_2_3b": 3_212_749_824,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "llama_7b": 6_738_415_616,
    "mistral_7b_v0_3": 7_248_023_552,
}
QKV, QV = ["k_proj", "q_proj", "v_proj"], ["q_proj", "v_proj"]
SMALL = Shape(
    vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
)
SHAPES = {
    "llama": SMALL,
    "tied": replace(SMALL, tie_word_embeddings=True),
    "head_dim": replace(SMALL, head_dim=24),
    "qwen2": replace(SMALL, model_type="qwen2", tie_word_embeddings=True),
    "mistral": replace(SMALL, model_type="mistral"),
}


def shape_named(name: str) -> Shape:
    node = OmegaConf.merge(OmegaConf.structured(Shape), OmegaConf.load(CONF_FOLDER / "model" / f"{name}.yaml").shape)
    shape = OmegaConf.to_object(node)
    assert isinstance(shape, Shape)
    return shape


def variant_named(name: str) -> VariantConfig:
    node = OmegaConf.merge(OmegaConf.structured(VariantConfig), OmegaConf.load(CONF_FOLDER / "variant" / f"{name}.yaml"))
    variant = OmegaConf.to_object(node)
    assert isinstance(variant, VariantConfig)
    return variant


VARIANTS = {file.stem: variant_named(file.stem) for file in sorted((CONF_FOLDER / "variant").glob("*.yaml"))}
ADAPTERS = {name: variant for name, variant in VARIANTS.items() if variant.trains == "adapter"}


def trainable(shape: Shape, variant: VariantConfig, r: int, modules: str | list[str] = ALL_LINEAR) -> int:
    chosen = counts.targets(counts.linears(shape), modules, "a model")
    return counts.trainable_parameters(variant, LoraSettings(r=r), chosen, counts.total_parameters(shape))


def one(out_features: int, in_features: int, count: int = 1) -> Linear:
    return Linear("weight", out_features, in_features, False, count)


def build(shape: Shape, device: str = "meta") -> PreTrainedModel:
    values = {key: value for key, value in asdict(shape).items() if value is not None}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model


def adapt(model: PreTrainedModel, variant: VariantConfig, r: int, modules: str | list[str] = ALL_LINEAR) -> PeftModel:
    config = LoraConfig(
        r=r,
        use_dora=variant.magnitude == "dora",
        use_rslora=variant.scaling == "alpha_over_sqrt_r",
        target_modules=modules,
        task_type="CAUSAL_LM",
    )
    with torch.device(model.device):
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    if variant.factors == "frozen_a":
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "lora_A" not in name)
    return adapted


@pytest.mark.parametrize(
    ("layers", "r", "expected"),
    [
        ([one(1024, 1024)], 8, 16_384),
        ([one(100, 500)], 5, 3_000),
        # GPT-3, 96 layers, q and v: the LoRA paper's 4.7M and 37.7M (arXiv 2106.09685, table 4).
        ([one(12288, 12288, 96), one(12288, 12288, 96)], 1, 4_718_592),
        ([one(12288, 12288, 96), one(12288, 12288, 96)], 8, 37_748_736),
    ],
)
def test_lora_golden(layers: list[Linear], r: int, expected: int) -> None:
    assert counts.trainable_parameters(LORA, LoraSettings(r=r), layers, 0) == expected


@pytest.mark.parametrize(
    ("model", "variant", "r", "modules", "expected"),
    [
        ("smollm2_135m", LORA, 1, ALL_LINEAR, 305_280),
        ("smollm2_135m", LORA, 8, ALL_LINEAR, 2_442_240),
        ("smollm2_135m", LORA, 64, ALL_LINEAR, 19_537_920),
        ("smollm2_135m", DORA, 8, ALL_LINEAR, 2_597_760),
        ("smollm2_135m", LORA, 8, QV, 460_800),
        ("llama_3_1_8b", LORA, 8, QKV, 4_718_592),
        ("llama_3_1_8b", LORA, 4, QKV, 2_359_296),
        ("llama_3_1_8b", DORA, 8, QKV, 4_915_200),
        ("llama_3_1_70b", LORA, 4, QKV, 11_141_120),
        ("llama_3_2_3b", LORA, 32, QV, 9_175_040),
        ("llama_7b", LORA, 8, QV, 4_194_304),
    ],
)
def test_model_golden(model: str, variant: VariantConfig, r: int, modules: str | list[str], expected: int) -> None:
    assert trainable(shape_named(model), variant, r, modules) == expected


def test_reduction_of_llama_70b_is_6333() -> None:
    reduction = TOTALS["llama_3_1_70b"] / trainable(shape_named("llama_3_1_70b"), LORA, 4, QKV)
    assert reduction == pytest.approx(6332.73, abs=0.01)


def test_controls_train_all_and_nothing() -> None:
    assert trainable(SHAPES["tied"], VARIANTS["full"], 8) == counts.total_parameters(SHAPES["tied"])
    assert trainable(SHAPES["tied"], VARIANTS["frozen"], 8) == 0


@pytest.mark.parametrize("model", TOTALS)
def test_total_of_each_model(model: str) -> None:
    assert counts.total_parameters(shape_named(model)) == TOTALS[model]


@pytest.mark.parametrize("name", SHAPES)
def test_total_equals_transformers(name: str) -> None:
    model = build(SHAPES[name])
    assert counts.total_parameters(SHAPES[name]) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("variant", ADAPTERS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_peft(name: str, variant: str) -> None:
    for modules in (ALL_LINEAR, QV):
        adapted = adapt(build(SHAPES[name]), ADAPTERS[variant], 5, modules)
        assert trainable(SHAPES[name], ADAPTERS[variant], 5, modules) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("model", ["smollm2_135m", "qwen2_5_1_5b"])
@pytest.mark.parametrize("variant", ["rslora", "qdora"])
def test_equals_peft_on_a_real_model(model: str, variant: str) -> None:
    shape = shape_named(model)
    adapted = adapt(build(shape), ADAPTERS[variant], 8)
    assert trainable(shape, ADAPTERS[variant], 8) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("variant", [LORA, DORA], ids=["lora", "dora"])
def test_adapter_bytes_equal_a_saved_adapter(variant: VariantConfig, tmp_path: Path) -> None:
    shape = SHAPES["qwen2"]
    adapt(build(shape, "cpu"), variant, 4).save_pretrained(str(tmp_path), save_embedding_layers=False)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 - not a mapping
    saved = sum(tensor.nbytes for tensor in tensors)
    assert counts.adapter_bytes(trainable(shape, variant, 4)) == saved
    assert counts.adapter_bytes(trainable(shape, variant, 4), 2) == sum(tensor.half().nbytes for tensor in tensors)


def test_llama_7b_adapter_is_8_mib_in_fp16() -> None:
    assert counts.adapter_bytes(trainable(shape_named("llama_7b"), LORA, 8, QV), 2) == 8 * 2**20


# 40 x 72 fills neither the last block of 64 weights nor the last group of 256 scales.
@pytest.mark.parametrize(("out_features", "in_features"), [(192, 576), (1024, 512), (40, 72)])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("precision", ["nf4", "fp4"])
def test_four_bit_bytes_equal_bitsandbytes(out_features: int, in_features: int, precision: str, double_quant: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(out_features, in_features)
    packed, state = functional.quantize_4bit(weight, quant_type=precision, blocksize=64, compress_statistics=double_quant)
    held = [packed, state.absmax] + ([state.state2.absmax, state.offset] if double_quant else [])
    assert counts.linear_bytes(one(out_features, in_features), precision, double_quant) == sum(tensor.nbytes for tensor in held)


def test_int8_bytes_equal_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    quantized, scales, _ = functional.int8_vectorwise_quant(torch.randn(192, 576).half())
    assert counts.linear_bytes(one(192, 576), "int8") == quantized.nbytes + scales.nbytes


def test_base_bytes() -> None:
    shape, total = shape_named("llama_3_1_8b"), TOTALS["llama_3_1_8b"]
    linear = 6_979_321_856
    assert counts.base_bytes(shape, "bf16") == 2 * total
    assert counts.base_bytes(shape, "fp32") == 4 * total
    # Embedding and head stay 16-bit, so a 4-bit model is not a quarter of its size.
    assert counts.base_bytes(shape, "nf4", False) == 2 * (total - linear) + linear * 9 // 16
    assert counts.base_bytes(shape, "nf4", True) == pytest.approx(5.70e9, rel=1e-3)
    assert counts.base_bytes(shape, "int8") == pytest.approx(9.08e9, rel=1e-3)
    assert counts.linear_bytes(one(4096, 4096), "nf4", True) / 4096**2 == pytest.approx(0.5159, abs=1e-4)


def test_every_precision_of_the_schema_has_bytes() -> None:
    for precision in CHOICES["variant.base_precision"]:
        assert counts.base_bytes(SHAPES["llama"], precision) > 0


def test_training_bytes() -> None:
    shape, lora = shape_named("smollm2_135m"), LoraSettings(r=8)
    chosen = counts.linears(shape)
    of = {name: counts.training_bytes(shape, variant, lora, chosen, 1000) for name, variant in VARIANTS.items()}
    assert of["lora"].base == 2 * TOTALS["smollm2_135m"] and of["lora"].states == 16 * 2_442_240
    assert of["lora"].total == of["lora"].base + of["lora"].states + of["lora"].activations
    assert of["qlora"].base < of["lora_8bit"].base < of["lora"].base
    assert of["dora"].activations > of["lora"].activations
    assert of["rslora"] == of["lora"]
    assert (of["full"].base, of["full"].states) == (0, 16 * TOTALS["smollm2_135m"])
    assert (of["frozen"].states, of["frozen"].activations) == (0, 0)
    # Without the adapter's own: the sum over a layer's tensors that research/perf.md gives, 16.9 kB, and 6 V of logits.
    assert of["full"].activations == 1000 * (30 * 2 * (4 * 576 + 2 * 576 + 2 * 192 + 3 * 1536) + 6 * 49152)


def test_pack_bytes_by_hand() -> None:
    # Three layers of q, o [32, 32], k, v [16, 32], gate, up [80, 32], down [32, 80]; seven norms, embedding and head [96, 32].
    linear = 3 * (2 * 1024 + 2 * 512 + 3 * 2560)
    total = linear + 7 * 32 + 2 * 96 * 32
    layers = counts.targets(counts.linears(SMALL), QV, "small")
    members = [(VARIANTS["lora"], LoraSettings(r=4)), (VARIANTS["dora"], LoraSettings(r=8))]
    of = counts.pack_bytes(SMALL, members, layers, 100)
    assert of.base == 2 * total
    assert of.states == 18 * 3 * ((4 * 64 + 4 * 48) + (8 * 64 + 32 + 8 * 48 + 16))
    kept = 4 * 32 + 2 * 32 + 2 * 16 + 3 * 80
    head = 4096 * 96 * 6
    assert of.activations == 100 * 2 * 3 * ((kept + 2 * 4) + (kept + 2 * 8 + 32 + 16)) + head

    quantized = [(VARIANTS["qlora"], LoraSettings(r=4))] * 5
    plain, held = (counts.pack_bytes(SMALL, quantized, layers, 100, hold_dequantised=hold) for hold in (False, True))
    assert plain.base == counts.base_bytes(SMALL, "nf4", True) < of.base  # once, for all five
    assert held.base - plain.base == 2 * linear
    assert (plain.states, plain.activations) == (held.states, held.activations) == (5 * 18 * 1344, 5 * 600 * (kept + 8) + head)

    single = [(replace(VARIANTS["lora"], base_precision="fp32"), LoraSettings(r=4))]
    assert counts.pack_bytes(SMALL, single, layers, 100).activations == 1200 * (kept + 8) + head


@pytest.mark.parametrize(
    ("model", "gigaflops"),
    # At r=16: lengths 512, 2048, 4096 (research/perf.md, section 5; DoRA's and the scaling's work is not per token).
    [("llama_3_1_8b", (30.7, 32.1, 34.0)), ("qwen2_5_1_5b", (6.44, 6.90, 7.52)), ("smollm2_135m", (0.63, 0.82, 1.06))],
)
@pytest.mark.parametrize("variant", ["lora", "dora_rs"])
def test_flops_golden(model: str, gigaflops: tuple[float, ...], variant: str) -> None:
    shape = shape_named(model)
    for length, expected in zip((512, 2048, 4096), gigaflops, strict=True):
        flops = counts.flops_per_token(shape, VARIANTS[variant], LoraSettings(r=16), counts.linears(shape), length)
        assert flops.total / 1e9 == pytest.approx(expected, abs=0.051 if expected > 10 else 0.006)


def test_flops_of_the_controls() -> None:
    shape, lora = SHAPES["tied"], LoraSettings()
    weights = sum(linear.weights * linear.count for linear in counts.linears(shape)) + 96 * 32
    # At length 0 only the weights work: 6N when all trains, 2N when nothing does.
    full = counts.flops_per_token(shape, VARIANTS["full"], lora, counts.linears(shape), 0)
    frozen = counts.flops_per_token(shape, VARIANTS["frozen"], lora, counts.linears(shape), 512)
    assert (full.forward, full.backward) == (2 * weights, 4 * weights)
    assert frozen.backward == 0 and frozen.forward > 2 * weights


def test_linears_are_those_that_transformers_builds() -> None:
    for shape in SHAPES.values():
        built: dict[tuple[str, int, int, bool], int] = {}
        for name, module in build(shape).named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                key = (name.rpartition(".")[2], module.out_features, module.in_features, module.bias is not None)
                built[key] = built.get(key, 0) + 1
        assert {(n.name, n.out_features, n.in_features, n.bias): n.count for n in counts.linears(shape)} == built


def test_refusals_are_one_line_and_name_the_key() -> None:
    layers = counts.linears(SHAPES["llama"])
    with pytest.raises(ConfigError, match=r"lora\.target_modules=\[c_attn\]: matches no linear layer of tiny; choose from q"):
        counts.targets(layers, ["c_attn", "q_proj"], "tiny")
    with pytest.raises(ConfigError, match=r"model\.shape\.model_type=gpt2: no closed form; choose one of llama"):
        counts.linears(replace(SMALL, model_type="gpt2"))
    with pytest.raises(ConfigError, match=r"model\.shape\.hidden_size=0"):
        counts.total_parameters(replace(SMALL, hidden_size=0))


def test_targets_keep_the_order_of_the_model() -> None:
    layers = counts.linears(SHAPES["llama"])
    assert [linear.name for linear in counts.targets(layers, ["v_proj", "q_proj"], "tiny")] == QV
    assert counts.targets(layers, ALL_LINEAR, "tiny") == layers
