"""What a base's files tell is refused while planning: exit 2, one line, nothing written, before the first job of a sweep."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.files.errors import ConfigError
from src.sweep import bases, plan
from tests.bases import change, rewrite, saved, with_words
from tests.faults import entry

QUICK = ["tracking=disabled", "dataset.train_examples=64", "train.batch_size=4", "eval.val_examples=4", "eval.test_examples=4"]


def says(place: Path, *words: str) -> str:
    ended = entry.train("model=path", f"model.path={place}", *QUICK, *words)
    assert ended.refused and ended.jobs == [], ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert not Path("runs").exists() or not any(Path("runs").iterdir())
    return ended.stderr


def accepted(place: Path, *words: str) -> int:
    ended = entry.train("model=path", f"model.path={place}", *QUICK, *words)
    assert ended.code == 0, ended.stderr
    return len(ended.jobs)


def test_a_family_that_the_packed_engine_does_not_know_stops_a_whole_sweep(folder: Path) -> None:
    place = saved(folder / "base", "qwen3")
    assert "engine=packed: knows the families llama, qwen2, mistral, not qwen3" in says(place)
    assert "not qwen3" in says(place, "-m", "engine=peft,packed", "seed=0,1")
    assert accepted(place, "engine=peft") == 1
    assert accepted(place, "variant=full") == 1  # what has no adapter is trained by the other engine always


def test_dropout_inside_the_base(folder: Path) -> None:
    place = saved(folder / "base")
    change(place / "config.json", attention_dropout=0.1)
    assert "drops numbers at random while it trains (attention_dropout=0.1 in config.json)" in says(place)
    assert accepted(place, "engine=peft") == 1
    change(place / "config.json", attention_dropout=0.0)
    assert accepted(place) == 1


@pytest.mark.parametrize("variant", ["lora", "qlora", "full", "frozen"])
def test_a_base_that_is_quantized_already(folder: Path, variant: str) -> None:
    place = saved(folder / "base")
    for settings, name in (
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4-bit nf4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit"), ({"quant_method": "fp8"}, "fp8"), ("odd", "an unknown method"),
    ):  # fmt: skip
        change(place / "config.json", quantization_config=settings)
        line = says(place, f"variant={variant}", "engine=peft")
        assert f"quantized already ({name}, quantization_config" in line and "16-bit original" in line
    change(place / "config.json", quantization_config=None, text_config={"quantization_config": {"quant_method": "awq"}})
    assert "awq" in says(place, f"variant={variant}", "engine=peft")


def test_tensors_that_do_not_belong_to_the_config(folder: Path) -> None:
    place = saved(folder / "base")
    assert accepted(place) == 1
    rewrite(place, lambda tensors: {name: t for name, t in tensors.items() if "layers.1.mlp" not in name})
    assert "3 tensors of the model that config.json describes are not in its weights" in says(place, "variant=frozen")
    place = saved(folder / "base")
    change(place / "config.json", vocab_size=600)
    assert "[384, 16] in its weights, [600, 16] wanted" in says(place)
    place = saved(folder / "base")
    change(place / "config.json", num_hidden_layers=1)
    assert "9 tensors in its weights are no part" in says(place, "-m", "variant=lora,full")


def test_a_config_of_a_billion_layers_is_never_built(folder: Path) -> None:
    for family, key in (("qwen3", "num_hidden_layers"), ("gpt2", "n_layer")):
        place = saved(folder / "base", family)
        change(place / "config.json", **{key: 10**9})
        assert "config.json says 1000000000 layers; its weights hold " in says(place, "engine=peft")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_a_base_of_a_known_family_needs_no_torch_to_be_accepted(
    folder: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("transformers was asked")

    place = saved(folder / "base", family)
    for tied in (False, True):
        saved(place, family, tie_word_embeddings=tied)
        with monkeypatch.context() as patched:
            patched.setattr(bases, "_refuse_layers", fail)
            assert accepted(place) == 1
            name = "model.layers.1.self_attn.q_proj." + ("bias" if family == "qwen2" else "weight")
            rewrite(place, lambda tensors, name=name: {k: t for k, t in tensors.items() if k != name})  # type: ignore[misc]
            with pytest.raises(AssertionError, match="transformers was asked"):
                accepted(place)


def test_what_the_closed_form_leaves_out_is_judged_by_transformers(folder: Path) -> None:
    """Llama's optional biases: the closed form has none, and the base is whole all the same."""
    assert accepted(saved(folder / "base", attention_bias=True)) == 1


