"""Every key of a row is read, or named in a refusal; columns can be mapped and ignored in every format and kind of file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from src.config.schema import DatasetConfig
from src.data.columns import FORMATS, Reader
from src.data.datasets import load, load_test
from src.files.errors import ConfigError

REMEDY = "name them in dataset.columns or dataset.ignore_columns"
# A row of each layout of each format.
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [
        {"context": "c", "target": "t"},
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "target": "t"},
        {"system": "s", "prompt": "p", "completion": "c"},
        {"instruction": "i", "input": "n", "output": "o"},
        {"text": "t"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ],
    "gsm8k": [{"question": "q", "answer": "#### 4"}],
    "commonsense": [
        {"instruction": "Q? Answer format: a/b", "input": "", "output": "the correct answer is a", "answer": "a"},
        {"question": "q", "answer": True, "passage": "p"},
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A", "id": "7"},
        {"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A", "id": "7"},
    ],
    "banking77": [{"text": "t", "category": "c"}, {"text": "t", "label_text": "c", "label": 3}],
    "e2e": [{"mr": "m", "ref": "r"}, {"meaning_representation": "m", "human_reference": "r"}],
}
EACH = [(name, row) for name, rows in ROWS.items() for row in rows]


def reader(**settings: Any) -> Reader:
    return Reader(DatasetConfig(**settings))


def refusal(row: object, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        reader(**settings).read(row, "rows, line 3")
    return str(caught.value)


def test_the_rows_of_this_test_are_of_all_formats() -> None:
    assert set(ROWS) == set(FORMATS)
    assert all(len(ROWS[name]) >= len(shapes) for name, shapes in FORMATS.items())


@pytest.mark.parametrize(("name", "row"), EACH)
def test_a_key_more_is_refused_by_name_ignored_by_name_and_absent_where_it_is_empty(name: str, row: dict[str, Any]) -> None:
    plain = reader(format=name).read(row, "")
    assert refusal(row | {"hint": "h"}, format=name) == f"rows, line 3: has keys that are not read: hint; {REMEDY}"
    assert reader(format=name, ignore_columns=["hint"]).read(row | {"hint": "h"}, "") == plain
    assert reader(format=name).read(row | {"hint": None}, "") == plain


@pytest.mark.parametrize(("name", "row"), EACH)
def test_each_key_that_a_format_reads_can_have_another_name(name: str, row: dict[str, Any]) -> None:
    idle = {key for shape in FORMATS[name] if set(shape.needs) <= set(row) for key in shape.idle}
    columns = {key: f"the {key}" for key in row if key not in idle}
    renamed = {columns.get(key, key): value for key, value in row.items()}
    assert reader(format=name, columns=columns).read(renamed, "") == reader(format=name).read(row, "")


def test_a_question_beside_its_context_is_not_dropped() -> None:
    row = {"context": "Town 3 has 3 bridges.", "question": "How many bridges?", "target": "3"}
    assert refusal(row) == f"rows, line 3: has keys that are not read: question; {REMEDY}"
    # The map turns the question into the prompt; the context is then what is not read.
    assert refusal(row, columns={"prompt": "question"}) == f"rows, line 3: has keys that are not read: context; {REMEDY}"
    read = reader(columns={"prompt": "question"}, ignore_columns=["context"]).read(row, "")
    assert (read.prompt, read.target) == ("How many bridges?", "3")


def test_a_key_that_the_map_gives_another_meaning_is_not_dropped() -> None:
    row = {"prompt": "p", "question": "q", "completion": "c"}
    assert "not read: prompt;" in refusal(row, columns={"prompt": "question"})
    swapped = reader(columns={"prompt": "target", "target": "prompt"}).read({"prompt": "a", "target": "b"}, "")
    assert (swapped.prompt, swapped.target) == ("b", "a")


def test_two_layouts_in_one_row_are_refused() -> None:
    messages = ROWS["pairs"][6]["messages"]
    assert "not read: target;" in refusal({"prompt": "p", "completion": "c", "target": "t"})
    assert "not read: messages;" in refusal({"prompt": "p", "completion": "c", "messages": messages})
    assert "not read: text;" in refusal({"instruction": "i", "output": "o", "text": "all of it"})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "has 'chosen' and 'rejected', as preference pairs do"),
        ({"question": "q", "answer": "a"}, "it has question, answer; dataset.columns={prompt: NAME,target: NAME} reads others"),
        ({"context": "c"}, "no target; needs 'context' and 'target', each a text; 'target' is missing; it has context"),
        ({}, "it has none;"),
        ({"prompt": "p", "completion": "c", "a\nb": "x"}, r"not read: 'a\nb';"),
        ({"prompt": "p", "completion": "c", **{f"k{n}": n for n in range(12)}}, "k9 and 2 more;"),
        ({"prompt": "p", "completion": "c", "tools": []}, "has 'tools' beside a prompt that is a text"),
        ({"prompt": None, "completion": "c"}, "needs the keys 'prompt' and 'completion'"),
    ],
)
def test_what_is_refused_says_what_to_do(row: object, says: str) -> None:
    assert says in refusal(row)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"columns": {"prompt": "qestion"}}, "has no column qestion, which dataset.columns names (did you mean question?)"),
        ({"prompt_column": "qestion"}, "has no column qestion, which dataset.prompt_column names (did you mean question?)"),
        ({"columns": {"promt": "question"}}, "dataset.columns: dataset.format=pairs reads no promt (did you mean prompt?)"),
        ({"columns": {"prompt": "question", "target": "question"}}, "dataset.columns: question is named twice"),
        ({"columns": {"prompt": "question"}, "ignore_columns": ["question"]}, "question is read, as dataset.columns names it"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reader(**settings).read({"question": "q", "answer": "a"}, "rows, line 3")
    assert says in str(caught.value)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows in the format of the file's name."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_all_kinds_of_files_are_mapped_and_refused_in_the_same_way(folder: Path, name: str) -> None:
    path = str(write(folder / name, [{"question": f"q{n}", "answer": f"a{n}", "id": f"i{n}"} for n in range(40)]))
    place = f"dataset.path: {path}, {'line' if name == 'a.jsonl' else 'row'} 1"
    short = DatasetConfig(path=path, prompt_column="question", target_column="answer")
    with pytest.raises(ConfigError) as caught:
        load(short)
    assert str(caught.value) == f"{place}: has keys that are not read: id; {REMEDY}"
    short.ignore_columns = ["id"]
    mapped = DatasetConfig(path=path, columns={"prompt": "question", "target": "answer"}, ignore_columns=["id"])
    splits = load(mapped)
    assert splits.fingerprint() == load(short).fingerprint()
    read = {example.prompt: example.target for example in [*splits.train, *splits.val, *splits.test]}
    assert read == {f"q{n}": f"a{n}" for n in range(40)}
    mapped.ignore_columns = ["id", "answr"]
    with pytest.raises(ConfigError, match=r"dataset\.ignore_columns: no row has answr \(did you mean answer\?\); the rows have"):
        load(mapped)


def test_a_column_of_the_training_file_alone_may_be_ignored(folder: Path) -> None:
    train = write(folder / "train.jsonl", [{"prompt": f"p{n}", "target": "t", "id": "i"} for n in range(9)])
    test = write(folder / "test.jsonl", [{"prompt": f"q{n}", "target": "t"} for n in range(3)])
    dataset = DatasetConfig(path=str(train), test_path=str(test), ignore_columns=["id"])
    assert len(load(dataset).test) == len(load_test(dataset).test) == 3


def test_one_file_is_asked_in_one_way(folder: Path) -> None:
    rows = [{"prompt": "p", "completion": "c"}, {"system": "s", "prompt": "p", "completion": "c"}]
    texts = reader()
    texts.read(rows[0], "line 1")
    with pytest.raises(ConfigError, match=r"^line 2: is a chat .* and line 1 is a text; dataset\.chat_template=true makes chats"):
        texts.read(rows[1], "line 2")
    templated = reader(chat_template=True)
    assert [templated.read(row, "").target for row in rows] == ["c", "c"]
    with pytest.raises(ConfigError, match="line 3: has no prompt that a chat template could hold"):
        templated.read({"text": "t"}, "line 3")
