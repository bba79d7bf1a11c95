"""Examples: a prompt and a target, in three splits that share no prompt. No torch and no tokens here.

The order in which training rows are used depends on data_seed alone; see src/data/batches.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config.schema import DatasetConfig
from ..files.errors import ConfigError
from . import inputs, rows
from .cldr_names import cldr_rows
from .formats import FORMATS, POOLED, Messages, normalised


@dataclass(frozen=True)
class Example:
    id: str
    prompt: str | Messages  # a chat keeps its messages until the tokenizer's template is at hand
    target: str
    group: str  # examples of one group (the same source name, the same prompt) stay in one split
    choices: tuple[str, ...] = ()  # the targets between which a choice is made
    references: tuple[str, ...] = ()  # all targets that are known to be good, where there are several


@dataclass(frozen=True)
class Splits:
    train: list[Example]
    val: list[Example]
    test: list[Example]
    left_out: int = 0  # training rows left out because their prompt stands in validation or test as well
    repeated: int = 0  # test examples whose prompt stands earlier in the test split; they stay in it
    labels: tuple[str, ...] = ()  # of a label task: those given, or all that are targets

    def fingerprint(self) -> str:
        """SHA-256 over all examples in order: two runs with the same one saw the same data."""
        digest = hashlib.sha256()
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            for example in split:
                more = [example.choices, example.references] if example.choices or example.references else []
                digest.update(json.dumps([name, example.prompt, example.target, *more], ensure_ascii=False).encode())
        return digest.hexdigest()


def load(dataset: DatasetConfig) -> Splits:
    """Read the dataset.

    Raises:
        ConfigError: a file is missing, empty or malformed; the message names the file and the line.
    """
    if dataset.source == "cldr_names":
        splits = _split(dataset, list(cldr_rows_as_examples()))
    elif from_hub(dataset):
        splits = _load_hub(dataset)
    else:
        splits = _load_files(dataset)
    labels: Sequence[str] = dataset.labels or []
    if dataset.answer == "label" and not labels:
        labels = sorted({example.target.strip() for example in [*splits.train, *splits.val, *splits.test]})
    train = splits.train
    if dataset.train_examples is not None:
        train = sorted(train, key=lambda example: share_of(example.id))[: dataset.train_examples]
    repeated = len(splits.test) - len({_question(dataset, example) for example in splits.test})
    return replace(splits, train=train, repeated=repeated, labels=tuple(labels))


def load_test(dataset: DatasetConfig) -> Splits:
    """The test split alone, for a model that is only scored: training files are not needed where the test has its own.

    Raises:
        ConfigError: as ``load``.
    """
    whole: dict[str, Any] = {"val_share": 0.0, "test_share": 1.0, "train_examples": None}
    files: dict[str, Any] = {"train_files": None, "val_files": None, "test_files": None, "val_path": None, "test_path": None}
    if dataset.test_path:
        splits = load(replace(dataset, path=dataset.test_path, **whole, **files))
        if dataset.source != "task":  # rows of one's own are tested in the order of their file, so the first n are the same n
            splits.test.sort(key=lambda example: int(example.id.rpartition(":")[2]))
        return splits
    if from_hub(dataset) and dataset.test_split:
        return load(replace(dataset, train_split=dataset.test_split, val_split=None, test_split=None, **whole))
    if dataset.path and dataset.test_files and rows.holds_files(dataset.path):
        return load(replace(dataset, **whole, **files | {"train_files": dataset.test_files}))
    return load(dataset)


def from_hub(dataset: DatasetConfig) -> bool:
    return dataset.source == "hub" or (dataset.source == "task" and not dataset.path and dataset.id is not None)


def refuse_impossible(dataset: DatasetConfig, batch_size: int) -> Splits | None:
    """The splits if they can be read without a network; raises ConfigError where they cannot train or score."""
    if from_hub(dataset):
        if not dataset.id:
            raise ConfigError("dataset.id: dataset=hub needs the id of a Hugging Face dataset, dataset.id=OWNER/NAME")
        return None
    splits = load(dataset)
    where = f"dataset={dataset.name or dataset.source}"
    if len(splits.train) < batch_size:
        why = f" ({splits.left_out} more have prompts of the other splits)" if splits.left_out else ""
        raise ConfigError(f"train.batch_size={batch_size}: {where} has only {len(splits.train)} training examples{why}")
    refuse_empty(splits, dataset)
    if dataset.labels:
        known = {label.strip().casefold() for label in dataset.labels}
        # The training file of a named task may be that of several, each with labels of its own.
        for example in splits.test if dataset.source == "task" else [*splits.train, *splits.val, *splits.test]:
            if example.target.strip().casefold() not in known:
                raise ConfigError(f"dataset.labels: {example.id} has the target {example.target!r}, which is none of them")
    return splits


def refuse_empty(splits: Splits, dataset: DatasetConfig) -> None:
    """Raise ConfigError where nothing is left to validate or to test on."""
    for name, split in (("validation", splits.val), ("test", splits.test)):
        if not split:
            raise ConfigError(
                f"dataset={dataset.name or dataset.source}: no {name} examples are left; raise dataset.val_share and"
                " dataset.test_share or add rows"
            )


def cldr_rows_as_examples() -> Iterator[Example]:
    for kind, name, language, translation in cldr_rows():
        yield Example(f"{kind}/{name}/{language}", f'The {kind} "{name}" in {language} is "', translation, name)


def share_of(group: str) -> float:
    """A number in [0, 1) that depends on the group's text alone, so that a split never changes when rows are added."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def _question(dataset: DatasetConfig, example: Example) -> str:
    """What makes two examples the same question: their group, or a prompt of pairs whatever its letter case and white space."""
    prompt = example.prompt
    if dataset.format != "pairs":
        return example.group
    return normalised(prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False))


