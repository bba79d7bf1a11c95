"""Levels 4 and 5 of "equal", the layers of speed and the kernels: what only a GPU can show. ``make test-gpu``"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import pytest
import torch

from src.config.schema import CONF_FOLDER, Config
from src.engine.packed import head, kernels, optimizer, selfcheck
from src.engine.packed.decode import GreedyDecoder
from src.engine.packed.dropout import drop, layer_key, step_keys
from src.engine.packed.engine import PackedEngine
from src.engine.packed.feed import Feed
from src.engine.packed.frozen import FourBit
from src.files.errors import ConfigError
from src.model import models
from src.model.device import Numerics
from src.variants import quantization
from src.variants.methods.point import VariantConfig
from tests.engine.packed.conftest import PAD, base_of, config_of, in_slots, moved, pack_of, peft_of, rows, trace
from tests.engine.packed.test_decode import NO_TOKEN, left_padded, token_within
from tests.engine.packed.test_equals_solo import padding
from tests.engine.packed.test_isolation import build, configs_of, with_noise

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # compilers warn of much that is none of ours

GPU = torch.device("cuda")
FP32 = Numerics(GPU, torch.float32, None)
BF16 = Numerics(GPU, torch.bfloat16, torch.bfloat16)
NO_COMPILE = "pack.compile=false"
ITEMS = rows(64, (4, 24), (2, 6))
SHAPE = ["model.shape.hidden_size=128", "model.shape.intermediate_size=256", "train.batch_size=8"]
RUNS = [
    ("lora", "lora.r=4", "train.lr=0.003", "lora.dropout=0.1"),
    ("rslora", "lora.r=12", "train.lr=0.001", "seed=1", "data_seed=5", "train.weight_decay=0.1"),
    ("dora", "lora.r=8", "train.lr=0.002", "seed=2", "lora.dropout=0.05"),
    ("dora_rs", "lora.r=20", "train.lr=0.001", "seed=3", "train.clip=0.1"),
]
# Losses are about 5.5, of which a unit of bf16 is 0.03; their mean over some 40 tokens is right to about 1e-3.
LOSSES_BF16 = 1e-2
ADAPTERS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml") if path.stem not in ("full", "frozen"))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """No TF32, no compiled code of the test before, and its memory back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.compiler.reset()
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    gc.collect()
    torch.cuda.empty_cache()


def mixed(*overrides: str) -> list[Config]:
    return in_slots([config_of(variant, *SHAPE, *more, *overrides) for variant, *more in RUNS])


def losses(
    configs: Sequence[Config], numerics: Numerics, steps: int, layout: Callable[[Feed], None] = lambda feed: None
) -> torch.Tensor:
    """[runs, steps]"""
    engine = pack_of(configs, numerics, steps, ITEMS)
    layout(engine.feed)
    found = torch.stack([one.losses for one in trace(engine)])
    engine.finish()
    assert found.isfinite().all()
    return found


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max())


def test_level_4_packed_is_solo_in_fp32() -> None:
    configs = mixed(NO_COMPILE)
    together = losses(configs, FP32, 50)
    alone = torch.cat([losses([config], FP32, 50) for config in configs])
    gap = worst(together, alone)
    print(f"level 4: fp32 without TF32, 50 steps, losses differ by {gap:.1e} at most")
    assert (alone[:, 0] - alone[:, -1]).min() > 0.1
    assert gap <= 1e-5


@pytest.mark.parametrize("variants", [("lora", "dora"), ("qlora", "qdora"), ("lora_8bit", "dora_8bit")])
def test_the_check_at_load_passes_in_each_precision_and_sees_a_fault(variants: tuple[str, ...]) -> None:
    """With the kernels on, in bf16; two exchanged products are a fault of wiring, of about the size of a weight."""
    configs = in_slots([config_of(name, *SHAPE, f"seed={seed}") for seed, name in enumerate(variants)])
    network = base_of(configs[0], BF16)
    print(f"check at load: {variants}: {selfcheck.check_code(network, configs, ITEMS, BF16, None)}")
    wiring = selfcheck.Wiring(network, configs, ITEMS, BF16)
    engine = PackedEngine(network, configs, ITEMS, PAD, 4, BF16)
    print(f"check at load: {variants}: {wiring.check(engine)}")
    first, second = (block.layer.self_attn.o_proj for block in engine.model.backbone.decoder.layers)
    first.frozen, second.frozen = second.frozen, first.frozen
    with pytest.raises(ConfigError, match="times the bound of rounding"):
        wiring.check(engine)


