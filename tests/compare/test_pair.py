"""``pair=``: two runs on the same items, against SciPy and sums done by hand; and the files that single runs leave."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from src.compare.logs import curves, items
from src.record.records import RUNS, RunFolder
from tests.compare.synthetic import RSLORA, assayed, record_again
from tests.conftest import evaluate

Row = dict[str, Any]


def answered(right: list[bool], nats: float = 2.0, **other: Any) -> list[Row]:
    return [
        {"id": f"x{index}", "log_loss": nats, "tokens": 4, "prediction": "a", "correct": good} | other
        for index, good in enumerate(right)
    ]


def paired(make, capsys, first: list[Row] | None, second: list[Row] | None) -> tuple[int, str, str]:
    ids = [make(predictions=first), make(seed=1, predictions=second)]
    code = evaluate([f"pair={','.join(ids)}"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(("only_first", "only_second"), [(9, 2), (3, 3), (1, 0), (0, 12)])
def test_mcnemar_is_a_binomial_test_of_the_discordant(make, capsys, only_first, only_second) -> None:
    first = [True] * (10 + only_first) + [False] * only_second
    second = [True] * 10 + [False] * only_first + [True] * only_second
    code, out, err = paired(make, capsys, answered(first), answered(second))
    p = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert (code, err) == (0, "")
    assert f"only the first right {only_first}, only the second {only_second}; McNemar's exact p = {p:.4g}\n" in out
    assert f"right in {sum(first) / len(first):.4f} and {sum(second) / len(second):.4f}" in out


def test_the_difference_in_loss_by_hand(make, capsys) -> None:
    """0.5 nats more on each target of 4 tokens, in shuffled order: 0.125 a token, on every item alike."""
    first, second = answered([True] * 8, nats=2.5), answered([True] * 8)
    _, out, _ = paired(make, capsys, first[::-1], second)
    assert "first minus second +0.12500 nats per target token" in out
    assert "[+0.12500, +0.12500] (bootstrap), standard error 0.00000" in out
    assert "on 8 test examples" in out


def test_the_standard_error_by_hand(make, capsys) -> None:
    """Differences of 1 and 3 nats over 2 x 4 tokens: mean 4 / 8, standard error sqrt(2 / 2) / 4."""
    first, second = answered([True] * 2), answered([True] * 2)
    first[0]["log_loss"] += 1.0
    first[1]["log_loss"] += 3.0
    _, out, _ = paired(make, capsys, first, second)
    assert "first minus second +0.50000 nats" in out and "standard error 0.25000" in out


def test_without_answers_only_losses_compare(make, capsys) -> None:
    loss_only = [{"id": str(index), "log_loss": 1.0 + index, "tokens": 1} for index in range(3)]
    code, out, _ = paired(make, capsys, loss_only, loss_only)
    assert code == 0 and "answers: not generated in both" in out and "+0.00000" in out


UNREAD = "predictions.jsonl is not there or cannot be read"
BROKEN = {
    "other items": (lambda rows: [row | {"id": "y" + row["id"]} for row in rows], "not scored on the same test examples"),
    "fewer items": (lambda rows: rows[:-1], "not scored on the same test examples"),
    "other tokens": (lambda rows: [row | {"tokens": 5} for row in rows], "not scored on the same test examples"),
    "no items": (lambda rows: [], UNREAD),
    "no tokens": (lambda rows: [row | {"tokens": 0} for row in rows], UNREAD),
    "no loss": (lambda rows: [row | {"log_loss": None} for row in rows], UNREAD),
    "a loss in words": (lambda rows: [row | {"log_loss": "2"} for row in rows], UNREAD),
    "a huge loss": (lambda rows: [row | {"log_loss": 10**400} for row in rows], UNREAD),
    "no id": (lambda rows: [{"log_loss": 1.0, "tokens": 1}], UNREAD),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_pair_that_is_none_is_one_line(make, capsys, change, words) -> None:
    rows = answered([True, False, True])
    code, out, err = paired(make, capsys, rows, change(rows))
    assert (code, out) == (2, "") and err.startswith("error: pair: ") and words in err and err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[1]\n", "3\n", '{"id": 1}\n', "[" * 10_000 + "\n", "\ufffe"])
def test_a_broken_file_of_predictions_is_one_line(make, capsys, text) -> None:
    first, second = make(predictions=answered([True])), make(seed=1, predictions=answered([True]))
    RunFolder(second).predictions.write_text(text)
    record_again(second)
    assert evaluate([f"pair={first},{second}"]) == 2
    assert f"{second}/predictions.jsonl is not there or cannot be read" in capsys.readouterr().err


def test_no_predictions(make, capsys) -> None:
    code, _, err = paired(make, capsys, None, None)
    assert code == 2 and "predictions.jsonl is not there" in err


@pytest.mark.parametrize("value", ["a", "0123456789", "0123456789,0123456789", "0123456789,../../etc/", "0,1,2"])
def test_ids_that_are_none(make, capsys, value) -> None:
    make()
    assert evaluate([f"pair={value}"]) == 2
    assert "needs the ids of two runs, such as pair=" in capsys.readouterr().err


def test_an_unknown_run(make, capsys) -> None:
    run = make(predictions=answered([True]))
    assert evaluate([f"pair={run},0123456789"]) == 2
    err = capsys.readouterr().err
    assert err == f"error: pair: 0123456789 has no record in {RUNS.absolute()}\n"


def test_items_stand_in_the_order_of_their_ids(make) -> None:
    rows = answered([True, False, True], cluster="c")
    rows[2]["log_loss"] = 7.0
    found = items(make(predictions=rows[::-1]))
    assert found is not None
    assert found.ids == ("x0", "x1", "x2") and found.clusters == ("c", "c", "c")
    assert list(found.nats) == [2.0, 2.0, 7.0] and list(found.tokens) == [4.0] * 3
    assert found.correct is not None and list(found.correct) == [True, False, True]


@pytest.mark.parametrize(
    "line", ['{"step": 40, "train/loss": 1e300}', '{"step": "x"}', "[3]", '{"train/loss": 1.0}', "{" * 10_000]
)
def test_a_curve_is_read_up_to_a_broken_line(make, line) -> None:
    run = make(curve=(3.0, 2.0))
    with open(RunFolder(run).metrics, "a") as file:
        file.write(f"{line}\n" + json.dumps({"step": 50, "train/loss": 1.0}) + "\n")
    record_again(run)
    found = curves([run])
    assert len(found.problems) == 1 and "read up to a line that is broken" in found.problems[0]
    assert list(found.frame["value"]) == [3.0, 2.0, 2.1]


def test_a_huge_whole_number_is_a_broken_line(make) -> None:
    run = make(curve=(3.0,))
    with open(RunFolder(run).metrics, "a") as file:
        file.write('{"step": 40, "train/loss": ' + "9" * 400 + "}\n")
    record_again(run)
    assert "too large" in curves([run]).problems[0]


def test_the_bootstrap_of_a_contrast_is_over_its_items(make) -> None:
    """Both seeds: rsLoRA 0.4 nats lower on each target of 4 tokens, so 0.1 a token whatever is drawn."""
    for seed in range(2):
        make(2.0, seed, predictions=answered([True] * 5))
        make(1.9, seed, variant=RSLORA, predictions=answered([True] * 5, nats=1.6))
    row = assayed().table.to_dict("records")[1]
    assert (row["bootstrap_low"], row["bootstrap_high"]) == pytest.approx((-0.1, -0.1))


@pytest.mark.parametrize("second", [[], answered([True] * 4), answered([True] * 5, id="x"), answered([True] * 5, tokens=3)])
def test_a_contrast_of_unlike_items_has_no_bootstrap(make, second) -> None:
    for seed in range(2):
        make(2.0, seed, predictions=answered([True] * 5))
        make(1.9, seed, variant=RSLORA, predictions=second if seed else answered([True] * 5))
    table = assayed().table
    assert np.isnan(table["bootstrap_low"][1]) and table["difference"][1] == pytest.approx(-0.1)
