"""Chats: what a template renders is kept as it is, and everything else of a message is refused with its number."""

from __future__ import annotations

from typing import Any

import pytest

from src.config.schema import DatasetConfig
from src.data.chats import refuse_weights
from src.data.columns import Reader
from src.data.datasets import Example, Splits
from src.data.formats import ParsedRow
from src.files.errors import ConfigError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}, "id": "c1"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def read(row: object) -> ParsedRow:
    return Reader(DatasetConfig()).read(row, "rows, line 3")


def messages(*turns: dict[str, Any]) -> ParsedRow:
    return read({"messages": list(turns)})


def test_all_roles_tools_and_calls_are_kept() -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "q", "name": "ann"},
        {"role": "assistant", "content": "hm", "tool_calls": CALL, "reasoning_content": "r"},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
    ]
    row = read({"messages": [*turns, ANSWER], "tools": [TOOL]})
    assert (row.prompt, row.target, row.tools) == (turns, "a", [TOOL])
    assert read({"messages": [USER, ANSWER], "tools": '[{"name": "add"}]'}).tools == [{"name": "add"}]
    assert [read({"messages": [USER, ANSWER], "tools": none}).tools for none in ([], None, "", "[]")] == [None] * 4


def test_a_call_without_words_is_an_empty_content_and_empty_keys_are_absent() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": CALL, "refusal": None}
    assert messages(USER, call, ANSWER).prompt == [USER, {"role": "assistant", "content": "", "tool_calls": CALL}]


def test_parts_of_a_content_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "image_url": None}]
    row = messages({"role": "user", "content": parts}, {"role": "assistant", "content": parts[1:]})
    assert (row.prompt, row.target) == ([{"role": "user", "content": "one two"}], "two")


def test_sharegpt_is_the_same_chat() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = read({"conversations": turns, "system": "s", "tools": [TOOL]})
    assert (row.prompt, row.target, row.tools) == ([{"role": "system", "content": "s"}, USER], "a", [TOOL])
    assert read({"conversations": turns, "system": ""}) == read({"conversations": turns}) == messages(USER, ANSWER)


def test_two_turns_keep_the_first_in_the_prompt() -> None:
    again = {"role": "user", "content": "again"}
    assert messages(USER, ANSWER, again, ANSWER).prompt == [USER, ANSWER, again]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [{"role": "USER", "content": "q"}, ANSWER]}, "message 1 of 'messages': 'role' is USER, and needs one of"),
        ({"messages": [USER | {"speaker": "ann"}, ANSWER]}, "message 1 of 'messages' has keys that are not read: speaker"),
        (
            {"messages": [USER, ANSWER | {"tool_calls": CALL}]},
            "the last of 'messages' has tool_calls, which would not be trained",
        ),
        ({"messages": [USER, ANSWER | {"name": "bob"}]}, "the last of 'messages' has name, which"),
        ({"messages": [USER | {"content": None}, ANSWER]}, "message 1 of 'messages': 'content' is no text"),
        ({"messages": [USER, ANSWER | {"content": None}]}, "message 2 of 'messages': 'content' is no text"),
        ({"messages": [USER | {"content": [{"type": "image_url", "image_url": "u"}]}, ANSWER]}, "has the type image_url; only"),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "t", "cache": 1}]}, ANSWER]},
            "has the keys cache, text, type",
        ),
        ({"messages": [USER, ANSWER | {"content": []}]}, "no target; the last of 'messages'"),
        ({"messages": [USER | {"tool_calls": "x"}, ANSWER]}, "'tool_calls' needs a list of objects"),
        ({"messages": [USER | {"name": 3}, ANSWER]}, "'name' is no text"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is a text, but not JSON"),
        ({"messages": [USER, ANSWER], "tools": ["add"]}, "'tools' needs a list of objects"),
        ({"messages": [USER, ANSWER], "tools": [{"x": b"1"}]}, "'tools' holds what JSON has not"),
        ({"messages": [USER, ANSWER], "source": "web"}, "has keys that are not read: source;"),
        (
            {"messages": [ANSWER]},
            "no target; the last of 'messages' needs the role 'assistant' and a text, after another message",
        ),
        ({"messages": [ANSWER, USER]}, "no target;"),
        ({"messages": [USER | {"weight": 1}, ANSWER]}, "message 1 of 'messages': 'weight' is 1; needs 0, or 1 where"),
        ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "'weight' is 0.5; needs 0"),
        ({"messages": [USER, ANSWER | {"weight": 0}]}, "the last message has weight 0"),
        ({"conversations": [{"from": "function_call", "value": "q"}]}, "turn 1 of 'conversations': 'from' is function_call, and"),
        ({"conversations": [{"from": "human", "value": "q", "lang": "de"}, ANSWER]}, "turn 2 of 'conversations' has 'role'"),
        ({"conversations": [{"from": "human", "value": "q", "lang": "de"}]}, "has keys that are not read: lang"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}, "message 1 of 'conversations': 'content' is no"),
        (
            {"conversations": [{"from": "system", "value": "t"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "has 'system' beside",
        ),
        ({"conversations": "q"}, "'conversations' needs a list of objects"),
    ],
)
def test_what_would_be_lost_is_refused_with_its_place(row: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(row)
    assert str(caught.value).startswith("rows, line 3: ") and says in str(caught.value) and "\n" not in str(caught.value)


def test_weights_must_say_what_is_trained() -> None:
    turns = (USER | {"weight": 0}, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1})
    row = messages(*turns)
    assert row.prompt == [USER, ANSWER, USER]  # no template is given a weight
    refuse_weights((None, 1, None, 1), True, "here")
    with pytest.raises(ConfigError, match=r"here: message 2 has weight 0, but dataset\.turns=all trains every turn"):
        refuse_weights(row.weights, True, "here")
    with pytest.raises(ConfigError, match=r"message 2 has weight 1, but dataset\.turns=last trains the last turn alone"):
        messages(USER, ANSWER | {"weight": 1}, USER, ANSWER)


def test_the_fingerprint_sees_tools_and_calls() -> None:
    def fingerprint(call: list[Any], tools: list[Any] | None) -> str:
        row = read({"messages": [USER, {"role": "assistant", "tool_calls": call}, ANSWER], "tools": tools})
        return Splits([Example("1", row.prompt, row.target, "g", tools=row.tools)], [], []).fingerprint()

    other = [CALL[0] | {"id": "c2"}]
    assert len({fingerprint(CALL, None), fingerprint(other, None), fingerprint(CALL, [TOOL])}) == 3