def wider(feed: Feed) -> None:
    feed.width += 32


def apart(feed: Feed) -> None:
    """Each row in a sequence of its own."""
    assert feed.shared
    feed.shared, feed.width, feed.sequences = False, 32, 8


@pytest.mark.parametrize("compiled", [False, True], ids=["graph and kernels", "all layers"])
def test_level_5_packing_costs_no_more_than_padding_in_bf16(compiled: bool) -> None:
    """Both gaps are single draws of the same rounding noise, so their ratio is allowed to be 1.5.

    Each solo run compiles again; so compiled, one LoRA and one DoRA run are looked at, in one other padding.
    """
    configs = mixed("pack.compile=true") if compiled else mixed(NO_COMPILE)
    watched = [0, len(configs) - 1] if compiled else list(range(len(configs)))
    together = losses(configs, BF16, 50)[watched]
    alone = torch.cat([losses([configs[run]], BF16, 50) for run in watched])
    packing = float((together - alone).abs().mean())
    paddings = {}
    for layout in [apart] if compiled else [wider, apart]:
        other = torch.cat([losses([configs[run]], BF16, 50, layout) for run in watched])
        paddings[layout.__name__] = float((other - alone).abs().mean())
    print(
        f"level 5: bf16, {'compile+' if compiled else ''}cuda_graph+kernels, 50 steps, mean gap of losses: packed to solo "
        f"{packing:.1e} (at most {worst(together, alone):.1e}); solo to solo "
        + ", ".join(f"{name} {gap:.1e}" for name, gap in paddings.items())
    )
    assert worst(together, alone) <= LOSSES_BF16
    assert packing <= 1.5 * max(paddings.values())


LAYERS = ("compile", "cuda_graph", "kernels")


@pytest.mark.parametrize("layers", [("kernels",), ("cuda_graph",), ("compile",), LAYERS], ids="+".join)
def test_layers_of_speed_change_no_result(layers: tuple[str, ...]) -> None:
    on, off = ([f"pack.{name}={name in chosen}".lower() for name in LAYERS] for chosen in (layers, ()))
    found, wanted = losses(mixed(*on), BF16, 20), losses(mixed(*off), BF16, 20)
    print(f"speed: {'+'.join(layers)}: losses differ from eager by {worst(found, wanted):.1e} at most over 20 steps")
    assert worst(found, wanted) <= LOSSES_BF16
    if layers == ("cuda_graph",):
        assert torch.equal(found, wanted)  # a recording of the same kernels


@pytest.mark.parametrize("layers", [(), LAYERS], ids=["eager", "all layers"])
def test_parts_that_stand_still_or_learn_at_another_rate(layers: tuple[str, ...]) -> None:
    """LoRA+ beside LoRA in one bucket, and a frozen A in another: packed is solo, and a frozen A keeps its bits."""
    speed = [f"pack.{name}={name in layers}".lower() for name in LAYERS]
    runs = [("loraplus", "lora.r=4", "train.lr=0.0003"), ("lora", "lora.r=6", "seed=1"), ("lora_frozen_a", "lora.r=5", "seed=2")]
    configs = in_slots([config_of(variant, *SHAPE, *more, *speed) for variant, *more in runs])
    together = losses(configs, FP32, 20)
    eager = [f"pack.{name}=false" for name in LAYERS]
    alone = [config_of(variant, *SHAPE, *more, *eager) for variant, *more in runs]
    wanted = torch.cat([losses([config], FP32, 20) for config in in_slots(alone)])
    print(f"parts, {'+'.join(layers) or 'eager'}: losses differ by {worst(together, wanted):.1e} at most over 20 steps")
    assert worst(together, wanted) <= 1e-5
    engine = pack_of(configs, FP32, 20, ITEMS)
    before = engine.digests()
    trace(engine)
    after = engine.digests()
    engine.finish()
    for run, config in enumerate(configs):
        stood = [a == b for a, b in zip(before[run]["A"], after[run]["A"], strict=True)]
        assert all(stood) if config.variant.factors == "frozen_a" else not any(stood)


