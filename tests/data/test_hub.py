"""Rows of the hub are read as rows of files are: with their labels' names, mapped, ignored, or refused by name."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from src.config.schema import DatasetConfig
from src.data.datasets import load
from src.files.errors import ConfigError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the hub have these rows."""

    def serve(rows: list[dict[str, Any]], **features: Any) -> None:
        table = datasets.Dataset.from_list(rows)
        for name, feature in features.items():
            table = table.cast_column(name, feature)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)

    return serve


def config(**settings: Any) -> DatasetConfig:
    return DatasetConfig(name="hub", source="hub", id="a/b", **settings)


def test_chats_and_their_tools_come_without_the_empty_keys_of_tables(hub: Any) -> None:
    call = [{"function": {"name": "add", "arguments": {"x": 1}}}]
    other = [{"function": {"name": "say", "arguments": {"word": "a"}}}]
    end = [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "a"}]
    middles = [{"role": "assistant", "content": None, "tool_calls": calls} for calls in (call, other)]
    hub([{"messages": [{"role": "user", "content": f"q{n}"}, middles[n % 2], *end]} for n in range(40)])
    splits = load(config())
    for example in splits.train:
        assert isinstance(example.prompt, list)
        first, second, third = example.prompt
        number = int(first["content"][1:])
        assert (first, third) == ({"role": "user", "content": f"q{number}"}, {"role": "tool", "content": "2"})
        assert second == {"role": "assistant", "content": "", "tool_calls": (call, other)[number % 2]}


def test_labels_have_names_and_a_label_that_is_kept_back_is_refused(hub: Any) -> None:
    names = datasets.ClassLabel(names=["no", "yes"])
    hub([{"prompt": f"q{n}", "target": n % 2} for n in range(40)], target=names)
    assert {example.target for example in load(config()).train} == {"no", "yes"}
    hub([{"prompt": "q", "target": -1}], target=names)
    with pytest.raises(ConfigError, match=r"dataset\.id=a/b: train, row 0: no target; needs 'prompt' and 'target'"):
        load(config())


def test_a_number_is_an_answer_and_a_list_is_none(hub: Any) -> None:
    hub([{"question": f"q{n}", "value": n} for n in range(40)])
    columns = {"prompt": "question", "target": "value"}
    splits = load(config(columns=columns))
    read = {example.prompt: example.target for example in [*splits.train, *splits.val, *splits.test]}
    assert read == {f"q{n}": str(n) for n in range(40)}
    hub([{"question": "q", "value": ["a", "b"]}])
    with pytest.raises(ConfigError, match="row 0: no target; needs 'prompt' and 'target', each a text; 'target' is no text"):
        load(config(columns=columns))


def test_a_column_more_is_refused(hub: Any) -> None:
    hub([{"prompt": "q", "target": "a", "source": "web"}])
    with pytest.raises(ConfigError, match="train, row 0: has keys that are not read: source; name them in"):
        load(config())
