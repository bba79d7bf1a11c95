"""Read datasets as examples (a prompt and a target) in three splits that share no prompt. No torch and no tokens here.

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
from .formats import FORMATS, POOLED, Messages, normalized


@dataclass(frozen=True)
class Example:
    id: str
    prompt: str | Messages  # a chat stays a list of messages until the tokenizer's template is applied
    target: str
    group: str  # examples of one group (the same source name, the same prompt) stay in one split
    choices: tuple[str, ...] = ()  # the possible targets of a multiple-choice question
    references: tuple[str, ...] = ()  # all good targets, where there are several
    tools: list[dict[str, Any]] | None = None  # of a chat, as its template takes them


@dataclass(frozen=True)
class Splits:
    train: list[Example]
    val: list[Example]
    test: list[Example]
    left_out: int = 0  # training rows left out because their prompt is in validation or test as well
    repeated: int = 0  # test examples whose prompt occurs earlier in the test split; they stay in it
    labels: tuple[str, ...] = ()  # of a label task: dataset.labels, or else all targets

    def fingerprint(self) -> str:
        """Hash all examples in order (SHA-256): two runs with the same fingerprint saw the same data."""
        digest = hashlib.sha256()
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            for example in split:
                more: list[Any] = [example.choices, example.references] if example.choices or example.references else []
                more += [example.tools] if example.tools else []
                digest.update(json.dumps([name, example.prompt, example.target, *more], ensure_ascii=False).encode())
        return digest.hexdigest()


def load(dataset: DatasetConfig) -> Splits:
    """Read the dataset and split it.

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
    """Read the test split alone, for a model that is only scored; needs no training files where the test set has its own.

    Raises:
        ConfigError: as ``load``.
    """
    whole: dict[str, Any] = {"val_share": 0.0, "test_share": 1.0, "train_examples": None}
    files: dict[str, Any] = {"train_files": None, "val_files": None, "test_files": None, "val_path": None, "test_path": None}
    if dataset.test_path:
        splits = load(replace(dataset, path=dataset.test_path, **whole, **files))
        if dataset.source != "task":  # the user's own rows are tested in the order of the file, so that the first n stay the same
            splits.test.sort(key=lambda example: int(example.id.rpartition(":")[2]))
        return splits
    if from_hub(dataset) and dataset.test_split:
        return load(replace(dataset, train_split=dataset.test_split, val_split=None, test_split=None, **whole))
    if dataset.path and dataset.test_files and rows.holds_files(dataset.path):
        return load(replace(dataset, **whole, **files | {"train_files": dataset.test_files}))
    return load(dataset)


def from_hub(dataset: DatasetConfig) -> bool:
    """Tell whether the rows come from the Hugging Face hub."""
    return dataset.source == "hub" or (dataset.source == "task" and not dataset.path and dataset.id is not None)


def refuse_impossible(dataset: DatasetConfig, batch_size: int) -> Splits | None:
    """Read the splits if that needs no network, else return None. Raises ConfigError where they cannot train or score."""
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
        # Several named tasks may share one training file, each with its own labels.
        for example in splits.test if dataset.source == "task" else [*splits.train, *splits.val, *splits.test]:
            if example.target.strip().casefold() not in known:
                raise ConfigError(f"dataset.labels: {example.id} has the target {example.target!r}, which is none of them")
    return splits


def refuse_empty(splits: Splits, dataset: DatasetConfig) -> None:
    """Raise ConfigError where the validation or the test split is empty."""
    for name, split in (("validation", splits.val), ("test", splits.test)):
        if not split:
            raise ConfigError(
                f"dataset={dataset.name or dataset.source}: no {name} examples are left; raise dataset.val_share and"
                " dataset.test_share or add rows"
            )


def cldr_rows_as_examples() -> Iterator[Example]:
    """Phrase the rows of the CLDR tables as prompts with an open quotation mark before the target."""
    for kind, name, language, translation in cldr_rows():
        yield Example(f"{kind}/{name}/{language}", f'The {kind} "{name}" in {language} is "', translation, name)


