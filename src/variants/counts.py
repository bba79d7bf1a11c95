"""Count what a run costs, in closed form: parameters, bytes and FLOPs from a model's dimensions alone, without weights.

Parameters and stored bytes are exact and tested against PEFT, transformers and bitsandbytes; training memory and
FLOPs are estimates whose docstrings say what they leave out. Notation: a linear layer has weight
``[out_features, in_features]``, d is the hidden size, f the MLP's width, V the vocabulary, L the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config.schema import ALL_LINEAR, LoraSettings, Shape
from ..files.errors import ConfigError
from .methods.part import LOW_RANK, Part
from .methods.point import VariantConfig, parts_of
from .methods.precision import FOUR_BIT, QUANTIZED

# Which of the linear layers carry a bias, per family (transformers' modeling files). Llama's optional
# attention_bias and mlp_bias are off in every published Llama and not part of Shape.
BIASED: dict[str, frozenset[str]] = {
    "llama": frozenset(),
    "mistral": frozenset(),
    "qwen2": frozenset({"q_proj", "k_proj", "v_proj"}),
}
# Backward matrix products per forward one: dX alone through frozen weights, dX and dW through trained ones.
BACKWARD_PRODUCTS = {"none": 0, "adapter": 1, "all": 2}

BLOCK, SCALE_BLOCK = 64, 256  # bitsandbytes' block sizes, as QLoRA's (arXiv 2305.14314, section 3)
WEIGHT_BYTES, COPY_BYTES = 4, 2  # an adapter's number in fp32, and the bf16 copy that a pack multiplies with
STATE_BYTES = WEIGHT_BYTES + 4 + 8  # with its gradient and AdamW's two moments
PACKED_STATE_BYTES = STATE_BYTES + COPY_BYTES
HEAD_ROWS = 4096  # labeled tokens whose logits a pack holds at a time


@dataclass(frozen=True)
class Linear:
    """A kind of linear layer that an adapter can sit on, and how many the model has of it."""

    name: str
    out_features: int
    in_features: int
    bias: bool
    count: int

    @property
    def weights(self) -> int:
        """Entries of one weight matrix."""
        return self.out_features * self.in_features


@dataclass(frozen=True)
class TrainingBytes:
    """Estimated accelerator memory of a training step, in bytes."""

    base: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.base + self.states + self.activations


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token; a multiply-add counts as two."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def linears(shape: Shape) -> list[Linear]:
    """The linear layers that PEFT's ``all-linear`` adapts: all but the output head.

    Raises:
        ConfigError: the family is unknown here, or the dimensions do not describe a model.
    """
    if shape.model_type not in BIASED:
        raise ConfigError(f"model.shape.model_type={shape.model_type}: no closed form; choose one of {', '.join(BIASED)}")
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if getattr(shape, key) < 1:
            raise ConfigError(f"model.shape.{key}={getattr(shape, key)}: needs a whole number from 1")
    d, f = shape.hidden_size, shape.intermediate_size
    q, kv = _attention_widths(shape)
    sizes = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
    sizes |= {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
    biased = BIASED[shape.model_type]
    return [Linear(name, out, into, name in biased, shape.num_hidden_layers) for name, (out, into) in sizes.items()]


def targets(linears: Sequence[Linear], target_modules: str | Sequence[str], model_name: str) -> list[Linear]:
    """The layers that get an adapter.

    Raises:
        ConfigError: a name matches no layer; the message says which names there are.
    """
    if target_modules == ALL_LINEAR:
        return list(linears)
    names = [target_modules] if isinstance(target_modules, str) else target_modules
    known = list(dict.fromkeys(linear.name for linear in linears))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"lora.target_modules=[{','.join(unknown)}]: matches no linear layer of {model_name};"
            f" choose from {', '.join(known)}, or {ALL_LINEAR}"
        )
    return [linear for linear in linears if linear.name in names]


def total_parameters(shape: Shape) -> int:
    """Parameters of the base model: embedding, layers with norms and biases, final norm, and the head unless tied."""
    d = shape.hidden_size
    layers = sum(linear.count * (linear.weights + linear.bias * linear.out_features) for linear in linears(shape))
    norms = (2 * shape.num_hidden_layers + 1) * d
    embeddings = (1 if shape.tie_word_embeddings else 2) * shape.vocab_size * d
    return layers + norms + embeddings


def trainable_parameters(variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear], total: int) -> int:
    """Parameters that train, where ``total`` is the base model's count.

    Of an adapter's parts those that train: ``r (in + out)`` per layer for A and B (LoRA, arXiv 2106.09685, section 4.2), and
    ``out`` more for DoRA's m (arXiv 2402.09353, eq. 5). The scaling and the base's precision train nothing.
    """
    trained = [part for part in parts_of(variant) if part.trained]
    return {"adapter": _numbers(trained, lora.r, targets), "all": total, "none": 0}[variant.trains]


def adapter_parameters(variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear]) -> int:
    """Numbers of a saved adapter: of all its parts, trained or not."""
    return _numbers(parts_of(variant), lora.r, targets)


def _numbers(parts: Sequence[Part], r: int, targets: Sequence[Linear]) -> int:
    return sum(t.count * math.prod(part.shape(r, t.out_features, t.in_features)) for t in targets for part in parts)


def adapter_bytes(parameters: int, bytes_each: int = 4) -> int:
    """Bytes of a saved adapter's tensors: 4 each as PEFT saves them (fp32), 2 each in fp16 or bf16. Without the
    file's header, some 100 bytes per tensor."""
    return parameters * bytes_each


