"""Read datasets as examples (a prompt and a target) in three splits that share no prompt. No torch and no tokens here.

The order in which training rows are used depends on data_seed alone; see src/data/batches.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config.schema import DatasetConfig
from ..files.errors import ConfigError
from . import hub, inputs, leaks, rows, sources
from .cldr_names import cldr_rows
from .columns import Reader, column_map
from .formats import POOLED, Messages, ParsedRow
from .sources import from_hub


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
    left_out: int = 0  # rows left out because their question is in a split that is held out from them as well
    leaking: int = 0  # training rows kept although their question, but for its spelling, is in validation or test
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


def load(dataset: DatasetConfig, is_part: bool = False) -> Splits:
    """Read the dataset and split it. ``is_part``: not all of its files are read, so a column may be in none of them.

    Raises:
        ConfigError: a file is missing, empty or malformed; the message names the file and the line.
    """
    reader = Reader(dataset)
    if dataset.source == "cldr_names":
        splits = _split(dataset, list(cldr_rows_as_examples()))
    elif from_hub(dataset):
        splits = _load_hub(dataset, reader)
    else:
        splits = _load_files(dataset, reader)
    if not is_part and dataset.ignore_columns not in sources.written(dataset, "ignore_columns"):
        reader.refuse_unknown()
    labels: Sequence[str] = dataset.labels or []
    if dataset.answer == "label" and not labels:
        labels = sorted({example.target.strip() for example in [*splits.train, *splits.val, *splits.test]})
    train = splits.train
    if dataset.train_examples is not None:
        train = sorted(train, key=lambda example: share_of(example.id))[: dataset.train_examples]
    repeated = len(splits.test) - len({_question(dataset, example, dataset.leaks) for example in splits.test})
    return replace(splits, train=train, repeated=repeated, labels=tuple(labels))


def load_test(dataset: DatasetConfig) -> Splits:
    """Read the test split alone, for a model that is only scored; needs no training files where the test set has its own.

    Raises:
        ConfigError: as ``load``.
    """
    whole: dict[str, Any] = {"val_share": 0.0, "test_share": 1.0, "train_examples": None}
    files: dict[str, Any] = {"train_files": None, "val_files": None, "test_files": None, "val_path": None, "test_path": None}
    if dataset.test_path:
        splits = load(replace(dataset, path=dataset.test_path, **whole, **files), is_part=True)
        if dataset.source != "task":  # the user's own rows are tested in the order of the file, so that the first n stay the same
            splits.test.sort(key=lambda example: int(example.id.rpartition(":")[2]))
        return splits
    if from_hub(dataset) and dataset.test_split:
        return load(replace(dataset, train_split=dataset.test_split, val_split=None, test_split=None, **whole), is_part=True)
    if dataset.path and dataset.test_files and rows.holds_files(dataset.path):
        return load(replace(dataset, **whole, **files | {"train_files": dataset.test_files}), is_part=True)
    return load(dataset)


def refuse_impossible(dataset: DatasetConfig, batch_size: int) -> Splits | None:
    """Read the splits if that needs no network, else return None. Raises ConfigError where they cannot train or score."""
    sources.refuse_idle(dataset)
    if from_hub(dataset):
        column_map(dataset)
        if not dataset.id:
            raise ConfigError("dataset.id: dataset=hub needs the id of a Hugging Face dataset, dataset.id=OWNER/NAME")
        return None
    splits = load(dataset)
    refuse_empty(splits, dataset)
    where = f"dataset={dataset.name or dataset.source}"
    if len(splits.train) < batch_size:
        why = f" ({splits.left_out} more have prompts of the other splits)" if splits.left_out else ""
        raise ConfigError(f"train.batch_size={batch_size}: {where} has only {len(splits.train)} training examples{why}")
    if dataset.labels:
        known = {label.strip().casefold() for label in dataset.labels}
        # Several named tasks may share one training file, each with its own labels.
        for example in splits.test if dataset.source == "task" else [*splits.train, *splits.val, *splits.test]:
            if example.target.strip().casefold() not in known:
                raise ConfigError(f"dataset.labels: {example.id} has the target {example.target!r}, which is none of them")
    return splits


def refuse_empty(splits: Splits, dataset: DatasetConfig) -> None:
    """Raise ConfigError where a split is empty; the line says which shares would leave none empty, if there are any."""
    empty = [name for name in ("train", "val", "test") if not getattr(splits, name)]
    if not empty:
        return
    words = {"train": "training", "val": "validation", "test": "test"}
    total = len(splits.train) + len(splits.val) + len(splits.test)
    why = f", as {splits.left_out} more ask questions of the other splits" if splits.left_out else ""
    helps = _shares_that_help(splits, dataset)
    remedy = f"{helps} leaves some in each, or add rows" if helps else "add rows"
    raise ConfigError(
        f"dataset={dataset.name or dataset.source}: no {' and no '.join(words[name] for name in empty)} examples are left of"
        f" {total}{why}; {remedy}"
    )


def _shares_that_help(splits: Splits, dataset: DatasetConfig) -> str:
    """Find the smallest shares, at least those of the config, that leave no split empty; an empty text where none do."""
    shares = sorted({share_of(example.group) for split in (splits.train, splits.val, splits.test) for example in split})
    test_share, val_share = dataset.test_share, dataset.val_share
    if not splits.test and shares:
        test_share = max(test_share, _above(shares[0]))
    if beyond := [share for share in shares if share >= test_share]:
        val_share = max(val_share, _above(beyond[0] - test_share))
    larger = replace(dataset, test_share=test_share, val_share=val_share)
    changed = {
        key: share for key, share in (("test", test_share), ("val", val_share)) if share != getattr(dataset, f"{key}_share")
    }
    if not changed or test_share + val_share >= 1:
        return ""
    tried = load(larger, is_part=True)
    if not (tried.train and tried.val and tried.test):
        return ""
    return " ".join(f"dataset.{key}_share={share:g}" for key, share in changed.items())


def _above(share: float) -> float:
    """Round up to a share of four digits that is larger."""
    return (int(share * 10_000) + 1) / 10_000


def cldr_rows_as_examples() -> Iterator[Example]:
    """Phrase the rows of the CLDR tables as prompts with an open quotation mark before the target."""
    for kind, name, language, translation in cldr_rows():
        yield Example(f"{kind}/{name}/{language}", f'The {kind} "{name}" in {language} is "', translation, name)


def share_of(group: str) -> float:
    """Hash a group's text to a number in [0, 1), so that its split does not change when rows are added."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def _question(dataset: DatasetConfig, example: Example, mode: str) -> str:
    """Make the key that two examples of one question share; ``mode`` is a value of dataset.leaks."""
    if dataset.format == "pairs":
        return leaks.same_question(example.prompt or example.target, mode)
    return example.group if mode == "exact" else leaks.spelled(example.group)


