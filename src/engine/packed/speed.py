"""Choose the layers of speed, and record a whole optimizer step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...config.schema import Config
from ...files.errors import ConfigError
from ...model.device import Numerics
from . import kernels

# Compiling costs 4 to 8 s once the compiler's processes are up, and saves a third to a half of each step on an H100. Less
# work than this ends before that pays (benchmarks/LOG.md, seventh session).
COMPILED_FROM = 1.2e15  # FLOPs of the whole training
EAGER_STEPS = 2  # real steps before a shape is recorded: they compile, tune and allocate


@dataclass(frozen=True)
class Speed:
    """The layers of speed that are on."""

    compile: bool
    cuda_graph: bool
    kernels: bool

    def __str__(self) -> str:
        return "+".join(name for name in ("compile", "cuda_graph", "kernels") if getattr(self, name)) or "eager"


def choose_speed(config: Config, numerics: Numerics, work: float) -> Speed:
    """Turn on what ``pack.*`` asks for and, where it is silent, all that works here and pays; ``work`` is in FLOPs.

    Raises:
        ConfigError: something was asked for that cannot work here.
    """
    cuda = numerics.device.type == "cuda"
    possible = {"compile": cuda, "cuda_graph": cuda, "kernels": cuda and kernels.AVAILABLE}
    pays = possible | {"compile": possible["compile"] and work >= COMPILED_FROM}
    asked = {name: getattr(config.pack, name) for name in possible}
    for name, value in asked.items():
        if value and not possible[name]:
            raise ConfigError(f"pack.{name}=true: needs a CUDA device with Triton")
    return Speed(**{name: pays[name] if value is None else value for name, value in asked.items()})


def prepare_to_compile(config: Config, numerics: Numerics) -> None:
    """Start the compiler's processes where compiling is possible: they take as long to come up as a model to load."""
    if numerics.device.type != "cuda" or config.pack.compile is False:
        return
    from torch._inductor.async_compile import AsyncCompile

    AsyncCompile.warm_pool()
    AsyncCompile.wakeup()


class Graphs:
    """Runs a step function, and from the third step of a shape on replays a recording of it."""

    def __init__(self, function: Callable[..., None], enabled: bool) -> None:
        self.function = function
        self.enabled = enabled
        self.seen: dict[tuple[int, ...], int] = {}
        self.recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]] = {}
        self.stream = torch.cuda.Stream() if enabled else None  # type: ignore[no-untyped-call]

    def run(self, shape: tuple[int, ...], inputs: tuple[torch.Tensor, ...]) -> None:
        if not self.enabled:
            self.function(*inputs)
            return
        if shape not in self.recorded:
            self.seen[shape] = self.seen.get(shape, 0) + 1
            if self.seen[shape] <= EAGER_STEPS:
                self._aside(inputs)
                return
            self._record(shape, inputs)
        graph, held = self.recorded[shape]
        for place, value in zip(held, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()

    def _aside(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Run a real step on the stream that recording will use, so that lazily made handles exist by then."""
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)

    def _record(self, shape: tuple[int, ...], inputs: tuple[torch.Tensor, ...]) -> None:
        held = tuple(tensor.clone() for tensor in inputs)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        pool = next((g.pool() for g, _ in self.recorded.values()), None)
        # Other threads of the process may use the device meanwhile; their work stays out of the recording.
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            self.function(*held)
        self.recorded[shape] = (graph, held)

    def release(self) -> None:
        """Drop all recordings and give back their memory."""
        self.recorded.clear()
        self.seen.clear()
        if self.enabled:
            torch.cuda.empty_cache()
