"""Turn examples into token ids and padded batches, and fix the order in which training rows are used.

The loss counts target tokens only. Every target is followed by the tokenizer's end-of-sequence token, which counts.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ..config.schema import TrainConfig
from ..files.errors import ConfigError
from .datasets import Example
from .formats import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100  # label of a token that carries no loss, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Item:
    """One tokenized example; ``target`` ends with the end-of-sequence token."""

    example: Example
    prompt: list[int]
    target: list[int]
    cut: bool  # the row was longer than max_length and lost tokens on the left of its prompt

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: ``input_ids``, ``attention_mask``, ``labels``, each [rows, longest row]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())

    @property
    def target_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: bool) -> list[Item]:
    """Tokenize each example to at most ``max_length`` ids, prompt and target together; a long prompt is cut on the left.

    At least one prompt token stays, so that each target token has a token before it; a target that is too long by
    itself is cut on the right.
    """
    eos = tokenizer.eos_token_id
    prompts = _prompt_ids(examples, tokenizer, chat_template)
    targets = tokenizer([example.target for example in examples], add_special_tokens=False).input_ids if examples else []
    items = []
    for example, prompt, target in zip(examples, prompts, targets, strict=True):
        prompt = prompt or [eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
        target = [*target, eos]
        kept_target = target[: max_length - 1]
        kept_prompt = prompt[-(max_length - len(kept_target)) :]
        cut = len(kept_prompt) < len(prompt) or len(kept_target) < len(target)
        items.append(Item(example, kept_prompt, kept_target, cut))
    return items


def fingerprint(items: dict[str, list[Item]]) -> str:
    """Hash the token ids of all splits, in order (SHA-256)."""
    digest = hashlib.sha256()
    for name, split in items.items():
        for item in split:
            digest.update(json.dumps([name, item.prompt, item.target]).encode())
    return digest.hexdigest()


def _prompt_ids(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> list[list[int]]:
    """Tokenize each prompt; a chat, or with ``chat_template`` any prompt, goes through the model's chat template."""
    prompts: list[list[int]] = [[]] * len(examples)
    plain = [i for i, example in enumerate(examples) if isinstance(example.prompt, str) and not chat_template]
    chats = [i for i, example in enumerate(examples) if not isinstance(example.prompt, str) or chat_template]
    if chats and tokenizer.chat_template is None:
        raise ConfigError("dataset.chat_template: this model's tokenizer has no chat template")
    if chats:
        texts = [tokenizer.apply_chat_template(_messages(examples[i]), tokenize=False, add_generation_prompt=True) for i in chats]
        for i, ids in zip(chats, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
            prompts[i] = ids
    if plain:
        for i, ids in zip(plain, tokenizer([examples[i].prompt for i in plain]).input_ids, strict=True):
            # Some tokenizers (T5's) close every text with an end token, which must not stand before the target.
            prompts[i] = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    return prompts


def _messages(example: Example) -> Messages:
    return [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else example.prompt


def collate(items: Sequence[Item], pad: int, device: torch.device) -> Batch:
    """Pad items on the right with the id ``pad`` to the longest of them; labels are ``IGNORE`` outside of targets."""
    width = max(len(item) for item in items)
    ids = torch.full((len(items), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, item in enumerate(items):
        ids[row, : len(item)] = torch.tensor(item.prompt + item.target)
        mask[row, : len(item)] = 1
        labels[row, len(item.prompt) : len(item)] = torch.tensor(item.target)
    return Batch(ids.to(device), mask.to(device), labels.to(device))


@lru_cache(maxsize=256)  # a pack asks for the orders of all its seeds at every step
def _permutation(rows: int, data_seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{data_seed}/{epoch}").shuffle(order)
    return tuple(order)


def rows_at(first: int, count: int, rows: int, data_seed: int) -> list[int]:
    """Look up rows ``first`` to ``first + count`` (excluded) of the endless stream of shuffled epochs.

    The order depends on the arguments alone: not on the variant, the rank, the run's other seed, or an interruption. Each
    epoch uses each row once; a batch may span two epochs.
    """
    return [_permutation(rows, data_seed, index // rows)[index % rows] for index in range(first, first + count)]


def micro_batches(step: int, train: TrainConfig, rows: int, data_seed: int) -> list[list[int]]:
    """List the rows of each micro-batch of an optimizer step; ``step`` counts from 0."""
    size = train.batch_size * train.grad_accum
    taken = rows_at(step * size, size, rows, data_seed)
    return [taken[start : start + train.batch_size] for start in range(0, size, train.batch_size)]