def _asked(dataset: DatasetConfig, example: Example, mode: str) -> set[str]:
    """Make the keys of all questions of an example whose answers carry loss: with dataset.turns=all a chat has several."""
    keys = {_question(dataset, example, mode)}
    if dataset.turns == "all" and not isinstance(example.prompt, str):
        turns = [place for place, message in enumerate(example.prompt) if message["role"] == "assistant"]
        keys |= {leaks.same_question(example.prompt[:place], mode) for place in turns if place}
    return keys


def _split(
    dataset: DatasetConfig, rows: list[Example], val: list[Example] | None = None, test: list[Example] | None = None
) -> Splits:
    """Split ``rows`` by group where ``val`` or ``test`` is None; leave out rows whose question is held out from their split."""
    test_below = 0.0 if test is not None else dataset.test_share
    val_below = test_below + (0.0 if val is not None else dataset.val_share)
    parts: dict[str, list[Example]] = {"train": [], "val": val or [], "test": test or []}
    for example in rows:
        share = share_of(example.group)
        parts["test" if share < test_below else "val" if share < val_below else "train"].append(example)

    def questions(name: str, mode: str) -> set[str]:
        return {key for example in parts[name] for key in _asked(dataset, example, mode)}

    def leave_out(name: str, held_out: set[str]) -> int:
        kept = [example for example in parts[name] if held_out.isdisjoint(_asked(dataset, example, dataset.leaks))]
        parts[name], before = kept, len(parts[name])
        return before - len(kept)

    left_out = 0
    if dataset.leaks != "off":
        # A user's own validation and test files stay as they are; rows that we split give way to them.
        if test is None and val is not None:
            left_out += leave_out("test", questions("val", dataset.leaks))
        elif val is None:
            left_out += leave_out("val", questions("test", dataset.leaks))
    if val is not None and dataset.source == "task" and test is not None:
        leave_out("val", questions("test", dataset.leaks))
    if dataset.leaks != "off":
        left_out += leave_out("train", questions("test", dataset.leaks) | questions("val", dataset.leaks))
    leaking = 0
    if dataset.leaks != "near":
        held_out = questions("test", "near") | questions("val", "near")
        leaking = sum(not held_out.isdisjoint(_asked(dataset, example, "near")) for example in parts["train"])
    for name, in_file in (("val", val), ("test", test)):
        if dataset.format in POOLED:
            parts[name] = _pooled(parts[name])
        # Held-out rows are read in the order of their hash, so that the first n of them are a fair sample.
        if in_file is None or dataset.source == "task":
            parts[name].sort(key=lambda example: share_of(example.id))
    return Splits(parts["train"], parts["val"], parts["test"], left_out=left_out, leaking=leaking)


def _pooled(examples: list[Example]) -> list[Example]:
    """Merge each group into its first example, with the targets of all as references."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return [replace(group[0], references=tuple(example.target for example in group)) for group in groups.values()]


def _load_files(dataset: DatasetConfig, reader: Reader) -> Splits:
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
    examples = {
        split: None if opened is None else [
            example for file in opened for example in _examples(dataset, reader, rows.rows(file), file.name)
        ]
        for split, opened in files.items()
    }  # fmt: skip
    return _split(dataset, examples["train"] or [], examples["val"], examples["test"])


def _examples(dataset: DatasetConfig, reader: Reader, numbered: Iterable[rows.Row], file: str) -> Iterator[Example]:
    for number, where, value in numbered:
        row = reader.read(value, where)
        yield Example(f"{file}:{number}", row.prompt, row.target, _group(dataset, row), row.choices, tools=row.tools)


def _group(dataset: DatasetConfig, row: ParsedRow) -> str:
    """Name the group of a row, which decides its split: the question, or the exact prompt of the user's own pairs."""
    if dataset.format != "pairs" or dataset.source == "task":
        return row.question
    asked = row.prompt or row.target  # of a text without a prompt, the text
    return asked if dataset.source == "hub" and isinstance(asked, str) else json.dumps(asked)


def _load_hub(dataset: DatasetConfig, reader: Reader) -> Splits:
    def examples(split: str) -> list[Example]:
        return list(_examples(dataset, reader, hub.rows(dataset, split), split))

    val = examples(dataset.val_split) if dataset.val_split else None
    test = examples(dataset.test_split) if dataset.test_split else None
    return _split(dataset, examples(dataset.train_split), val, test)
