"""Paired differences: against SciPy, against all sign flips counted one by one, and which rows are paired at all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from src.compare.assay import Assay
from src.compare.contrasts import Contrast
from src.compare.statistics import Paired, paired
from tests.compare.synthetic import DORA, FROZEN, QLORA, RSLORA, assayed, flagged

LORA_LOSSES = [1.90, 1.95, 1.88, 1.93, 1.97, 1.91, 1.89, 1.94]
RSLORA_LOSSES = [1.86, 1.96, 1.85, 1.88, 1.95, 1.92, 1.84, 1.90]
DORA_LOSSES = [1.91, 1.94, 1.89, 1.95, 1.96, 1.93, 1.88, 1.95]
RANK_16 = 16 * 30 * 10_176  # of LoRA on SmolLM2-135M; DoRA adds the 30 * 5,184 outputs
MAGNITUDES = 30 * 5_184


def write(make, losses: list[float], first: int = 0, **options) -> None:
    for seed, loss in enumerate(losses, start=first):
        make(loss, seed, **options)


def contrast(result: Assay, label: str, view: int = 0) -> Contrast:
    found = result.views[view].of(result.labels.index(label))
    assert found is not None
    return found


def paired_with(result: Assay, view: int = 0) -> dict[str, str]:
    return {result.labels[tested.row]: result.labels[tested.reference] for tested in result.views[view].contrasts}


def sign_flip(differences: list[float]) -> float:
    """The share of all 2**n patterns of signs whose sum is at least as far from 0: the definition, one by one."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def test_eight_seeds_by_hand(make) -> None:
    write(make, LORA_LOSSES)
    write(make, RSLORA_LOSSES, variant=RSLORA)
    write(make, DORA_LOSSES, variant=DORA)
    result = assayed()
    differences = [a - b for a, b in zip(RSLORA_LOSSES, LORA_LOSSES, strict=True)]
    # -0.04 + 0.01 - 0.03 - 0.05 - 0.02 + 0.01 - 0.05 - 0.04 = -0.21, over 8 seeds
    tested = contrast(result, "rslora r=8")
    assert tested.test.mean == pytest.approx(-0.21 / 8) and tested.test.n == 8
    expected = stats.ttest_rel(RSLORA_LOSSES, LORA_LOSSES)
    assert tested.test.p_t == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (tested.test.low, tested.test.high) == pytest.approx((interval.low, interval.high))
    assert tested.test.sd == pytest.approx(np.std(differences, ddof=1))
    # The sizes 4, 1, 3, 5, 2, 1, 5, 4 sum to 25. A sum of 21 or more leaves at most 2 on the other side: nothing, either 1,
    # both, or the 2. Five patterns of signs, and their mirror images, of 256.
    assert tested.test.p_flip == pytest.approx(sign_flip(differences)) == pytest.approx(10 / 256)
    row = result.table.to_dict("records")[1]
    assert (row["difference"], row["pairs"], row["p_sign_flip"]) == (tested.test.mean, 8, tested.test.p_flip)
    assert (row["difference_low"], row["difference_high"]) == (tested.test.low, tested.test.high)


def test_holm_over_the_family(make) -> None:
    """Of two contrasts the smaller p is doubled; the larger stays, and is at least that."""
    write(make, LORA_LOSSES)
    write(make, RSLORA_LOSSES, variant=RSLORA)
    write(make, DORA_LOSSES, variant=DORA)
    result = assayed()
    large = sign_flip([a - b for a, b in zip(DORA_LOSSES, LORA_LOSSES, strict=True)])
    small = sign_flip([a - b for a, b in zip(RSLORA_LOSSES, LORA_LOSSES, strict=True)])
    assert large > 2 * small
    for view in (0, 1):
        assert contrast(result, "rslora r=8", view).p_holm == pytest.approx(2 * small)
        assert contrast(result, "dora r=8", view).p_holm == pytest.approx(large)
        # 0.039 alone would have been marked.
        assert [tested.verdict for tested in result.views[view].contrasts] == ["undecided", "undecided"]
    assert result.views[0].smallest_p == 2 * 2 / 2**8


