"""The metrics, against hand-computed cases, scikit-learn and sacrebleu; and the table that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sacrebleu import sentence_bleu, sentence_chrf
from sklearn.metrics import f1_score

from src.measure import metrics
from src.measure.answers import JUDGES
from src.measure.metrics import ANY, LIKELIEST, METRICS, Metric, Reading, bleu, chrf, item_f1, macro_f1, metric
from tests.conftest import CODE

NONE = "<unreadable>"


def read(answers: Sequence[Any], wanted: Sequence[Any], labels: Sequence[str] = ()) -> Reading:
    return Reading(answers, wanted, [], labels=labels)


def test_macro_f1_counts_an_unparsed_answer_as_a_miss_and_never_as_a_false_alarm() -> None:
    gold = ["a", "a", "a", "b", "b", "c"]
    found = ["a", NONE, "b", "b", "b", NONE]
    # a: precision 1/1, recall 1/3 -> 1/2. b: precision 2/3, recall 2/2 -> 4/5. c: never found -> 0.
    assert macro_f1(read(found, gold, ["a", "b", "c"])) == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert macro_f1(read(gold, gold, ["a", "b", "c"])) == 1.0
    assert macro_f1(read(gold, gold, ["a", "b", "c", "d"])) == 1.0  # the first examples of a test need not hold every label
    assert macro_f1(read(["a", "d"], ["a", "a"], ["a", "d"])) == pytest.approx(2 / 3)  # recall 1/2; d is nobody's label


def test_item_f1_is_scikit_learns_where_no_item_repeats() -> None:
    found, wanted = [["a", "b"], ["c"], []], [["b", "c"], ["c"], ["a"]]
    names = ["a", "b", "c"]
    as_flags = [[[name in row for name in names] for row in rows] for rows in (wanted, found)]
    assert item_f1(read(found, wanted)) == pytest.approx(f1_score(*as_flags, average="micro"))


def test_bleu_takes_all_references_of_each_text() -> None:
    text, references = "the cat sat on the mat", ["a cat sat on a mat", "the cat sat on the rug"]
    # Against both: 6/6 words, 4/5, 3/4 and 2/3 of two to four words; of the length of the references, so no penalty.
    by_hand = 100 * (6 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4)
    assert bleu(read([text], [references])) == pytest.approx(by_hand) == pytest.approx(sentence_bleu(text, references).score)
    assert bleu(read([text], [references[:1]])) < by_hand
    other = "one two three four five"
    assert bleu(read([text, other], [references, [other]])) > by_hand  # texts with two and with one reference together
    assert bleu(read(["", "x"], [["a"], ["b"]])) == 0.0


def test_chrf_is_sacrebleus() -> None:
    assert chrf(read(["a cat"], ["the cat"])) == pytest.approx(sentence_chrf("a cat", ["the cat"]).score)
    assert chrf(read(["same"], ["same"])) == pytest.approx(100)


@pytest.mark.parametrize(
    ("name", "lower"),
    [("test/loss", True), ("val/loss", True), ("test/parse_failures", True), ("forgetting/change", True),
     ("forgetting/before", True), ("forgetting/after", True),
     ("test/exact_match", False), ("test/macro_f1", False), ("test/choice_accuracy", False), ("test/item_f1", False),
     ("test/item_accuracy", False), ("test/chrf", False), ("test/bleu", False), ("test/of_a_user", False)],
)  # fmt: skip
def test_which_way_is_better(name: str, lower: bool) -> None:
    assert metric(name).lower_is_better == lower


def test_margins() -> None:
    assert metric("test/loss").margin == metric("test/exact_match").margin == metric("test/of_a_user").margin == 0.01
    assert metric("test/bleu").margin == metric("test/chrf").margin == 1.0  # of 100 points


@pytest.mark.parametrize(
    ("name", "heading", "label"),
    [("test/loss", "test loss", "test loss (nats per target token)"),
     ("val/loss", "val loss", "val loss (nats per target token)"),
     ("test/exact_match", "exact match", "test exact match (share)"),
     ("test/chrf", "chrf", "test chrf (0 to 100)"),
     ("test/macro_f1", "macro f1", "test macro f1"),
     ("forgetting/change", "forgetting change", "forgetting change"),
     ("test/of_a_user", "of a user", "test of a user"),
     ("my_split/of_a_user", "my split of a user", "my split of a user")],
)  # fmt: skip
def test_names_in_words(name: str, heading: str, label: str) -> None:
    assert (metrics.heading(name), metrics.label(name)) == (heading, label)


def test_no_two_rows_have_one_name_and_every_kind_is_a_judges() -> None:
    assert len({row.name for row in METRICS}) == len(METRICS)
    assert {kind for row in METRICS for kind in row.kinds} <= {*JUDGES, ANY, LIKELIEST}


def test_scores_are_those_of_the_kinds_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(["a", "x"], ["a", "b"], [True, False], [False, True], ["a", "b"])
    # a: precision and recall 1; b: never predicted.
    assert metrics.scores((ANY, "label"), reading) == {"exact_match": 0.5, "macro_f1": 0.5, "parse_failures": 0.5}
    assert metrics.scores((ANY, "text"), reading) == {"exact_match": 0.5}
    row = Metric("length", "length", "answers", kinds=("text",), score=lambda of: float(len(of.read)))
    monkeypatch.setattr(metrics, "METRICS", (row, *METRICS))
    assert list(metrics.scores((ANY, "text"), reading).items()) == [("length", 2.0), ("exact_match", 0.5)]


def test_a_metric_stands_in_one_file() -> None:
    """But for the loss, and for names that are also a kind of answers or a function of texts."""
    names = {row.name for row in METRICS if row.score is not None} - {*JUDGES, "exact_match"}
    assert "chrf" in names and len(names) > 4
    files = [path for path in (CODE / "src").rglob("*") if path.suffix in (".py", ".js", ".html", ".css")]
    for name in names:
        holders = [path.name for path in files if name in path.read_text(encoding="utf-8").lower()]
        assert holders == ["metrics.py"], name
