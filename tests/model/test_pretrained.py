"""A saved model is loaded whole or refused: every tensor taken away, added, renamed or cut is found, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.config.schema import ModelConfig
from src.files.errors import ConfigError
from src.model import models
from src.model.pretrained import load_tokenizer, load_whole, one_line
from tests.bases import Tensors, change, rewrite, saved

META = {"device_map": {"": "meta"}}
CPU = torch.device("cpu")


def says(place: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load_whole(place, "model.path=here", torch.float32, **options)
    assert str(error.value).startswith("model.path=here") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3"])
def test_each_tensor_is_missed(folder: Path, family: str) -> None:
    """On the meta device too, which planning uses: the verdicts are the same."""
    saved(folder / "whole", family)
    load_whole(folder / "whole", "x", torch.float32)
    names: list[str] = []
    rewrite(folder / "whole", lambda tensors: (names.extend(tensors), tensors)[1])
    chosen = sorted({name.replace(".1.", ".0.") for name in names} & set(names), key=len)[:8]  # of one layer, and outside
    for name in chosen:
        place = saved(folder / "less", family)
        rewrite(place, lambda tensors, name=name: {key: t for key, t in tensors.items() if key != name})  # type: ignore[misc]
        line = says(place, **META)
        assert ("not in its weights" in line or "cannot be" in line) and says(place) == line, name


def test_a_model_that_lacks_its_head_is_never_drawn(folder: Path) -> None:
    rewrite(saved(folder), lambda tensors: {k: t for k, t in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(ConfigError, match=r"1 tensor of the model .* the first is lm_head.weight"):
        models.load(ModelConfig(name="path", source="path", path=str(folder)), torch.float32, CPU)


def test_a_file_without_a_head_is_whole_where_the_head_is_the_embedding(folder: Path) -> None:
    tied: Any = load_whole(saved(folder, tie_word_embeddings=True), "x", torch.float32)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight

    def with_head(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    rewrite(folder, with_head)
    load_whole(folder, "x", torch.float32)  # as some tools save it


def test_tensors_of_another_model(folder: Path) -> None:
    place = saved(folder)
    change(place / "config.json", num_hidden_layers=1)
    assert "9 tensors in its weights are no part of the model" in says(place) and "model.layers.1.input_layernorm" in says(place)
    change(place / "config.json", num_hidden_layers=2, vocab_size=400)
    assert "[384, 16] in its weights, [400, 16] wanted" in says(place)
    change(place / "config.json", vocab_size=384)
    rewrite(place, lambda tensors: {f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
    assert "21 tensors" in says(place) and "it holds 21 of other names, such as base_model.model.lm_head.weight" in says(place)


def test_a_table_of_rotary_frequencies_is_not_surplus(folder: Path) -> None:
    rewrite(saved(folder), lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load_whole(folder, "x", torch.float32)


@pytest.mark.parametrize("family", ["bert", "roberta", "gemma"])
def test_a_model_whose_tokens_see_later_ones(folder: Path, family: str) -> None:
    """Such a model knows the target before it predicts it: its loss would be far too low, without an error."""
    both_ways = {"use_bidirectional_attention": True} if family == "gemma" else {}
    causal = {} if family == "gemma" else {"is_decoder": True}
    for options in ({}, META):
        assert f"tokens of this {family} see later ones" in says(saved(folder, family, **both_ways), **options)
        load_whole(saved(folder, family, **causal), "x", torch.float32, **options)


def test_errors_of_the_libraries_become_one_line(folder: Path) -> None:
    place = saved(folder)
    (place / "model.safetensors").write_bytes(b"no weights at all, but long enough")
    assert "cannot be loaded: " in says(place)
    change(place / "config.json", model_type="nosuch")
    assert "cannot be loaded: " in says(place)
    (place / "tokenizer_config.json").write_text("[")
    with pytest.raises(ConfigError, match=r"^here: its tokenizer cannot be loaded: [^\n]+$"):
        load_tokenizer(place, "here")
    with pytest.raises(ConfigError, match=r"^x cannot be loaded: its tensors cannot be turned into") as error, one_line("x"):
        raise RuntimeError("For details look at the `CONVERSION` entries of the above report!")
    assert "report" not in str(error.value)
    with pytest.raises(torch.OutOfMemoryError), one_line("x"):  # smaller packs may cure it
        raise torch.OutOfMemoryError("CUDA out of memory")