def share_of(group: str) -> float:
    """Hash a group's text to a number in [0, 1), so that its split does not change when rows are added."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def _question(dataset: DatasetConfig, example: Example) -> str:
    """Make the key that two examples of one question share: the group; for pairs, the prompt without case and white space."""
    prompt = example.prompt
    if dataset.format != "pairs":
        return example.group
    return normalized(prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False))


def _split(
    dataset: DatasetConfig, rows: list[Example], val: list[Example] | None = None, test: list[Example] | None = None
) -> Splits:
    """Split ``rows`` by group where ``val`` or ``test`` is None; leave out training questions of the other splits."""
    test_questions = {_question(dataset, example) for example in test or []}
    val_rows = val or []
    if dataset.source == "task":  # the user's own validation file is used as it is
        val_rows = [example for example in val_rows if _question(dataset, example) not in test_questions]
    held_out = test_questions | {_question(dataset, example) for example in val_rows}
    fresh = [example for example in rows if _question(dataset, example) not in held_out] if held_out else rows
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
    """Merge each group into its first example, with the targets of all as references."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return [replace(group[0], references=tuple(example.target for example in group)) for group in groups.values()]


def _load_files(dataset: DatasetConfig) -> Splits:
    path, name = dataset.path, dataset.name or dataset.source
    named = {split: getattr(dataset, f"{split}_files") or [] for split in ("train", "val", "test")}
    origin = f", from {dataset.files_from}" if dataset.files_from else ""
    if not path and not named["train"]:
        raise ConfigError(f"dataset.path: dataset={name} needs a file, dataset.path=FILE.jsonl")
    if not path or (named["train"] and inputs.is_missing(path)):
        needed = f"dataset={name} needs a folder with {', '.join(file for members in named.values() for file in members)}{origin}"
        raise ConfigError(f"dataset.path={path}: no such file or folder; {needed}" if path else f"dataset.path: {needed}")
    files: dict[str, list[rows.File] | None] = {"train": None, "val": None, "test": None}
    if named["train"] and rows.holds_files(path):
        for split, members in named.items():
            files[split] = [rows.open_member(path, "dataset.path", name, dataset.files_from) for name in members] or None
    else:
        files["train"] = [rows.open_file(path, "dataset.path")]
    for split, own_path in (("val", dataset.val_path), ("test", dataset.test_path)):
        if own_path:
            files[split] = [rows.open_file(own_path, f"dataset.{split}_path")]
    examples = {split: None if opened is None else _examples(dataset, opened) for split, opened in files.items()}
    return _split(dataset, examples["train"] or [], examples["val"], examples["test"])


def _examples(dataset: DatasetConfig, files: list[rows.File]) -> list[Example]:
    """Parse the rows of files. Pairs of the user's own are grouped by their exact prompt, which decides their split."""
    exact = dataset.source == "jsonl" and dataset.format == "pairs"
    examples = []
    for file in files:
        for number, where, value in rows.rows(file):
            row = FORMATS[dataset.format](value, where)
            group = json.dumps(row.prompt) if exact else row.question
            examples.append(Example(f"{file.name}:{number}", row.prompt, row.target, group, row.choices))
    return examples


def _load_hub(dataset: DatasetConfig) -> Splits:
    import datasets

    def examples(split: str) -> list[Example]:
        table = datasets.load_dataset(dataset.id, dataset.subset, split=split, revision=dataset.revision)
        if dataset.format != "pairs":
            where = f"dataset.id={dataset.id}: {split}, row"
            parsed = [FORMATS[dataset.format](row, f"{where} {number}") for number, row in enumerate(table)]
            return [
                Example(f"{split}:{number}", row.prompt, row.target, row.question, row.choices)
                for number, row in enumerate(parsed)
            ]
        missing = {dataset.prompt_column, dataset.target_column} - set(table.column_names)
        if missing:
            raise ConfigError(
                f"dataset.prompt_column, dataset.target_column: {dataset.id} has no column {', '.join(sorted(missing))}; "
                f"it has {', '.join(table.column_names)}"
            )
        pairs = []
        names = getattr(table.features[dataset.target_column], "int2str", str)  # a ClassLabel column holds numbers
        for number, row in enumerate(table):
            prompt, value = row[dataset.prompt_column], row[dataset.target_column]
            target = value if isinstance(value, str) else "" if value is None else names(value)
            if not isinstance(prompt, str) or not target.strip():
                raise ConfigError(f"dataset.id={dataset.id}: row {number} of {split} has no prompt text or no target")
            pairs.append(Example(f"{split}:{number}", prompt, target, prompt))
        return pairs

    val = examples(dataset.val_split) if dataset.val_split else None
    test = examples(dataset.test_split) if dataset.test_split else None
    return _split(dataset, examples(dataset.train_split), val, test)
