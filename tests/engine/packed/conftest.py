"""Packs of the tiny model: how these tests build them, train them and name their results."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import pytest
import torch
import yaml

from src.command.cli import compose
from src.config.schema import Config
from src.config.values import check
from src.data.batches import Item
from src.data.datasets import Example
from src.engine.packed.engine import PackedEngine
from src.engine.packed.frozen import Int8
from src.engine.packed.members import member, slot_order
from src.engine.peft import PeftEngine
from src.model import models
from src.model.device import Numerics
from src.variants import adapters, quantization
from tests.conftest import SIGMAS, rounding

CPU = torch.device("cpu")
FP64 = Numerics(CPU, torch.float64, None)
FP32 = Numerics(CPU, torch.float32, None)
BF16 = Numerics(CPU, torch.bfloat16, torch.bfloat16)
PAD, EOS = 0, 1

# The tiny model multiplies with 14 matrices one after the other, then with the output head; its longest sum has 128 terms. A
# backward pass goes the same way again. Logits are of size 1 at most, so LOGITS is also the bound of a loss.
TERMS, MATRICES = 128, 14
LOGITS = rounding(TERMS, MATRICES + 1)  # 2.2e-5, of their norm
GRADIENTS = rounding(TERMS, 2 * MATRICES + 1)  # 3.1e-5, of their norm
# Adam divides each gradient by its own size. The smallest of the 8,192 that a run of rank 4 has is about 1/8192 of a usual
# one, so that one's rounding is 8,192 times as large a share of it, and of its step, which is the rate.
WEIGHTS = 0.01 * 8192 * GRADIENTS / SIGMAS  # 4.2e-4 at the rate of 0.01

Tensors = dict[str, torch.Tensor]


def rows(count: int, prompt: tuple[int, int] = (2, 9), target: tuple[int, int] = (1, 4), seed: int = 0) -> list[Item]:
    """Random tokens; lengths are drawn from these ranges, and the target's end token comes on top."""
    draw = random.Random(seed)
    found = []
    for at in range(count):
        tokens = [[draw.randrange(3, 259) for _ in range(draw.randint(*span))] for span in (prompt, target)]
        found.append(Item(Example(str(at), "", "", str(at)), tokens[0], [*tokens[1], EOS], False))
    return found


