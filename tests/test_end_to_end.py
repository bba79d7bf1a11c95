"""The real SmolLM2-135M, from the GGUF to a table: the main job in miniature."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from src.data.batches import tokenize
from src.data.datasets import Example
from src.model import embedded

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_embedded_model_is_converted_once_and_right() -> None:
    folder = embedded.convert()
    assert embedded.is_ready()
    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    # By hand from SmolLM2's published vocabulary: digits stand alone, "<|im_start|>" is one token.
    assert tokenizer("<|im_start|>a12", add_special_tokens=False).input_ids[0] == 1
    assert len(tokenizer("12", add_special_tokens=False).input_ids) == 2
    assert "quantization_config" not in config
    chat = Example("1", [{"role": "user", "content": "Hi"}], "Hello", "1")
    (item,) = tokenize([chat], tokenizer, 64, False)
    assert tokenizer.decode(item.prompt).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(item.target) == "Hello<|im_end|>"
    tensors = load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008
    # Q4_1 leaves at most 16 levels in each block of 32 weights of a row.
    blocks = tensors["model.layers.0.self_attn.q_proj.weight"].view(-1, 32)
    assert max(len(torch.unique(block)) for block in blocks[:200]) <= 16


@pytest.mark.timeout(600)  # a minute or so, but several where other processes want the cores too
def test_a_trained_adapter_beats_the_frozen_base(command: Command, folder: Path) -> None:
    settings = ["train.steps=8", "train.batch_size=8", "eval.val_examples=4", "eval.test_examples=12", "train.schedule=constant"]
    settings += ["forgetting.tokens=256"]
    done = command("src.train", "-m", "variant=frozen,lora,dora,qlora", "lora.r=8", *settings, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/result.json")]
    losses = {result["variant"]: result["metrics"]["test/loss"] for result in results}
    assert all(losses[variant] < losses["frozen"] - 1 for variant in ("lora", "dora", "qlora"))
    assert {result["trainable_parameters"] for result in results} == {0, 2_442_240, 2_442_240 + 155_520}
    assert {result["variant"]: result["pack_size"] for result in results} == {"frozen": 1, "lora": 2, "dora": 2, "qlora": 1}
    assert all("Q4_1" in result["model_note"] for result in results)
    assert all(check["ok"] for result in results for check in result["checks"].values())
    qlora = next(result for result in results if result["variant"] == "qlora")
    assert qlora["checks"]["quantised_layers"]["detail"].startswith("210 of 210 nf4 layers")
    assert list((folder / "runs").glob("*/wandb/offline-run-*/run-*.wandb"))

    (sweep,) = (folder / "runs/sweeps").glob("*.json")
    table = command("src.eval", f"sweep={sweep.stem}")
    assert table.returncode == 0, table.stderr
    with open(folder / "reports" / sweep.stem / "comparison.csv") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert float(rows["lora"]["test_loss_mean"]) == losses["lora"]
    assert "4-bit (Q4_1)" in table.stdout
