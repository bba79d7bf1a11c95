"""``python -m src.variants``: print what a variant costs on a model, without weights and without torch."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from ..command import cli, words
from ..command.words import Key
from ..config.schema import Config, Shape
from ..config.values import RANGES
from ..files.errors import ConfigError
from ..files.text import byte_size
from . import counts
from .match import matching_rank
from .methods.scaling import effective_scale

USAGE = """\
usage: python -m src.variants [KEY=VALUE ...]

Prints what a variant costs on a model, from the model's dimensions alone: trainable parameters, adapter and base bytes,
training memory, FLOPs. Nothing is downloaded or loaded.

  model=NAME                 a name in conf/model, or model=path model.path=DIR
  variant=NAME               a name in conf/variant
  lora.r=16 lora.alpha=16    rank and alpha
  lora.target_modules=[q_proj,v_proj]   default: all-linear
  train.batch_size=16 dataset.max_length=512   the tokens that the memory estimate assumes
  match=4.88M  match=lora:16   instead of the costs: the rank at which the variant trains this many parameters, or as many
                               as another variant at a rank

examples: python -m src.variants model=llama_3_1_70b variant=lora lora.r=4 lora.target_modules=[q_proj,k_proj,v_proj]
          python -m src.variants variant=dora match=lora:16"""

# Label, precision, double_quant: each choice of variant.base_precision.
BASES = (
    *(("bf16", "bf16", True), ("fp32", "fp32", True), ("int8", "int8", True)),
    *(("nf4", "nf4", False), ("nf4 + double quantization", "nf4", True)),
    *(("fp4", "fp4", False), ("fp4 + double quantization", "fp4", True)),
)
MATCH = "match="  # the one key that is not Hydra's
KEYS = {"match": Key(str, "lora:16")}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def main() -> int:
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0
    overrides = [argument for argument in arguments if not argument.startswith(MATCH)]
    config = cli.compose(overrides)
    values, _ = words.read([argument for argument in arguments if argument.startswith(MATCH)], KEYS)
    budget = values.get("match")
    show(rows(config, shape_of(config)) if budget is None else matched(config, shape_of(config), budget, overrides))
    return 0


def shape_of(config: Config) -> Shape:
    """Return the model's dimensions.

    Raises:
        ConfigError: the dimensions are not known without loading the model.
    """
    from ..model import models, refusals

    if config.model.source == "path":
        refusals.refuse_choice(config.model)
    shape = models.find_shape(config.model)
    if shape is None:
        raise ConfigError(
            f"model={config.model.name}: no shape to count from; choose a model with a shape in conf/model,"
            f" or model=path with a folder of one of {', '.join(models.FAMILIES)}"
        )
    return shape


def rows(config: Config, shape: Shape) -> list[tuple[str, str]]:
    """Return the table of costs, as pairs of a label and a value."""
    variant, lora = config.variant, config.lora
    chosen = counts.targets(counts.linears(shape), lora.target_modules, config.model.name)
    total = counts.total_parameters(shape)
    trainable = counts.trainable_parameters(variant, lora, chosen, total)
    length, batch = config.dataset.max_length, config.train.batch_size
    memory = counts.training_bytes(shape, variant, lora, chosen, batch * length)
    flops = counts.flops_per_token(shape, variant, lora, chosen, length)

    table = [("model", f"{config.model.name} ({config.model.id})" if config.model.id else config.model.name)]
    table.append(("variant", variant.name))
    if variant.trains == "adapter":
        scale = effective_scale(variant.scaling, lora.alpha, lora.r)
        table += [("rank r", str(lora.r)), ("alpha", f"{lora.alpha:g}"), ("effective scale", f"{scale:.6g} ({variant.scaling})")]
        table.append(("target modules", ", ".join(linear.name for linear in chosen)))
    table += [("trainable parameters", f"{trainable:,}"), ("total parameters", f"{total:,}")]
    if trainable:
        table.append(("reduction", f"{total / trainable:,.0f}x"))
    table.append(("trainable share of the base", f"{100 * trainable / total:.4g} %"))
    if variant.trains == "adapter":
        saved = counts.adapter_parameters(variant, lora, chosen)
        table.append(("adapter bytes, fp32 (as saved)", size(counts.adapter_bytes(saved))))
        table.append(("adapter bytes, 16-bit", size(counts.adapter_bytes(saved, 2))))
    for label, precision, double_quant in BASES:
        table.append((f"base bytes, {label}", size(counts.base_bytes(shape, precision, double_quant))))
    table += [
        ("training memory (estimate)", size(memory.total)),
        ("  base weights, frozen", size(memory.base)),
        ("  trained weights, gradients, AdamW", size(memory.states)),
        ("  activations and logits", size(memory.activations)),
        ("  it assumes", f"{batch} x {length} tokens, bf16 activations, fused attention, no checkpointing, fp32 training states"),
    ]
    split = f"{flops.forward:.4g} forward, {flops.backward:.4g} backward"
    table.append((f"FLOPs per token at length {length}", f"{flops.total:.4g} ({split})"))
    return table


def matched(config: Config, shape: Shape, budget_text: str, overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Return the rank of the config's variant whose parameter count is nearest to a budget, its neighbors, and the words to type.

    Raises:
        ConfigError: ``budget_text`` is no budget, or no rank of the variant comes near it.
    """
    variant, lora = config.variant, config.lora
    chosen = counts.targets(counts.linears(shape), lora.target_modules, config.model.name)
    total = counts.total_parameters(shape)
    budget, source = budget_of(budget_text, overrides, chosen, total)
    try:
        match = matching_rank(variant, lora, chosen, total, budget)
    except ConfigError as error:
        raise ConfigError(f"{MATCH}{budget_text}: {budget:,} parameters cannot be matched: {error}") from error

    def trained(r: int) -> str:
        count = counts.trainable_parameters(variant, replace(lora, r=r), chosen, total)
        return f"{count:,} ({100 * (count / budget - 1):+.2f} %)"

    variant_words = [override for override in overrides if re.match(r"variant[=.]", override)] or [f"variant={variant.name}"]
    table = [("model", config.model.name), ("variant", variant.name), ("budget", f"{budget:,}{source}")]
    table += [("nearest rank", str(match.r)), ("trainable parameters", trained(match.r))]
    lowest, highest, _ = RANGES["lora.r"]
    table += [(f"  at rank {r}", trained(r)) for r in (match.r - 1, match.r + 1) if lowest <= r <= highest]
    table.append(("use", " ".join([*variant_words, f"lora.r={match.r}"])))
    return table


