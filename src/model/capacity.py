"""Refuse rows that a base cannot read: beyond its positions, its sliding window, or the rows of its embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import Config, is_packed
from ..files.errors import ConfigError
from . import tokenizer_files
from .configs import POSITIONS, dimension

if TYPE_CHECKING:
    from ..data.batches import Item
    from ..data.datasets import Splits

SHORTEST = 8  # the least that dataset.max_length can be


def refuse(network: Any, splits: Mapping[str, Sequence[Item]], pad: int, new_tokens: int, packed: bool = False) -> None:
    """Raise ConfigError, with its number, for a row of ``splits`` that the loaded base cannot read as it is.

    ``pad``: the id that fills batches. ``new_tokens``: how many follow each prompt of the test split where answers are generated.
    ``packed``: the packed engine reads the rows, which has no masks of a sliding window.
    """
    embedding = len(network.get_input_embeddings().weight)
    if pad >= embedding:
        raise ConfigError(_beyond("the tokenizer's pad token", pad, embedding))
    values = network.config.get_text_config().to_dict()
    learned = _learned(network)
    positions = min((known for known in (_positions(values), learned) if known is not None), default=None)
    window = dimension(values, "sliding_window") if packed else None
    for split, items in splits.items():
        for item in items:
            name = f"row {item.example.id} ({split})"
            if (highest := max((*item.prompt, *item.target), default=0)) >= embedding:
                raise ConfigError(_beyond(f"{name} holds a token that", highest, embedding))
            if positions is not None and len(item) > positions:
                raise ConfigError(_too_long(f"{name} has {len(item)} tokens", f"the model has {positions} positions", positions))
            if window is not None and len(item) > window:
                known = f"engine=packed needs all of a row in the model's sliding window of {window}"
                raise ConfigError(f"{_too_long(f'{name} has {len(item)} tokens', known, window)}, or engine=peft")
    if learned is None or not new_tokens:
        return
    for item in splits.get("test", ()):
        if len(item.prompt) + new_tokens - 1 > learned:  # all but the last token are read again
            raise ConfigError(
                f"row {item.example.id} (test) has a prompt of {len(item.prompt)} tokens, and its answer up to {new_tokens};"
                f" the model has {learned} positions: lower eval.max_new_tokens or dataset.max_length, or set eval.generate=false"
            )


def refuse_certain(config: Config, values: dict[str, Any], folder: Path, splits: Splits) -> None:
    """Raise ConfigError for a row to be read that is certainly too long for a base of this config.json, before it is loaded.

    Counts the tokens of a plain prompt and its target with the tokenizer's own file, where the config's limit is below
    dataset.max_length. What a chat template or an end token adds is left to ``refuse``.
    """
    limits = [_positions(values), _window(values) if is_packed(config) else None]
    limit = min((known for known in limits if known is not None), default=None)
    file = folder / tokenizer_files.VOCABULARY
    if limit is None or limit >= config.dataset.max_length or not file.is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # what is wrong with the file is said when the tokenizer is loaded
        return
    asked = config.eval
    held_out = {"val": splits.val[: asked.val_examples], "test": splits.test[: asked.test_examples]}
    for split, example in ((split, row) for split, rows in ({"train": splits.train} | held_out).items() for row in rows):
        plain = isinstance(example.prompt, str) and not config.dataset.chat_template
        texts = [text for text in ((example.prompt if plain else ""), example.target) if isinstance(text, str)]
        tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        if tokens > limit:
            known = f"the model has {limit} positions" if limit == limits[0] else f"engine=packed needs it within {limit}"
            raise ConfigError(_too_long(f"row {example.id} ({split}) has {tokens} tokens or more", known, limit))


def _positions(values: dict[str, Any]) -> int | None:
    """Look up how many positions a model has; with a scaled rotary embedding it has more than it was trained with."""
    positions = dimension(values, *POSITIONS)
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    if positions is None or not isinstance(rope, dict):
        return positions
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if isinstance(factor, int | float):
        return max(positions, int(factor * (original if isinstance(original, int) else positions)))
    return positions


def _window(values: dict[str, Any]) -> int | None:
    """Look up the sliding window of a config.json; some families state one and a switch that leaves it out."""
    return None if values.get("use_sliding_window") is False else dimension(values, "sliding_window")


def _learned(network: Any) -> int | None:
    """Count the positions of a table of them; None where they are computed, and generation may go beyond.

    Some families begin behind a few rows: OPT by an offset, RoBERTa behind the padding's.
    """
    from torch import nn

    tables = [
        m for n, m in network.get_decoder().named_modules() if isinstance(m, nn.Embedding) and ("wpe" in n or "position" in n)
    ]
    before = [getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1 for table in tables]
    return min((table.num_embeddings - rows for table, rows in zip(tables, before, strict=True)), default=None)


def _beyond(what: str, token: int, embedding: int) -> str:
    return (
        f"{what} has the id {token}, and the model's embedding {embedding} rows; resize the embedding and save the model again,"
        " or take the tokenizer that belongs to it"
    )


def _too_long(what: str, why: str, limit: int) -> str:
    remedy = f"dataset.max_length={limit}" if limit >= SHORTEST else "take another model"
    return f"{what}; {why}: {remedy}"
