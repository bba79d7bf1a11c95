"""Time one optimizer step, PEFT beside ours, solo and packed: ``python -m benchmarks.step [CASE ...]``.

Every token but a row's first is labeled, so the head works on all of them: the worst case for us, the usual one in
published figures. A run's rows are as long as the case says, without padding. Cases: python -m benchmarks.step --help
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import measure
from src.command.cli import compose
from src.config.schema import Config
from src.data.batches import Item
from src.data.datasets import Example
from src.engine.packed.speed import EAGER_STEPS
from src.files.terminal import quiet_libraries
from src.model import device, models
from src.train import session
from src.variants import counts, quantization


@dataclass(frozen=True)
class Case:
    model: str
    variant: str
    runs: int
    rows: int
    length: int
    engine: str = "ours"  # ours | peft | peft compiled
    r: int = 16
    overrides: tuple[str, ...] = ()
    steps: int = 5  # in one timing, as the loop asks for several at once


SMOL = Case("smollm2_135m", "lora", 16, 8, 128)
LLAMA_1B = Case("llama_3_2_1b", "lora", 8, 4, 512)
LLAMA_8B = Case("llama_3_1_8b", "lora", 1, 2, 1024)

NO = ("pack.compile=false", "pack.cuda_graph=false", "pack.kernels=false")

CASES: dict[str, list[Case]] = {
    # PEFT beside us, solo and packed.
    "smol": [SMOL, replace(SMOL, engine="peft", runs=1), replace(SMOL, runs=1), replace(SMOL, runs=64)],
    # One layer of speed after the other; all of them are the first case above.
    "smol_layers": [replace(SMOL, overrides=NO), replace(SMOL, overrides=NO[:2]), replace(SMOL, overrides=NO[:1])],
    "llama_8b": [replace(LLAMA_8B, variant=v) for v in ("lora", "dora", "qlora")],
    "llama_8b_peft": [replace(LLAMA_8B, variant=v, engine="peft") for v in ("lora", "dora", "qlora")],
    "llama_1b": [LLAMA_1B, replace(LLAMA_1B, engine="peft", runs=1)],
    "held": [replace(LLAMA_8B, variant="qlora", overrides=("model.hold_dequantised=true",)), replace(LLAMA_8B, variant="qdora")],
    "smol_variants": [replace(SMOL, variant=v) for v in ("dora", "qlora", "qdora")],
    "peft_compiled": [replace(SMOL, engine="peft compiled", runs=1), replace(LLAMA_8B, engine="peft compiled")],
}


def config_of(case: Case) -> Config:
    return compose(
        [
            f"model={case.model}", "model.weights=random", f"variant={case.variant}", f"lora.r={case.r}", "tracking=disabled",
            f"train.batch_size={case.rows}", f"dataset.max_length={case.length}", "train.steps=1000", "train.warmup=0",
            f"engine={'packed' if case.engine == 'ours' else 'peft'}",
            *(["pack.compile=true"] if torch.cuda.is_available() else []), *case.overrides,
        ]
    )  # fmt: skip


def items_of(case: Case, vocabulary: int, count: int = 64) -> list[Item]:
    """Draw rows of random tokens, one of prompt and the rest of target."""
    drawn = torch.randint(0, vocabulary, (count, case.length), generator=torch.Generator().manual_seed(0)).tolist()
    return [Item(Example(str(n), "", "", str(n)), row[:1], row[1:], False) for n, row in enumerate(drawn)]


def build(case: Case, configs: Sequence[Config]) -> Any:
    """Build the engine, ours or PEFT's, by the session's own hand."""
    config = configs[0]
    numerics = device.choose(config)
    placing = quantization.placing(config.variant, numerics.device, numerics.compute)
    network, _ = models.load(config.model, numerics.base, numerics.device, placing)
    network = quantization.place(network, config.variant, numerics.device, numerics.compute)
    engine = session.engine_of(network, configs, items_of(case, network.config.vocab_size), 0, 1000, numerics)
    if case.engine == "peft compiled":
        for layer in network.model.layers:  # one compilation for all; of the whole model it would take minutes
            layer.compile()
    return engine


def measured(case: Case, peak: float, repeats: int = 5) -> dict[str, Any]:
    """Measure one row of the table: the median over ``repeats`` timings of a few steps each, after some to warm up."""
    config = config_of(case)
    configs = [replace(config, seed=seed, data_seed=seed) for seed in range(case.runs)]
    row: dict[str, Any] = {
        "model": case.model, "variant": case.variant, "engine": case.engine, "runs": case.runs, "rows": case.rows,
        "length": case.length, "r": case.r, "options": " ".join(case.overrides) or None,
    }  # fmt: skip
    measure.free()
    started = time.perf_counter()
    try:
        engine = build(case, configs)
        building = _gib("max_memory_allocated")
        measure.free_unused()  # placing a quantized base needs room of its own, which is not training's
        held = _gib("memory_allocated")
        built = time.perf_counter()
        warming = max(case.steps, EAGER_STEPS + 1)  # a graph is recorded in the step after the eager ones
        engine.advance(0, warming)
        measure.synchronize()
        warm = time.perf_counter()
        starts = iter(range(warming, 1000, case.steps))
        seconds, spread = measure.median_seconds(lambda: engine.advance(first := next(starts), first + case.steps), repeats)
    except torch.OutOfMemoryError:
        return row | {"note": "out of memory"}
    seconds, spread = seconds / case.steps, spread / case.steps
    tokens = case.runs * case.rows * case.length
    assert config.model.shape is not None
    targets = counts.targets(counts.linears(config.model.shape), config.lora.target_modules, config.model.name)
    flops = counts.flops_per_token(config.model.shape, config.variant, config.lora, targets, case.length).total
    return row | {
        "speed": engine.speed_layers, "ms/step": 1e3 * seconds, "spread ms": 1e3 * spread, "tokens/s": tokens / seconds,
        "share of peak": tokens / seconds * flops / peak, "peak GiB": _gib("max_memory_allocated"), "held GiB": held,
        "building GiB": building, "build s": built - started,
        "warm-up s": warm - built, "note": None,
    }  # fmt: skip


def _gib(which: str) -> float | None:
    """Read ``torch.cuda``'s count of that name, in GiB; None without a GPU."""
    return getattr(torch.cuda, which)() / 2**30 if torch.cuda.is_available() else None


def main() -> int:
    names = sys.argv[1:] or list(CASES)
    if "--help" in names or not set(names) <= set(CASES):
        print(f"{__doc__}\n{', '.join(CASES)}")
        return 0 if "--help" in names else 2
    quiet_libraries()
    peak = measure.matmul_peak()
    print(f"bf16 product of 8192^3: {peak / 1e12:.0f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    for name in names:
        for case in CASES[name]:
            rows.append({"case": name, **measured(case, peak)})
            print(rows[-1], flush=True)
            measure.write("step", rows, show=False)
    measure.print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
