"""Synthetic records, so that every number in a table can be worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from src.compare.assay import Assay, assay
from src.compare.frame import gather, run_ids
from src.config.schema import Config, DatasetConfig, LoraSettings, ModelConfig, PackConfig, TrainConfig, variant_name
from src.files.durable import END, seal_text
from src.record.metrics_log import MetricsLog
from src.record.records import RunFolder, identity, run_id
from src.variants.methods.point import VariantConfig

Make = Callable[..., str]
Grid = Callable[..., list[str]]

RSLORA = {"scaling": "alpha_over_sqrt_r"}
DORA = {"magnitude": "dora"}
QLORA = {"base_precision": "nf4"}
FROZEN = {"trains": "none"}
FULL = {"trains": "all"}
DIVERGED = {"loss": None, "status": "diverged", "reason": "loss was not finite at step 12"}


def run(
    loss: float | None = 2.0,
    seed: int = 0,
    r: int = 8,
    lr: float = 1e-3,
    steps: int = 300,
    variant: dict[str, Any] | None = None,
    model: str = "smollm2_135m",
    engine: str = "packed",
    pack_size: int = 1,
    hold: bool = False,
    recorded: bool = True,
    curve: tuple[float, ...] = (3.0, 2.5, 2.2),
    val: float | None = None,
    fields: Mapping[str, Any] | None = None,
    identified: bool = True,
    provenance: dict[str, Any] | None = None,
    predictions: list[dict[str, Any]] | None = None,
    configured: bool | None = None,
    **result: Any,
) -> str:
    """Write one run.

    Args:
        val: its validation loss; default: its test loss and 0.1.
        fields: other fields of the config, by their dotted names.
        identified: whether result.json says what was ordered, as it has since tables need no config.yaml.
        configured: whether it has a config.yaml, which takes time to write; default: where nothing else says what was ordered.
        result: replaces what result.json says, or adds to it.
    """
    config = Config(
        model=ModelConfig(name=model, source="embedded", id=None if model == "smollm2_135m" else model, hold_dequantised=hold),
        variant=VariantConfig(**variant or {}),
        lora=LoraSettings(r=r),
        dataset=DatasetConfig(name="cldr_names", source="cldr_names"),
        train=TrainConfig(lr=lr, steps=steps),
        pack=PackConfig(max_runs=pack_size),
        engine=engine,
        seed=seed,
        data_seed=seed,
    )
    for name, value in (fields or {}).items():
        group, _, last = name.rpartition(".")
        setattr(getattr(config, group) if group else config, last, value)
    config.variant.name = variant_name(config.variant)
    name = run_id(config)
    folder = RunFolder(name)
    folder.path.mkdir(parents=True, exist_ok=True)
    if configured or (configured is None and not (recorded and identified)):
        folder.write_config(config)
    if not recorded:
        return name
    for step, logged in enumerate(curve, start=1):
        MetricsLog(folder.metrics).append({"step": 10 * step, "train/loss": logged, "train/lr": lr})
    if curve:
        MetricsLog(folder.metrics).append({"step": 30, "val/loss": 2.1})
    if predictions is not None:
        folder.write_predictions(predictions)
    if provenance is not None:
        folder.write_provenance(provenance)
    metrics = {}
    if loss is not None:
        metrics = {"test/loss": loss, "val/loss": loss + 0.1 if val is None else val, "test/exact_match": 0.5}
    alpha, adapter = config.lora.alpha, config.variant.trains == "adapter"
    record = {
        "run_id": name, "status": "ok", "reason": None, "sweep": None, "model": model, "model_note": None,
        "dataset": "cldr_names", "variant": config.variant.name, "base_precision": config.variant.base_precision,
        "r": r, "alpha": alpha, "learning_rate": lr, "seed": config.seed, "data_seed": config.data_seed,
        "effective_scale": alpha / (r if config.variant.scaling == "alpha_over_r" else math.sqrt(r)) if adapter else None,
        "engine": engine if adapter else "peft", "pack_size": pack_size, "steps": steps,
        "trainable_parameters": 1000, "total_parameters": 40000, "adapter_bytes": 4000,
        "peak_memory_bytes": 3 * 2**30, "peak_memory_kind": "process_rss",
        "estimated_memory_bytes": 2 * 2**30, "hold_dequantised": hold, "halved_from": None,
        "device": "cpu: AMD EPYC, 2 threads", "tokens_per_second": 500.0, "pack_tokens_per_second": 500.0 * pack_size,
        "train_seconds": 60.0, "train_tokens": 30000, "metrics": metrics,
        "checks": {"base_unchanged": {"ok": True, "detail": "equal"}},
    }  # fmt: skip
    if identified:
        record["identity"] = identity(config)
    folder.write_result(record | result)
    return name


def forge(path: Path, content: str | dict[str, Any]) -> None:
    """Write a file that is sealed as ours are, whatever it says: a text that is a JSON object, or what json makes of one."""
    if isinstance(content, dict):
        content = json.dumps({key: value for key, value in content.items() if key != "sha256"})
    path.write_text(seal_text(content.strip().removesuffix("}") + END))


def record_again(run: str) -> None:
    """Let the record hold the digests of its files as they are now."""
    folder = RunFolder(run)
    folder.write_result(folder.result() or {})


def grid(
    validation: Mapping[float, float | Callable[[int], float]],
    seeds: Iterable[int] = range(12),
    test: Callable[[float, int], float] | None = None,
    ended: Mapping[tuple[float, int], str] | None = None,
    **options: Any,
) -> list[str]:
    """Write one run for each rate and seed, without curves.

    Args:
        validation: each rate's validation loss, or that of a seed.
        test: the test loss of a rate and a seed; default: the validation loss.
        ended: how runs ended that are not ``ok``, by rate and seed; ``missing``: they have no record; ``absent``: no folder.
    """
    seeds, ids = list(seeds), []
    for rate, of_seed in validation.items():
        for seed in seeds:
            status = (ended or {}).get((rate, seed), "ok")
            val = of_seed(seed) if callable(of_seed) else of_seed
            if status == "ok":
                loss = val if test is None else test(rate, seed)
                ids.append(run(loss, seed, lr=rate, val=val, curve=(), **options))
            elif status == "missing":
                ids.append(run(seed=seed, lr=rate, recorded=False, **options))
            elif status != "absent":
                ids.append(run(seed=seed, lr=rate, **options, **DIVERGED | {"status": status}))
    return ids


def assayed(**options: Any) -> Assay:
    """The assay of all runs in the current folder, none of which may be broken."""
    gathered = gather(run_ids())
    assert gathered.problems == []
    return assay(gathered, **options)


def flagged(result: Assay, label: str) -> list[str]:
    """The flags of the row of this label, in words."""
    return [flag.words for flag in result.flags[result.labels.index(label)]]
