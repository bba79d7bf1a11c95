"""Chats over a base in a folder, from its files to the record: what targets end in, and where answers stop."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Protocol

import pytest
import torch
from transformers import GenerationConfig

from src.adapter.adapted import find
from src.adapter.generate import generate
from src.command.cli import compose
from src.config.schema import ModelConfig
from src.files.errors import ConfigError
from src.model import models
from tests.conftest import TINY, Run
from tests.data.chats import CHATML, tokenizer_of

QUICK = [
    "forgetting.tokens=0",
    "variant=lora",
    "variant.base_precision=fp32",
    "lora.r=4",
    "train.lr=0.05",
    "eval.max_new_tokens=12",
]
BASE = ["model=path", "model.path=base", "dataset=jsonl", "dataset.path=chats.jsonl", "dataset.val_share=0.2"]
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


class Command(Protocol):
    def __call__(self, module: str, *arguments: str) -> CompletedProcess[str]: ...


@pytest.fixture(autouse=True)
def base(folder: Path) -> Path:
    """A base whose template ends turns in <|im_end|>, which is not its tokenizer's end token, and chats of two turns."""
    network, _ = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    tokenizer = tokenizer_of(CHATML)
    network.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.mul_(4)  # so that answers differ
    network.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_chats([[("user", f"{n}?"), ("assistant", f"{n}"), ("user", f"{n} and?"), ("assistant", f"{n + 1}")] for n in range(60)])
    return folder / "base"


def write_chats(chats: list[list[tuple[str, str]]]) -> None:
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def predictions(record: Any) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, record.predictions.read_text().splitlines())}


def test_answers_stop_at_every_end_that_the_record_names(run: Run, base: Path) -> None:
    """The base's own settings name one of the tokens that free answers go through: with it they are cut there."""
    record, result = run(*QUICK, *BASE, "variant=frozen")
    assert result["target_end"] == {"tokens": ["<|im_end|>"], "stop": ["</s>", "<|im_end|>"]}
    free = predictions(record)
    texts = [row["prediction"] for row in free.values()]
    letter = next(c for text in texts for c in text[1:] if c.isascii() and c.isprintable() and not c.isdigit() and c != text[0])
    GenerationConfig(eos_token_id=[1, ord(letter) + 3]).save_pretrained(base)
    record, result = run(*QUICK, *BASE, "variant=frozen", "force=true")
    assert result["target_end"]["stop"] == ["</s>", letter, "<|im_end|>"]
    cut = {name: row["prediction"] for name, row in predictions(record).items()}
    assert cut == {name: row["prediction"].partition(letter)[0] for name, row in free.items()}


def test_the_loss_of_all_turns_is_that_of_both_engines(run: Run) -> None:
    losses, tokens = {}, {}
    for turns, engine in (("last", "packed"), ("all", "packed"), ("all", "peft")):
        record, result = run(*QUICK, *BASE, f"dataset.turns={turns}", f"engine={engine}", "eval.generate=false")
        losses[turns, engine] = [result["metrics"][f"{split}/loss"] for split in ("val", "test")]
        tokens[turns, engine] = sum(row["tokens"] for row in predictions(record).values())
    assert losses["all", "packed"] == pytest.approx(losses["all", "peft"], rel=1e-4)
    assert losses["all", "packed"] != pytest.approx(losses["last", "packed"], rel=1e-4)
    assert tokens["all", "packed"] == tokens["all", "peft"] > 1.5 * tokens["last", "packed"]


def test_a_trained_model_answers_up_to_the_end_of_a_turn(run: Run) -> None:
    write_chats([[("user", f"{n}?"), ("assistant", "ok")] for n in range(60)])
    record, result = run(*QUICK, *BASE, "variant=full", "train.steps=60", "train.lr=0.005")
    assert result["metrics"]["test/exact_match"] == 1
    assert generate(find({"run": record.run_id}), ["3?", "500?"], max_new_tokens=12, chat=True) == ["ok", "ok"]


def test_a_chat_that_the_template_refuses_ends_the_command_before_the_first_job(command: Command, base: Path) -> None:
    tokenizer_of(REFUSING).save_pretrained(base)
    with open("chats.jsonl", "a") as file:
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        file.write(json.dumps({"messages": messages}) + "\n")
    done = command("src.train", "-m", *TINY, *QUICK, *BASE, "seed=0,1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: chats.jsonl:61: the model's chat template refuses this chat: no system role\n"
    assert not Path("runs").exists() and not Path("reports").exists()


def test_settings_of_the_base(base: Path) -> None:
    """A base without a file of settings ends as its config.json says, as in transformers; a broken file is refused."""
    model, tokenizer = ModelConfig(source="path", path=str(base)), tokenizer_of(CHATML)
    (base / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": [5, 6]}))
    assert models.generation_config(model, tokenizer).eos_token_id == [5, 6]
    (base / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"model.path=.*: generation_config.json cannot be read: mend or remove it"):
        models.generation_config(model, tokenizer)
