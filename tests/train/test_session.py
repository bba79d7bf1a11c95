"""Open sessions: runs in slot order, losses equal to transformers' own, and runs that do not mix refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.config.schema import Config
from src.files.errors import ConfigError
from src.model import models
from src.train import session
from tests.conftest import TINY

PLAIN = ("variant.base_precision=fp32", "forgetting.tokens=0")


def config(*overrides: str) -> Config:
    return compose([*TINY, *PLAIN, *overrides])


def test_the_runs_of_a_session_stand_in_slot_order_and_its_losses_are_those_of_transformers() -> None:
    """Fresh adapters add nothing, so each run's loss is the base's."""
    opened = session.open([config("lora.r=64"), config("variant=dora"), config("lora.r=4"), config("variant=rslora")])
    names = [(config.variant.name.removesuffix("_fp32"), config.lora.r) for config in opened.configs]
    assert names == [("lora", 4), ("rslora", 16), ("dora", 16), ("lora", 64)]
    network, tokenizer = models.load(config().model, torch.float32, torch.device("cpu"))
    nats = tokens = 0.0
    for item in opened.loaded.rows.items["val"]:
        ids = torch.tensor([item.prompt + item.target])
        labels = torch.tensor([[-100] * len(item.prompt) + item.target])
        with torch.no_grad():
            nats += len(item.target) * network(input_ids=ids, labels=labels).loss.item()
        tokens += len(item.target)
    assert opened.losses("val") == pytest.approx([nats / tokens] * 4, rel=1e-5)
    batch = opened.batch("val", 2)
    for row, item in enumerate(opened.loaded.rows.items["val"][:2]):
        assert batch.input_ids[row, : len(item)].tolist() == item.prompt + item.target
    assert opened.facts() | {"device": None} == {
        "device": None, "base_precision": "fp32", "base_share": {"fp32": 1.0}, "engine": "packed", "pack_size": 4,
        "hold_dequantised": False,
        "speed": "eager", "steps": 3, "rows_left_out": opened.loaded.rows.splits.left_out, "test_rows_repeated": 0,
        "rows_cut": {"train": 0, "val": 0, "test": 0}, "prose": None,
    }  # fmt: skip
    assert tokenizer.pad_token_id == opened.loaded.rows.pad


@pytest.mark.parametrize(
    "others", [("variant.base_precision=bf16",), ("train.steps=4",), ("engine=peft",), ("lora.target_modules=[q_proj]",)]
)
def test_runs_that_cannot_train_together_are_refused_before_anything_is_loaded(
    others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match="cannot train together"):
        session.open([config(), config(*others)])
    with pytest.raises(ConfigError, match="cannot train together"):
        session.open([config("variant=full")] * 2)  # what does not pack has an engine to itself


@pytest.mark.parametrize(("overrides", "trains"), [(("variant=full",), "all"), (("engine=peft",), "adapter")])
def test_what_does_not_pack_is_a_session_of_one(overrides: tuple[str, ...], trains: str) -> None:
    opened = session.open([config(*overrides)], steps=2)
    assert (opened.engine.name, opened.engine.steps, opened.configs[0].variant.trains) == ("peft", 2, trains)
    trained = sum(tensor.numel() for tensor in opened.engine.trained(0).values())
    assert trained == opened.loaded.costs(opened.configs[0])["trainable_parameters"]
    assert opened.facts()["engine"] == "peft"


def test_rows_serve_several_sessions_and_a_base_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = session.open([config()])
    monkeypatch.setattr("src.train.rows.read", lambda *_: pytest.fail("the rows were read again"))
    second = session.open([config("seed=1")], first.loaded.rows)
    assert second.loaded.rows is first.loaded.rows and second.engine.network is not first.engine.network
    first.engine.advance(0, 3)
    assert second.losses("val") != first.losses("val")


def test_what_is_opened_is_frozen() -> None:
    opened: Any = session.open([config()])
    for value in (opened, opened.loaded, opened.loaded.rows):
        for field in fields(value):
            with pytest.raises(FrozenInstanceError):
                setattr(value, field.name, None)
