"""Refuse, while a sweep is planned, rows that the base's tokenizer or its chat template cannot take: no torch and no model.

Loading a tokenizer takes seconds. So its files are read as JSON first, and it is loaded only for chats, for texts in which
a special token is written, and where no end token is named. Of chats with the same sequence of roles one is rendered:
what depends on more than that is refused when the run reads its rows, by the same code.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from ..config.schema import DatasetConfig
from ..files.errors import ConfigError
from .datasets import Example, Splits
from .ending import pattern
from .template import ASSISTANT, messages_of, shape
from .tokens import tokenize

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
OF_BYTES = re.compile(r"</s>|<pad>|<unk>|<extra_id_\d+>")  # of the tokenizer that random weights have
KINDS = 256  # sequences of roles that are looked at


def refuse_unrenderable(splits: Splits, tokenizer_folder: str | None, dataset: DatasetConfig) -> None:
    """Raise ConfigError where a row cannot be tokenized as it stands, or the tokenizer has no end token.

    tokenizer_folder: None for the bytes of UTF-8 as tokens, which random weights have.
    """
    refuse_idle_turns(dataset, splits)
    examples = [*splits.train, *splits.val, *splits.test]
    chats = [example for example in examples if dataset.chat_template or not isinstance(example.prompt, str)]
    folder = None if tokenizer_folder is None else Path(tokenizer_folder).expanduser()
    if folder is None and chats:
        raise ConfigError("dataset.chat_template: this model's tokenizer has no chat template")
    kinds: dict[Any, Example] = {}
    for example in chats:
        kinds.setdefault(shape(messages_of(example), example.tools), example)
    written = OF_BYTES if folder is None else pattern(_special_tokens(folder))
    looked_at = [*list(kinds.values())[:KINDS], *(example for example in examples if written.search(example.target))]
    if looked_at or (folder is not None and not _names_end_token(folder)):
        _tokenize(looked_at, folder, dataset)


def refuse_idle_turns(dataset: DatasetConfig, splits: Splits) -> None:
    """Raise ConfigError where ``dataset.turns`` changes nothing, because no chat has an earlier turn of the assistant."""
    if dataset.turns == "last":
        return
    for example in splits.train:
        if any(message["role"] == ASSISTANT for message in messages_of(example)):
            return
    raise ConfigError(
        f"dataset.turns={dataset.turns}: does nothing, for no training row of dataset={dataset.name or dataset.source} is a chat"
        " in which the assistant speaks before its last turn; leave it out"
    )


def _tokenize(examples: list[Example], folder: Path | None, dataset: DatasetConfig) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    try:
        load: Any = ByT5Tokenizer if folder is None else partial(AutoTokenizer.from_pretrained, folder, trust_remote_code=False)
        tokenizer = load()
    except Exception as error:  # transformers has no error of its own for a file that is damaged or missing
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model.path={folder}: its tokenizer cannot be loaded: {words}") from error
    # With no rows, it refuses the tokenizer alone.
    tokenize(examples, tokenizer, dataset.max_length, dataset.chat_template, dataset.turns)


def _special_tokens(folder: Path) -> set[str]:
    """Collect the special tokens that a tokenizer's files name; each is a text, or an object with its ``content``."""
    listed: list[Any] = _json(folder / "tokenizer.json").get("added_tokens") or []
    for name in SETTINGS:
        settings = _json(folder / name)
        listed = [*listed, *(settings.get("added_tokens_decoder") or {}).values()]
        for key, value in settings.items():
            if key.endswith(("_token", "special_tokens")):
                listed += value if isinstance(value, list) else [value]
    texts = (token.get("special", True) and token.get("content") if isinstance(token, dict) else token for token in listed)
    return {text for text in texts if isinstance(text, str) and text}


def _names_end_token(folder: Path) -> bool:
    """Tell whether a tokenizer's files name an end token; a class of tokenizers may have one without.

    A folder without any of its files has no tokenizer, which is refused where the model is looked at.
    """
    files = [_json(folder / name) for name in SETTINGS]
    if not any(files):
        return not (folder / "tokenizer.json").is_file()
    return any(settings.get("eos_token") for settings in files)


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is empty here, and refused by who needs it."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
