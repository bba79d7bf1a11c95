"""Small bases as folders, as a user has them: random weights of a real family, config.json, tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 384  # of the byte tokenizer
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
MIXTRAL = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA3 = {
    "text_config": LLAMA | {"head_dim": 8, "sliding_window": 64}, "mm_tokens_per_image": 4, "image_token_index": 380,
    "vision_config": {
        "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
}  # fmt: skip
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA | {"head_dim": 8}, "gpt2": GPT2, "mixtral": MIXTRAL,
    "gemma3": GEMMA3, "gemma": LLAMA | {"head_dim": 8}, "roberta": BERT, "bert": BERT,
    "opt": {
        "vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "word_embed_proj_dim": 16, "max_position_embeddings": 256,
    },
}  # fmt: skip


def saved(place: Path, family: str = "llama", **more: Any) -> Path:
    """Save a model of ``family`` with the byte tokenizer. Its weights are three times as large as drawn, so that they show."""
    from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES[family], **more}), dtype=torch.float32)
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim > 1:
                tensor.mul_(3)
    network.save_pretrained(place)
    if family == "mixtral":  # transformers takes no other class for it than this one
        return with_bytes(place)
    ByT5Tokenizer().save_pretrained(place)
    return place


def with_bytes(place: Path) -> Path:
    """Save a tokenizer of single bytes as tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {text: n for n, text in enumerate(["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>").save_pretrained(place)
    return place


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key out."""
    known = (json.loads(path.read_text()) if path.exists() else {}) | values
    path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


Tensors = dict[str, torch.Tensor]


def rewrite(place: Path, edit: Callable[[Tensors], Tensors]) -> None:
    """Write the weights of a folder as ``edit`` makes them."""
    from safetensors.torch import load_file, save_file

    file = place / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def with_words(place: Path, words: dict[str, int], added: dict[str, int], **roles: str) -> Path:
    """Replace a folder's tokenizer by one of whole words, with added special tokens and these roles."""
    entries = [
        {"id": n, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for text, n in added.items()
    ]
    model = {"type": "WordLevel", "vocab": words, "unk_token": next(iter(words))}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": None,
               "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    for file in place.glob("*token*"):
        file.unlink()
    (place / "tokenizer.json").write_text(json.dumps(content))
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    return place