def test_layers_of_speed_over_an_nf4_base() -> None:
    runs = [("qlora", "lora.r=4", "lora.dropout=0.1"), ("qdora", "lora.r=8", "seed=1")]
    on, off = (
        in_slots([config_of(name, *SHAPE, NO_COMPILE, *more, *choice) for name, *more in runs])
        for choice in ([], ["pack.cuda_graph=false", "pack.kernels=false"])
    )
    gap = worst(losses(on, BF16, 20), losses(off, BF16, 20))
    held = [config_of(name, *SHAPE, NO_COMPILE, *more, "model.hold_dequantised=true") for name, *more in runs]
    other = worst(losses(on, BF16, 20), losses(in_slots(held), BF16, 20))
    print(f"speed: nf4: losses differ from eager by {gap:.1e}, with a held copy by {other:.1e}")
    assert gap <= LOSSES_BF16 and other <= LOSSES_BF16


@pytest.mark.parametrize("variant", ADAPTERS)
def test_level_2_in_bf16(variant: str) -> None:
    # B learns at 16 times the rate in LoRA+, and the faster a run learns the further rounding is carried.
    config = config_of(variant, *SHAPE, "lora.r=8", f"train.lr={0.0003 if variant == 'loraplus' else 0.002}", NO_COMPILE)
    (stock,) = trace(peft_of(config, BF16, 20, ITEMS))
    gap = worst(losses([config], BF16, 20)[0], stock.losses)
    print(f"level 2: bf16, {variant}: losses differ from PEFT's by {gap:.1e} at most over 20 steps")
    assert gap <= (2 if config.variant.base_precision == "int8" else 1) * LOSSES_BF16


@pytest.mark.parametrize("variants", [["lora", "rslora", "dora", "dora"], ["qlora", "qlora", "qdora", "qdora"]], ids="-".join)
@pytest.mark.parametrize("watched", [1, 3])
def test_level_3_a_neighbor_of_nan_leaves_no_trace_in_a_cuda_graph(variants: list[str], watched: int) -> None:
    configs = configs_of(variants)
    for config in configs:
        config.pack.compile = False
    plain, noisy = build(configs, numerics=BF16), with_noise(configs, watched, numerics=BF16)
    wanted, found = trace(plain), trace(noisy)
    assert noisy.speed.cuda_graph and len(noisy.graphs.recorded) == 1
    assert found[watched].losses.isfinite().all() and not found[0].losses.isfinite().any()
    print(f"level 3: {variants[watched]} beside NaN: gap {found[watched].gap(wanted[watched]):.1e}")
    assert found[watched].same_bits(wanted[watched])


@pytest.mark.parametrize("watched", [0, 1, 2])
def test_level_3_neighbors_leave_no_trace_in_int8(watched: int) -> None:
    """LLM.int8() looks for outliers among all rows that it is given."""
    configs = configs_of(["lora_8bit", "lora_8bit", "dora_8bit"])
    wanted, found = trace(build(configs, numerics=BF16)), trace(with_noise(configs, watched, numerics=BF16))
    assert found[watched].losses.isfinite().all()
    print(f"level 3: {configs[watched].variant.name} beside NaN: gap {found[watched].gap(wanted[watched]):.1e}")
    assert found[watched].same_bits(wanted[watched])


def test_a_run_that_diverges_inside_a_cuda_graph_stands_still() -> None:
    """Its weights turn to NaN once the step is a recording."""
    configs = mixed(NO_COMPILE)
    calm = pack_of(configs, BF16, 10, ITEMS)
    spoilt = pack_of(configs, BF16, 10, ITEMS)
    wanted = trace(calm)
    trace(spoilt, 0, 6)
    before = {name: tensor.clone() for name, tensor in spoilt.state(0).items() if not name.startswith("parameter/")}
    spoilt.model.buckets[0].values[:, 0] = torch.nan
    found = trace(spoilt, 6)
    assert found[0].losses.isnan().all()
    assert all(torch.equal(tensor, spoilt.state(0)[name]) for name, tensor in before.items())
    assert all(torch.equal(found[run].losses, wanted[run].losses[6:]) for run in range(1, 4))
    assert spoilt.finite() == [False, True, True, True]


