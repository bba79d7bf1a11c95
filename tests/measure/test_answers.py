"""Judges of answers, against hand-computed cases and scikit-learn."""

from __future__ import annotations

import math

import pytest
from sklearn.metrics import f1_score

from src.config.schema import DatasetConfig
from src.config.values import CHOICES
from src.data.datasets import Example
from src.files.errors import ConfigError
from src.measure.answers import (
    JUDGES,
    UNPARSED,
    chosen,
    exact_match,
    final_number,
    items,
    judge,
    judge_chosen,
    kind,
    parse_label,
    refuse_unanswerable,
)

SENTIMENT = ["negative", "neutral", "positive"]


def examples(*targets: str, choices: tuple[str, ...] = ()) -> list[Example]:
    return [Example(str(index), "p", target, "g", choices) for index, target in enumerate(targets)]


def test_exact_match() -> None:
    assert exact_match([" Paris\n", "paris", ""], ["Paris", "Paris", "x"]) == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (" Positive ", "positive"), ("positive.", "positive"), ('"Negative"', "negative"), ("'neutral.'", "neutral"),
        ("“positive”.", "positive"), ("NEUTRAL!\n", "neutral"),
        ("not negative", UNPARSED), ("", UNPARSED), (" . ", UNPARSED), ("positive negative", UNPARSED),
        ("positive, negative", UNPARSED), ("positive/neutral", UNPARSED), ("The sentiment is positive.", UNPARSED),
        ("positive\nInput: next", UNPARSED), ("posit", UNPARSED), ("positively", UNPARSED), ("mixed", UNPARSED),
    ],
)  # fmt: skip
def test_an_answer_is_a_label_and_nothing_beside_it(answer: str, label: str) -> None:
    assert parse_label(answer, SENTIMENT) == label


def test_labels_that_punctuation_alone_tells_apart_are_not_confused() -> None:
    assert parse_label("c.", ["c", "c."]) == "c."
    assert parse_label("C!", ["c", "c."]) == UNPARSED  # it could be either
    assert parse_label("mildly positive", [*SENTIMENT, "mildly positive"]) == "mildly positive"


