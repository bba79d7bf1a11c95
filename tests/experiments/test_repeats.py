"""The sweep beside itself trained again."""

from __future__ import annotations

import pytest

from experiments.variants_at_their_best import repeats, report, results
from src.files.errors import ConfigError
from tests.experiments.test_variants_at_their_best import Losses, level, runs_of

FIRST: Losses = {
    ("lora", 4, 1e-3): level(2.0),
    ("lora", 4, 2e-3): level(2.5),
    ("dora", 4, 1e-3): level(1.9),
    ("dora", 4, 2e-3): level(2.6),
}
AGAIN: Losses = {
    ("lora", 4, 1e-3): level(2.0) | {3: 2.03 - 0.004, 4: None, 5: 2.05 + 0.002},
    ("lora", 4, 2e-3): level(2.4),
    ("dora", 4, 1e-3): level(1.9),
    ("dora", 4, 2e-3): level(2.6),
}


def test_changes_by_hand() -> None:
    text = repeats.compared(runs_of(FIRST, started="2026-01-01"), runs_of(AGAIN, started="2026-01-02"))
    assert "43 of 44 runs were trained twice" in text  # one diverged the second time
    assert "| LoRA r=4 | 0.001 | 10 | -0.0002 | 0.0000 | 0.0015 | -0.0040 |" in text  # -4, 2 and eight times 0
    assert "| DoRA r=4 | 0.001 | 11 | +0.0000 | 0.0000 | 0.0000 |" in text
    assert "| 0.002 | 22 | -0.0500 | 0.0500 | 0.0512 | -0.1000 |" in text
    pair, first, again = text.splitlines()[-1].strip("| ").split(" | ")
    assert (pair, first) == ("DoRA r=4 - LoRA r=4", "-0.1000 [-0.1000, -0.1000], differs") and again.startswith("-0.0997 [")


def test_a_row_that_is_in_both_tables_was_not_trained_twice() -> None:
    runs = runs_of(FIRST, started="2026-01-01")
    with pytest.raises(ConfigError, match="one and the same record in both tables"):
        repeats.compared(runs, runs)


def test_a_run_that_the_first_table_has_not_is_refused() -> None:
    again = runs_of(AGAIN, started="2026-01-02")
    again.loc[5, "run_id"] = "deadbeef00"
    with pytest.raises(ConfigError, match=r"again/results\.csv: deadbeef00: not in the first table"):
        repeats.compared(runs_of(FIRST, started="2026-01-01"), again)


def test_a_cell_that_was_not_tried_at_all_rates_again_has_no_second_difference() -> None:
    again = AGAIN | {("dora", 4, 2e-3): {0: 2.6}}
    text = repeats.compared(runs_of(FIRST, started="2026-01-01"), runs_of(again, started="2026-01-02"))
    assert text.splitlines()[-1] == "| DoRA r=4 - LoRA r=4 | -0.1000 [-0.1000, -0.1000], differs | - |"


def test_the_committed_tables_come_from_the_committed_results() -> None:
    first, again = (results.load(folder / "results.csv") for folder in (report.HERE, repeats.AGAIN))
    assert (repeats.AGAIN / "repeats.md").read_text(encoding="utf-8") == repeats.compared(first, again)


def test_the_readmes_numbers_are_those_of_the_two_tables() -> None:
    """By pandas alone."""
    first, again = (results.load(folder / "results.csv") for folder in (report.HERE, repeats.AGAIN))
    adapters = again[again["r"].notna()]
    both = first.merge(adapters, on=results.KEY, suffixes=("", "_2"))
    change = both["test/loss_2"] - both["test/loss"]
    best = (both["learning_rate"] == 3e-3) & ~((both["variant"] == "rslora") & (both["r"] > 4))
    best |= (both["learning_rate"] == 1.25e-3) & (both["variant"] == "rslora") & (both["r"] > 4)
    q, rs = (both["variant"] == "qlora") & (both["r"] == 16), (both["variant"] == "rslora") & (both["r"] == 256)
    wanted = [
        f"{len(adapters):,} of the 1,232 runs were trained again",
        f"ended {change[best].std():.3f} nats away (standard deviation of {best.sum()};",
        f"seed 6 by {abs(change[best & q & (both['seed'] == 6)].item()):.3f},",
        f"rsLoRA at r = 256 by up to {change[best & rs].abs().max():.3f})",
        f"half of them by no more than {change[best].abs().median():.3f}",
        f"at 5e-4 and below by {change[both['learning_rate'] < 1e-3].std():.3f}",
        f"by up to {change[both['learning_rate'] >= 3e-3].abs().max():.1f}:",
    ]
    readme = " ".join((report.HERE / "README.md").read_text(encoding="utf-8").split())
    assert [sentence for sentence in wanted if sentence not in readme] == []
    assert (
        f"ended {change[best].std():.3f} nats away (standard deviation of {best.sum()}, each at its best rate; at most"
        in " ".join((report.HERE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    )