@pytest.mark.parametrize(("family", "kind"), [("mixtral", "fused experts"), ("gpt2", "Conv1D")])
def test_a_precision_that_leaves_most_of_a_base_in_16_bits(folder: Path, family: str, kind: str) -> None:
    place = saved(folder / "base", family)
    line = says(place, "engine=peft", "-m", "variant=lora,qlora")
    assert "variant.base_precision=nf4" in line and kind in line and "use a 16-bit variant" in line
    assert accepted(place, "engine=peft", "-m", "variant=lora,dora") == 2


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3", "qwen3"])
def test_targets_that_match_nothing_where_there_is_no_closed_form(folder: Path, family: str) -> None:
    place = saved(folder / "base", family)
    assert "matches no linear layer" in says(place, "engine=peft", "lora.target_modules=[nosuch]")
    assert accepted(place, "engine=peft", "lora.target_modules=[c_attn]" if family == "gpt2" else "lora.target_modules=[q_proj]")
    if family == "gemma3":  # of the tower for images alone
        assert "matches no linear layer" in says(place, "engine=peft", "lora.target_modules=[fc1]")


def test_weights_that_are_not_there(folder: Path) -> None:
    place = saved(folder / "base")
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "model.safetensors is a Git LFS pointer" in says(place)
    (place / "model.safetensors").write_bytes(whole[:-1])
    assert "download it again" in says(place)
    (place / "model.safetensors").unlink()
    assert "has no weights" in says(place)
    (place / "pytorch_model.bin").touch()
    assert "a pickle (pytorch_model.bin) is never loaded" in says(place)


def test_an_adapter_beside_the_weights(folder: Path) -> None:
    place = saved(folder / "base")
    change(place / "adapter_config.json", peft_type="LORA")
    assert "holds an adapter (adapter_config.json)" in says(place)


def test_a_tokenizer_that_does_not_fit(folder: Path) -> None:
    place = with_words(saved(folder / "base"), {"a": 0}, {"[PAD]": 384}, eos_token="a", pad_token="[PAD]")
    assert "its pad_token, '[PAD]' with the id 384" in says(place)
    for file in place.glob("*token*"):
        file.unlink()
    assert "has no tokenizer" in says(place)


def test_rows_that_are_certainly_too_long(folder: Path, rows: Path) -> None:
    """Forty rows of six words, in a tokenizer of words: with 5 positions the first is refused, with 6 it may be cut."""
    known = {word: n for n, word in enumerate(["<unk>", "</s>", "What", "is", "plus", "one"])}
    data = ("dataset=jsonl", f"dataset.path={rows}", "engine=peft", "dataset.val_share=0.1", "dataset.test_share=0.2")
    for family, key in (("gpt2", "n_positions"), ("qwen3", "max_position_embeddings")):
        place = with_words(saved(folder / family, family, **{key: 5}), known, {}, eos_token="</s>")
        line = says(place, *data)
        assert "row rows.jsonl:" in line and "the model has 5 positions" in line and "(train) has " in line
        place = with_words(saved(folder / family, family, **{key: 8}), known, {}, eos_token="</s>")
        assert accepted(place, *data) == 1
    place = with_words(saved(folder / "window", "mistral", sliding_window=5), known, {}, eos_token="</s>")
    assert "engine=packed needs it within 5" in says(place, *data, "engine=packed")
    assert accepted(place, *data) == 1


def test_a_hub_model_is_judged_by_what_the_cache_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = folder / "hub" / "models--a--b" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1234")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))

    def planned(*words: str) -> Any:
        return plan.admit([compose(["model=path", "model.source=hub", "model.id=a/b", *QUICK, *words])])

    assert len(planned()) == 1  # nothing is known of it
    (snapshot / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ConfigError, match="not qwen3"):
        planned()
    assert len(planned("engine=peft")) == 1
    change(snapshot / "config.json", model_type="llama", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match=r"^model.id=a/b: its weights are quantized already \(gptq 4-bit"):
        planned()
    saved(snapshot, "qwen3")
    rewrite(snapshot, lambda tensors: {name: t for name, t in tensors.items() if name != "model.norm.weight"})
    with pytest.raises(ConfigError, match=r"^model.id=a/b: 1 tensor .* model.norm.weight"):
        planned("engine=peft")


def test_planning_leaves_the_numbers_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers opens the folder on the meta device: no tensor is read."""
    from src.model import pretrained

    devices: list[Any] = []
    load = pretrained.load_whole

    def seen(*arguments: Any, **options: Any) -> Any:
        network: Any = load(*arguments, **options)
        devices.extend(parameter.device for parameter in network.parameters())
        return network

    monkeypatch.setattr(pretrained, "load_whole", seen)
    assert accepted(saved(folder / "base", "qwen3"), "engine=peft") == 1
    assert set(devices) == {torch.device("meta")} and "transformers" in sys.modules
