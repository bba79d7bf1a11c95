"""Read the rows that a session trains on and scores, as tokens: the three splits, and held-out prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.schema import Config
from ..data import batches, datasets, ending, prose, renderable
from ..data.batches import Item
from ..model import models


@dataclass(frozen=True)
class Rows:
    """The rows that the runs of a pack read, as tokens."""

    splits: datasets.Splits
    items: dict[str, list[Item]]  # "train", "val" and "test", as far as the config asks for them
    prose: list[Item]  # what shows forgetting; none where nothing is asked for
    prose_read: dict[str, Any] | None  # what the record says of it
    tokenizer: Any
    stop: list[int]  # the ids at which decoding stops

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def cut(self) -> dict[str, int]:
        """Count the rows of each split that were longer than dataset.max_length."""
        return {name: sum(item.cut for item in items) for name, items in self.items.items()}

    @property
    def target_end(self) -> dict[str, list[str]]:
        """Name the tokens that targets end in, and those at which decoding stops."""
        ends = {item.end for items in self.items.values() for item in items if item.end is not None}
        tokens, stop = (self.tokenizer.convert_ids_to_tokens(ids) for ids in (sorted(ends), self.stop))
        # An id beyond the tokenizer's vocabulary has no text.
        return {"tokens": tokens, "stop": [token or f"id {number}" for token, number in zip(stop, self.stop, strict=True)]}

    @property
    def fingerprints(self) -> dict[str, Any]:
        """Say which texts these are, and which tokens: library versions read one tokenizer file differently."""
        return {
            "data_fingerprint": self.splits.fingerprint(),
            "prose_fingerprint": self.prose_read and self.prose_read["fingerprint"],
            "token_fingerprint": batches.fingerprint(self.items),
        }


def read(config: Config, tokenizer: Any) -> Rows:
    """Read and tokenize. Raises ConfigError where a split is empty; a hub's rows are first seen here."""
    dataset = config.dataset
    splits = datasets.load(dataset)
    datasets.refuse_empty(splits, dataset)
    chosen = {
        "train": splits.train,
        "val": splits.val[: config.eval.val_examples],
        "test": splits.test[: config.eval.test_examples],
    }
    renderable.refuse_idle_turns(dataset, splits)
    items = {
        name: batches.tokenize(examples, tokenizer, dataset.max_length, dataset.chat_template, dataset.turns)
        for name, examples in chosen.items()
    }
    ends = (item.end for items_of_split in items.values() for item in items_of_split)
    stop = ending.stop_ids(tokenizer, ends, models.generation_config(config.model, tokenizer))
    if config.eval.generate:
        for item in items["test"]:
            ending.refuse_unreachable(item.example.id, item.target, stop, tokenizer)
    windows, about = _read_prose(config, tokenizer)
    return Rows(splits, items, windows, about, tokenizer, stop)


def _read_prose(config: Config, tokenizer: Any) -> tuple[list[Item], dict[str, Any] | None]:
    forgetting = config.forgetting
    if not forgetting.tokens:
        return [], None
    text = prose.load(forgetting)
    windows = prose.windows(text, tokenizer, forgetting.tokens, min(prose.WINDOW, config.dataset.max_length))
    tokens = sum(len(item.target) for item in windows)
    return windows, {"source": text.source, "fingerprint": text.fingerprint(), "tokens": tokens}