def test_a_clear_difference_is_marked_and_none_is_found_equivalent(make) -> None:
    write(make, LORA_LOSSES)
    write(make, [loss - 0.1 for loss in RSLORA_LOSSES], variant=RSLORA)
    write(make, [loss + (0.001 if seed % 2 else -0.001) for seed, loss in enumerate(LORA_LOSSES)], variant=DORA)
    result = assayed()
    assert contrast(result, "rslora r=8").verdict == "differs"
    assert contrast(result, "dora r=8").verdict == "equivalent"
    assert dict(zip(result.labels, result.table["verdict"], strict=True))["rslora r=8"] == "differs"
    wide = assayed(margin=0.2)
    assert contrast(wide, "rslora r=8").verdict == "differs, equivalent"
    assert contrast(assayed(margin=0.0005), "dora r=8").verdict == "undecided"


@pytest.mark.parametrize(("seeds", "verdict"), [(1, "descriptive"), (5, "descriptive"), (6, "differs")])
def test_fewer_than_six_seeds_earn_no_mark(make, seeds, verdict) -> None:
    write(make, LORA_LOSSES[:seeds])
    write(make, [loss - 1.0 for loss in LORA_LOSSES[:seeds]], variant=RSLORA)
    tested = contrast(assayed(), "rslora r=8")
    assert tested.verdict == verdict and tested.marked == (seeds == 6)
    # All of one sign: 2 of the 2**n patterns.
    assert math.isnan(tested.test.p_flip) if seeds == 1 else tested.test.p_flip == 2 / 2**seeds


def test_no_p_marks_five_seeds() -> None:
    nothing = Paired(n=5, mean=-1.0, sd=0.0, low=-1.0, high=-1.0, p_flip=1e-9, p_t=0.0, p_tost=0.0, equivalent=True, mde=0.0)
    assert not Contrast(1, 0, (), nothing, p_holm=1e-9).marked
    assert Contrast(1, 0, (), nothing, p_holm=1e-9).verdict == "descriptive"


def test_seeds_that_only_one_row_has_are_left_out(make) -> None:
    write(make, LORA_LOSSES)
    write(make, [*RSLORA_LOSSES[2:], 99.0, 99.0], first=2, variant=RSLORA)
    result = assayed()
    tested = contrast(result, "rslora r=8")
    assert tested.seeds == tuple((seed, seed) for seed in range(2, 8))
    assert tested.test.mean == pytest.approx(
        stats.ttest_rel(RSLORA_LOSSES[2:], LORA_LOSSES[2:]).statistic * tested.test.sd / math.sqrt(6)
    )
    assert "2 of 8 seeds unpaired" in flagged(result, "rslora r=8")


def test_the_order_of_data_is_half_of_a_pair(make) -> None:
    write(make, LORA_LOSSES)
    for seed, loss in enumerate(RSLORA_LOSSES):
        make(loss, seed, variant=RSLORA, fields={"data_seed": seed if seed < 6 else 99})
    assert contrast(assayed(), "rslora r=8").test.n == 6


def test_the_reference_that_differs_in_least_is_taken(make) -> None:
    for alpha in (16.0, 32.0):
        make(fields={"lora.alpha": alpha})
        make(variant=RSLORA, fields={"lora.alpha": alpha})
    assert paired_with(assayed()) == {"rslora r=8, alpha 16": "lora r=8, alpha 16", "rslora r=8, alpha 32": "lora r=8, alpha 32"}


def test_a_reference_of_another_rank_is_none(make) -> None:
    make(r=8)
    make(r=16, variant=RSLORA)
    result = assayed()
    assert paired_with(result) == {} and result.views[0].unmatched == [1]
    # Both have 1,000 trained parameters here.
    assert paired_with(result, 1) == {"rslora r=16": "lora r=8"}


