"""``python -m experiments.four_bits.measure PART [key=value ...]``: measure the losses and the savings of four bits.

errors     quantization error of every format, on Gaussian weights and on the embedded base's    errors.csv
bits       bytes that the product's quantized layers hold                                        bits.csv
memory     memory and time of a training step on the shapes of Llama 8B and 70B; needs a GPU     memory.csv
training   the finished runs of the sweep (README.md has its commands), one row each             training.csv

out=FOLDER     folder of the table; default: this folder. An existing table is not overwritten
seconds=N      errors, memory: no matrix or case starts after it; default 540
reuse=FILE     memory: a results.csv of experiments.cost_on_a_gpu; its rows of the same cases are copied
sweep=NAME     training: default four_bits; a run in it that does not belong to this study is refused
small=true     errors, bits, memory: the tiny shape and small matrices, to try the study
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import folders, sheet
from src.command import cli, words
from src.command.words import Key
from src.files.errors import ConfigError

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).resolve().parent
GAUSSIAN, SEEDS = ((256, 256), (1024, 1024), (4096, 4096)), range(8)
STD = 0.02  # errors are relative, so its value does not matter
PRECISIONS = (("int8", True), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True))
KEYS = {
    "out": Key(str, "FOLDER"),
    "seconds": Key(words.whole(1, 10**6), "540"),
    "reuse": Key(str, "results.csv"),
    "sweep": Key(str, "four_bits"),
    "small": Key(words.switch, "true"),
}
OF_PART = {"errors": {"seconds", "small"}, "bits": {"small"}, "memory": {"seconds", "reuse", "small"}, "training": {"sweep"}}
METRICS = ("val/loss", "test/loss", "test/exact_match", "forgetting/before", "forgetting/after")
Row = dict[str, Any]


def errors(path: Path, seconds: float, small: bool) -> None:
    """Measure the error of every format on every matrix in fp32; a row each."""
    import torch

    from experiments.four_bits.formats import FORMATS, error

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    folders.fresh(path.parent, path.name)
    for kind, matrix, name, weight in matrices(small):
        if time.monotonic() - started > seconds:
            raise ConfigError(f"seconds={seconds:g}: spent before {kind} {matrix} {name}; the table holds what came before")
        weight = weight.to(device)
        norm = float(weight.double().norm())
        for form in FORMATS:
            rms, largest = error(weight, form.stored(weight))
            bits = form.bits or 8 + 32 / weight.shape[1]
            add(path, weights=kind, matrix=matrix, name=name, format=form.name, bits=bits, norm=norm, rms=rms, largest=largest)
        print(f"{kind} {matrix} {name}: {time.monotonic() - started:.0f} s", flush=True)


def matrices(small: bool) -> Iterator[tuple[str, str, str, torch.Tensor]]:
    """Yield (kind, group in the tables, name, fp32 weight [out, in])."""
    import torch

    for rows, columns in GAUSSIAN[:1] if small else GAUSSIAN:
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            weight = torch.randn(rows, columns, generator=generator) * STD
            yield "gaussian", f"{rows} x {columns}", f"seed {seed}", weight
    yield from embedded_matrices(2 if small else None)


def embedded_matrices(layers: int | None) -> Iterator[tuple[str, str, str, torch.Tensor]]:
    """Yield the linear layers of the embedded base as its file has them: Q4_1, dequantized to fp32, not rounded to bf16."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from src.model import embedded

    for tensor in GGUFReader(str(embedded.gguf_file())).tensors:
        block, _, rest = tensor.name.removeprefix("blk.").partition(".")
        if tensor.tensor_type.name == "Q4_1" and (layers is None or int(block) < layers):
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            yield "smollm2_135m", rest.removesuffix(".weight"), f"layer {block}", values


def bits(path: Path, small: bool) -> None:
    """Count the bytes of the tensors in quantized layers, as ``src.variants.quantization`` places them."""
    import torch

    from src.command.cli import compose
    from src.model import models
    from src.variants import quantization
    from src.variants.methods.point import VariantConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = compose([f"model={'tiny' if small else 'smollm2_135m'}"]).model
    folders.fresh(path.parent, path.name)
    for precision, double in PRECISIONS:
        network, _ = models.load(model, torch.bfloat16, device)
        weights = sum(layer.weight.numel() for _, layer in quantization.linear_layers(network))
        variant = VariantConfig(base_precision=precision, double_quant=double)
        network = quantization.place(network, variant, device, torch.bfloat16)
        layers = [layer for _, layer in quantization.linear_layers(network)]
        for part, count in held(layers).items():
            each = 8 * count / weights
            add(
                path, model=model.name, precision=precision, double_quant=double, part=part, bytes=count, weights=weights,
                bits=each,
            )  # fmt: skip
            print(f"{model.name} {precision} double_quant={double} {part}: {count:,} bytes, {each:.4f} bits", flush=True)


