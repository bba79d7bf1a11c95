"""Which runs are multiplied together, and in which order they stand."""

from __future__ import annotations

import pytest
import torch

from src.config.schema import Config
from src.engine.packed.buffers import Blocks, Kind, buckets_of
from src.engine.packed.layer import Slots
from src.engine.packed.members import Member, member, slot_order
from src.files.errors import ConfigError
from tests.engine.packed.conftest import config_of


def members(*runs: tuple[str, int]) -> list[Member]:
    return [member(config_of(variant, f"lora.r={r}")) for variant, r in runs]


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (("lora", 1), ("rslora", 16), True),
        (("lora", 16), ("lora", 17), False),
        (("lora", 17), ("lora", 64), True),
        (("dora", 65), ("dora_rs", 256), True),
        (("lora", 256), ("lora", 257), False),
        (("lora", 8), ("dora", 8), False),
        (("lora", 8), ("loraplus", 8), True),
        (("lora", 8), ("lora_frozen_a", 8), False),
    ],
)
def test_runs_share_a_bucket_by_rank_and_parts(first: tuple[str, int], second: tuple[str, int], together: bool) -> None:
    a, b = members(first, second)
    assert (a.bucket == b.bucket) == together


def test_the_bucket_of_a_rank_pads_it_at_most_fourfold_beyond_16() -> None:
    edges = {r: members(("lora", r))[0].bucket[0] for r in (1, 16, 17, 64, 65, 4096, 65536)}
    assert all(edge == 16 if r <= 16 else r <= edge <= 4 * r for r, edge in edges.items())


def test_slots_put_the_runs_of_a_bucket_side_by_side_and_keep_their_order() -> None:
    runs = members(("dora", 4), ("lora", 64), ("lora", 4), ("dora", 8), ("rslora", 2), ("lora", 20))
    assert slot_order(runs) == [2, 4, 0, 3, 1, 5]


def test_what_a_member_takes_from_its_config() -> None:
    config = config_of("dora_rs", "lora.r=16", "lora.alpha=6", "seed=3", "data_seed=5", "lora.dropout=0.2", "train.lr=0.5")
    found = member(config)
    assert (found.r, found.scale, found.seed, found.data_seed) == (16, 6 / 4, 3, 5)
    assert [part.name for part in found.parts] == ["A", "B", "m"]
    assert (found.lora.dropout, found.train.lr) == (0.2, 0.5)


@pytest.mark.parametrize("variant", ["full", "frozen"])
def test_what_has_no_adapter_is_refused(variant: str) -> None:
    config: Config = config_of(variant)
    with pytest.raises(ConfigError, match=f"variant={variant}"):
        member(config)


def test_buffers_lie_bucket_by_bucket_with_ranks_rounded_up() -> None:
    blocks = Blocks(
        ("model.layers.0", "model.layers.1", "model.layers.2"), (Kind("a.up_proj", 10, 6), Kind("b.down_proj", 6, 10))
    )
    runs = members(("lora", 3), ("lora", 5), ("dora", 3), ("lora", 20))
    buckets = buckets_of(runs, blocks, 8, torch.float32, torch.device("cpu"))
    assert [(b.first, b.runs, b.rank, len(b.parts)) for b in buckets] == [(0, 2, 8, 2), (2, 1, 8, 3), (3, 1, 24, 2)]
    # Two modules, each A [R, in] and B [out, R] with in + out = 16, and for DoRA m [out].
    assert [tuple(b.values.shape) for b in buckets] == [(3, 2, 256), (3, 1, 272), (3, 1, 768)]
    assert [b.scale.tolist() for b in buckets] == [pytest.approx([16 / 3, 16 / 5]), pytest.approx([16 / 3]), pytest.approx([0.8])]


def test_views_of_a_buffer_cover_it_once() -> None:
    blocks = Blocks(
        ("model.layers.0", "model.layers.1"), (Kind("a.q_proj", 4, 6), Kind("a.k_proj", 4, 2), Kind("b.o_proj", 6, 4))
    )
    (bucket,) = buckets_of(members(("dora", 3), ("dora", 2)), blocks, 1, torch.float32, torch.device("cpu"))
    for kind in blocks.kinds:
        for part in bucket.parts:
            bucket.all_layers(bucket.values, kind, part.name).add_(1)
    assert (bucket.values == 1).all()
    bucket.values.zero_()
    for run, r in enumerate((3, 2)):
        for at in range(2):
            for kind in blocks.kinds:
                for part in bucket.parts:
                    view = bucket.of_run(bucket.values[:, run], run, at, kind, part.name)
                    shapes = {"A": (r, kind.in_features), "B": (kind.out_features, r), "m": (kind.out_features,)}
                    assert view.shape == shapes[part.name]
                    view.add_(1)
    whole, padded = bucket.values[:, 0], bucket.values[:, 1]
    assert (whole == 1).all()
    assert padded.max() == 1 and int((padded == 0).sum()) == 2 * (4 + 6 + 4 + 2 + 6 + 4)  # a row of A and a column of B


def test_modules_that_read_one_input_are_neighbors() -> None:
    names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    blocks = Blocks(("model.layers.0",), tuple(Kind(name, 4, 4) for name in names))
    assert [[kind.leaf[0] for kind in group] for group in blocks.groups] == [["q", "k", "v"], ["o"], ["g", "u"], ["d"]]
    few = Blocks(("model.layers.0",), tuple(kind for kind in blocks.kinds if kind.leaf in ("q_proj", "v_proj", "up_proj")))
    assert [[kind.leaf for kind in group] for group in few.groups] == [["q_proj", "v_proj"], ["up_proj"]]


def test_decoder_layers_share_what_parts_are_multiplied_with() -> None:
    """A copy in each layer would cost a pack as much again as the adapters themselves."""
    blocks = Blocks(("model.layers.0", "model.layers.1"), (Kind("a.q_proj", 4, 6),))
    (bucket,) = buckets_of(members(("lora", 3)), blocks, 1, torch.float32, torch.device("cpu"))
    first, second = (Slots(bucket, layer).trained_multiplier for layer in range(2))
    assert first.data_ptr() == second.data_ptr()
    assert first.tolist() == [[1.0] * (3 * 4) + [pytest.approx(16 / 3)] * (6 * 3)]
