"""Open a session: load the base and the rows, see how many runs fit, and build the engine that trains them.

    loaded = load(config)                             the base model and the rows, which all runs share
    fit = fit_of(loaded, configs)                     how many of them memory holds together
    placed = place(loaded)                            the base in its precision, where it computes
    session = build(placed, configs[: fit.count])     the engine over it

``open`` does all but the fitting, for who trains all runs or fails. Every step gives a frozen value. An engine adapts the
base that it is given, so a base builds one session; rows serve as many as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..config.schema import Config, is_packed
from ..data.batches import Batch, Item, collate
from ..engine.packed import members
from ..engine.packed.members import member, rank_multiple
from ..engine.peft import PeftEngine
from ..engine.protocol import Engine
from ..files.errors import ConfigError
from ..measure.scorer import Scorer, per_token
from ..model import capacity, device, models
from ..model.device import Numerics
from ..sweep import fit
from ..sweep.fit import Fit, Tokens
from ..sweep.machine import free_memory
from ..sweep.packs import agreement
from ..variants import adapters, counts, quantization, share
from ..variants.counts import Linear
from ..variants.methods.precision import FOUR_BIT
from . import rows as reading
from .loop import steps_of
from .rows import Rows


@dataclass(frozen=True)
class Loaded:
    """The base and the rows that the runs of a pack share, before any of them has an adapter."""

    config: Config  # of any of them, for what they agree on
    numerics: Numerics
    network: Any  # the frozen base
    linears: list[Linear]
    targets: list[Linear]  # those that get an adapter
    total_parameters: int
    rows: Rows
    base_share: dict[str, float] | None = None  # of the base's parameters in each format, once it is placed

    @property
    def closed_form(self) -> bool:
        """Tell whether the model's dimensions alone give the number of its adapters' parameters."""
        shape = models.find_shape(self.config.model)
        return shape is not None and sorted(counts.linears(shape), key=repr) == sorted(self.linears, key=repr)

    @cached_property
    def tokens(self) -> Tokens:
        return fit.tokens_of([len(item) for item in self.rows.items["train"]], self.config.train.batch_size)

    @property
    def rank_multiple(self) -> int:
        return rank_multiple(self.numerics.device.type == "cuda")

    def costs(self, config: Config) -> dict[str, int | None]:
        """Count a run's parameters and the memory that it needs by itself, under its result's keys."""
        return {
            "total_parameters": self.total_parameters,
            "trainable_parameters": counts.trainable_parameters(config.variant, config.lora, self.targets, self.total_parameters),
            "estimated_memory_bytes": fit.alone(config, self.targets, self.tokens, self.rank_multiple),
        }


@dataclass(frozen=True)
class Session:
    """Runs that are ready to train together. A run is known by its place in ``configs``, which are in slot order."""

    loaded: Loaded
    configs: tuple[Config, ...]
    engine: Engine
    scorer: Scorer
    proof: dict[str, Any] | None  # a check's verdict that the pack computes what PEFT does; None in engine=peft

    def losses(self, split: str) -> list[float]:
        """Score each run as it is now: mean log-loss per target token of ``split`` ("val", "test"), in nats."""
        return [per_token(of_run) for of_run in self.scorer.losses(self.loaded.rows.items[split])]

    def batch(self, split: str, count: int) -> Batch:
        """Give the first ``count`` rows of a split as tensors, where the runs compute."""
        return collate(self.loaded.rows.items[split][:count], self.loaded.rows.pad, self.engine.numerics.device)

    def facts(self) -> dict[str, Any]:
        """List what the runs' results share and is known before the first step, under the result's keys."""
        loaded, engine = self.loaded, self.engine
        model, variant, rows = loaded.config.model, loaded.config.variant, loaded.rows
        return {
            "device": device.describe(loaded.numerics.device),
            "base_precision": _precision(loaded),
            "base_share": loaded.base_share,
            "engine": engine.name,
            "pack_size": len(self.configs),
            "hold_dequantised": engine.name == "packed" and model.hold_dequantised and variant.base_precision in FOUR_BIT,
            "speed": engine.speed_layers,
            "steps": engine.steps,
            "rows_left_out": rows.splits.left_out,
            "rows_leaking": rows.splits.leaking,
            "test_rows_repeated": rows.splits.repeated,
            "rows_cut": rows.cut,
            "target_end": rows.target_end,
            "prose": rows.prose_read,
        }


def _precision(loaded: Loaded) -> str:
    """Name the format that the base really is held or multiplied in: bf16 becomes fp32 on a processor without bf16 products."""
    precision = loaded.config.variant.base_precision
    return "fp32" if precision == "bf16" and loaded.numerics.compute is None else precision


def slot_order(configs: Sequence[Config]) -> list[int]:
    """Order the indices of ``configs`` as a pack holds them: those that are multiplied together side by side."""
    return [0] if len(configs) == 1 else members.slot_order([member(config) for config in configs])


def load(config: Config, rows: Rows | None = None) -> Loaded:
    """Load the base and read the rows of ``config``, or take ``rows`` that were read before for the same data.

    Raises:
        ConfigError: model, data or device cannot be used; one line.
    """
    numerics = device.choose(config)
    if is_packed(config):
        from ..engine.packed.speed import prepare_to_compile

        prepare_to_compile(config, numerics)
    network, tokenizer = models.load(config.model, numerics.base, numerics.device)
    linears = adapters.linears_of(network)
    share.refuse_left_out(network, config.variant.base_precision)
    total = sum(parameter.numel() for parameter in network.parameters())
    targets = counts.targets(linears, config.lora.target_modules, config.model.name)
    rows = rows or reading.read(config, tokenizer)
    read = {**rows.items, "held-out prose": rows.prose}
    capacity.refuse(network, read, rows.pad, _new_tokens(config, rows), is_packed(config))
    return Loaded(config, numerics, network, linears, targets, total, rows)


def _new_tokens(config: Config, rows: Rows) -> int:
    """Count the tokens that an answer may have; 0 where none is generated."""
    longest = max((len(item.target) for item in rows.items["test"]), default=0)
    return (config.eval.max_new_tokens or longest) if config.eval.generate else 0


def fit_of(loaded: Loaded, configs: Sequence[Config]) -> Fit:
    """See how many of these runs, in slot order and from the first on, fit into what memory is free now."""
    return fit.fitting(configs, loaded.targets, loaded.tokens, loaded.rank_multiple, _free(loaded))


def _free(loaded: Loaded) -> float | None:
    """Bytes that this command may take now; None if unknown."""
    if loaded.numerics.device.type != "cuda":
        return free_memory()
    free, total = device.gpu_memory(loaded.numerics.device)
    return min(free, round(loaded.config.pack.memory_share * total))


def place(loaded: Loaded) -> Loaded:
    """Quantize the base as the variant has it and move it where it computes."""
    numerics = loaded.numerics
    network = quantization.place(loaded.network, loaded.config.variant, numerics.device, numerics.compute)
    return replace(loaded, network=network, base_share=share.base_share(network))


def build(placed: Loaded, configs: Sequence[Config], steps: int | None = None) -> Session:
    """Build the engine of ``configs``, in slot order, over a base that is placed. ``steps``: default those of the config.

    Raises:
        ConfigError: the packed engine does not compute what transformers and PEFT do for this base.
    """
    rows, steps = placed.rows, steps or steps_of(placed.config, len(placed.rows.splits.train))
    arguments = (placed.network, configs, rows.items["train"], rows.pad, steps, placed.numerics)
    engine, proof = _checked_engine_of(placed, *arguments) if is_packed(placed.config) else (engine_of(*arguments), None)
    return Session(placed, tuple(configs), engine, Scorer(engine.scored, placed.config.eval.batch_size, rows.pad), proof)


def _checked_engine_of(placed: Loaded, network: Any, configs: Sequence[Config], *others: Any) -> tuple[Engine, dict[str, Any]]:
    """Build the packed engine; its check is made in part before, while PEFT can still adapt the base."""
    from ..engine.packed import selfcheck

    rows = [*(item for items in placed.rows.items.values() for item in items), *placed.rows.prose]
    code = selfcheck.check_code(network, configs, rows, placed.numerics, _free(placed))
    wiring = selfcheck.Wiring(network, configs, rows, placed.numerics)
    engine = engine_of(network, configs, *others)
    detail = f"largest gap to transformers and PEFT, 1 being the bound of rounding: {code}; {wiring.check(engine)}"
    return engine, {"ok": True, "detail": detail}


def engine_of(network: Any, configs: Sequence[Config], items: Sequence[Item], pad: int, steps: int, numerics: Numerics) -> Engine:
    """Build an engine over a placed base: the packed one wherever there is an adapter, unless PEFT's is asked for."""
    config = configs[0]
    if is_packed(config):
        from ..engine.packed.engine import PackedEngine

        return PackedEngine(network, configs, items, pad, steps, numerics)
    if config.variant.trains == "adapter":
        network = adapters.attach(network, config.variant, config.lora, config.seed)
    else:
        network.requires_grad_(config.variant.trains == "all")
    return PeftEngine(network, config, items, pad, steps, numerics)


def open(configs: Sequence[Config], rows: Rows | None = None, steps: int | None = None) -> Session:
    """Open a session for all of ``configs``: load, place, build. Its own ``configs`` are these in slot order.

    Raises:
        ConfigError: they cannot train together, or cannot be trained; one line.
    """
    if len({agreement(config) for config in configs}) > 1 or (len(configs) > 1 and not is_packed(configs[0])):
        raise ConfigError("these runs cannot train together: they differ in more than a pack can hold")
    loaded = load(configs[0], rows)
    return build(place(loaded), [configs[index] for index in slot_order(configs)], steps)
