"""The record of a run says what its base really was: formats by numbers, and where the count of what trains comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from src.command.cli import compose
from src.engine.peft import PeftEngine
from src.model import models
from src.model.device import Numerics
from src.train import session
from src.train.checks import LiveChecks
from src.variants import adapters, quantization
from tests.bases import saved
from tests.conftest import Run

CPU = torch.device("cpu")
QUICK = ["train.steps=2", "forgetting.tokens=0", "dataset.max_length=64", "eval.generate=false"]


@pytest.mark.parametrize(("family", "variant"), [("gpt2", "lora"), ("gpt2", "dora"), ("mixtral", "lora"), ("gemma3", "lora")])
def test_bases_without_a_closed_form_train_and_say_so(run: Run, folder: Path, family: str, variant: str) -> None:
    """GPT-2's Conv1D, fused experts, and a tower that no text reaches: no check that could only fail."""
    place = saved(folder / "base", family)
    _, result = run("model=path", f"model.path={place}", "engine=peft", f"variant={variant}", *QUICK)
    assert result["status"] == "ok", result["reason"]
    detail = result["checks"]["trainable_parameters"]["detail"]
    trained = result["trainable_parameters"]
    assert detail == f"{trained:,} parameters train; counted from the modules it is {trained:,}"
    assert sum(result["base_share"].values()) == 1 and result["base_share"].keys() <= {"bf16", "fp32"}


def test_a_closed_form_is_named_where_there_is_one(run: Run) -> None:
    _, result = run(*QUICK)
    assert "the closed form says" in result["checks"]["trainable_parameters"]["detail"]


@pytest.mark.parametrize("engine", ["packed", "peft"])
def test_the_record_has_the_share_of_each_format(run: Run, engine: str) -> None:
    _, result = run("variant=qlora", f"engine={engine}", *QUICK)
    assert result["status"] == "ok", result["reason"]
    shape = compose(["model=tiny"]).model.shape
    assert shape is not None
    d, f = shape.hidden_size, shape.intermediate_size
    linear = shape.num_hidden_layers * (3 * d * d + 3 * d * f)
    assert result["base_share"]["nf4"] == pytest.approx(linear / result["total_parameters"], abs=1e-6)
    assert sum(result["base_share"].values()) == pytest.approx(1, abs=1e-5)
    assert result["checks"]["quantised_layers"]["detail"].endswith("; 100.0% of the decoder's weights are nf4")


@pytest.mark.parametrize("packed", [False, True], ids=["peft", "packed"])
def test_weights_that_are_in_no_layer_fail_the_check_of_the_precision(packed: bool) -> None:
    """All layers are nf4, and as many numbers again are one parameter of 16 bits, as fused experts are."""
    config = compose(["model=tiny", "variant=qlora", "lora.r=4", f"engine={'packed' if packed else 'peft'}"])
    network: Any = models.load(config.model, torch.float32, CPU)[0]
    linears = adapters.linears_of(network)
    quantization.place(network, config.variant, CPU, None)
    layers, numbers = sum(linear.count for linear in linears), sum(linear.count * linear.weights for linear in linears)
    numerics = Numerics(CPU, torch.float32, None)
    from src.data.batches import Item
    from src.data.datasets import Example

    items = [Item(Example(str(n), "p", "t", str(n)), [5, 6], [7, 1], False) for n in range(32)]
    engine: Any = session.engine_of(network, [config], items, 0, 1, numerics)
    assert isinstance(engine, PeftEngine) != packed
    check = LiveChecks(engine, [config], [0], layers).judge(0)["quantised_layers"]
    assert check["ok"], check["detail"]
    network.model.experts = nn.Parameter(torch.zeros(2, 1, numbers // 2), requires_grad=False)
    check = LiveChecks(engine, [config], [0], layers).judge(0)["quantised_layers"]
    assert not check["ok"] and f"{layers} of {layers} nf4 layers" in check["detail"] and "; 50.0% of" in check["detail"]


@pytest.mark.parametrize("engine", ["packed", "peft"])
def test_a_row_beyond_the_positions_ends_the_run_before_training(run: Run, folder: Path, engine: str) -> None:
    place = saved(folder / "base", max_position_embeddings=12)
    record, result = run("model=path", f"model.path={place}", f"engine={engine}", "train.steps=2", "forgetting.tokens=0")
    assert result["status"] == "failed" and "the model has 12 positions: dataset.max_length=12" in result["reason"]
    assert not record.metrics.exists() and not record.error.exists()
