"""Turn examples into token ids, and say which of them carry loss. Without torch, so that the plan can use it.

The loss counts target tokens only, and the token that ends a target (src/data/ending.py). With ``dataset.turns=all`` the
earlier turns of the assistant in a chat count as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..files.errors import ConfigError
from .datasets import Example
from .ending import Special
from .template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Item:
    """One tokenized example. Decoding goes on from ``prompt``; ``target`` ends in the token that closes it.

    earlier: spans of ``prompt`` that carry loss as well, each from its first token to the one after its last.
    """

    example: Example  # as it is judged: without a written end token
    prompt: list[int]
    target: list[int]
    cut: bool  # the row was longer than max_length and lost tokens on the left of its prompt
    earlier: tuple[tuple[int, int], ...] = ()
    end: int | None = None  # the token that closes the target, even where the target was cut before it

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)

    @property
    def labeled(self) -> int:
        """Count the tokens that carry loss."""
        return len(self.target) + sum(end - start for start, end in self.earlier)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the spans of tokens that carry loss, in order; the first token of a row is in none."""
        yield from self.earlier
        yield len(self.prompt), len(self)


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: bool, turns: str = "last"
) -> list[Item]:
    """Tokenize each example to at most ``max_length`` ids, prompt and target together; a long prompt is cut on the left.

    At least one prompt token stays, so that each target token has a token before it; a target that is too long by
    itself is cut on the right. A chat, or with ``chat_template`` any prompt, goes through the model's chat template;
    ``turns`` "all" labels each of its assistant's turns, not only the last.

    Special tokens that are written in a plain prompt are read as such, so that a prompt may hold a template of its own. They
    are never doubled: a written begin token takes the place of the tokenizer's.

    Raises:
        ConfigError: a row cannot be trained and asked for as it stands, see ``ending`` and ``template``; it names the row.
    """
    special = Special.of(tokenizer)
    chats = [i for i, example in enumerate(examples) if chat_template or not isinstance(example.prompt, str)]
    plain = sorted(set(range(len(examples))) - set(chats))
    items: dict[int, Item] = {}
    if plain:
        items |= zip(plain, _plain([examples[i] for i in plain], tokenizer, special), strict=True)
    if chats:
        items |= zip(chats, _chats([examples[i] for i in chats], tokenizer, special, turns), strict=True)
    return [_cut(items[i], max_length) for i in range(len(examples))]


def _plain(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, special: Special) -> list[Item]:
    """Tokenize prompts and targets that are plain texts, whole."""
    begin, end = tokenizer.bos_token_id, int(tokenizer.eos_token_id)
    opening = _opening(tokenizer)
    judged = [special.judged(example) for example in examples]
    prompts, targets = (
        tokenizer(texts, add_special_tokens=False).input_ids
        for texts in ([str(example.prompt) for example in judged], [example.target for example in judged])
    )
    items = []
    for example, ids, target in zip(judged, prompts, targets, strict=True):
        ids = ids if ids[: len(opening)] == opening else opening + ids
        items.append(Item(example, ids or [end if begin is None else begin], [*target, end], False, end=end))
    return items


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the ids that a tokenizer puts before every text. Some (T5's) also put an end token after it, which is left out."""
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return list(whole[: next(start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)])


def _chats(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, special: Special, turns: str) -> list[Item]:
    """Tokenize chats, whole."""
    template = Template(tokenizer, special)
    chats = [template.render(example, turns) for example in examples]
    prompts, targets = (
        tokenizer(texts, add_special_tokens=False).input_ids
        for texts in ([chat.prompt for chat in chats], [chat.target for chat in chats])
    )
    items = []
    for chat, prompt, target in zip(chats, prompts, targets, strict=True):
        earlier = tuple(_tokens_of(chat.prompt, span, prompt, tokenizer, chat.example.id) for span in chat.earlier)
        items.append(Item(chat.example, prompt, [*target, chat.end], False, earlier, chat.end))
    return items


def _tokens_of(
    text: str, span: tuple[int, int], ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[int, int]:
    """Find the tokens of a span of characters, whose edges must be edges of tokens: then what is before it tokenizes alike."""
    start, end = (tokenizer(text[:edge], add_special_tokens=False).input_ids for edge in span)
    if ids[: len(start)] != start or ids[: len(end)] != end:
        raise ConfigError(
            f"dataset.turns=all: {where}: a token of this tokenizer covers both an earlier answer and what stands around it;"
            " remove white space around that answer, or use dataset.turns=last"
        )
    return len(start), len(end)


def _cut(item: Item, max_length: int) -> Item:
    target = item.target[: max_length - 1]
    prompt = item.prompt[-(max_length - len(target)) :]
    lost = len(item.prompt) - len(prompt)
    if not lost and len(target) == len(item.target):
        return item
    # The first token that is left has none before it that could predict it.
    spans = ((max(start - lost, 1), end - lost) for start, end in item.earlier)
    return replace(item, prompt=prompt, target=target, cut=True, earlier=tuple(span for span in spans if span[0] < span[1]))


def fingerprint(items: dict[str, list[Item]]) -> str:
    """Hash the token ids of all splits and which of them carry loss, in order (SHA-256)."""
    digest = hashlib.sha256()
    for name, split in items.items():
        for item in split:
            digest.update(json.dumps([name, item.prompt, item.target, *([item.earlier] if item.earlier else [])]).encode())
    return digest.hexdigest()
