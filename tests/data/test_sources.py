"""A key of dataset that does nothing with the source at hand is refused; what conf/dataset itself sets is not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from src.command.cli import compose
from src.config.schema import CONF_FOLDER, DatasetConfig
from src.data.datasets import refuse_impossible
from src.data.sources import READERS, kind, refuse_idle
from src.files.errors import ConfigError

NAMED = sorted(path.stem for path in (CONF_FOLDER / "dataset").glob("*.yaml"))
# A value of each key that is not its default.
SET: dict[str, object] = {
    "format": "e2e", "path": "x.jsonl", "val_path": "v.jsonl", "test_path": "t.jsonl", "train_files": ["a"], "val_files": ["b"],
    "test_files": ["c"], "files_from": "somewhere", "id": "a/b", "revision": "abc", "subset": "s", "train_split": "t",
    "val_split": "v", "test_split": "s", "prompt_column": "p", "target_column": "t", "columns": {"prompt": "q"},
    "ignore_columns": ["id"],
}  # fmt: skip
SOURCES = {
    "cldr_names": DatasetConfig(name="cldr_names", source="cldr_names"),
    "file": DatasetConfig(name="jsonl", source="jsonl", path="rows.jsonl"),
    "folder": DatasetConfig(name="jsonl", source="jsonl", path="."),
    "hub": DatasetConfig(name="hub", source="hub", id="a/c"),
}


def test_the_table_names_keys_of_the_schema_and_kinds_of_sources() -> None:
    assert set(READERS) == set(SET) <= {entry.name for entry in fields(DatasetConfig)}
    assert {kind(dataset) for dataset in SOURCES.values()} == set(SOURCES)
    assert {place for places in READERS.values() for place in places} < set(SOURCES)


@pytest.mark.parametrize("key", sorted(READERS))
@pytest.mark.parametrize("place", sorted(SOURCES))
def test_a_key_is_read_or_refused(place: str, key: str) -> None:
    dataset = DatasetConfig(**vars(SOURCES[place]) | {key: SET[key]})
    if key == "path" and place == "folder":
        return  # another path is another kind of source
    if place in READERS[key]:
        refuse_idle(dataset)
    else:
        with pytest.raises(ConfigError, match=rf"^dataset\.{key}: does nothing with dataset={dataset.name}"):
            refuse_idle(dataset)


@pytest.mark.parametrize("name", NAMED)
def test_what_conf_dataset_sets_is_not_refused(name: str) -> None:
    for more in ([], ["dataset.path=rows.jsonl"], ["dataset.path=."]):
        if not (more and name in ("cldr_names", "hub")):
            refuse_idle(compose([f"dataset={name}", *more]).dataset)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dataset=jsonl", "dataset.path=a.jsonl", "dataset.subset=x"], "dataset.subset: does nothing with dataset=jsonl"),
        (["dataset.path=a.jsonl"], "dataset.path: does nothing with dataset=cldr_names"),
        (["dataset=hub", "dataset.id=a/b", "dataset.path=a.jsonl"], "dataset.path: does nothing with dataset=hub"),
        (
            ["dataset=gsm8k", "dataset.val_path=a.jsonl"],
            "dataset.val_path: does nothing with dataset=gsm8k, whose rows are the hub's",
        ),
        (["dataset=gsm8k", "dataset.path=.", "dataset.subset=x"], "dataset.subset: does nothing with dataset=gsm8k and a folder"),
        (["dataset=gsm8k", "dataset.prompt_column=x"], "dataset.prompt_column: does nothing with dataset.format=gsm8k"),
        (["dataset=gsm8k", "dataset.test_share=0.3"], "dataset.test_share: does nothing beside dataset.test_split"),
        (["dataset=gsm8k", "dataset.path=.", "dataset.test_share=0.3"], "test_share: does nothing beside dataset.test_files"),
        (
            ["dataset=jsonl", "dataset.path=a.jsonl", "dataset.val_path=b.jsonl", "dataset.val_share=0.3"],
            "dataset.val_share: does nothing beside dataset.val_path",
        ),
        (["dataset=hub", "dataset.id=a/b", "dataset.columns={promt: q}"], "reads no promt (did you mean prompt?)"),
    ],
)
def test_planning_refuses_it_in_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_impossible(compose(overrides).dataset, 1)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_typed_out_are_no_keys(folder: Path) -> None:
    typed = [
        "dataset=cldr_names",
        "dataset.path=null",
        "dataset.train_split=train",
        "dataset.val_share=0.1",
        "dataset.columns={}",
    ]
    assert refuse_impossible(compose(typed).dataset, 1) is not None
    refuse_idle(compose(["dataset=gsm8k", "dataset.name=mine", "dataset.path=rows.jsonl"]).dataset)
