"""Check the dropout mask: its dependence on each key, its independence of the rest, its randomness."""

from __future__ import annotations

import math

import pytest
import torch

from src.engine.packed.dropout import drop, layer_key, mix, step_keys
from tests.engine.packed.conftest import WEIGHTS, config_of, pack_of, rows, train

ROWS, POSITIONS, FEATURES = 8, 64, 256  # 131072 entries a run
SIGMAS = 5.0  # a true test fails once in 1.7 million


def grid(rows: range, positions: int, runs: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the row of each token and its place in it, both [runs, tokens]."""
    row, position = torch.tensor(rows).repeat_interleave(positions), torch.arange(positions).repeat(len(rows))
    return row.expand(runs, -1), position.expand(runs, -1)


def kept(
    seeds: list[int], step: int = 0, layer: str = "model.layers.0.self_attn.q_proj", p: float = 0.5, rows: range = range(ROWS),
    positions: int = POSITIONS, features: int = FEATURES,
) -> torch.Tensor:  # fmt: skip
    """Mark the entries of [runs, rows, positions, features] that survive."""
    places = grid(rows, positions, len(seeds))
    x = torch.ones(len(seeds), len(rows) * positions, features)
    y = drop(x, torch.full((len(seeds),), p), step_keys(seeds, step), torch.tensor(layer_key(layer)), *places)
    return y.view(len(seeds), len(rows), positions, features) != 0


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    pair = torch.stack([first.flatten(), second.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1])


def test_a_mask_does_not_depend_on_slot_company_padding_or_micro_batch() -> None:
    (alone,) = kept([7])
    assert torch.equal(kept([1, 2, 7])[2], alone) and torch.equal(kept([7, 9])[0], alone)
    assert torch.equal(kept([7], positions=POSITIONS + 9)[0][:, :POSITIONS], alone)
    halves = [kept([7], rows=half)[0] for half in (range(4), range(4, 8))]
    assert torch.equal(torch.cat(halves), alone)
    assert torch.equal(kept([7], features=FEATURES // 2)[0], alone[..., : FEATURES // 2])
    assert torch.equal(kept([7, 7], p=0.5)[1], alone)


def test_a_mask_follows_its_tokens_wherever_they_stand() -> None:
    """Rows share sequences, so a token's place in the tensor says nothing."""
    rows, positions = grid(range(ROWS), POSITIONS)
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))
    arguments = torch.ones(1, len(order), FEATURES), torch.full((1,), 0.5), step_keys([7], 0), torch.tensor(5)
    assert torch.equal(drop(*arguments, rows, positions)[:, order], drop(*arguments, rows[:, order], positions[:, order]))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_p_and_the_rest_is_scaled(p: float) -> None:
    x = torch.randn(2, ROWS * POSITIONS, FEATURES, generator=torch.Generator().manual_seed(1)).abs() + 0.1
    y = drop(x, torch.tensor([p, 0.0]), step_keys([3, 3], 4), torch.tensor(9), *grid(range(ROWS), POSITIONS, 2))
    dropped = y[0] == 0
    assert abs(float(dropped.double().mean()) - p) <= SIGMAS * math.sqrt(p * (1 - p) / dropped.numel())
    torch.testing.assert_close(y[0][~dropped], x[0][~dropped] / (1 - p), rtol=1e-6, atol=0)
    assert torch.equal(y[1], x[1])


@pytest.mark.parametrize("dim", [1, 2, 3], ids=["rows", "positions", "features"])
def test_every_row_position_and_feature_is_dropped_alike(dim: int) -> None:
    mask = kept([11])
    share = mask.double().mean(dim=[d for d in range(4) if d != dim])
    assert (share - 0.5).abs().max() <= SIGMAS * math.sqrt(0.25 * len(share) / mask.numel())
    # Chi-squared over the slices: their spread is that of coins, neither more nor less.
    squared = float(((share - 0.5) ** 2).sum() * 4 * mask.numel() / len(share))
    assert abs(squared - len(share)) <= SIGMAS * math.sqrt(2 * len(share))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_independent(p: float) -> None:
    """Of other seeds, steps and layers, and of the same mask one row, position or feature on."""
    (mask,) = kept([0], p=p)
    others = {
        "seed": kept([1], p=p)[0],
        "step": kept([0], step=1, p=p)[0],
        "seed and step": kept([1], step=1, p=p)[0],
        "layer": kept([0], layer="model.layers.1.self_attn.q_proj", p=p)[0],
        "module": kept([0], layer="model.layers.0.self_attn.k_proj", p=p)[0],
        **{f"dimension {dim}": mask.roll(1, dim) for dim in range(3)},
    }
    correlations = {name: correlation(mask, other) * math.sqrt(mask.numel()) for name, other in others.items()}
    assert {name: value for name, value in correlations.items() if abs(value) > SIGMAS} == {}


def test_the_mean_over_masks_is_the_input() -> None:
    count = 4000
    x = torch.linspace(-2, 2, 24).view(1, 3, 8).expand(count, -1, -1)
    y = drop(x, torch.full((count,), 0.3), step_keys(list(range(count)), 2), torch.tensor(1), *grid(range(1), 3, count))
    error = (y.mean(0) - x[0]).abs()
    assert (error <= SIGMAS * x[0].abs() * math.sqrt(0.3 / 0.7 / count) + 1e-6).all() and error.max() > 0


def test_the_gradient_is_that_of_the_mask() -> None:
    x = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    y = drop(x, torch.tensor([0.4]).double(), step_keys([5], 0), torch.tensor(1), *grid(range(2), 3))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.where(y == 0, 0, 1 / 0.6).double())


def test_the_hash_mixes() -> None:
    """No two of a million words meet, and one bit of input turns half of the bits of output."""
    words = torch.arange(2**20)
    mixed = mix(words)
    assert int(mixed.min()) >= 0 and int(mixed.max()) < 2**32 and len(set(mixed.tolist())) == len(words)
    sample = torch.randint(2**32, (20000,), generator=torch.Generator().manual_seed(2))
    for bit in range(32):
        turned = mix(sample) ^ mix(sample ^ (1 << bit))
        share = torch.stack([(turned >> out & 1).double().mean() for out in range(32)])
        assert (share - 0.5).abs().max() <= 0.025  # the published bias of this hash adds to the sample's 0.018


def test_a_step_drops_the_same_entries_in_one_batch_or_two() -> None:
    """Six rows of a step at once or in halves. Dropout is high, so that another mask would show."""
    items = rows(12)
    whole = config_of("lora", "train.batch_size=6", "lora.dropout=0.5")
    halves = config_of("lora", "train.batch_size=3", "train.grad_accum=2", "lora.dropout=0.5")
    (first,), (second,) = train([whole], steps=6, items=items), train([halves], steps=6, items=items)
    assert first.gap(second) <= WEIGHTS
    halves.seed = 1
    assert train([halves], steps=6, items=items)[0].gap(first) > 1e-3


def test_no_dropout_in_evaluation() -> None:
    pack = pack_of([config_of("dora", "lora.dropout=0.5", "lora.r=4"), config_of("dora", "lora.r=4")])
    pack.advance(0, 3)
    state = pack.state(0)
    pack.load_state(1, {name: tensor.clone() for name, tensor in state.items()})
    ids = torch.arange(3, 23)[None].repeat(2, 1)
    with pack.model.evaluating():
        first, second = pack.model.backbone.hidden(ids)
    assert torch.equal(first, second)