def base_bytes(shape: Shape, precision: str, double_quant: bool = True) -> int:
    """Bytes of the base model's weights. int8, nf4 and fp4 hold for the linear layers of ``linears`` only: embedding, head,
    norms and biases stay 16-bit (src/variants/quantization.py). Without the 4-bit formats' lookup tables, 1 kB per layer."""
    if precision == "fp32":
        return 4 * total_parameters(shape)
    quantized = linears(shape) if precision in QUANTIZED else []
    weights = sum(linear.count * linear.weights for linear in quantized)
    stored = sum(linear.count * linear_bytes(linear, precision, double_quant) for linear in quantized)
    return 2 * (total_parameters(shape) - weights) + stored


def linear_bytes(linear: Linear, precision: str, double_quant: bool = True) -> int:
    """Bytes of one weight matrix and its scales, as bitsandbytes stores them.

    int8 (LLM.int8(), arXiv 2208.07339, section 3.1): one byte per weight and one fp32 scale per output row.
    nf4 and fp4 (QLoRA, arXiv 2305.14314, section 3): half a byte per weight and one scale per block of 64: fp32, or with
    double quantization one byte, an fp32 scale per 256 of those, and their fp32 mean. 0.5625 and 0.5159 bytes.
    """
    if precision == "int8":
        return linear.weights + 4 * linear.out_features
    if precision in FOUR_BIT:
        blocks = _ceil(linear.weights, BLOCK)
        scales = blocks + 4 * _ceil(blocks, SCALE_BLOCK) + 4 if double_quant else 4 * blocks
        return _ceil(linear.weights, 2) + scales
    return {"bf16": 2, "fp32": 4}[precision] * linear.weights


def training_bytes(
    shape: Shape, variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear], tokens: int
) -> TrainingBytes:
    """Estimated memory of a step over ``tokens`` padded tokens (batch size times length).

    Assumes AdamW with fp32 weights, gradients and moments for what trains; activations in bf16 without checkpointing,
    with a fused attention; logits of every token in bf16 and fp32. Leaves out the allocator's slack, kernels'
    workspaces, and fp32 copies that an unfused adapter makes of its input.
    """
    widths = _kept_values(shape, variant, lora, targets)
    total = total_parameters(shape)
    # With every weight training there is no frozen base beside the trained weights.
    base = 0 if variant.trains == "all" else base_bytes(shape, variant.base_precision, variant.double_quant)
    # Where nothing trains, no backward pass needs the activations.
    activations = 0 if variant.trains == "none" else tokens * (2 * widths + 6 * shape.vocab_size)
    trained = trainable_parameters(variant, lora, targets, total)
    states = STATE_BYTES * trained + WEIGHT_BYTES * _still(variant, lora, targets)
    return TrainingBytes(base, states, activations)


