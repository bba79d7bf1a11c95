"""Tokens, labels and the order of rows."""

from __future__ import annotations

import pytest
import torch
from transformers import ByT5Tokenizer

from src.data.batches import IGNORE, collate, rows_at, tokenize
from src.data.datasets import Example
from src.files.errors import ConfigError

TOKENIZER = ByT5Tokenizer()
CPU = torch.device("cpu")


def example(prompt: str, target: str) -> Example:
    return Example("id", prompt, target, "group")


def bytes_of(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]  # ByT5's ids: three special tokens, then the bytes


def test_prompt_target_and_end_token() -> None:
    (item,) = tokenize([example("ab", "cd")], TOKENIZER, 64, False)
    assert (item.prompt, item.target, item.cut) == (bytes_of("ab"), [*bytes_of("cd"), 1], False)


def test_labels_cover_the_target_alone() -> None:
    items = tokenize([example("ab", "cd"), example("a", "b")], TOKENIZER, 64, False)
    batch = collate(items, pad=0, device=CPU)
    assert batch.input_ids.tolist() == [[*bytes_of("abcd"), 1], [*bytes_of("ab"), 1, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.labels.tolist() == [
        [IGNORE, IGNORE, *bytes_of("cd"), 1],
        [IGNORE, *bytes_of("b"), 1, IGNORE, IGNORE],
    ]
    assert (batch.tokens, batch.target_tokens) == (8, 5)


def test_a_long_row_loses_the_left_of_its_prompt_and_is_counted() -> None:
    short, long, longest = tokenize(
        [example("ab", "c"), example("abcdef", "gh"), example("ab", "cdefghijk")], TOKENIZER, 6, False
    )
    assert not short.cut
    assert (long.prompt, long.target, long.cut) == (bytes_of("def"), [*bytes_of("gh"), 1], True)
    assert (len(longest), longest.prompt, longest.cut) == (6, bytes_of("b"), True)


def test_an_empty_prompt_still_has_something_before_the_target() -> None:
    (item,) = tokenize([example("", "a")], TOKENIZER, 8, False)
    assert len(item.prompt) == 1


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize([example("a", "b")], TOKENIZER, 8, True)


def test_a_chat_goes_through_the_template() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat, plain = tokenize([Example("1", messages, "t", "g"), example("p", "t")], tokenizer, 64, False)
    (asked,) = tokenize([example("p", "t")], tokenizer, 64, True)
    assert chat.prompt == bytes_of("<system>s<user>q<a>")
    assert plain.prompt == bytes_of("p")
    assert asked.prompt == bytes_of("<user>p<a>")


def test_each_epoch_uses_each_row_once_and_in_another_order() -> None:
    stream = rows_at(0, 30, 10, data_seed=0)
    epochs = [stream[:10], stream[10:20], stream[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_data_seed_and_the_position_alone() -> None:
    whole = rows_at(0, 40, 7, data_seed=3)
    assert [row for start in range(0, 40, 4) for row in rows_at(start, 4, 7, data_seed=3)] == whole
    assert rows_at(0, 40, 7, data_seed=4) != whole
