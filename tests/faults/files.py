"""Files as an editor, a script, a disk or a stranger leaves them: hypothesis strategies for JSONL, YAML and damaged bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.faults.overrides import CHARACTERS, KNOWN, NUMBERS, VALUES, good_values

DEEP = 100_000
TEXTS = st.one_of(st.text(st.characters(), max_size=20), st.sampled_from(["", " ", "\n", "\0", "\ud800", "﻿", "\u2028", "é" * 30]))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from([10**30, 1e308, -0.0, 2**63, "a", "assistant"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)

ROLES = st.sampled_from(["user", "assistant", "system", "tool", "", "USER"])
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": ROLES, "content": TEXTS}),
        st.fixed_dictionaries({"role": ANYTHING, "content": ANYTHING}),
        st.fixed_dictionaries({"role": ROLES}, optional={"content": ANYTHING, "tool_calls": ANYTHING}),
        ANYTHING,
    ),
    max_size=4,
)
PAIRS = (("context", "target"), ("prompt", "completion"), ("prompt", "target"), ("instruction", "output"))


@st.composite
def good_rows(draw: st.DrawFn, chats: bool) -> dict[str, Any]:
    """Draw a row that is read. One file holds chats or texts, not both."""
    number = draw(st.integers(0, 999))
    if chats:
        return {"messages": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"{number}"}]}
    prompt, target = draw(st.sampled_from(PAIRS))
    return {prompt: f"say {number}", target: draw(st.sampled_from(["yes", "no", " Yes\n", "é😀"]))}


@st.composite
def odd_rows(draw: st.DrawFn) -> Any:
    """A row in JSON that is none, or hardly one."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return {"messages": draw(st.one_of(MESSAGES, ANYTHING))}
    if kind == 1:
        return draw(ANYTHING)
    prompt, target = draw(st.sampled_from(PAIRS))
    if kind == 2:
        return {prompt: draw(TEXTS), target: draw(TEXTS)}
    row = {prompt: draw(ANYTHING), target: draw(ANYTHING)}
    return row if kind == 3 else {key: value for key, value in row.items() if draw(st.booleans())}


# What json.dumps does not write.
ODD_LINES = (
    b"", b" ", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff\xfe{\x00}\x00", b"\xff", b"null", b"NaN", b"{", b"}", b"[]", b"{}", b'"',
    b"'a'", b"//", b'{"prompt": "a", "target": "b"', b'{"prompt": "a", "target": "b"}}', b'{"prompt": "a", "target": "b"},',
    b"{'prompt': 'a', 'target': 'b'}", b'{"prompt": "a", "prompt": 3, "target": "b"}',
    b'{"prompt": "a", "target": "b", "x": NaN}', b'{"prompt": "a", "target": "b", "x": 1e999}',
    b'{"prompt": "a", "target": "\\ud800"}', b'{"prompt": "\\udc00\\ud800", "target": "b"}',
    b'{"prompt": "\\ud83d\\ude00", "target": "b"}', b'{"prompt": "a\0", "target": "b"}',
    b'{"prompt": "a\\u0000", "target": "b"}', b'{"prompt": "\xed\xa0\x80", "target": "b"}',
    b'{"prompt": "a", "target": "b", "x": ' + b"9" * 5000 + b"}", b"9" * 5000, b"1" + b"0" * 20000 + b".0",
    b'{"messages": {"0": 1}}', b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP,
    b'{"prompt": "a", "target": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"prompt": "' + b"a" * 2**20 + b'", "target": "b"}',
    b'{"prompt": "a", "target": "' + b"b " * 2**19 + b'"}', b"x" * 2**20, b'{"prompt": "a", "target": "b"}\r',
    b'\xef\xbb\xbf{"prompt": "a", "target": "b"}', b'{"prompt": "a"\r, "target": "b"}', b"\x1b[31m",
)  # fmt: skip


