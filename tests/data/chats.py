"""Chats, and tokenizers of bytes with chat templates, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from transformers import ByT5Tokenizer

from src.data.datasets import Example

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|end|>"]
# Turns end in <|im_end|>, which is not the tokenizer's end token </s>.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Begins(ByT5Tokenizer):
    """Puts a begin token before every text, and no end token after it."""

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        return [self.bos_token_id, *first]


def tokenizer_of(template: str | None, begin: bool = False) -> Any:
    tokenizer = Begins(bos_token="<s>") if begin else ByT5Tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def bytes_of(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]  # ByT5's ids: three special tokens, then the bytes


def chat(*messages: tuple[str, str], target: str, **more: Any) -> Example:
    return Example("rows.jsonl:3", [{"role": role, "content": text} for role, text in messages], target, "g", **more)
