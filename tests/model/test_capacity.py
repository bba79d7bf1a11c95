"""Rows beyond a base's positions, window or embedding are refused by their number, once their tokens are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.config.schema import is_packed
from src.data.batches import Item
from src.data.datasets import Example
from src.files.errors import ConfigError
from src.model import capacity
from src.model.pretrained import load_whole
from tests.bases import VOCABULARY, saved


def item(prompt: int, target: int, token: int = 5) -> Item:
    return Item(Example("rows.jsonl:7", "p", "t", "7"), [token] * prompt, [token] * target, False)


def base(place: Path, family: str, **more: Any) -> Any:
    return load_whole(saved(place, family, **more), "x", torch.float32)


def checked(network: Any, row: Item, *words: str, new_tokens: int = 0, pad: int = 0, split: str = "test") -> None:
    packed = is_packed(compose(["model=tiny", *words]))
    capacity.refuse(network, {"train": [item(1, 1)], split: [row]}, pad, new_tokens, packed)


@pytest.mark.parametrize(("family", "key"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
@pytest.mark.parametrize("split", ["train", "val", "test", "held-out prose"])
def test_positions(folder: Path, family: str, key: str, split: str) -> None:
    network = base(folder, family, **{key: 12})
    checked(network, item(8, 4), split=split)
    with pytest.raises(ConfigError) as error:
        checked(network, item(8, 5), split=split)
    assert str(error.value) == f"row rows.jsonl:7 ({split}) has 13 tokens; the model has 12 positions: dataset.max_length=12"


@pytest.mark.parametrize(("family", "more"), [("opt", {}), ("roberta", {"is_decoder": True}), ("gpt2", {})])
def test_a_table_of_positions_holds_as_many_as_the_model_reads(folder: Path, family: str, more: dict[str, Any]) -> None:
    """Tables that begin behind an offset: the model itself fails one token beyond what is let in."""
    key = "n_positions" if family == "gpt2" else "max_position_embeddings"
    network = base(folder, family, **{key: 12}, **more)
    longest = max(n for n in range(1, 16) if accepts(network, n))
    network(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        network(input_ids=torch.full((1, longest + 1), 5))
    assert longest == (10 if family == "roberta" else 12)


def accepts(network: Any, tokens: int) -> bool:
    try:
        checked(network, item(tokens - 1, 1))
    except ConfigError:
        return False
    return True


def test_positions_of_a_scaled_rotary_embedding(folder: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "rope_theta": 10000.0}
    network = base(folder, "llama", max_position_embeddings=12, rope_parameters=rope)
    checked(network, item(40, 8))
    with pytest.raises(ConfigError, match="the model has 48 positions"):
        checked(network, item(40, 9))


def test_the_table_of_positions_is_large_enough_for_answers(folder: Path) -> None:
    """A model is fed all but the last token that it makes, so 8 + 5 tokens need 12 positions; the model itself agrees."""
    network = base(folder, "gpt2", n_positions=12)
    checked(network, item(8, 2), new_tokens=5)
    ids, options = torch.full((1, 8), 5), {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    network.generate(input_ids=ids, max_new_tokens=5, **options)
    with pytest.raises(ConfigError, match=r"prompt of 8 tokens, and its answer up to 6; the model has 12 positions: lower"):
        checked(network, item(8, 2), new_tokens=6)
    with pytest.raises(IndexError):
        network.generate(input_ids=ids, max_new_tokens=6, **options)
    checked(base(folder, "llama", max_position_embeddings=12), item(8, 2), new_tokens=60)  # its positions are computed


def test_a_sliding_window(folder: Path) -> None:
    network = base(folder, "mistral", sliding_window=12)
    checked(network, item(8, 4))
    with pytest.raises(ConfigError) as error:
        checked(network, item(8, 5))
    assert str(error.value) == (
        "row rows.jsonl:7 (test) has 13 tokens; engine=packed needs all of a row in the model's sliding window of 12:"
        " dataset.max_length=12, or engine=peft"
    )
    checked(network, item(8, 5), "engine=peft")  # transformers' own masks
    checked(network, item(8, 5), "variant=full")


def test_a_window_that_is_switched_off(folder: Path) -> None:
    checked(base(folder, "qwen2", sliding_window=12, use_sliding_window=False), item(8, 5))


def test_tokens_beyond_the_embedding(folder: Path) -> None:
    network = base(folder, "llama")
    checked(network, item(3, 3, VOCABULARY - 1), pad=VOCABULARY - 1)
    with pytest.raises(ConfigError, match=rf"^row rows.jsonl:7 \(val\) holds a token that has the id {VOCABULARY}, and .* rows"):
        checked(network, item(3, 3, VOCABULARY), split="val")
    with pytest.raises(ConfigError, match=rf"pad token has the id {VOCABULARY}"):
        checked(network, item(3, 3), pad=VOCABULARY)
