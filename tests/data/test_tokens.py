"""Token ids of prompts and targets, and which of them carry loss."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from src.config.schema import ModelConfig
from src.data.datasets import Example
from src.data.tokens import fingerprint, tokenize
from src.files.errors import ConfigError
from src.model import models
from tests.data.chats import CHATML, bytes_of, chat, tokenizer_of

TOKENIZER = ByT5Tokenizer()


def example(prompt: str, target: str) -> Example:
    return Example("id", prompt, target, "group")


def test_prompt_target_and_end_token() -> None:
    (item,) = tokenize([example("ab", "cd")], TOKENIZER, 64, False)
    assert (item.prompt, item.target, item.cut) == (bytes_of("ab"), [*bytes_of("cd"), 1], False)


def test_a_long_row_loses_the_left_of_its_prompt_and_is_counted() -> None:
    short, long, longest = tokenize(
        [example("ab", "c"), example("abcdef", "gh"), example("ab", "cdefghijk")], TOKENIZER, 6, False
    )
    assert not short.cut
    assert (long.prompt, long.target, long.cut) == (bytes_of("def"), [*bytes_of("gh"), 1], True)
    assert (len(longest), longest.prompt, longest.cut) == (6, bytes_of("b"), True)


def test_an_empty_prompt_still_has_something_before_the_target() -> None:
    (item,) = tokenize([example("", "a")], TOKENIZER, 8, False)
    assert len(item.prompt) == 1


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize([example("a", "b")], TOKENIZER, 8, True)


def test_a_chat_goes_through_the_template() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat, plain = tokenize([Example("1", messages, "t", "g"), example("p", "t")], tokenizer, 64, False)
    (asked,) = tokenize([example("p", "t")], tokenizer, 64, True)
    assert chat.prompt == bytes_of("<system>s<user>q<assistant>")
    assert plain.prompt == bytes_of("p")
    assert asked.prompt == bytes_of("<user>p<assistant>")


TURNS = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q3")]


def texts_of(tokenizer: Any, ids: list[int], spans: tuple[tuple[int, int], ...]) -> list[str]:
    return [tokenizer.decode(ids[start:end]) for start, end in spans]


def test_each_turn_of_the_assistant_is_labeled_where_that_is_asked_for() -> None:
    tokenizer = tokenizer_of(CHATML)
    (last,) = tokenize([chat(*TURNS, target="a3")], tokenizer, 512, False)
    (whole,) = tokenize([chat(*TURNS, target="a3")], tokenizer, 512, False, "all")
    assert (whole.prompt, whole.target, last.earlier) == (last.prompt, last.target, ())
    assert tokenizer.decode(whole.target) == "a3<|im_end|>"
    assert texts_of(tokenizer, whole.prompt, whole.earlier) == ["a1<|im_end|>", "a2<|im_end|>"]
    assert whole.labeled == 3 * len(whole.target) and last.labeled == len(last.target)
    assert fingerprint({"train": [whole]}) != fingerprint({"train": [last]})


def test_a_cut_row_keeps_the_labels_of_what_is_left_of_it() -> None:
    """The first token of a row has none before it, so it carries no loss."""
    tokenizer = tokenizer_of(CHATML)
    whole, *cut = (tokenize([chat(*TURNS, target="a3")], tokenizer, n, False, "all")[0] for n in (512, *range(8, 130)))
    ids = whole.prompt + whole.target
    labeled = [place for span in whole.spans() for place in range(*span)]
    for item in cut:
        lost = len(ids) - len(item)
        assert item.prompt + item.target == ids[lost:]
        assert [place for span in item.spans() for place in range(*span)] == [p - lost for p in labeled if p > lost]
    assert {len(item.earlier) for item in cut} == {0, 1, 2}


@pytest.mark.parametrize(
    ("target", "judged"), [("yes", "yes"), ("yes</s>", "yes"), ("</s>yes", None), ("yes</s></s>", None), ("</s>", None)]
)
def test_a_written_end_token_is_trained_once_and_not_judged(target: str, judged: str | None) -> None:
    if judged is None:
        with pytest.raises(ConfigError, match="id: the target"):
            tokenize([example("ab", target)], TOKENIZER, 64, False)
        return
    (item,) = tokenize([example("ab", target)], TOKENIZER, 64, False)
    assert (item.example.target, item.target) == (judged, [*bytes_of(judged), 1])


def test_special_tokens_in_a_target_its_references_or_choices_are_refused() -> None:
    for more in ({"target": "a<pad>b"}, {"target": "a", "references": ("a", "<unk>")}, {"target": "a", "choices": ("<pad>",)}):
        with pytest.raises(ConfigError, match=r"row:7: the target.*special token '<(pad|unk)>'.*remove it"):
            tokenize([Example(**{"id": "row:7", "prompt": "p", "group": "g"} | more)], TOKENIZER, 64, False)
    (item,) = tokenize([Example("i", "p", "a</s>", "g", ("a</s>", "b</s>"), ("a", "c</s>"))], TOKENIZER, 64, False)
    assert (item.example.choices, item.example.references) == (("a", "b"), ("a", "c"))


def test_a_prompt_ends_and_begins_as_it_is_written() -> None:
    """The end token that a tokenizer closes each text with is taken off, one that is written stays."""
    (closed,) = tokenize([example("ab</s>", "c")], TOKENIZER, 64, False)
    assert closed.prompt == [*bytes_of("ab"), 1]
    tokenizer = tokenizer_of(None, begin=True)
    for written in ("ab", "<s>ab"):
        (begun,) = tokenize([example(written, "c")], tokenizer, 64, False)
        assert begun.prompt == [tokenizer.bos_token_id, *bytes_of("ab")]


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"tokenizer_config.json names no end token.*eos_token"):
        tokenize([], tokenizer, 64, False)


def test_chats_of_smollm2_are_the_tokens_that_they_were() -> None:
    """Its template closes turns with its tokenizer's end token: prompt, answer, that token, as in every earlier record."""
    tokenizer = AutoTokenizer.from_pretrained(models.location(ModelConfig(source="embedded")))
    rows = [chat(("user", "Hi"), target="Hello"), chat(("system", "Be kind."), *TURNS, target=" Two\nlines ")]
    for row, item in zip(rows, tokenize(rows, tokenizer, 512, False), strict=True):
        text = tokenizer.apply_chat_template(row.prompt, tokenize=False, add_generation_prompt=True)
        assert item.prompt == tokenizer(text, add_special_tokens=False).input_ids
        assert item.target == [*tokenizer(row.target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert item.end == tokenizer.eos_token_id and item.example == row
