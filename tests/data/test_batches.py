"""Labels, padding and the order of rows."""

from __future__ import annotations

import torch
from transformers import ByT5Tokenizer

from src.data.batches import IGNORE, Item, collate, rows_at, tokenize
from src.data.datasets import Example

TOKENIZER = ByT5Tokenizer()
CPU = torch.device("cpu")


def example(prompt: str, target: str) -> Example:
    return Example("id", prompt, target, "group")


def bytes_of(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]  # ByT5's ids: three special tokens, then the bytes


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


def test_labels_cover_earlier_turns_too() -> None:
    items = [Item(example("", ""), [5, 6, 7, 8, 9], [10, 1], False, ((1, 2), (3, 4))), Item(example("", ""), [5], [6], False)]
    batch = collate(items, pad=0, device=CPU)
    assert batch.labels.tolist() == [[IGNORE, 6, IGNORE, 8, IGNORE, 10, 1], [IGNORE, 6] + [IGNORE] * 5]
    assert [item.labeled for item in items] == [4, 1]
    assert batch.target_tokens == 5


def test_each_epoch_uses_each_row_once_and_in_another_order() -> None:
    stream = rows_at(0, 30, 10, data_seed=0)
    epochs = [stream[:10], stream[10:20], stream[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_data_seed_and_the_position_alone() -> None:
    whole = rows_at(0, 40, 7, data_seed=3)
    assert [row for start in range(0, 40, 4) for row in rows_at(start, 4, 7, data_seed=3)] == whole
    assert rows_at(0, 40, 7, data_seed=4) != whole