def test_same_parameters_within_five_percent(make) -> None:
    """DoRA's magnitudes are 3.2 % on top of LoRA at r=16, and 12.7 % at r=4; LoRA r=15 is nearest to neither."""
    for r in (4, 15, 16):
        make(r=r, trainable_parameters=RANK_16 * r // 16)
    for r in (4, 16):
        make(r=r, variant=DORA, trainable_parameters=RANK_16 * r // 16 + MAGNITUDES)
    result = assayed()
    assert RANK_16 == 4_884_480 and RANK_16 + MAGNITUDES == 5_040_000
    assert paired_with(result, 0) == {"dora r=4": "lora r=4", "dora r=16": "lora r=16"}
    assert paired_with(result, 1) == {"dora r=16": "lora r=16"}
    assert [result.labels[row] for row in result.views[1].unmatched] == ["dora r=4"]


@pytest.mark.parametrize(
    ("parameters", "matched"), [(1050, True), (1051, False), (953, True), (952, False), (0, False), (None, False)]
)
def test_where_five_percent_end(make, parameters, matched) -> None:
    make(trainable_parameters=1000)
    make(variant=DORA, trainable_parameters=parameters)
    assert bool(assayed().views[1].contrasts) == matched


def test_another_reference(make) -> None:
    for variant in ({}, RSLORA, DORA):
        make(variant=variant)
    result = assayed(reference="rslora")
    assert paired_with(result) == {"lora r=8": "rslora r=8", "dora r=8": "rslora r=8"}
    assert math.isnan(result.table["difference"][1])


def test_without_a_reference_nothing_is_paired(make) -> None:
    make(variant=DORA)
    make(variant=FROZEN)
    result = assayed()
    assert [view.contrasts for view in result.views] == [[], []] and [view.unmatched for view in result.views] == [[1], [1]]


def test_a_share_is_better_when_higher(make) -> None:
    for seed in range(6):
        make(seed=seed, metrics={"test/loss": 2.0, "test/exact_match": 0.5})
        make(seed=seed, variant=RSLORA, metrics={"test/loss": 3.0, "test/exact_match": 0.6}, estimated_memory_bytes=3 * 2**30)
    result = assayed(metric="test/exact_match")
    tested = contrast(result, "rslora r=8")
    assert tested.test.mean == pytest.approx(0.1) and result.margin == 0.01
    assert list(result.table["pareto"]) == ["memory", "memory, parameters, time"], "the better one takes more memory"


def test_runs_that_did_not_finish_are_in_no_pair(make) -> None:
    write(make, LORA_LOSSES)
    write(make, RSLORA_LOSSES[:7], variant=RSLORA)
    make(loss=-50.0, seed=7, variant=RSLORA, status="diverged", reason="not finite")
    assert contrast(assayed(), "rslora r=8").test.n == 7


def test_a_pair_of_both_views_is_one_test(make) -> None:
    write(make, LORA_LOSSES)
    write(make, RSLORA_LOSSES, variant=RSLORA)
    same_rank, same_size = assayed().views
    assert same_rank.contrasts[0].test is same_size.contrasts[0].test


def test_precisions_are_variants(make) -> None:
    make()
    make(variant=QLORA)
    result = assayed()
    assert paired_with(result) == {"qlora r=8": "lora r=8"} and result.audit.clean


def test_one_odd_seed_that_parts_the_exact_test_from_the_interval_marks_nothing() -> None:
    # All eight are below 0, so 2 of the 2^8 sign flips are as far out: p = 0.0078. Mean -0.0095, sd 0.0205, t(7) = 2.365:
    # the interval is -0.0095 +- 2.365 * 0.0205 / sqrt(8) = [-0.027, +0.008].
    test = paired([-0.001, -0.001, -0.002, -0.002, -0.003, -0.003, -0.004, -0.06], margin=0.01)
    tested = Contrast(1, 0, tuple((seed, seed) for seed in range(8)), test, p_holm=test.p_flip)
    assert test.p_flip == pytest.approx(2 / 2**8) and test.low < 0 < test.high
    assert not tested.marked and tested.verdict == "undecided"
