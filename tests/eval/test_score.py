"""Scores against transformers' own loss and generation, and against hand-computed cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src import models
from src.batches import tokenise
from src.cli import compose
from src.config import ModelConfig
from src.datasets import Example
from src.device import Numerics
from src.eval.score import UNPARSED, Scorer, exact_match, macro_f1, parse_label, per_token

CPU = torch.device("cpu")
MODEL, TOKENIZER = models.load(compose(["model=tiny"]).model, torch.float64, CPU)
EXAMPLES = [Example(str(n), "word " * (n % 5 + 1), "answer"[: n % 6 + 1], "g") for n in range(11)]
ITEMS = tokenise(EXAMPLES, TOKENIZER, 64, False)


def scorer(batch_size: int) -> Scorer:
    return Scorer(MODEL, Numerics(CPU, torch.float64, None), batch_size, TOKENIZER.pad_token_id)


def test_the_loss_is_that_of_transformers_one_row_at_a_time() -> None:
    losses = scorer(4).losses(ITEMS)
    for item, loss in zip(ITEMS, losses, strict=True):
        ids = torch.tensor([item.prompt + item.target])
        labels = torch.tensor([[-100] * len(item.prompt) + item.target])
        with torch.no_grad():
            mean = MODEL(input_ids=ids, labels=labels).loss.item()
        assert loss.tokens == len(item.target)
        assert loss.nats == pytest.approx(mean * len(item.target), rel=1e-5)  # transformers takes the loss in fp32
    assert per_token(losses) == pytest.approx(sum(x.nats for x in losses) / sum(x.tokens for x in losses))


def test_batching_changes_nothing() -> None:
    alone, together = scorer(1).losses(ITEMS), scorer(11).losses(ITEMS)
    # The log-loss itself is fp32, whatever the model computes in.
    assert [x.nats for x in alone] == pytest.approx([x.nats for x in together], rel=1e-6)


def test_generation_is_that_of_transformers_one_prompt_at_a_time() -> None:
    found = scorer(4).generate(ITEMS, eos=1, max_new_tokens=6)
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
    found = Scorer(network, Numerics(CPU, torch.float64, None), 4, 0).generate(ITEMS, eos=1, max_new_tokens=6)
    assert found == scorer(4).generate(ITEMS, eos=1, max_new_tokens=6)


def test_generation_stops_at_the_end_token() -> None:
    first = scorer(4).generate(ITEMS, eos=1, max_new_tokens=3)[0]
    stopped = scorer(4).generate(ITEMS, eos=first[1], max_new_tokens=3)[0]
    assert stopped == first[: first.index(first[1])]


def test_exact_match() -> None:
    assert exact_match([" Paris\n", "paris", ""], ["Paris", "Paris", "x"]) == [True, False, False]


def test_an_answer_that_merely_contains_a_label_is_not_parsed() -> None:
    labels = ["positive", "negative"]
    answers = [" Positive ", "not negative", "positive.", "", "negative"]
    assert [parse_label(answer, labels) for answer in answers] == ["positive", UNPARSED, UNPARSED, UNPARSED, "negative"]


def test_macro_f1_counts_an_unparsed_answer_as_a_miss_and_never_as_a_false_alarm() -> None:
    gold = ["a", "a", "a", "b", "b", "c"]
    found = ["a", UNPARSED, "b", "b", "b", UNPARSED]
    # a: precision 1/1, recall 1/3 -> 1/2. b: precision 2/3, recall 2/2 -> 4/5. c: never found -> 0.
    assert macro_f1(found, gold, ["a", "b", "c"]) == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert macro_f1(gold, gold, ["a", "b", "c"]) == 1.0