def two_turns(items: Sequence[Item]) -> list[Item]:
    """The same rows, each with a turn more in its prompt that carries loss, if the prompt has room for it."""
    return [replace(item, earlier=((1, 1 + len(item.prompt) // 2),) if len(item.prompt) > 2 else ()) for item in items]


ITEMS = rows(32)
EVEN = rows(32, (6, 6), (3, 3))  # all alike: nothing is padded


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(variant: str, *overrides: str) -> Config:
    """As the command line gives it. Hydra, which takes a tenth of a second, is asked once for each variant."""
    config = copy.deepcopy(_composed(variant))
    for override in overrides:
        key, _, text = override.partition("=")
        *path, name = key.split(".")
        node, value = reduce(getattr, path, config), yaml.safe_load(text)
        setattr(node, name, float(value) if isinstance(getattr(node, name), float) else value)
        if key == "seed" and not any(other.startswith("data_seed=") for other in overrides):
            config.data_seed = value
    check(config)
    return config


@cache
def _composed(variant: str) -> Config:
    return compose(["model=tiny", "train.batch_size=3", "train.lr=0.01", "lora.r=4", f"variant={variant}"])


def base_of(config: Config, numerics: Numerics) -> Any:
    """The frozen base in the variant's precision."""
    network, _ = models.load(config.model, numerics.base, numerics.device)
    with torch.no_grad():
        for _, layer in quantization.linear_layers(network):
            layer.weight.mul_(4)  # as initialized, attention is uniform and the layers add next to nothing
            if layer.bias is not None:
                layer.bias.fill_(0.2)
        if config.variant.base_precision == "int8":  # LLM.int8() finds outliers in some columns, which ones depends on the rows
            for layer in network.model.layers:
                layer.input_layernorm.weight.fill_(2.5)
                layer.post_attention_layernorm.weight.fill_(2.5)
    return quantization.place(network, config.variant, numerics.device, numerics.compute)


def in_slots(configs: Sequence[Config]) -> list[Config]:
    return [configs[at] for at in slot_order([member(config) for config in configs])]


def pack_of(configs: Sequence[Config], numerics: Numerics = FP32, steps: int = 20, items: Sequence[Item] = ITEMS) -> PackedEngine:
    """A pack whose runs stand in the order of ``configs``, which is that of their slots."""
    return PackedEngine(base_of(configs[0], numerics), configs, items, PAD, steps, numerics)


def peft_of(config: Config, numerics: Numerics = FP32, steps: int = 20, items: Sequence[Item] = ITEMS) -> PeftEngine:
    network = adapters.attach(base_of(config, numerics), config.variant, config.lora, config.seed)
    return PeftEngine(network, config, items, PAD, steps, numerics)


def moved(state: Tensors, seed: int) -> Tensors:
    """A run's state with noise added to what it trains, so that no B is zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if name.startswith("parameter/") else tensor
        for name, tensor in state.items()
    }


@dataclass(frozen=True)
class Trace:
    """What one run went through and came to."""

    losses: torch.Tensor  # [steps]
    norms: torch.Tensor  # [steps]
    trained: Tensors

    def gap(self, other: Trace) -> float:
        """The largest difference between any two corresponding numbers; NaN where one is."""
        assert self.trained.keys() == other.trained.keys()
        pairs = [(self.losses, other.losses), (self.norms, other.norms)]
        pairs += [(tensor, other.trained[name]) for name, tensor in self.trained.items()]
        # Losses are on the host, and on a GPU what trains is not.
        return float(torch.stack([(a.double() - b.double()).abs().max().cpu() for a, b in pairs]).max())

    def same_bits(self, other: Trace) -> bool:
        return (
            torch.equal(self.losses, other.losses)
            and torch.equal(self.norms, other.norms)
            and self.trained.keys() == other.trained.keys()
            and all(torch.equal(tensor, other.trained[name]) for name, tensor in self.trained.items())
        )


def trace(engine: PackedEngine | PeftEngine, first: int = 0, last: int | None = None) -> list[Trace]:
    """Train from step ``first`` to ``last``, by default the end: one trace for each run, in the order of the slots."""
    steps = engine.advance(first, engine.steps if last is None else last)
    losses = torch.tensor([step.loss for step in steps], dtype=torch.float64)
    norms = torch.tensor([step.grad_norm for step in steps], dtype=torch.float64)
    found = []
    for run in range(losses.shape[1]):
        trained = {name: tensor.detach().clone() for name, tensor in engine.trained(run).items()}
        found.append(Trace(losses[:, run], norms[:, run], trained))
    return found


def train(configs: Sequence[Config], numerics: Numerics = FP32, steps: int = 20, items: Sequence[Item] = ITEMS) -> list[Trace]:
    """Train ``configs`` in one pack: a trace for each, in their own order."""
    order = slot_order([member(config) for config in configs])
    found = trace(pack_of([configs[at] for at in order], numerics, steps, items))
    return [found[order.index(at)] for at in range(len(configs))]


@pytest.fixture
def int8_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor bitsandbytes trains over dequantized weights, and no row of LLM.int8() could see another."""
    from bitsandbytes.autograd import _functions

    monkeypatch.setattr(_functions, "MatMul8bitFp", _functions.MatMul8bitLt)
    monkeypatch.setattr(Int8, "rounds", staticmethod(lambda x: True))


@pytest.fixture(scope="module")
def exact_norms() -> Iterator[None]:
    """transformers' RMSNorm in the format of its input: its own computes in fp32, which hides what fp64 would show."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", forward)
        yield
