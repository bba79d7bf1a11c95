"""List the tensors of a decoder of the Llama family in closed form, to compare with what a file holds, without torch."""

from __future__ import annotations

from ..config.schema import Shape
from .counts import linears

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
UNUSED = "rotary_emb.inv_freq"  # files of earlier versions hold this table, which is computed now


def closed_form(shape: Shape) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of all tensors that a file of such a model holds."""
    d = shape.hidden_size
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, d), "model.norm.weight": (d,)}
    if not shape.tie_word_embeddings:
        tensors["lm_head.weight"] = (shape.vocab_size, d)
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = (d,)
        for linear in linears(shape):
            name = f"{prefix}.{'self_attn' if linear.name in ATTENTION else 'mlp'}.{linear.name}"
            tensors[f"{name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                tensors[f"{name}.bias"] = (linear.out_features,)
    return tensors


def fits(shapes: dict[str, tuple[int, ...]], shape: Shape) -> bool:
    """Tell whether a file holds just the closed form's tensors. Where it does not, only transformers can say what is wrong."""
    return {name: size for name, size in shapes.items() if not name.endswith(UNUSED)} == closed_form(shape)
