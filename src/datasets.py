"""Examples: a prompt and a target, in three splits that share no prompt. No torch and no tokens here.

The order in which training rows are used depends on data_seed alone; see src/batches.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src import inputs
from src.cldr_names import cldr_rows
from src.config import ConfigError, DatasetConfig

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Example:
    id: str
    prompt: str | Messages  # a chat keeps its messages until the tokenizer's template is at hand
    target: str
    group: str  # examples of one group (the same source name, the same prompt) stay in one split


@dataclass(frozen=True)
class Splits:
    train: list[Example]
    val: list[Example]
    test: list[Example]
    left_out: int = 0  # training rows left out because their prompt stands in validation or test as well

    def fingerprint(self) -> str:
        """SHA-256 over all examples in order: two runs with the same one saw the same data."""
        digest = hashlib.sha256()
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            for example in split:
                digest.update(json.dumps([name, example.prompt, example.target], ensure_ascii=False).encode())
        return digest.hexdigest()


def load(dataset: DatasetConfig) -> Splits:
    """Read the dataset.

    Raises:
        ConfigError: a file is missing, empty or malformed; the message names the file and the line.
    """
    if dataset.source == "cldr_names":
        return _limit(dataset, _split(dataset, list(cldr_rows_as_examples())))
    if dataset.source == "jsonl":
        if not dataset.path:
            raise ConfigError("dataset.path: dataset=jsonl needs a file, dataset.path=FILE.jsonl")
        train = _read_jsonl(dataset.path, "dataset.path")
        val = _read_jsonl(dataset.val_path, "dataset.val_path") if dataset.val_path else None
        test = _read_jsonl(dataset.test_path, "dataset.test_path") if dataset.test_path else None
        return _limit(dataset, _split(dataset, train, val, test))
    return _limit(dataset, _load_hub(dataset))


def refuse_impossible(dataset: DatasetConfig, batch_size: int) -> Splits | None:
    """The splits if they can be read without a network; raises ConfigError where they cannot train or score."""
    if dataset.source == "hub":
        if not dataset.id:
            raise ConfigError("dataset.id: dataset=hub needs the id of a Hugging Face dataset, dataset.id=OWNER/NAME")
        return None
    splits = load(dataset)
    where = f"dataset={dataset.name or dataset.source}"
    if len(splits.train) < batch_size:
        why = f" ({splits.left_out} more have prompts of the other splits)" if splits.left_out else ""
        raise ConfigError(f"train.batch_size={batch_size}: {where} has only {len(splits.train)} training examples{why}")
    for name, split in (("validation", splits.val), ("test", splits.test)):
        if not split:
            raise ConfigError(f"{where}: no {name} examples are left; raise dataset.val_share and dataset.test_share or add rows")
    if dataset.labels:
        known = {label.strip().casefold() for label in dataset.labels}
        for example in [*splits.train, *splits.val, *splits.test]:
            if example.target.strip().casefold() not in known:
                raise ConfigError(f"dataset.labels: {example.id} has the target {example.target!r}, which is none of them")
    return splits


def cldr_rows_as_examples() -> Iterator[Example]:
    for kind, name, language, translation in cldr_rows():
        yield Example(f"{kind}/{name}/{language}", f'The {kind} "{name}" in {language} is "', translation, name)


def share_of(group: str) -> float:
    """A number in [0, 1) that depends on the group's text alone, so that a split never changes when rows are added."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def _split(
    dataset: DatasetConfig, rows: list[Example], val: list[Example] | None = None, test: list[Example] | None = None
) -> Splits:
    """Take test and validation rows out of ``rows`` by group, unless they were given; no group is in two splits."""
    given = {example.group for example in [*(val or []), *(test or [])]}
    fresh = [example for example in rows if example.group not in given]
    test_below = 0.0 if test is not None else dataset.test_share
    val_below = test_below + (0.0 if val is not None else dataset.val_share)
    parts: dict[str, list[Example]] = {"train": [], "val": [], "test": []}
    for example in fresh:
        share = share_of(example.group)
        parts["test" if share < test_below else "val" if share < val_below else "train"].append(example)
    # The held-out rows are read in the order of their hash, so that the first n of them are a fair sample.
    for name in ("val", "test"):
        parts[name].sort(key=lambda example: share_of(example.id))
    kept_val, kept_test = parts["val"] if val is None else val, parts["test"] if test is None else test
    return Splits(parts["train"], kept_val, kept_test, left_out=len(rows) - len(fresh))


def _limit(dataset: DatasetConfig, splits: Splits) -> Splits:
    if dataset.train_examples is None:
        return splits
    chosen = sorted(splits.train, key=lambda example: share_of(example.id))[: dataset.train_examples]
    return Splits(chosen, splits.val, splits.test, splits.left_out)


def _read_jsonl(path: str, key: str) -> list[Example]:
    examples = []
    for number, raw in enumerate(inputs.read(path, key).split(b"\n"), start=1):
        if not raw.strip():
            continue
        where = f"{key}: {path}, line {number}"
        try:
            row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{where}: has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where}: not UTF-8 (byte {error.start + 1} of the line)") from error
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON ({error.msg}, character {error.pos + 1} of the line)") from error
        except (ValueError, RecursionError) as error:  # Python's own, on 5,000 digits or 1,000 brackets
            raise ConfigError(f"{where}: not JSON ({error})") from error
        prompt, target = read_row(row, where)
        examples.append(Example(f"{Path(path).name}:{number}", prompt, target, json.dumps(prompt)))
    if not examples:
        raise ConfigError(f"{key}={path}: the file is empty")
    return examples


PAIRS = (("context", "target"), ("prompt", "completion"), ("prompt", "target"))


def read_row(row: Any, where: str) -> tuple[str | Messages, str]:
    """Prompt and target of one row: {"context","target"}, {"prompt","completion"} or chat {"messages"}."""
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: needs an object such as {{'prompt': ..., 'completion': ...}}")
    if "messages" in row:
        return _read_chat(row["messages"], where)
    for prompt, target in PAIRS:
        if isinstance(row.get(prompt), str) and isinstance(row.get(target), str):
            if not row[target].strip():
                raise ConfigError(f"{where}: the target '{target}' is empty")
            return row[prompt], row[target]
    if "context" in row or "prompt" in row:
        raise ConfigError(f"{where}: no target; needs 'target' beside 'context', 'completion' beside 'prompt', each a text")
    raise ConfigError(f"{where}: needs the keys 'context' and 'target', 'prompt' and 'completion', or 'messages'")


def _read_chat(messages: Any, where: str) -> tuple[Messages, str]:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        raise ConfigError(f"{where}: 'messages' needs a list of objects with the texts 'role' and 'content'")
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ConfigError(f"{where}: no target; the last of 'messages' needs the role 'assistant' and a text")
    return [{"role": m["role"], "content": m["content"]} for m in messages[:-1]], messages[-1]["content"]


def _load_hub(dataset: DatasetConfig) -> Splits:
    import datasets

    def rows(split: str) -> list[Example]:
        table = datasets.load_dataset(dataset.id, dataset.subset, split=split, revision=dataset.revision)
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

    val = rows(dataset.val_split) if dataset.val_split else None
    test = rows(dataset.test_split) if dataset.test_split else None
    return _split(dataset, rows(dataset.train_split), val, test)
