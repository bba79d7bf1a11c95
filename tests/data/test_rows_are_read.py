"""Any row of any format: each text in it is in the example, or in a refusal's key, or under a key that is ignored by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from src.config.schema import DatasetConfig
from src.data.columns import FORMATS, Reader
from src.files.errors import ConfigError

WHERE = "rows.jsonl, line 3"
IGNORED = "meta"
MARK = "<{}>"  # each text of a row is another one, so that it can be looked for


class Marks:
    """Texts that occur once."""

    def __init__(self) -> None:
        self.count = 0

    def new(self) -> str:
        self.count += 1
        return MARK.format(self.count)


@st.composite
def content(draw: st.DrawFn, marks: Marks) -> Any:
    kind = draw(st.sampled_from(["text", "text", "text", "parts", "image", "none"]))
    if kind == "parts":
        return [{"type": "text", "text": marks.new()} for _ in range(draw(st.integers(1, 2)))]
    if kind == "image":
        return [{"type": "text", "text": marks.new()}, {"type": "image_url", "image_url": {"url": marks.new()}}]
    return marks.new() if kind == "text" else None


@st.composite
def message(draw: st.DrawFn, marks: Marks, role: str) -> dict[str, Any]:
    more = draw(
        st.sets(st.sampled_from(["name", "tool_calls", "tool_call_id", "reasoning_content", "audio", "weight"]), max_size=2)
    )
    values = {
        "tool_calls": [{"function": {"name": marks.new(), "arguments": {"x": marks.new()}}}],
        "audio": {"id": marks.new()},
        "weight": draw(st.sampled_from([0, 1])),
    }
    return {"role": role, "content": draw(content(marks))} | {
        key: values.get(key, marks.new()) for key in more if draw(st.booleans())
    }


@st.composite
def messages(draw: st.DrawFn, marks: Marks) -> Any:
    roles = draw(st.lists(st.sampled_from(["system", "user", "user", "assistant", "tool", "critic"]), max_size=3))
    last = {"role": "assistant", "content": marks.new()}
    return [*(draw(message(marks, role)) for role in roles), draw(st.sampled_from([last, draw(message(marks, "assistant"))]))]


@st.composite
def conversations(draw: st.DrawFn, marks: Marks) -> Any:
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    return [
        {"from": names.get(turn["role"], turn["role"]), "value": turn["content"]}
        | {key: value for key, value in turn.items() if key not in ("role", "content")}
        for turn in draw(messages(marks))
    ]


def value(draw: st.DrawFn, key: str, name: str, marks: Marks) -> Any:
    """Draw a value that this key may have in a good row."""
    if key == "messages":
        return draw(messages(marks))
    if key == "conversations":
        return draw(conversations(marks))
    if key == "tools":
        return [{"function": {"name": marks.new(), "description": marks.new()}}]
    if key in ("prompt", "completion") and draw(st.integers(0, 3)) == 0:
        return draw(messages(marks))[-1 if key == "completion" else 0 :]
    if key == "choices":
        return {"text": [marks.new(), marks.new()], "label": ["A", "B"]}
    if key == "answerKey":
        return draw(st.sampled_from(["A", "B"]))
    if name == "gsm8k" and key == "answer":
        return f"{marks.new()} #### 4"
    if name == "commonsense" and key in ("instruction", "output", "answer"):
        return {"instruction": f"{marks.new()} Answer format: a/b", "output": "the correct answer is a", "answer": True}[key]
    return marks.new()


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A row of a layout of a format: some of its keys are left out, and some are added."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    shapes = FORMATS[name]
    shape, other = draw(st.sampled_from(shapes)), draw(st.sampled_from(shapes))
    more = st.sampled_from(["id", "question", "history", "chosen", IGNORED, *other.needs, *other.may])
    keys = {*shape.needs, *draw(st.sets(st.sampled_from([*shape.may, IGNORED]))), *draw(st.sets(more, max_size=1))}
    if draw(st.integers(0, 9)) == 0:
        keys.discard(draw(st.sampled_from(sorted(keys))))
    marks = Marks()
    return name, {key: value(draw, key, name, marks) for key in sorted(keys)}


def leaves(part: Any) -> Iterator[str]:
    """List the marks of a value."""
    if isinstance(part, str):
        yield from (f"<{piece.partition('>')[0]}>" for piece in part.split("<")[1:])
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from leaves(inner)


# Keys of published files that a named task has no use for, as conf/dataset and the formats say.
IDLE = {(name, key) for name, shapes in FORMATS.items() for shape in shapes for key in shape.idle}


def test_each_text_of_a_row_is_read_or_named_or_ignored() -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=1500, deadline=None, derandomize=True)
    @given(rows())
    def check(drawn: tuple[str, dict[str, Any]]) -> None:
        name, row = drawn
        kept = {key: part for key, part in row.items() if key != IGNORED and (name, key) not in IDLE}
        try:
            read = Reader(DatasetConfig(format=name, ignore_columns=[IGNORED])).read(row, WHERE)
        except ConfigError as error:
            assert str(error).startswith(WHERE) and str(error).isprintable()
            counts[f"{name} refused"] += 1
            return
        counts[f"{name} read"] += 1
        held = json.dumps([read.prompt, read.target, read.tools])
        for mark in leaves(kept):
            assert held.count(json.dumps(mark)[1:-1]) >= 1, (mark, row)
        for mark in leaves(row.get(IGNORED)):
            assert mark not in held

    check()
    assert all(counts[f"{name} {what}"] >= 20 for name in FORMATS for what in ("read", "refused")), counts