def test_int8_trains_and_packed_is_solo() -> None:
    """LLM.int8() rounds activations to 8 bits: what bf16 rounds differently can tip a value by 1/127."""
    runs = [("lora_8bit", "lora.r=4"), ("lora_8bit", "lora.r=12", "seed=1", "data_seed=5"), ("dora_8bit", "lora.r=8", "seed=2")]
    configs = in_slots([config_of(name, *SHAPE, "train.lr=0.003", *more) for name, *more in runs])
    together = losses(configs, BF16, 30)
    gap = worst(together, torch.cat([losses([config], BF16, 30) for config in configs]))
    print(f"int8: packed differs from solo by {gap:.1e} at most over 30 steps")
    assert (together[:, :5].mean(1) - together[:, -5:].mean(1)).min() > 0.05
    assert gap <= 2 * LOSSES_BF16


def test_a_run_goes_on_in_another_pack_under_the_graph() -> None:
    configs = mixed(NO_COMPILE)
    whole = trace(pack_of(configs, FP32, 24, ITEMS))
    started = pack_of(configs, FP32, 24, ITEMS)
    trace(started, 0, 10)
    regrouped = [configs[0], configs[-1]]
    resumed = pack_of(regrouped, FP32, 24, ITEMS)
    for slot, run in enumerate((0, len(configs) - 1)):
        resumed.load_state(slot, {name: tensor.clone() for name, tensor in started.state(run).items()})
    found = trace(resumed, 10)
    assert resumed.graphs.recorded
    gap = max(worst(found[slot].losses, whole[run].losses[10:]) for slot, run in enumerate((0, len(configs) - 1)))
    print(f"resume: in other company under the graph, fp32: losses differ by {gap:.1e} at most")
    assert gap <= 1e-5


def test_padding_stays_zero_where_ranks_are_rounded_up() -> None:
    engine = pack_of(mixed(NO_COMPILE), BF16, 8, ITEMS)
    trace(engine)
    assert [bucket.rank for bucket in engine.model.buckets] == [16, 8, 24]
    assert all(padding(engine, name) > 0 for name in ("values", "grads", "exp_avg", "exp_avg_sq"))


def test_a_dropout_mask_is_the_same_on_every_device_and_compiled() -> None:
    x = torch.randn(3, 96, 200, generator=torch.Generator().manual_seed(0))
    of_row, positions = torch.arange(8).repeat_interleave(12).expand(3, -1), torch.arange(12).repeat(8).expand(3, -1)
    arguments = [x, torch.tensor([0.0, 0.1, 0.7]), step_keys([1, 2, 3], 5), torch.tensor(layer_key("a")), of_row, positions]
    wanted = drop(*arguments)
    on_gpu = [tensor.to(GPU) for tensor in arguments]
    for name, function in (("eager", drop), ("compiled", torch.compile(drop, dynamic=False))):
        found = function(*on_gpu).cpu()
        assert torch.equal(found == 0, wanted == 0), name
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("variants", [["lora", "rslora", "dora"], ["qlora", "qdora"]], ids="-".join)
@pytest.mark.parametrize("numerics", [FP32, BF16], ids=["fp32", "bf16"])
def test_one_graph_decodes_several_batches(variants: list[str], numerics: Numerics) -> None:
    """In fp32 the tokens are those of transformers. In bf16 two logits may tie, but a recording repeats the same kernels."""
    configs = [config_of(name, *SHAPE, f"lora.r={4 + 4 * at}", f"seed={at}", NO_COMPILE) for at, name in enumerate(variants)]
    engine = pack_of(configs, numerics, 8, ITEMS)
    for run in range(len(configs)):
        engine.load_state(run, moved(engine.state(run), seed=run))
    trace(engine)
    engine.finish()
    model, by_graph = engine.model, engine.model.greedy
    assert by_graph is not None
    reference = None if numerics is FP32 else GreedyDecoder(model.backbone, model.runs, recorded=False)
    batches = [left_padded([item.prompt for item in part]) for part in (ITEMS[:9], ITEMS[9:18], ITEMS[18:23])]

    def answers(greedy: GreedyDecoder | None, *stop: int) -> list[list[list[int]]]:
        """Of all runs one after the other, a list for each batch; what follows the first of ``stop`` is cut off."""
        model.greedy, found = greedy, []
        for ids, mask in batches:
            tokens = model.generate(ids.to(GPU), mask.to(GPU), max_new_tokens=24, pad_token_id=PAD, eos_token_id=stop)
            found.append([list(takewhile(lambda token: token not in stop, row)) for row in tokens.flatten(0, 1).tolist()])
        return found

    with model.evaluating():
        wanted = answers(reference, NO_TOKEN, NO_TOKEN)
        eos = token_within(wanted)
        ending = answers(reference, NO_TOKEN, eos)
        if reference is not None:
            reference.release()
        assert answers(by_graph, NO_TOKEN, NO_TOKEN) == wanted
        assert answers(by_graph, NO_TOKEN, eos) == ending != wanted
        assert len(by_graph.graphs.recorded) == 1
    assert by_graph.held is None and not by_graph.graphs.recorded


