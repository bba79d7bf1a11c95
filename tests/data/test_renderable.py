"""Rows and tokenizers that are refused while a sweep is planned, by the tokenizer's files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.config.schema import DatasetConfig
from src.data import renderable
from src.data.datasets import Example, Splits
from src.data.renderable import refuse_idle_turns, refuse_unrenderable
from src.files.errors import ConfigError
from tests.data.chats import CHATML, chat, tokenizer_of

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
ASKED = [chat(("user", f"q{n}"), target="a") for n in range(3)]
PLAIN = [Example("rows.jsonl:1", "q", "a", "g")]


def saved(folder: Path, template: str | None = CHATML) -> str:
    tokenizer_of(template).save_pretrained(folder / "base")
    return str(folder / "base")


def splits(examples: list[Example], late: list[Example] | None = None) -> Splits:
    return Splits(examples, examples[:1], [*examples, *(late or [])])


def test_one_chat_of_each_sequence_of_roles_is_rendered(folder: Path) -> None:
    late = [chat(("system", "s"), ("user", "q"), target="a")]
    base = saved(folder, NO_SYSTEM)
    refuse_unrenderable(splits(ASKED), base, DatasetConfig())
    with pytest.raises(ConfigError, match=r"rows.jsonl:3: the model's chat template refuses this chat: no system role"):
        refuse_unrenderable(splits(ASKED, late), base, DatasetConfig())


@pytest.mark.parametrize("target", ["a<pad>", "a</s>b", "</s>"])
def test_special_tokens_in_any_target_are_refused(folder: Path, target: str) -> None:
    base = saved(folder)
    refuse_unrenderable(splits(PLAIN, [Example("rows.jsonl:9", "q", "a</s>", "g")]), base, DatasetConfig())
    with pytest.raises(ConfigError, match=r"rows.jsonl:9: the target"):
        refuse_unrenderable(splits(PLAIN, [Example("rows.jsonl:9", "q", target, "g")]), base, DatasetConfig())


def test_random_weights_have_special_tokens_too() -> None:
    refuse_unrenderable(splits(PLAIN, [Example("rows.jsonl:9", "q", "a</s>", "g")]), None, DatasetConfig())
    for target in ("a<pad>", "a</s>b", "<unk>", "<extra_id_7>"):
        with pytest.raises(ConfigError, match=r"rows.jsonl:9: the target"):
            refuse_unrenderable(splits(PLAIN, [Example("rows.jsonl:9", "q", target, "g")]), None, DatasetConfig())


def test_chats_without_a_template_are_refused(folder: Path) -> None:
    for base in (saved(folder, None), None):
        refuse_unrenderable(splits(PLAIN), base, DatasetConfig())
        for examples, dataset in ((ASKED, DatasetConfig()), (PLAIN, DatasetConfig(chat_template=True))):
            with pytest.raises(ConfigError, match="no chat template"):
                refuse_unrenderable(splits(examples), base, dataset)


def test_a_tokenizer_without_an_end_token_or_that_cannot_be_read_is_refused(folder: Path) -> None:
    base = Path(saved(folder))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None, "tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ConfigError, match="base: "):
        refuse_unrenderable(splits(PLAIN), str(base), DatasetConfig())
    (base / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="base: its tokenizer cannot be loaded: "):
        refuse_unrenderable(splits(ASKED), str(base), DatasetConfig())


def test_plain_rows_of_a_usual_tokenizer_load_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderable, "_tokenize", lambda *_: pytest.fail("a tokenizer was loaded"))
    refuse_unrenderable(splits(PLAIN), saved(folder), DatasetConfig())


def test_turns_that_change_nothing_are_refused() -> None:
    turns = DatasetConfig(name="mine", turns="all")
    for examples in (PLAIN, ASKED):
        with pytest.raises(ConfigError, match=r"dataset.turns=all: does nothing, .*dataset=mine"):
            refuse_idle_turns(turns, splits(examples))
        refuse_idle_turns(DatasetConfig(), splits(examples))
    refuse_idle_turns(turns, splits([*ASKED, chat(("user", "q"), ("assistant", "a"), ("user", "q"), target="a")]))