@st.composite
def odd_lines(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=30))
    if kind == 1:
        return draw(st.sampled_from(ODD_LINES))
    line = json.dumps(draw(odd_rows()), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return line if kind == 2 else line[: draw(st.integers(0, len(line)))]


@st.composite
def jsonl(draw: st.DrawFn) -> bytes:
    """A file of examples: mostly good rows, and nothing, something or everything amiss."""
    lines = [json.dumps(row).encode() for row in draw(st.lists(good_rows(not draw(st.integers(0, 9))), max_size=30))]
    if draw(st.booleans()):
        for line in draw(st.lists(odd_lines(), min_size=1, max_size=3)):
            lines.insert(draw(st.integers(0, len(lines))), line)
    text = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\r", b""])).join(lines) + draw(
        st.sampled_from([b"\n", b""])
    )
    start = draw(st.sampled_from([b"", b"", b"", b"", b"\xef\xbb\xbf", b"\n"]))
    return start + draw(damaged(text)) if not draw(st.integers(0, 9)) else start + text


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """The same, cut off, with bytes flipped, put in or taken out, or something else altogether."""
    for _ in range(draw(st.integers(1, 3))):
        at, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        kind = draw(st.sampled_from(["cut", "flip", "put in", "take out", "zeros", "replace"]))
        if kind == "cut":
            text = text[:at]
        elif kind == "flip" and at < len(text):
            text = text[:at] + bytes([text[at] ^ (1 << draw(st.integers(0, 7)))]) + text[at + 1 :]
        elif kind == "put in":
            text = (
                text[:at]
                + draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\0", b"\xff", b"${a}", b"!!x ", b"&a ", b"\t"])))
                + text[at:]
            )
        elif kind == "take out":
            text = text[:at] + text[end:]
        elif kind == "zeros":
            text = text[:at] + bytes(end - at) + text[end:]
        elif kind == "replace":
            text = draw(
                st.one_of(st.binary(max_size=30), st.sampled_from([b"", b"null", b"[]", b"{}", b"3", b"[" * DEEP, b"a: " * 500]))
            )
    return text


SHARES = st.sampled_from(["0", "0.3", "0.5", "0.9", "1e-9"])
SETTINGS = {
    "dataset.labels": st.sampled_from(
        ["[yes,no]", "[yes]", "[]", "null", "[3]", "[null]", "[[yes]]", "['']", "yes", "{a:b}", "['yes','é😀',no]"]
    ),
    "dataset.val_path": st.sampled_from(["rows.jsonl", "good.jsonl", "nosuch", "null", ".", "pipe", "''"]),
    "dataset.test_path": st.sampled_from(["rows.jsonl", "good.jsonl", "nosuch", "null"]),
    "dataset.max_length": st.sampled_from(["8", "9", "64", "7"]),
    "dataset.val_share": SHARES,
    "dataset.test_share": SHARES,
    "dataset.train_examples": st.sampled_from(["1", "2", "null"]),
    "dataset.chat_template": st.sampled_from(["true", "false"]),
    "eval.test_examples": st.sampled_from(["1", "null"]),
    "train.batch_size": st.sampled_from(["1", "2", "16"]),
}


@st.composite
def settings_beside(draw: st.DrawFn) -> list[str]:
    """Draw the overrides about the data file."""
    held_out = draw(
        st.sampled_from([["dataset.val_path=good.jsonl", "dataset.test_path=good.jsonl"], ["dataset.val_share=0.3"], []])
    )
    chosen = draw(st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.just(None), max_size=3))
    return ["train.batch_size=1", *held_out, *(f"{key}={draw(SETTINGS[key])}" for key in chosen)]


ODD_SCALARS = (
    '!!python/object/apply:os.system ["touch owned"]', "!!python/name:os.system", "!!python/object/new:os.system [touch owned]",
    "!!python/tuple [1]", "!!binary aGk=", "!!timestamp 2001-01-01", "!!set {a}", "!!omap [a: 1]", "!!int x", "!!float 1",
    "!custom 3", "!!str 3", "!!null x", "!!bool maybe", "&a [*a]", "*nosuch", "&a 3", "<<: *a", "{<<: {r: 3}}",
    "|\n    a\n    b", ">-\n    a", "? a", "2001-01-01", "12:30", "0777", "1e-3", "1_000", ".inf", ".nan", "-.inf", "0b11", "~",
    "no", "on", "%a", "@a", "`a", "- a", "\ta", '"\\ud800"', '"\\0"', '"\\x1b"', '"a', "'a", "[1, 2", "{a: 1", "a: b: c",
    "# nothing", "---", "...", "- - - 1", "{? a : b}", "{[1]: 2}",
)  # fmt: skip
YAML_SCALARS = st.one_of(VALUES, st.sampled_from([value for value in NUMBERS if len(value) < 1000]), st.sampled_from(ODD_SCALARS))
GLOBAL = "# @package _global_\n"