def held(layers: Iterable[Any]) -> dict[str, int]:
    """Count bytes by purpose. A table of values is counted as often as it is in memory, though layers could share it."""
    places: dict[str, dict[int, int]] = {"weights": {}, "scales": {}, "tables": {}}
    for layer in layers:
        state = getattr(layer.weight, "quant_state", None)
        if state is None:  # LLM.int8(): a scale for each row
            scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
            tensors = {"weights": [layer.weight.data], "scales": [scales], "tables": []}
        else:
            nested = [state.state2.absmax, state.offset] if state.nested else []
            tables = [state.code, *([state.state2.code] if state.nested else [])]
            tensors = {"weights": [layer.weight.data], "scales": [state.absmax, *nested], "tables": tables}
        for part, group in tensors.items():
            places[part] |= {tensor.data_ptr(): tensor.nbytes for tensor in group}
    return {part: sum(sizes.values()) for part, sizes in places.items()}


def memory(path: Path, seconds: float, reuse: Sequence[Path], small: bool) -> None:
    from benchmarks import cases
    from experiments.cost_on_a_gpu.measure import B8, B70, SINGLE, TINY, refuse_without_a_gpu

    if not small:
        refuse_without_a_gpu("small=true")
    wanted = [
        B8,
        replace(B8, variant="qlora"),
        replace(B8, variant="qlora", overrides=SINGLE),
        B70,
        replace(B70, overrides=SINGLE),
        replace(B8, variant="lora_8bit", steps=2),
    ]
    if small:
        wanted = [TINY, *(replace(TINY, variant="qlora", overrides=more) for more in ((), SINGLE))]
    folders.fresh(path.parent)
    cases.run(wanted, path, seconds, reuse)


def training(path: Path, sweep: str) -> None:
    from experiments.four_bits.runs import refuse_foreign
    from src.compare.frame import gather
    from src.record.records import read_sweep

    ids = read_sweep(sweep)
    if ids is None:
        raise ConfigError(f"sweep={sweep}: no such sweep in runs/sweeps")
    gathered = gather(ids)
    for problem in gathered.problems:
        print(problem, file=sys.stderr)
    refuse_foreign(gathered.rows)
    folders.fresh(path.parent, path.name)
    for row in gathered.rows:
        add(
            path, variant=row["variant"], precision=row["base_precision"],
            double_quant=row["fields"]["variant.double_quant"], lr=row["learning_rate"], seed=row["seed"], status=row["status"],
            **{name: row["metrics"].get(name) for name in METRICS},
            pack_size=row.get("pack_size"), train_seconds=row.get("train_seconds"), peak_bytes=row.get("peak_memory_bytes"),
            device=row.get("device"), run_id=row["run_id"],
        )  # fmt: skip
    print(f"{len(gathered.rows)} of {len(ids)} runs")


def add(path: Path, **row: Any) -> None:
    """Append a row to a table, which is complete after each: a killed process keeps its measurements."""
    sheet.append(path, list(row), [list(row.values())])


def main() -> int:
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__)
        return 0
    values, rest = words.read(arguments, KEYS, free="a part")
    if len(rest) != 1 or rest[0] not in OF_PART:
        raise ConfigError(f"{' '.join(rest) or 'PART'}: name one of {', '.join(OF_PART)}")
    part = rest[0]
    if wrong := [key for key in values if key not in OF_PART[part] | {"out"}]:
        raise ConfigError(f"{wrong[0]}: {part} has no such key")
    if values.get("small") and "out" not in values:
        raise ConfigError("small=true: needs out=FOLDER, since small results are none of this study's")
    started, path = time.monotonic(), Path(values.get("out", HERE)) / f"{part}.csv"
    seconds, small = float(values.get("seconds", 540)), values.get("small", False)
    if part == "errors":
        errors(path, seconds, small)
    elif part == "bits":
        bits(path, small)
    elif part == "memory":
        reuse = Path(values["reuse"]) if "reuse" in values else None
        if reuse is not None and not reuse.is_file():
            raise ConfigError(f"reuse={reuse}: no such file")
        memory(path, seconds, [reuse] if reuse else [], small)
    else:
        training(path, values.get("sweep", "four_bits"))
    from benchmarks import cases

    cases.note(path, started)
    return 0


if __name__ == "__main__":
    cli.run(main)
