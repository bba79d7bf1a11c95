"""Build the content of result.json: the same keys for runs that finished, failed, or died early."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..config.schema import Config
from ..variants.methods.scaling import effective_scale
from .records import identity

# Keys that are null in the result until they are measured.
MEASURED = (
    "device",
    "steps",
    "trainable_parameters",
    "total_parameters",
    "adapter_bytes",
    "peak_memory_bytes",
    "peak_memory_kind",
    "estimated_memory_bytes",
    "tokens_per_second",
    "pack_tokens_per_second",
    "train_seconds",
    "train_tokens",
    "checkpoint_seconds",
    "rows_cut",
    "rows_left_out",
    "rows_leaking",
    "test_rows_repeated",
    "target_end",
    "prose",
    "wall_seconds",
    "base_share",
    "hold_dequantised",
    "halved_from",
    "speed",
)


@dataclass
class Outcome:
    """The outcome of a run. ``measured`` has keys of ``MEASURED``, and keys of ``result`` that differ from the config."""

    status: str = "ok"  # ok | diverged | out_of_memory | failed
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)


def result(config: Config, run_id: str, outcome: Outcome) -> dict[str, Any]:
    """Build the value of result.json. A metric that was not measured is absent from ``metrics``."""
    adapter = config.variant.trains == "adapter"
    return {
        "run_id": run_id,
        "status": outcome.status,
        "reason": outcome.reason,
        "sweep": config.sweep,
        "identity": identity(config),  # the id is its hash; tables need no config.yaml
        "model": config.model.name,
        "model_note": config.model.note if config.model.weights == "pretrained" else "random weights",
        "dataset": config.dataset.name,
        "dataset_version": config.dataset.version,
        "variant": config.variant.name,
        "base_precision": config.variant.base_precision,
        "r": config.lora.r if adapter else None,
        "alpha": config.lora.alpha if adapter else None,
        "effective_scale": effective_scale(config.variant.scaling, config.lora.alpha, config.lora.r) if adapter else None,
        "learning_rate": None if config.variant.trains == "none" else config.train.lr,
        "optimizer": None if config.variant.trains == "none" else config.train.optimizer,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "engine": config.engine if adapter else "peft",
        "pack_size": 1,
        **dict.fromkeys(MEASURED),
        **outcome.measured,
        "metrics": outcome.metrics,
        "checks": outcome.checks,
    }
