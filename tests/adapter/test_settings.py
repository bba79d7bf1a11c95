"""Adapters of others, made by PEFT itself: what opens gives PEFT's own logits, and what is not supported is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer

from src.adapter.adapted import SETTINGS, WEIGHTS, find, open_source
from src.files.errors import ConfigError
from src.variants import quantization
from tests.conftest import evaluate

pytestmark = [
    # PEFT says so where it saves the embeddings too, where it is told to train biases, and of tied embeddings.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Careful, disabling adapter layers"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True", "ignore:Model with `tie_word_embeddings=True`"),
]
SMALL = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
GPT2 = {"vocab_size": 384, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 1}
IDS = torch.tensor([[70, 104, 112, 35, 90, 103, 50, 41]])
LINEAR = ["q_proj", "v_proj", "down_proj"]
# name: (family, its config beyond SMALL, what PEFT is told)
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "some layers": ("llama", {}, {"target_modules": LINEAR, "layers_to_transform": [0, 2]}),
    "one layer": ("llama", {}, {"target_modules": LINEAR, "layers_to_transform": 1, "layers_pattern": "layers"}),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {"target_modules": LINEAR, "bias": "all"}),
    "biases of adapted layers": (
        "llama",
        {"attention_bias": True, "mlp_bias": True},
        {"target_modules": ["k_proj", "o_proj"], "bias": "lora_only", "use_dora": True},
    ),
    "gpt2": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "bias": "all"}),
    "gpt2, dora": ("gpt2", {}, {"target_modules": ["c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "a pattern": ("llama", {}, {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"}),
    "but some": ("llama", {}, {"target_modules": "all-linear", "exclude_modules": ["layers.1.mlp.up_proj", "k_proj"]}),
    "but a pattern": ("llama", {}, {"target_modules": LINEAR, "exclude_modules": r".*\.0\..*"}),
    "the head, whole": ("llama", {"tie_word_embeddings": False}, {"target_modules": LINEAR, "modules_to_save": ["lm_head"]}),
    "the tied head, whole": ("llama", {"tie_word_embeddings": True}, {"target_modules": LINEAR, "modules_to_save": ["lm_head"]}),
    "a norm, whole": ("llama", {}, {"target_modules": LINEAR, "modules_to_save": ["input_layernorm"], "use_rslora": True}),
    "both ends, whole": ("llama", {}, {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "the head": ("llama", {"tie_word_embeddings": False}, {"target_modules": ["q_proj", "lm_head"]}),
    "the tied head": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["q_proj", "lm_head"]}),
    "embeddings": ("llama", {"tie_word_embeddings": False}, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied embeddings": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["q_proj", "embed_tokens"]}),
    "both ends": ("llama", {"tie_word_embeddings": False}, {"target_modules": ["embed_tokens", "lm_head"]}),
}


def make(family: str, shape: dict[str, Any], told: dict[str, Any]) -> None:
    """Write a base of random weights to ``base`` and an adapter that moved everywhere to ``mine``, as PEFT saves it."""
    torch.manual_seed(0)
    values = GPT2 if family == "gpt2" else SMALL
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values, **shape))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained("base")
    ByT5Tokenizer().save_pretrained("base")
    network = AutoModelForCausalLM.from_pretrained("base")
    peft = get_peft_model(network, LoraConfig(r=4, task_type="CAUSAL_LM", **told))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    peft.save_pretrained("mine")


def theirs(precision: str) -> Any:
    """PEFT's own way to open it, over the base in the same format."""
    source = find({"adapter": "mine", "model": "base", "precision": precision, "device": "cpu"})
    from src.adapter.adapted import load_base

    plain, _, numerics = load_base(source)
    placed = quantization.place(plain, source.config.variant, numerics.device, numerics.compute)
    return PeftModel.from_pretrained(placed, "mine").eval(), numerics


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_it_opens_as_peft_opens_it(folder: Path, name: str, precision: str) -> None:
    make(*ADAPTERS[name])
    if precision == "nf4" and ADAPTERS[name][0] == "gpt2":
        pytest.skip("Conv1D is not quantized")
    opened = open_source(find({"adapter": "mine", "model": "base", "precision": precision, "device": "cpu"}))
    stock, numerics = theirs(precision)
    plain = AutoModelForCausalLM.from_pretrained("base").eval()
    with torch.no_grad(), numerics.autocast():
        logits, wanted, base = (network(input_ids=IDS).logits.float() for network in (opened.network, stock, plain))
    assert torch.equal(logits, wanted)
    assert (logits - base).abs().max() > 0.01


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_tensor_of_the_file_is_used_and_none_is_missing(folder: Path, name: str) -> None:
    make(*ADAPTERS[name])
    tensors = load_file(Path("mine") / WEIGHTS)
    for key in [*tensors][:2] + [*tensors][-2:]:
        save_file({other: tensor for other, tensor in tensors.items() if other != key}, Path("mine") / WEIGHTS)
        if key.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")):
            continue  # the base has these itself
        with pytest.raises(ConfigError, match="lacks 1 of"):
            open_source(find({"adapter": "mine", "model": "base", "precision": "fp32", "device": "cpu"}))
    save_file(tensors | {"base_model.model.extra.bias": torch.zeros(3)}, Path("mine") / WEIGHTS)
    with pytest.raises(ConfigError, match=r"such as base_model\.model\.extra\.bias"):
        open_source(find({"adapter": "mine", "model": "base", "precision": "fp32", "device": "cpu"}))