@pytest.mark.parametrize("precision", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [(64, 64), (1, 64), (3, 50), (7, 130), (333, 2050), (1024, 4096)], ids=str)
def test_dequantization_is_bitsandbytes_to_the_bit(
    size: tuple[int, int], dtype: torch.dtype, nested: bool, precision: str
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(size[1], size[0], bias=False, dtype=dtype)
    linear.weight.data = torch.randn(size, generator=generator).to(dtype) * torch.rand(size[0], 1, generator=generator).to(dtype)
    layer: Any = quantization._quantize(linear, VariantConfig(base_precision=precision, double_quant=nested), GPU, dtype)
    state = layer.weight.quant_state
    assert state.nested == nested
    found, wanted = FourBit(layer, dtype, fused=True).dense(), dequantize_4bit(layer.weight.data, state)
    assert found.shape == size and found.dtype == dtype
    assert torch.equal(found, wanted)
    assert torch.equal(found, FourBit(layer, dtype, fused=False).dense())
    assert (found.float().cpu() - linear.weight.detach().float()).norm() < 0.2 * found.float().norm().cpu()


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_random_weights_quantized_as_they_are_drawn(precision: str) -> None:
    """As tests/model/test_random_weights.py on a CPU: a GPU's generator too goes on from draw to draw."""
    config = config_of("lora", f"variant.base_precision={precision}", "model.shape.tie_word_embeddings=false")
    whole, parts = (
        quantization.place(models.load(config.model, torch.bfloat16, GPU, placing)[0], config.variant, GPU, torch.bfloat16)
        for placing in (None, quantization.placing(config.variant, GPU, torch.bfloat16))
    )
    wanted, found = whole.state_dict(), parts.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [5, 384, 4096, 10001])
def test_the_softmax_kernel(columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    logits = (8 * torch.randn(70, columns, device=GPU, generator=generator)).to(dtype)
    targets = torch.randint(columns, (70,), device=GPU, generator=generator)
    weights = torch.rand(70, device=GPU, generator=generator)
    weights[3] = 0
    wanted, wanted_gradient = head.softmax_losses(logits.clone(), targets, weights)
    found, gradient = kernels.softmax_losses(logits.clone(), targets, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == dtype and not gradient[3].any()
    # In bf16 a value at the edge may be rounded to either side.
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-5)


@pytest.mark.parametrize("skipped", [(0, 0), (101, 7)], ids=["whole", "stretch"])
def test_the_adamw_kernel(skipped: tuple[int, int]) -> None:
    """Several steps over an odd number of parameters; a run that is not alive, its gradients NaN, keeps its bits.

    ``skipped``: the numbers before them in the buffer of values, which also holds what stands still, and in the others.
    """
    generator = torch.Generator(GPU).manual_seed(0)
    offsets = (skipped[0], skipped[1], skipped[1])
    wide = [torch.randn(2, 3, 4099 + offset, device=GPU, generator=generator) for offset in offsets]
    wide[2].square_()
    stock = [tensor[..., offset:] for tensor, offset in zip(wide, offsets, strict=True)]
    mine = [tensor.clone()[..., offset:] for tensor, offset in zip(wide, offsets, strict=True)]
    before = [tensor[:, 1].clone() for tensor in stock]
    factor, lr, decay = (torch.rand(3, 1, device=GPU, generator=generator) for _ in range(3))
    alive = torch.tensor([[True], [False], [True]], device=GPU)
    for step in range(1, 6):
        grads = torch.randn(2, 3, 4099 + skipped[1], device=GPU, generator=generator)[..., skipped[1] :]
        grads[:, 1] = torch.nan
        corrections = torch.tensor([1 - optimizer.BETA1**step, (1 - optimizer.BETA2**step) ** 0.5], device=GPU)
        for (values, first, second), update in ((stock, optimizer.update), (mine, kernels.adamw)):
            update(values, grads, first, second, factor, 0.01 * lr, decay, corrections[0], corrections[1], alive)
    for found, wanted, old in zip(mine, stock, before, strict=True):
        assert torch.equal(found[:, 1], old)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-6)
