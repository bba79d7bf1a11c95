"""Check a step's tensors: every row once, each token's place, its target and its weight."""

from __future__ import annotations

import pytest
import torch

from src.data.batches import IGNORE, Item, collate, rows_at
from src.engine.packed.feed import Feed, Inputs, share
from src.engine.packed.masks import rows_apart
from src.engine.packed.members import Member, member
from tests.engine.packed.conftest import CPU, PAD, config_of, rows, two_turns

STEPS = 12
SIZE, ACCUM = 4, 2
UNEVEN = rows(40, (2, 40), (1, 6))
LAYOUTS = {
    "uneven": UNEVEN,
    "even": rows(40, (20, 20), (11, 11)),
    "two turns": two_turns(UNEVEN),
    "one long": [*rows(39, (2, 6), (1, 3)), *rows(1, (90, 90), (30, 30))],
}


def members(*seeds: int) -> list[Member]:
    return [member(config_of("lora", f"data_seed={s}", f"train.batch_size={SIZE}", f"train.grad_accum={ACCUM}")) for s in seeds]


def feed_of(items: list[Item], static: bool, *seeds: int) -> Feed:
    return Feed(items, PAD, members(*seeds), STEPS, static)


def unpacked(inputs: Inputs, micro: int, run: int, runs: int) -> dict[int, list[tuple[int, int, int | None, float]]]:
    """Read back the rows of a run in a micro-batch: (place in the row, token, target, weight) of each token, in order."""
    ids, of_row, positions = (t[micro].view(runs, -1)[run].tolist() for t in (inputs.ids, inputs.rows, inputs.positions))
    carried = {
        index: (target, weight)
        for index, target, weight in zip(
            *(t[micro, run].tolist() for t in (inputs.labeled, inputs.targets, inputs.weights)), strict=True
        )
        if weight > 0
    }
    tokens_of_row: dict[int, list[tuple[int, int, int | None, float]]] = {}
    for index, (token, row, position) in enumerate(zip(ids, of_row, positions, strict=True)):
        if row >= 0:
            tokens_of_row.setdefault(row, []).append((position, token, *carried.pop(index, (None, 0.0))))
        else:
            assert token == PAD
    assert not carried  # padding carries no loss
    return tokens_of_row


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_holds_the_rows_of_its_runs(layout: str, static: bool) -> None:
    """Against the plain right-padded batch of the same rows."""
    items, seeds = LAYOUTS[layout], (0, 3, 0)
    feed = feed_of(items, static, *seeds)
    for step in range(STEPS):
        inputs = feed.inputs(step)
        for run, seed in enumerate(seeds):
            order = rows_at(step * SIZE * ACCUM, SIZE * ACCUM, len(items), seed)
            whole = collate([items[row] for row in order], PAD, CPU)
            assert inputs.tokens[run] == whole.tokens
            for micro in range(ACCUM):
                tokens_of_row = unpacked(inputs, micro, run, len(seeds))
                assert sorted(tokens_of_row) == list(range(micro * SIZE, (micro + 1) * SIZE))
                for row, tokens in tokens_of_row.items():
                    length = len(items[order[row]])
                    assert [place for place, *_ in tokens] == list(range(length))
                    assert [token for _, token, *_ in tokens] == whole.input_ids[row, :length].tolist()
                    targets = [IGNORE if target is None else target for _, _, target, _ in tokens[:-1]]
                    assert targets == whole.labels[row, 1:length].tolist()
                    assert tokens[-1][2] is None
                    assert {weight for *_, weight in tokens} <= {0.0, 1 / whole.target_tokens}


def test_rows_share_sequences_where_that_saves_padding() -> None:
    """One row for each sequence, rows of 2 to 46 tokens would take four times 48."""
    shared, apart = feed_of(LAYOUTS["uneven"], True, 0), feed_of(LAYOUTS["even"], True, 0)
    assert shared.shared and not apart.shared
    assert max(shared.inputs(step).ids[0].numel() for step in range(STEPS)) <= 0.85 * SIZE * 48
    assert apart.inputs(0).ids[0].shape == (SIZE, 32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_static_steps_have_few_shapes(layout: str) -> None:
    """The rows of the first steps choose the shape; over 200 steps, nine in ten have it."""
    feed = feed_of(LAYOUTS[layout], True, 0, 1, 2)
    shapes = [feed.inputs(step).shape for step in range(200)]
    assert max(shapes.count(shape) for shape in set(shapes)) >= 180
    assert len(set(shapes)) <= 4
    assert feed.inputs(0).ids.shape[2] % 16 == 0 and feed.inputs(0).labeled.shape[2] % 32 == 0


def test_a_batch_that_needs_more_room_than_was_foreseen_gets_it() -> None:
    """Short rows are surveyed; a long one with many labeled tokens comes later."""
    items = [*rows(30, (2, 6), (1, 3)), *rows(1, (60, 60), (70, 70), seed=1)]
    late = next(seed for seed in range(100) if 30 in rows_at(24, 8, 31, seed))
    feed = Feed(items, PAD, members(late), 3, static=True)
    usual, needed = feed.inputs(0), feed.inputs(3)
    assert usual.labeled.shape[2] == 32 and needed.labeled.shape[2] == 96
    assert needed.ids.shape[2] > usual.ids.shape[2] and needed.ids.shape[2] % 16 == 0
    tokens_of_row = {row: tokens for micro in range(ACCUM) for row, tokens in unpacked(needed, micro, 0, 1).items()}
    longest = max(tokens_of_row.values(), key=len)
    assert [token for _, token, *_ in longest] == items[30].prompt + items[30].target
    assert sum(target is not None for *_, target, _ in longest) == 71
    assert float(needed.weights.sum()) == pytest.approx(1, abs=1e-12)


def test_first_fit_decreasing() -> None:
    assert share([3, 7, 5, 2, 3], 10) == [[1, 0], [2, 4, 3]]
    assert share([4, 4, 4], 4) == [[0], [1], [2]]
    assert share([6], 10) == [[0]]


def test_the_mask_keeps_rows_to_themselves() -> None:
    seen = rows_apart(torch.tensor([[4, 4, 2, 2, -1]]), torch.float32)[0, 0]
    assert (seen == 0).tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, True, True, False],
        [False, False, False, False, True],
    ]
    assert seen[0, 1] == -torch.inf
