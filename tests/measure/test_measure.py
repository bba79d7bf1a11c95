"""Answers that are right, letter for letter, however targets were written and whatever ends them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from src.config.schema import DatasetConfig, EvalConfig
from src.data.batches import Batch, Item, tokenize
from src.data.datasets import Example
from src.data.ending import stop_ids
from src.measure.measure import measure
from src.measure.scorer import Scorer
from src.model.device import Numerics
from tests.data.chats import CHATML, chat, tokenizer_of

PAD, BABBLE = 0, 80  # what an answer that does not end goes on with


class Parrot:
    """A model that knows every target, and babbles on after its end."""

    runs = 1
    numerics = Numerics(torch.device("cpu"), torch.float32, None)

    def __init__(self, items: Sequence[Item]) -> None:
        self.known = {tuple(item.prompt): item.target for item in items}

    def evaluating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def rows_at_once(self, tokens: int) -> int:
        return 2

    def target_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        labeled = batch.labels >= 0
        return torch.ones(1, int(labeled.sum())), labeled.nonzero()[:, 0]

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int, **options: Any) -> torch.Tensor:
        prompts = [tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True)]
        return torch.tensor([[(self.known[prompt] + [BABBLE] * max_new_tokens)[:max_new_tokens] for prompt in prompts]])


def plain(target: str) -> Example:
    return Example("i", f"say {target[:2]}", target, "g")


def asked(target: str) -> Example:
    return chat(("user", "one"), ("assistant", "1"), ("user", f"say {target[:2]}"), target=target)


@pytest.mark.parametrize(("example", "written"), [(plain, ["</s>"]), (asked, ["</s>", "<|im_end|>"])])
@pytest.mark.parametrize("answer", ["text", "label"])
def test_a_right_answer_counts_as_right(example: Callable[[str], Example], written: list[str], answer: str) -> None:
    """What is measured is the same with and without written end tokens."""
    tokenizer = tokenizer_of(CHATML)
    reports = []
    for ends in ([""], written):
        targets = [word + ends[n % len(ends)] for n, word in enumerate(("yes", "perhaps", "no"))]
        items = tokenize([example(target) for target in targets[:2]] + [plain("no")], tokenizer, 256, False, "all")
        stop = stop_ids(tokenizer, [item.end for item in items], GenerationConfig())
        dataset = DatasetConfig(answer=answer)
        (measured,) = measure(
            Scorer(Parrot(items), None, PAD), tokenizer, stop, items, dataset, targets, EvalConfig(max_new_tokens=20),
            lambda name, total: lambda rows: None,
        )  # fmt: skip
        assert measured.metrics["exact_match"] == 1 and measured.metrics["loss"] == 1
        assert (
            [row["prediction"] for row in measured.rows] == ["yes", "perhaps", "no"] == [row["target"] for row in measured.rows]
        )
        assert [row["tokens"] for row in measured.rows] == [item.labeled for item in items]
        reports.append([{**row, "id": None} for row in measured.rows])
    assert reports[0] == reports[1]