def test_label_metrics_with_wrong_empty_verbose_and_multi_label_answers() -> None:
    gold = ["positive", "positive", "negative", "negative", "neutral", "neutral"]
    texts = ["Positive.", "negative", "", "I think it is negative", "neutral, positive", "neutral"]
    judged = judge("label", texts, examples(*gold), SENTIMENT)
    assert judged.correct == [True, False, False, False, False, True]
    parsed = ["positive", "negative", UNPARSED, UNPARSED, UNPARSED, "neutral"]
    # positive: precision 1, recall 1/2 -> 2/3. negative: precision 0 -> 0. neutral: precision 1, recall 1/2 -> 2/3.
    assert judged.metrics["macro_f1"] == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert judged.metrics["macro_f1"] == pytest.approx(f1_score(gold, parsed, labels=SENTIMENT, average="macro"))
    assert judged.metrics["parse_failures"] == 3 / 6
    assert judged.metrics["exact_match"] == 2 / 6


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3*4=<<3*4=12>>12 apples.\n#### 12", 12), ("#### 1,234", 1234), ("#### -7", -7), ("#### $70000", 70000),
        ("5 and #### 6 then 7", 6), ("#### 1\n#### 2", 2), ("The answer is 42.", 42), ("It is $1,000,000.50!", 1_000_000.5),
        ("about 12.5%", 12.5), ("-$5", -5), ("$-5", -5), ("£ 3", 3), ("+3", 3), ("\u22125", -5), ("10-4", 4), ("(-4)", -4),
        ("1, 2, 3", 3), ("10 - 5", 5), ("3 -4", 4), ("it is -5", -5), ("- 5 apples", 5), ("1/2", 0.5), ("#### 3 / 4", 0.75),
        ("2026/11/24", 24), ("(2) -3", 3), ("GPT-4", 4), ("1.2.3", 3), ("1/0", None),
        ("12,34", 34), (".5", 0.5), ("1e3", 1000), ("2.50e-1", 0.25), ("1,2345", 2345), ("x = -.25", -0.25),
        ("", None), ("none", None), ("#### nothing, though 5 before", 5), ("5 ####", None), ("####", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_the_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_numbers_are_compared_and_not_their_spelling() -> None:
    texts = ["#### 18.0", "so 1,234 in all", "#### 19", "no idea", "0.3333333", "0.3333"]
    judged = judge("number", texts, examples("#### 18", "#### 1234", "#### 18", "#### 3", "0.33333334", "0.33333334"))
    assert judged.correct == [True, True, False, False, True, False]
    assert judged.metrics == {"exact_match": 3 / 6, "parse_failures": 1 / 6}


def test_choices_are_parsed_as_strictly_as_labels() -> None:
    choices = tuple(f"the correct answer is answer{n}" for n in (1, 2))
    texts = ["the correct answer is answer1", "The correct answer is answer2.", "answer1", "the correct answer is", ""]
    judged = judge("choice", texts, examples(*[choices[0]] * 5, choices=choices))
    assert judged.correct == [True, False, False, False, False]
    assert judged.metrics == {"exact_match": 1 / 5, "parse_failures": 3 / 5}


def test_the_choice_with_the_smallest_loss_is_chosen() -> None:
    two, three = Example("1", "p", "a", "g", ("a", "b")), Example("2", "p", "c", "g", ("a", "b", "c"))
    assert chosen([2.0, 1.5, 0.1, 0.3, 0.2], [two, three]) == ["b", "a"]
    assert chosen([1.0, 1.0, math.nan, 5.0, math.inf], [two, three]) == ["a", "b"]
    with pytest.raises(ValueError, match="4 log-losses for 5 choices"):
        chosen([1.0] * 4, [two, three])


def test_tags_item_by_item() -> None:
    assert items(" us-gaap: Cash ,, DebtCurrent\n") == ["us-gaap:cash", "debtcurrent"]
    targets = ["A,B,B", "C", "D,E"]
    texts = ["a, b", "the tag is C", "E,D,E"]
    judged = judge("tags", texts, examples(*targets))
    assert judged.correct == [False, False, False]
    # Hits 2 + 0 + 2 of 2 + 1 + 3 items found and 3 + 1 + 2 wanted; in place: A, B of the first, none of the others.
    assert judged.metrics["item_f1"] == pytest.approx(2 * 4 / (6 + 6))
    assert judged.metrics["item_accuracy"] == pytest.approx(2 / 6)
    assert judge("tags", ["(A / B) * 100"], examples("(a/b)*100")).correct == [True]
    assert judge("tags", [""], examples("a")).metrics == {"exact_match": 0.0, "item_f1": 0.0, "item_accuracy": 0.0}


def test_bleu_answers_may_be_any_reference() -> None:
    example = Example("1", "p", "first", "g", references=("first", "second"))
    judged = judge("bleu", ["second", "third"], [example, example])
    assert judged.correct == [True, False] and judged.metrics["exact_match"] == 0.5 and "bleu" in judged.metrics


def test_overlap_is_chrf_beside_exact_match() -> None:
    judged = judge("overlap", ["Discount rate used", ""], examples("Discount rate used", "Amount"))
    assert judged.correct == [True, False] and 0 < judged.metrics["chrf"] < 100


def test_every_kind_of_answer_that_a_config_may_name_has_a_judge() -> None:
    assert CHOICES["dataset.answer"] == tuple(JUDGES)
    for name in JUDGES:
        target = "1"
        judged = judge(name, [target, "no"], examples(target, target, choices=(target, "2")), [target, "2"])
        assert judged.correct == [True, False] and judged.metrics["exact_match"] == 0.5


def test_the_choices_of_the_smallest_loss_have_a_metric_of_their_own() -> None:
    judged = judge_chosen(["a", "b", "a"], examples("a", "a", "a", choices=("a", "b")))
    assert judged.correct == [True, False, True] and judged.metrics == {"choice_accuracy": 2 / 3}


def test_labels_make_a_label_task() -> None:
    assert kind(DatasetConfig()) == "text"
    assert kind(DatasetConfig(labels=["a"])) == "label"
    assert kind(DatasetConfig(answer="number")) == "number"
    assert judge("text", ["a", "b"], examples("a", "a")).metrics == {"exact_match": 0.5}


def test_a_target_without_a_number_can_never_be_right() -> None:
    numbers = DatasetConfig(answer="number")
    refuse_unanswerable(numbers, examples("#### 5", "-3.5"))
    with pytest.raises(ConfigError, match=r"^dataset\.answer=number: .* has the target 'five', in which there is no number$"):
        refuse_unanswerable(numbers, examples("#### 5", "five"))
    refuse_unanswerable(DatasetConfig(), examples("five"))