def budget_of(budget_text: str, overrides: Sequence[str], chosen: Sequence[counts.Linear], total: int) -> tuple[int, str]:
    """Read a budget, such as 4_884_480, 4.88M or VARIANT:RANK, as (trainable parameters, a note on VARIANT:RANK).

    Raises:
        ConfigError: the text is none of these.
    """
    number = re.fullmatch(r"(\d+(?:[_,]\d+)*(?:\.\d+)?(?:e\d{1,2})?)([kmb]?)", budget_text, re.IGNORECASE)
    if number and math.isfinite(budget := float(number[1].replace(",", "")) * UNITS[number[2].lower()]):
        return round(budget), ""
    if reference := re.fullmatch(r"(\w+):(\d+)", budget_text):
        others = [override for override in overrides if not re.match(r"variant[=.]|lora\.r=", override)]
        other = cli.compose([*others, f"variant={reference[1]}", f"lora.r={reference[2]}"])
        return counts.trainable_parameters(other.variant, other.lora, chosen, total), f" ({reference[1]} at rank {reference[2]})"
    raise ConfigError(
        f"{MATCH}{budget_text}: needs a number of parameters, such as 4_884_480 or 4.88M, or VARIANT:RANK, such as lora:16"
    )


def size(count: int) -> str:
    """Write a number of bytes, exact and in the largest binary unit it fills."""
    return f"{count:,} ({byte_size(count, KiB=2, MiB=2, GiB=2, TiB=2)})" if count >= 1024 else f"{count:,}"


def show(table: list[tuple[str, str]]) -> None:
    """Print labels and values in two columns."""
    # A pipe or a file has no width: give it one that no line reaches, so that nothing is cut or folded.
    console = Console(width=None if sys.stdout.isatty() else 100_000, markup=False, highlight=False)
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    for label, value in table:
        grid.add_row(label, value)
    with console.capture() as text:
        console.print(grid)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


if __name__ == "__main__":
    cli.run(main, resumes=False)