@st.composite
def yaml_lines(draw: st.DrawFn, depth: int = 0) -> str:
    """The lines of one key, nested by its dots or given as it is."""
    key = draw(
        st.one_of(
            st.sampled_from(KNOWN),
            st.sampled_from(KNOWN),
            st.text(CHARACTERS, max_size=6),
            st.sampled_from(["defaults", "3", "null"]),
        )
    )
    value = draw(good_values(key) if draw(st.integers(0, 2)) else YAML_SCALARS)
    parts = key.split(".") if draw(st.integers(0, 5)) else [key]
    indent = draw(st.sampled_from(["  ", "  ", "  ", "  ", "    ", "\t"]))
    text = "".join(f"{indent * level}{part}:\n" for level, part in enumerate(parts[:-1]))
    return f"{text}{indent * (len(parts) - 1)}{parts[-1]}: {value}\n"


DEFAULTS = (
    "defaults:\n  - override /variant: qlora\n", "defaults:\n  - override /variant: nosuch\n", "defaults:\n  - nosuch\n",
    "defaults: 3\n", "defaults:\n  - x\n", "defaults:\n  - /experiment: x\n", "defaults:\n  - {a: b, c: d}\n",
    "defaults:\n  - null\n", "defaults: [[1]]\n", "defaults:\n  - override /model: ${seed}\n",
    "defaults:\n  - optional /model: nosuch\n", "defaults:\n  - _self_\n  - _self_\n",
    "defaults:\n  - override /dataset: [a, b]\n", "defaults:\n  - /lora@lora: x\n", "defaults:\n  - /hydra/nosuch: x\n",
)  # fmt: skip
WHOLE_FILES = (
    "", "3", "null", "- a\n- b\n", "a", "---\na: 1\n---\nb: 2\n", "\ufeffseed: 3\n", "# @package lora\nr: 4\n",
    "# @package a b c\nr: 4\n", "# @package\nseed: 3\n", "seed: 3\nseed: 4\n", "seed: 3\r\ndata_seed: 4\r\n",
    "train: &t {steps: 3}\neval: *t\n", "a: &a [*a]\n", "[" * 3000, "seed: " + "[" * 1000 + "]" * 1000, "? [a]\n: b\n",
    "{a: {b: {c: ", "train: {steps: 3, steps: 4}\n", "%YAML 9.9\n---\na: 1\n",
    "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(4)), "hydra: 3\n",
    "hydra: {mode: MULTIRUN}\n", "hydra: {sweeper: {params: {seed: 3}}}\n", "hydra: {nosuch: 1}\n", "lora: null\n",
    "lora: [1]\n",
)  # fmt: skip


@st.composite
def experiments(draw: st.DrawFn) -> bytes:
    """A file of conf/experiment."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return draw(st.sampled_from(WHOLE_FILES)).encode("utf-8", "surrogatepass")
    head = draw(st.sampled_from([GLOBAL, GLOBAL, GLOBAL, GLOBAL, ""])) + draw(
        st.sampled_from(["", "", "", draw(st.sampled_from(DEFAULTS))])
    )
    text = (head + "".join(draw(st.lists(yaml_lines(), max_size=3)))).encode("utf-8", "surrogateescape")
    return draw(damaged(text)) if kind == 2 else text


SWEEPS: SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=30),
    st.fixed_dictionaries({"run_ids": st.one_of(ANYTHING, st.lists(TEXTS, max_size=3))}, optional={"name": ANYTHING}).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from(ODD_LINES),
)