@pytest.mark.parametrize("name", ["gpt2", "all biases", "both ends", "the head, whole"])
def test_it_answers_and_is_scored(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(*ADAPTERS[name])
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}+1=", "completion": f"{n + 1}"}) + "\n" for n in range(60))
    )
    adapter = ["adapter=mine", "model=base", "precision=fp32", "device=cpu"]
    assert evaluate(["generate", *adapter, "max_new_tokens=3", "2+1="]) == 0
    score = ["score", *adapter, "dataset=jsonl", "dataset.path=rows.jsonl", "examples=2", "max_new_tokens=3"]
    assert evaluate(score) == 0
    capsys.readouterr()
    code = evaluate([*score, "base=true"])
    if name in ("gpt2", "all biases"):
        error = capsys.readouterr().err
        assert (
            code == 2 and error == "error: base: adapter mine replaces biases of the base, which stay when it is switched off\n"
        )
    else:
        assert code == 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_it_merges_as_peft_merges_it_or_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(*ADAPTERS[name])
    before = sorted(path.name for path in folder.iterdir())
    words = ["adapter=mine", "model=base", "precision=fp32", "device=cpu", "dtype=fp32", "examples=1", "latency=false"]
    code = evaluate(["merge", *words, "out=merged"])
    if name in REFUSED:
        error = capsys.readouterr().err
        assert code == 2 and error.startswith(
            f"error: the adapter changes {REFUSED[name]}, which is no linear layer of the decoder"
        )
        assert sorted(path.name for path in folder.iterdir()) == before
        return
    assert code == 0
    wanted = theirs("fp32")[0].merge_and_unload()
    stock = AutoModelForCausalLM.from_pretrained("merged")
    for key, tensor in wanted.state_dict().items():
        torch.testing.assert_close(stock.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)


REFUSED = {
    "gpt2": "transformer.h.0.attn.c_attn",
    "gpt2, dora": "transformer.h.0.mlp.c_fc",
    "the head, whole": "lm_head",
    "the tied head, whole": "lm_head",
    "a norm, whole": "model.layers.0.input_layernorm",
    "both ends, whole": "model.embed_tokens",
    "the head": "lm_head",
    "the tied head": "lm_head",
    "embeddings": "model.embed_tokens",
    "tied embeddings": "model.embed_tokens",
    "both ends": "model.embed_tokens",
}


def test_embeddings_in_the_file_that_are_not_the_bases(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As PEFT saves them where a trainer says ``save_embedding_layers``: the file's own are used, and said to be."""
    make(*ADAPTERS["some layers"])
    tensors = load_file(Path("mine") / WEIGHTS)
    base = AutoModelForCausalLM.from_pretrained("base")
    ends = {
        f"base_model.model.{name}": base.get_parameter(name).detach() + 0.1
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    save_file(tensors | ends, Path("mine") / WEIGHTS)
    opened = open_source(find({"adapter": "mine", "model": "base", "precision": "fp32", "device": "cpu"}))
    assert opened.replaced == "embeddings"
    stock, _ = theirs("fp32")
    with torch.no_grad():
        assert torch.equal(opened.network(input_ids=IDS).logits, stock(input_ids=IDS).logits)
    assert evaluate(["merge", "adapter=mine", "model=base", "precision=fp32", "device=cpu", "out=merged"]) == 2
    assert "error: adapter mine: holds other embeddings than its base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_bias": True}, "has lora_bias, which is not supported here"),
        ({"target_parameters": ["mlp.experts"]}, "has target_parameters, which is not supported here"),
        ({"ensure_weight_tying": True}, "has ensure_weight_tying, which is not supported here"),
        ({"what_comes_next": 3}, "has what_comes_next, which is not supported here"),
        ({"bias": "some"}, "bias=some: choose one of none, all, lora_only"),
        ({"modules_to_save": "lm_head"}, "modules_to_save needs a list of module names"),
        ({"modules_to_save": [".*"]}, "modules_to_save needs a list of module names"),
        ({"layers_to_transform": [-1]}, "layers_to_transform needs the numbers of layers"),
        ({"layers_to_transform": [True]}, "layers_to_transform needs the numbers of layers"),
        ({"layers_pattern": "layers"}, "layers_pattern goes with layers_to_transform"),
        ({"layers_pattern": "(a+)+", "layers_to_transform": [1]}, "layers_pattern needs a list of module names"),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, "layers_to_transform goes with a list of target_modules"),
        ({"fan_in_fan_out": "yes"}, "fan_in_fan_out needs true or false"),
        ({"exclude_modules": {"a": 1}}, "exclude_modules needs a list of module names, or a pattern"),
        ({"exclude_modules": "(a+)+"}, "exclude_modules: the pattern '(a+)+' could take too long to match"),
        ({"target_modules": "(.*a)*"}, "target_modules: the pattern '(.*a)*' could take too long to match"),
        ({"target_modules": "(q_proj"}, "target_modules: '(q_proj' is no regular expression"),
        ({"target_modules": "nothing_of_this"}, "does not fit this base"),
        ({"layers_to_transform": [0]}, "has, unexpected by this base and adapter_config.json, 12 of 6 tensors"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_one_line(folder: Path, settings: dict[str, Any], says: str) -> None:
    make("llama", {}, {"target_modules": LINEAR})
    path = Path("mine") / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ConfigError) as error:
        open_source(find({"adapter": "mine", "model": "base", "precision": "fp32", "device": "cpu"}))
    assert says in str(error.value) and "\n" not in str(error.value)
