"""Scores against transformers' own loss and generation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.config.schema import ModelConfig
from src.data.batches import Batch, tokenize
from src.data.datasets import Example
from src.measure.scorer import Scorer, Solo, TargetLoss, per_token
from src.model import models
from src.model.device import Numerics

CPU = torch.device("cpu")
MODEL, TOKENIZER = models.load(compose(["model=tiny"]).model, torch.float64, CPU)
EXAMPLES = [Example(str(n), "word " * (n % 5 + 1), "answer"[: n % 6 + 1], "g") for n in range(11)]
ITEMS = tokenize(EXAMPLES, TOKENIZER, 64, False)
FP64 = Numerics(CPU, torch.float64, None)


def scorer(batch_size: int, network: Any = MODEL) -> Scorer:
    return Scorer(Solo(network, FP64), batch_size, TOKENIZER.pad_token_id)


def losses_of(by: Scorer) -> list[TargetLoss]:
    (losses,) = by.losses(ITEMS)
    return losses


def answers_of(by: Scorer, eos: int = 1, max_new_tokens: int = 6) -> list[list[int]]:
    (answers,) = by.generate(ITEMS, eos, max_new_tokens)
    return answers


def test_the_loss_is_that_of_transformers_one_row_at_a_time() -> None:
    losses = losses_of(scorer(4))
    for item, loss in zip(ITEMS, losses, strict=True):
        ids = torch.tensor([item.prompt + item.target])
        labels = torch.tensor([[-100] * len(item.prompt) + item.target])
        with torch.no_grad():
            mean = MODEL(input_ids=ids, labels=labels).loss.item()
        assert loss.tokens == len(item.target)
        assert loss.nats == pytest.approx(mean * len(item.target), rel=1e-5)  # transformers takes the loss in fp32
    assert per_token(losses) == pytest.approx(sum(x.nats for x in losses) / sum(x.tokens for x in losses))


def test_batching_changes_nothing() -> None:
    alone, together = losses_of(scorer(1)), losses_of(scorer(11))
    # The log-loss itself is fp32, whatever the model computes in.
    assert [x.nats for x in alone] == pytest.approx([x.nats for x in together], rel=1e-6)


def test_generation_is_that_of_transformers_one_prompt_at_a_time() -> None:
    found = answers_of(scorer(4))
    for item, ids in zip(ITEMS, found, strict=True):
        prompt = torch.tensor([item.prompt])
        with torch.no_grad():
            wanted = MODEL.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=1, pad_token_id=0)[
                0, len(item.prompt) :
            ]
        assert ids == [token for token in wanted.tolist() if token != 1]


def test_greedy_does_not_follow_a_models_own_generation_settings(folder: Path) -> None:
    MODEL.generation_config.repetition_penalty = 5.0
    MODEL.save_pretrained(folder / "penalised")
    TOKENIZER.save_pretrained(folder / "penalised")
    MODEL.generation_config.repetition_penalty = None
    network, _ = models.load(ModelConfig(source="path", path=str(folder / "penalised")), torch.float64, CPU)
    assert answers_of(scorer(4, network)) == answers_of(scorer(4))


def test_generation_stops_at_the_end_token() -> None:
    first = answers_of(scorer(4), max_new_tokens=3)[0]
    stopped = answers_of(scorer(4), eos=first[1], max_new_tokens=3)[0]
    assert stopped == first[: first.index(first[1])]


class Both:
    """Two models as the runs of one pack."""

    runs = 2
    numerics = FP64

    def __init__(self, *networks: Any) -> None:
        self.solos = [Solo(network, FP64) for network in networks]
        self.asked: list[int] = []

    def evaluating(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def rows_at_once(self, tokens: int) -> int:
        self.asked.append(tokens)
        return 5

    def target_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [solo.target_losses(batch) for solo in self.solos]
        return torch.cat([losses for losses, _ in parts]), parts[0][1]

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        options |= {"min_new_tokens": options["max_new_tokens"]}  # so that the answers are as long
        return torch.cat([solo.generate(ids, mask, **options) for solo in self.solos])


def test_each_run_of_a_pack_gets_its_own_scores_in_the_order_of_the_rows() -> None:
    other, _ = models.load(compose(["model=tiny"]).model, torch.float64, CPU)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    both = Scorer(Both(MODEL, other), 4, TOKENIZER.pad_token_id)
    rows: list[int] = []
    first, second = both.losses(ITEMS, rows.append)
    assert (first, second) == (losses_of(scorer(4)), losses_of(scorer(4, other)))
    assert first != second and rows == [4, 4, 3]
    answers, others = both.generate(ITEMS, eos=1, max_new_tokens=6)
    assert (answers, others) == (answers_of(scorer(4)), answers_of(scorer(4, other)))
    assert answers != others and len({tuple(answer) for answer in others}) > 4


def test_how_many_rows_are_scored_at_once_is_left_to_the_models_where_the_config_leaves_it_open() -> None:
    both, rows = Both(MODEL, MODEL), []
    scorer = Scorer(both, None, TOKENIZER.pad_token_id)
    scorer.losses(ITEMS, rows.append)
    scorer.generate(ITEMS, eos=1, max_new_tokens=4, advance=rows.append)
    assert rows == [5, 5, 1] * 2
    # Bytes of five times "word ", then of the longest answer to it with its end token, or as many as may be generated.
    assert both.asked == [25 + 5 + 1, 25 + 4]
