"""Texts as prompt and target: with a system's message, as Alpaca's instructions, as TRL's messages, or one text alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.config.schema import DatasetConfig
from src.data.columns import Reader
from src.data.datasets import load
from src.data.formats import ParsedRow
from src.files.errors import ConfigError

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def read(row: object) -> ParsedRow:
    return Reader(DatasetConfig()).read(row, "rows, line 3")


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"system": "Be brief.", "prompt": "q", "completion": "a"}, [SYSTEM, USER], "a"),
        ({"system": "Be brief.", "context": "q", "target": "a"}, [SYSTEM, USER], "a"),
        ({"system": "Be brief.", "instruction": "q", "output": "a"}, [SYSTEM, USER], "a"),
        ({"system": " ", "prompt": "q", "completion": "a"}, [USER], "a"),
        ({"system": None, "prompt": "q", "completion": "a"}, [USER], "a"),
        ({"instruction": "i", "input": "n", "output": "o"}, "i\n\nn", "o"),
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
        ({"instruction": "i", "output": "o"}, "i", "o"),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER], "a"),
        ({"text": " all of it\n"}, "", " all of it\n"),
        ({"prompt": "", "completion": "c"}, "", "c"),
    ],
)
def test_a_row_is_read_as_a_prompt_and_a_target(row: object, prompt: object, target: str) -> None:
    parsed = read(row)
    assert (parsed.prompt, parsed.target) == (prompt, target)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"system": 3, "prompt": "q", "completion": "a"}, "'system' is no text"),
        ({"system": "s", "prompt": [USER], "completion": [ANSWER]}, "has 'system' beside a list of messages"),
        ({"prompt": [USER], "completion": [ANSWER, USER, ANSWER]}, "'completion' needs one message, of the assistant; it has 3"),
        ({"prompt": [USER], "completion": [USER]}, "no target; the last of 'prompt and completion' needs the role 'assistant'"),
        ({"prompt": [USER], "completion": "a"}, "no target; needs 'prompt' and 'completion', each a text; 'prompt' is no text"),
        ({"instruction": "i", "input": 3, "output": "o"}, "'input' is no text"),
        ({"instruction": "i", "output": "o", "history": [["q", "a"]]}, "has keys that are not read: history;"),
        ({"instruction": "i", "output": " "}, "needs 'instruction' and 'output', each a text; 'output' is no text"),
        ({"text": " "}, "needs 'text', each a text; 'text' is no text"),
        ({"text": "t", "label": "x"}, "has keys that are not read: label;"),
    ],
)
def test_what_would_be_lost_is_refused_with_its_place(row: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(row)
    assert str(caught.value).startswith("rows, line 3: ") and says in str(caught.value) and "\n" not in str(caught.value)


def test_texts_without_prompts_are_split_by_the_text(folder: Path) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n // 2}"}) + "\n" for n in range(200)))
    splits = load(DatasetConfig(path="a.jsonl"))
    held = [{example.target for example in split} for split in (splits.train, splits.val, splits.test)]
    assert all(held) and not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    assert splits.repeated == len(splits.test) - len(held[2])