def _split(
    dataset: DatasetConfig, rows: list[Example], val: list[Example] | None = None, test: list[Example] | None = None
) -> Splits:
    """Take test and validation rows out of ``rows`` by group, unless given; no training question is in another split."""
    asked = {_question(dataset, example) for example in test or []}
    val_rows = val or []
    if dataset.source == "task":  # files of one's own are taken at their word
        val_rows = [example for example in val_rows if _question(dataset, example) not in asked]
    given = asked | {_question(dataset, example) for example in val_rows}
    fresh = [example for example in rows if _question(dataset, example) not in given] if given else rows
    test_below = 0.0 if test is not None else dataset.test_share
    val_below = test_below + (0.0 if val is not None else dataset.val_share)
    parts: dict[str, list[Example]] = {"train": [], "val": val_rows, "test": test or []}
    for example in fresh:
        share = share_of(example.group)
        parts["test" if share < test_below else "val" if share < val_below else "train"].append(example)
    for name, in_file in (("val", val), ("test", test)):
        if dataset.format in POOLED:
            parts[name] = _pooled(parts[name])
        # Held-out rows are read in the order of their hash, so that the first n of them are a fair sample.
        if in_file is None or dataset.source == "task":
            parts[name].sort(key=lambda example: share_of(example.id))
    return Splits(parts["train"], parts["val"], parts["test"], left_out=len(rows) - len(fresh))


def _pooled(examples: list[Example]) -> list[Example]:
    """One example for each group, with the targets of all as its references; its own target is the first."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return [replace(group[0], references=tuple(one.target for one in group)) for group in groups.values()]


def _load_files(dataset: DatasetConfig) -> Splits:
    path, name = dataset.path, dataset.name or dataset.source
    named = {split: getattr(dataset, f"{split}_files") or [] for split in ("train", "val", "test")}
    origin = f", from {dataset.files_from}" if dataset.files_from else ""
    if not path and not named["train"]:
        raise ConfigError(f"dataset.path: dataset={name} needs a file, dataset.path=FILE.jsonl")
    if not path or (named["train"] and inputs.is_missing(path)):
        needed = f"dataset={name} needs a folder with {', '.join(file for files in named.values() for file in files)}{origin}"
        raise ConfigError(f"dataset.path={path}: no such file or folder; {needed}" if path else f"dataset.path: {needed}")
    found: dict[str, list[rows.Source] | None] = {"train": None, "val": None, "test": None}
    if named["train"] and rows.holds_files(path):
        for split, files in named.items():
            found[split] = [rows.among(path, "dataset.path", file, dataset.files_from) for file in files] or None
    else:
        found["train"] = [rows.one(path, "dataset.path")]
    for split, own in (("val", dataset.val_path), ("test", dataset.test_path)):
        if own:
            found[split] = [rows.one(own, f"dataset.{split}_path")]
    read = {split: None if files is None else _examples(dataset, files) for split, files in found.items()}
    return _split(dataset, read["train"] or [], read["val"], read["test"])


def _examples(dataset: DatasetConfig, files: list[rows.Source]) -> list[Example]:
    """The examples of some files. Rows of one's own are grouped by their prompt to the letter: it decides their split."""
    exact = dataset.source == "jsonl" and dataset.format == "pairs"
    found = []
    for source in files:
        for number, where, value in rows.rows(source):
            read = FORMATS[dataset.format](value, where)
            group = json.dumps(read.prompt) if exact else read.question
            found.append(Example(f"{source.name}:{number}", read.prompt, read.target, group, read.choices))
    return found


def _load_hub(dataset: DatasetConfig) -> Splits:
    import datasets

    def examples(split: str) -> list[Example]:
        table = datasets.load_dataset(dataset.id, dataset.subset, split=split, revision=dataset.revision)
        if dataset.format != "pairs":
            where = f"dataset.id={dataset.id}: {split}, row"
            read = [FORMATS[dataset.format](row, f"{where} {number}") for number, row in enumerate(table)]
            return [
                Example(f"{split}:{number}", one.prompt, one.target, one.question, one.choices) for number, one in enumerate(read)
            ]
        missing = {dataset.prompt_column, dataset.target_column} - set(table.column_names)
        if missing:
            raise ConfigError(
                f"dataset.prompt_column, dataset.target_column: {dataset.id} has no column {', '.join(sorted(missing))}; "
                f"it has {', '.join(table.column_names)}"
            )
        found = []
        names = getattr(table.features[dataset.target_column], "int2str", str)  # a ClassLabel column holds numbers
        for number, row in enumerate(table):
            prompt, value = row[dataset.prompt_column], row[dataset.target_column]
            target = value if isinstance(value, str) else "" if value is None else names(value)
            if not isinstance(prompt, str) or not target.strip():
                raise ConfigError(f"dataset.id={dataset.id}: row {number} of {split} has no prompt text or no target")
            found.append(Example(f"{split}:{number}", prompt, target, prompt))
        return found

    val = examples(dataset.val_split) if dataset.val_split else None
    test = examples(dataset.test_split) if dataset.test_split else None
    return _split(dataset, examples(dataset.train_split), val, test)
