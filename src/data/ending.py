"""Decide how targets end and where decoding stops.

A plain target ends in the tokenizer's end token, a chat's in the token that closes an assistant's turn in the model's chat
template (src/data/template.py). Decoding stops at either of them, and at those that the base's own generation settings name.

Answers are decoded without special tokens. So a target that has one inside could equal no answer, however good the model
is: it is refused. One written end token at the very end, as users append it, is taken off instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..files.errors import ConfigError
from .datasets import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Special:
    """The special tokens of a tokenizer by their text, all that decoding can drop, and the end token among them."""

    ids: dict[str, int]
    end: str
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Special:
        """Collect them.

        Raises:
            ConfigError: the tokenizer has no end token.
        """
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"tokenizer of {tokenizer.name_or_path or type(tokenizer).__name__}: tokenizer_config.json names no end token, so"
                ' no target could end; add the one that the model was trained with, such as "eos_token": "</s>"'
            )
        ids = {str(token): int(number) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = [str(token) for token in tokenizer.all_special_tokens]
        ids |= {token: tokenizer.convert_tokens_to_ids(token) for token in named}
        return cls(ids, str(tokenizer.eos_token), pattern(ids))

    def bare(self, text: str, *ends: str) -> str:
        """Take one written end token off the end of a text: the tokenizer's, or one of ``ends``."""
        written = next((end for end in (self.end, *ends) if text.endswith(end)), "")
        return text.removesuffix(written)

    def refuse_inside(self, text: str, what: str) -> None:
        """Raise ConfigError where a special token is written in a text, which ``what`` names."""
        inside = self.pattern.search(text)
        if inside:
            raise ConfigError(f"{what} holds the special token {inside[0]!r} of this model's tokenizer; remove it from the row")

    def judged(self, example: Example, *ends: str) -> Example:
        """Give the example as it is trained and judged: without written end tokens.

        Raises:
            ConfigError: another special token is written in a target, or nothing but the end token.
        """
        target, *others = texts = [example.target, *example.references, *example.choices]
        if not any(map(self.pattern.search, texts)):  # nearly all examples
            return example
        target, *others = bare = [self.bare(text, *ends) for text in texts]
        for text in bare:
            self.refuse_inside(text, f"{example.id}: the target, which decoding would drop,")
            if not text.strip():
                raise ConfigError(f"{example.id}: the target is an end token alone; it needs a text before it")
        count = len(example.references)
        return replace(example, target=target, references=tuple(others[:count]), choices=tuple(others[count:]))


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern that matches any of these texts, the longest first; with none, it matches nothing."""
    longest_first = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def without_end(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, stop: Collection[int]) -> list[str]:
    """Take one written end token off each text, such as the labels of a label task; each text once."""
    special = Special.of(tokenizer)
    ends = [token for token, number in special.ids.items() if number in stop]
    return list(dict.fromkeys(special.bare(text, *ends) for text in texts))


def stop_ids(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int | None], settings: Any) -> list[int]:
    """List the ids at which decoding stops, in rising order.

    ends: the tokens that close targets, None where nothing does. settings: the base's own generation settings; their
    ``eos_token_id`` is an id or a list.

    Raises:
        ConfigError: their ``eos_token_id`` holds something else.
    """
    own = settings.eos_token_id
    own = list(own) if isinstance(own, list | tuple) else [own]
    if not all(number is None or type(number) is int for number in own):
        raise ConfigError(
            f"generation_config.json of this model: eos_token_id={settings.eos_token_id!r}: needs a whole number or a list"
        )
    return sorted({int(tokenizer.eos_token_id)} | {number for number in (*ends, *own) if number is not None})


def refuse_unreachable(name: str, target: Sequence[int], stop: Collection[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError where decoding would stop inside of the target of example ``name``, whose last token ends it."""
    inside = next((token for token in target[:-1] if token in stop), None)
    if inside is not None:
        text = tokenizer.convert_ids_to_tokens(inside)
        raise ConfigError(
            f"{name}: the target holds {text!r}, at which generation_config.json of this model stops decoding (eos_token_id):"
            " no answer could equal it; remove it from either"
        )