def pack_bytes(
    shape: Shape,
    members: Sequence[tuple[VariantConfig, LoraSettings]],
    targets: Sequence[Linear],
    tokens_per_run: int,
    hold_dequantised: bool = False,
) -> TrainingBytes:
    """Estimated memory of a step of runs that train over one base, each with ``tokens_per_run`` padded tokens.

    The base stands there once, with ``hold_dequantised`` and the bf16 copy of its linear layers. Each run brings its
    own states, with a bf16 copy of what trains, and its own activations, as in ``training_bytes`` but in fp32 over a
    base of fp32. Logits are those of ``HEAD_ROWS`` labeled tokens, in bf16 and fp32. Leaves out what
    ``training_bytes`` leaves out.
    """
    shared, _ = members[0]
    base = base_bytes(shape, shared.base_precision, shared.double_quant)
    if hold_dequantised:
        base += 2 * sum(linear.count * linear.weights for linear in linears(shape))
    total = total_parameters(shape)
    trained = sum(trainable_parameters(variant, lora, targets, total) for variant, lora in members)
    still = sum(_still(variant, lora, targets) for variant, lora in members)
    kept = sum(_kept_values(shape, variant, lora, targets) for variant, lora in members)
    activations = tokens_per_run * (4 if shared.base_precision == "fp32" else 2) * kept
    states = PACKED_STATE_BYTES * trained + (WEIGHT_BYTES + COPY_BYTES) * still
    return TrainingBytes(base, states, activations + HEAD_ROWS * 6 * shape.vocab_size)


def _still(variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear]) -> int:
    """Numbers of an adapter that do not train."""
    return _numbers([part for part in parts_of(variant) if not part.trained], lora.r, targets)


def _kept_values(shape: Shape, variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear]) -> int:
    """Values per token that wait for the backward pass, without the logits."""
    d, f = shape.hidden_size, shape.intermediate_size
    q, kv = _attention_widths(shape)
    # Per layer: two norms' inputs and outputs, q, k, v, attention's output, and the MLP's gate, up and product.
    kept = shape.num_hidden_layers * (4 * d + 2 * q + 2 * kv + 3 * f)
    if variant.trains == "adapter":
        # It keeps A x for dB, and for the gradient of a vector such as DoRA's m the outputs that it multiplies.
        vectors = [part for part in parts_of(variant) if part.term != LOW_RANK]
        kept += sum(t.count * lora.r for t in targets) + _numbers(vectors, lora.r, targets)
    return kept


def flops_per_token(shape: Shape, variant: VariantConfig, lora: LoraSettings, targets: Sequence[Linear], length: int) -> Flops:
    """Operations of one training step per token of a sequence of ``length`` tokens.

    With N the weights of the linear layers and the head: 2N forward; backward 2N through a frozen base (no dW) and 4N
    if all trains. Causal attention: 2 length q L forward, with q the width of all heads; 2.5 times that backward, as a
    fused kernel recomputes it. LoRA: 2r (in + out) forward, as much backward for dX, and as much again if both factors train.
    Leaves out norms, activation functions, dequantization, and DoRA's row norms, which are work per step and not per token.
    """
    weights = sum(linear.count * linear.weights for linear in linears(shape)) + shape.vocab_size * shape.hidden_size
    attention = 2 * length * _attention_widths(shape)[0] * shape.num_hidden_layers
    trains = variant.trains != "none"
    low_rank = [part for part in parts_of(variant) if part.term == LOW_RANK]
    adapter = 2 * _numbers(low_rank, lora.r, targets)
    gradients = 2 * _numbers([part for part in low_rank if part.trained], lora.r, targets)
    backward = BACKWARD_PRODUCTS[variant.trains] * 2 * weights + 2.5 * attention * trains + adapter + gradients
    return Flops(float(2 * weights + attention + adapter), float(backward))


def _attention_widths(shape: Shape) -> tuple[int, int]:
    """Widths of all query heads and of all key (or value) heads; absent key heads mean one for each query head."""
    width = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    return shape.num_attention_heads * width, (shape.num_key_value_heads or shape.num_attention_heads) * width


def _ceil(count: int, block: int) -> int:
    return -(-count // block)
