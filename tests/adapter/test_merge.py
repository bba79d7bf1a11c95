"""Merged models: what PEFT would have merged, loadable by stock transformers, and measured."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.adapter import adapted
from src.adapter import merge as merge_module
from src.adapter.adapted import find
from src.adapter.fidelity import gap
from src.adapter.fold import merged_weight
from src.config.schema import CONF_FOLDER
from src.files.durable import unseal
from src.measure.scorer import Solo
from src.record.records import RunFolder
from src.variants import quantization
from src.variants.methods.point import VariantConfig
from tests.bases import rewrite
from tests.conftest import Run, evaluate

ADAPTERS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml") if path.stem not in ("full", "frozen"))
QUICK = ["forgetting.tokens=0", "eval.generate=false", "lora.r=4", "train.lr=0.05"]
BF16_ULP = 2.0**-8  # of a number just above a power of two: rounding moves a weight by half of it


def merge(*words: str) -> dict[str, Any]:
    assert evaluate(["merge", *words]) == 0
    return unseal(Path("merged/merge.json").read_bytes())


def test_a_merged_weight_by_hand() -> None:
    weight, a, b = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0], [0.0]])
    # W + 2 B A = [[3, 4], [0, 1]]; the first row's norm is 5.
    lora, dora = VariantConfig(), VariantConfig(magnitude="dora")
    assert torch.equal(merged_weight(weight, {"A": a, "B": b}, 2.0, lora), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    merged = merged_weight(weight, {"A": a, "B": b, "m": torch.tensor([10.0, 3.0])}, 2.0, dora)
    torch.testing.assert_close(merged, torch.tensor([[6.0, 8.0], [0.0, 3.0]]))


def by_peft(record: RunFolder) -> Any:
    """PEFT's own merge, fp32, over what the run's base multiplies with."""
    source = find({"run": record.run_id})
    plain, _, numerics = adapted.load_base(source)
    placed, _, _ = adapted.load_base(source)
    placed = quantization.place(placed, source.config.variant, numerics.device, numerics.compute)
    plain.float()
    for name, linear in quantization.linear_layers(plain):
        linear.weight.data = dequantize_module_weight(placed.get_submodule(name)).float()
    return PeftModel.from_pretrained(plain, record.adapter).merge_and_unload()


@pytest.mark.parametrize("variant", ADAPTERS)
def test_a_merge_is_pefts_own_rounded_once(run: Run, variant: str) -> None:
    record, result = run(*QUICK, f"variant={variant}")
    assert result["engine"] == "packed"
    quantized = result["base_precision"] in ("nf4", "int8")
    report = merge(f"run={record.run_id}", "out=merged", "latency=false", *(["onto=dequantised"] if quantized else []))
    stock, info = AutoModelForCausalLM.from_pretrained("merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and stock.dtype == torch.bfloat16
    state, wanted = stock.state_dict(), by_peft(record).state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(state[name].float(), tensor, rtol=BF16_ULP, atol=1e-9)
        # But for what lies in the middle between two bf16 numbers, where fp32's own last bit decides.
        assert (state[name] == tensor.bfloat16()).float().mean() > 0.999
    control, measured = report["fp32_control"], report["fidelity"]
    if result["base_precision"] == "int8":  # rounds its inputs too
        assert control["logit_max"] < 0.2 and report["notes"][0].startswith("LLM.int8() also rounds its inputs")
    else:
        assert control["logit_max"] < 1e-4 and control["changed"] == 0 and control["kl"] < 1e-9
    assert abs(measured["loss_difference"]) < 0.02 and measured["logit_max"] > control["logit_max"] / 2
    assert measured["examples"] == 4


def test_fp32_and_the_tokenizer(run: Run) -> None:
    record, _ = run(*QUICK)
    report = merge(f"run={record.run_id}", "out=merged", "latency=false", "dtype=fp32", "examples=2", "control=false")
    stock = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    for name, tensor in by_peft(record).state_dict().items():
        torch.testing.assert_close(stock.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert report["fp32_control"] is None and report["fidelity"]["examples"] == 2
    assert AutoTokenizer.from_pretrained("merged")("ab").input_ids[:2] == [100, 101]
    assert stock.config.use_cache and stock.generation_config.eos_token_id == 1


def test_only_adapted_layers_change_but_all_quantized_ones_are_dequantized(run: Run) -> None:
    record, _ = run(*QUICK, "variant=qdora", "lora.target_modules=[q_proj,v_proj]")
    merged = {}
    for onto in ("original", "dequantised"):
        assert evaluate(["merge", f"run={record.run_id}", f"out={onto}", f"onto={onto}", "latency=false", "control=false"]) == 0
        merged[onto] = AutoModelForCausalLM.from_pretrained(onto).state_dict()
    base = adapted.load_base(find({"run": record.run_id}))[0].state_dict()
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")
    same = {onto: [torch.equal(merged[onto][name], base[name].bfloat16()) for name in names] for onto in merged}
    assert same == {"original": [False, True, True], "dequantised": [False, False, True]}
    # DoRA: each merged row has the trained magnitude for its norm, on either base.
    magnitude = adapted.open_source(find({"run": record.run_id})).network.get_submodule(f"base_model.model.{names[0][:-7]}")
    wanted = magnitude.lora_magnitude_vector["default"].weight
    for onto in merged:
        torch.testing.assert_close(merged[onto][names[0]].float().norm(dim=1), wanted, rtol=BF16_ULP, atol=0)


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (quantized, _), (plain, _), (frozen, _) = (run(*QUICK, f"variant={name}") for name in ("qlora", "lora", "frozen"))
    (folder / "there").mkdir()
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    for record, words, says in (
        (quantized, ["out=m"], "trained over nf4 weights, from which no merge is exact; choose onto=dequantised"),
        (quantized, ["out=m", "onto=nf4"], "onto=nf4: a merge is not requantized"),
        (quantized, ["out=m", "onto=orginal"], "choose one of original, dequantised"),
        (plain, ["out=m", "onto=original"], "not quantized, so there is one merge"),
        (plain, ["out=there"], "out=there: is there already"),
        (frozen, ["out=m"], "variant=frozen has no adapter to merge"),
    ):
        assert evaluate(["merge", f"run={record.run_id}", *words]) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_merge_that_fails_halfway_leaves_nothing(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = run(*QUICK)
    before = sorted(path.name for path in folder.iterdir())

    def stop(*_: Any) -> Any:
        assert any(path.name.startswith(".merged.") for path in folder.iterdir())  # the weights are written by now
        raise KeyboardInterrupt

    monkeypatch.setattr("src.adapter.fidelity.gap", stop)
    assert evaluate(["merge", f"run={record.run_id}", "out=merged"]) == 130
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_gap_of_models_that_are_far_apart(run: Run) -> None:
    """Against the definitions, token by token."""
    from src.data.batches import collate, tokenize
    from src.data.datasets import Example

    record, _ = run(*QUICK)
    source = find({"run": record.run_id})
    opened = adapted.open_source(source, exact=True)
    plain, tokenizer, numerics = adapted.load_base(source, exact=True)
    items = tokenize([Example(str(n), f"The number after {n} is ", f"{n * 77}", str(n)) for n in range(5)], tokenizer, 64, False)
    measured = gap(Solo(opened.network, numerics), Solo(plain, numerics), items, tokenizer.pad_token_id)
    apart, kl, losses, changed = [], [], [], []
    for item in items:
        batch = collate([item], tokenizer.pad_token_id, numerics.device)
        with torch.no_grad():
            unmerged_logits, merged_logits = (
                m(input_ids=batch.input_ids).logits[0, len(item.prompt) - 1 : -1].double() for m in (opened.network, plain)
            )
        for p, q, token in zip(unmerged_logits, merged_logits, item.target, strict=True):
            apart.append((p - q).abs())
            kl.append(torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (p, q))).item())
            losses.append(q.logsumexp(0).item() - q[token].item())
            changed.append(p.argmax() != q.argmax())
    assert measured.tokens == len(kl) and measured.logit_max == pytest.approx(torch.stack(apart).max().item(), rel=1e-3)
    assert measured.logit_mean == pytest.approx(torch.stack(apart).mean().item(), rel=1e-3)
    assert measured.kl == pytest.approx(sum(kl) / len(kl), rel=1e-3) and measured.kl > 1e-3
    assert measured.loss_merged == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert measured.changed == pytest.approx(sum(map(float, changed)) / len(changed))


def test_any_adapter_folder_merges_and_is_measured_on_prose(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(*QUICK, "variant=rslora")
    capsys.readouterr()
    report = merge(f"adapter={record.adapter}", "model=tiny", "out=merged", "examples=1")
    assert report["measured_on"] == "held-out prose" and report["variant"] == "rslora"
    assert report["fp32_control"]["logit_max"] < 1e-4
    printed = capsys.readouterr().out
    assert {"base", "unmerged", "merged"} <= report["latency"].keys() and "Times of a CPU" in printed
    assert f"{report['fidelity']['loss_merged']:.4f}" in printed


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True")
def test_an_adapter_of_the_embeddings_is_no_part_of_a_merge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import LoraConfig, get_peft_model

    from src.command.cli import compose
    from src.model import models

    network, _ = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    peft = get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"))
    peft.save_pretrained("mine", save_embedding_layers=False)
    before = sorted(path.name for path in folder.iterdir())
    assert evaluate(["merge", "adapter=mine", "model=tiny", "out=merged"]) == 2
    assert "the adapter changes model.embed_tokens, which is no linear layer of the decoder" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.timeout(600)
def test_the_real_model_in_4_bits(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Merging onto the base of training keeps the answers; merging onto the 16-bit base changes many."""
    settings = ["train.steps=4", "train.batch_size=4", "eval.val_examples=2", "eval.test_examples=8", "eval.generate=false"]
    done = command("src.train", "variant=qlora", "lora.r=4", "forgetting.tokens=0", "tracking=disabled", *settings, timeout=500)
    assert done.returncode == 0, done.stderr
    (run,) = (path.name for path in Path("runs").glob("*") if (path / "result.json").exists())
    fidelity = {}
    for onto in ("dequantised", "original"):
        assert evaluate(["merge", f"run={run}", f"out={onto}", f"onto={onto}", "latency=false", "control=false"]) == 0
        fidelity[onto] = unseal((Path(onto) / "merge.json").read_bytes())["fidelity"]
    assert fidelity["dequantised"]["kl"] < 0.02 < fidelity["original"]["kl"]
    assert abs(fidelity["dequantised"]["loss_difference"]) < 0.05


def test_models_that_are_read_back_are_whole_or_refused(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merged model, and one of which all was trained: a tensor that is missing would be drawn at random."""

    def less(place: Path) -> None:
        rewrite(place, lambda tensors: {name: t for name, t in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"})

    record, _ = run(*QUICK)
    save = merge_module._save

    def saved_in_part(plain: Any, tokenizer: Any, source: Any, place: Path) -> None:
        save(plain, tokenizer, source, place)
        less(place)

    monkeypatch.setattr(merge_module, "_save", saved_in_part)
    assert evaluate(["merge", f"run={record.run_id}", "out=merged", "latency=false", "control=false"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 tensor of the model" in line and "model.layers.1.mlp.up_proj.weight" in line and not Path("merged").exists()
    full, _ = run("variant=full", *QUICK)
    less(full.model)
    monkeypatch.setattr(RunFolder, "damage", lambda *_: [])  # the checksums of the record see it first
    assert evaluate(["score", f"run={full.run_id}"]) == 2
    assert f"error: run {full.run_id}: " in (error := capsys.readouterr().err) and "1 tensor of the model" in error
