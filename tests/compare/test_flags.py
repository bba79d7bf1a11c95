"""Every flag of a row, in the words that a reader meets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from src.compare.flags import EXPLANATIONS, by_flag
from tests.compare import synthetic
from tests.compare.synthetic import DORA, FROZEN, QLORA, RSLORA, assayed, flagged

RATES = {3e-4: 2.2, 1e-3: 2.0, 3e-3: 2.1}
EDGE = {3e-4: 2.2, 1e-3: 2.1, 3e-3: 2.0}
QUANTIZED = "its weights were 4-bit (Q4_1) before and were dequantised to bf16"


def both(**options) -> None:
    """A reference and a row of another variant, both clean: three rates, one scale, 9 seeds of which 6 report."""
    synthetic.grid(RATES, range(9))
    synthetic.grid(**{"validation": RATES, "seeds": range(9), "variant": DORA} | options)


def scale() -> None:
    both(variant=RSLORA)


def quantized() -> None:
    both(variant=QLORA, model_note=QUANTIZED)


# Of each flag a sweep in which the row of the other variant has it, and no other, and what it says.
CASES: dict[str, tuple[Callable[[], None], str, str]] = {
    "best rate on the grid's edge": (lambda: both(validation=EDGE), "dora r=8", "best rate on the grid's highest edge"),
    "one learning rate": (
        lambda: [synthetic.run(seed=seed, variant=variant) for seed in range(6) for variant in ({}, DORA)],
        "dora r=8", "one learning rate",
    ),
    "unequal grids": (lambda: both(validation=RATES | {1e-2: 2.5}), "dora r=8", "grid of 4 rates, unequal to others"),
    "incomplete grid": (lambda: both(ended={(3e-3, 1): "absent"}), "dora r=8", "incomplete grid"),
    "unpaired seeds": (lambda: both(seeds=range(10)), "dora r=8", "1 of 7 seeds unpaired"),
    "scale confounded with variant": (scale, "rslora r=8", "scale 5.66 against 2: confounded with variant"),
    "base already quantised": (quantized, "qlora r=8", "base already quantised"),
    "dirty commit": (lambda: both(provenance={"dirty": True}), "dora r=8", "dirty commit"),
    "runs that did not finish": (
        lambda: both(ended={(3e-4, 6): "diverged", (3e-4, 7): "diverged", (3e-3, 8): "out_of_memory"}),
        "dora r=8", "2 diverged, 1 out_of_memory of 27 runs",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("write", "row", "words"), CASES.values(), ids=CASES)
def test_one_flag(make, write, row, words) -> None:
    write()
    result = assayed()
    assert flagged(result, row) == [words]
    assert result.table["flags"][result.labels.index(row)] == words


def test_a_clean_row_has_none(make) -> None:
    both()
    assert assayed().flags == [[], []]


@pytest.mark.parametrize(("seeds", "flags"), [(9, []), (8, []), (6, ["only 4 seeds"]), (2, ["only 1 seed"])])
def test_too_few_seeds(make, seeds, flags) -> None:
    """8 seeds leave 6 to report, 6 leave 4."""
    synthetic.grid(RATES, seeds=range(seeds))
    assert flagged(assayed(), "lora r=8") == flags


def test_one_seed(make) -> None:
    synthetic.grid(RATES, seeds=[3])
    assert flagged(assayed(), "lora r=8") == ["tuned and reported on the same seeds", "only 1 seed"]


def test_no_number(make) -> None:
    synthetic.grid(RATES, seeds=range(3), ended={(1e-3, 1): "failed", (1e-3, 2): "missing"})
    assert flagged(assayed(), "lora r=8") == ["no finished report run", "1 failed, 1 missing of 9 runs"]


def test_runs_are_counted_over_all_rates(make) -> None:
    """Runs that diverged at a rate that was not chosen are in no number, and still reported."""
    synthetic.grid(RATES, ended={(3e-3, seed): "diverged" for seed in range(12)})
    result = assayed()
    assert result.table["status"][0] == "ok"
    assert flagged(result, "lora r=8") == ["incomplete grid", "12 diverged of 36 runs"]


@pytest.mark.parametrize(
    ("variant", "note", "flag"),
    [({}, QUANTIZED, False), (QLORA, QUANTIZED, True), ({"base_precision": "int8"}, "quantised", True),
     (QLORA, "random weights", False), (QLORA, None, False)],
)  # fmt: skip
def test_which_base_was_quantized_before(make, variant, note, flag) -> None:
    synthetic.run(variant=variant, model_note=note)
    result = assayed()
    assert any(raised.flag == "base already quantised" for raised in result.flags[0]) == flag


def test_a_clean_commit_and_an_unknown_one_are_none(make) -> None:
    synthetic.run(provenance={"dirty": False})
    synthetic.run(seed=1)
    assert "dirty commit" not in flagged(assayed(), "lora r=8")
    synthetic.run(seed=2, provenance={"dirty": True})
    assert "dirty commit" in flagged(assayed(), "lora r=8")


def test_a_control_has_no_rate_and_no_seeds_to_flag(make) -> None:
    synthetic.run(variant=FROZEN)
    assert assayed().flags == [[]]


def test_every_flag_is_explained_and_every_explanation_raised(make) -> None:
    """The cases above, all in one comparison: each flag with its rows, in the order of the explanations."""
    raised = {*CASES, "no number", "fewer than 6 seeds", "tuned and reported on the same seeds"}
    assert raised == set(EXPLANATIONS)
    synthetic.grid(EDGE, seeds=range(2))
    synthetic.grid(RATES, seeds=range(2), variant=RSLORA)
    result = assayed()
    assert [(name, rows) for name, _, rows in by_flag(result.flags, result.labels)] == [
        ("best rate on the grid's edge", ["lora r=8"]),
        ("fewer than 6 seeds", ["lora r=8", "rslora r=8"]),
        ("scale confounded with variant", ["rslora r=8"]),
    ]
    assert all(text == EXPLANATIONS[name] for name, text, _ in by_flag(result.flags, result.labels))
