"""Tokenizers that do not belong to their base are refused from their files; those that do are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.files.errors import ConfigError
from src.model import tokenizer_files
from tests.bases import change, with_words

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "yes": 3, "no": 4}


def checked(place: Path, rows: int = 5) -> None:
    tokenizer_files.refuse(place, {"vocab_size": rows}, "model.path=here")


def says(place: Path, rows: int = 5) -> str:
    with pytest.raises(ConfigError) as error:
        checked(place, rows)
    assert str(error.value).startswith("model.path=here: ") and "\n" not in str(error.value)
    return str(error.value)


def test_a_tokenizer_that_fits(folder: Path) -> None:
    checked(with_words(folder, WORDS, {"</s>": 2}, eos_token="</s>", unk_token="<unk>"))
    checked(folder, 100)  # an embedding may have rows to spare


@pytest.mark.parametrize("role", ["pad_token", "eos_token", "bos_token", "unk_token"])
def test_a_token_in_use_beyond_the_embedding(folder: Path, role: str) -> None:
    with_words(folder, WORDS, {"[NEW]": 5}, **{"eos_token": "</s>", role: "[NEW]"})
    assert f"its {role}, '[NEW]' with the id 5" in says(folder) and "beyond the 5 rows" in says(folder)
    checked(folder, 6)


def test_a_role_in_the_other_file_or_as_an_object(folder: Path) -> None:
    with_words(folder, WORDS, {"[NEW]": 5}, eos_token="</s>")
    checked(folder)  # a special token without a role may never be used
    change(folder / "special_tokens_map.json", pad_token={"content": "[NEW]"})
    assert "its pad_token" in says(folder)


def test_a_plain_token_beyond_the_embedding(folder: Path) -> None:
    with_words(folder, WORDS, {}, eos_token="</s>")
    assert "2 tokens beyond the 3 rows" in says(folder, 3) and "'yes' with the id 3" in says(folder, 3)


def test_no_end_token(folder: Path) -> None:
    with_words(folder, WORDS, {})
    assert "no end token" in says(folder) and "set eos_token in tokenizer_config.json" in says(folder)
    change(folder / "special_tokens_map.json", eos_token="</s>")
    checked(folder)
    (folder / "special_tokens_map.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    checked(folder)  # a class that has one of its own
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": null}')
    assert "no end token" in says(folder)


def test_no_tokenizer(folder: Path) -> None:
    assert "has no tokenizer" in says(folder)
    (folder / "tokenizer.json").write_text("[")
    assert "tokenizer.json is not JSON" in says(folder)


def test_the_vocabulary_of_a_unigram_model() -> None:
    content = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"id": 2, "content": "c"}, 7]}
    assert tokenizer_files.ids(content) == ({"a": 0, "b": 1}, {"c": 2})
    assert tokenizer_files.ids({"model": 3, "added_tokens": None}) == ({}, {})
