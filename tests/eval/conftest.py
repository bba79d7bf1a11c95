"""Synthetic records, so that every number in a table can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.config import Config, DatasetConfig, LoraSettings, ModelConfig, PackConfig, TrainConfig, VariantConfig, variant_name
from src.records import RunFolder, run_id

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes the files of a run below tmp_path/runs, makes tmp_path the current folder, and returns the run's id."""
    monkeypatch.chdir(tmp_path)

    def make_run(
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
        **result: Any,
    ) -> str:
        hub = None if model == "smollm2_135m" else model
        config = Config(
            model=ModelConfig(name=model, source="embedded", id=hub, hold_dequantised=hold),
            variant=VariantConfig(**variant or {}),
            lora=LoraSettings(r=r),
            dataset=DatasetConfig(name="cldr_names", source="cldr_names"),
            train=TrainConfig(lr=lr, steps=steps),
            pack=PackConfig(max_runs=pack_size),
            engine=engine,
            seed=seed,
            data_seed=seed,
        )
        config.variant.name = variant_name(config.variant)
        run = run_id(config)
        folder = RunFolder(run)
        folder.write_config(config)
        if not recorded:
            return run
        for step, value in enumerate(curve, start=1):
            folder.log({"step": 10 * step, "train/loss": value, "train/lr": lr})
        folder.log({"step": 30, "val/loss": 2.1})
        record = {
            "run_id": run, "status": "ok", "reason": None, "sweep": None, "model": model, "model_note": None,
            "dataset": "cldr_names", "variant": config.variant.name, "base_precision": config.variant.base_precision,
            "r": r, "alpha": 16.0, "effective_scale": 16.0 / r, "learning_rate": lr, "seed": seed, "data_seed": seed,
            "engine": engine if config.variant.trains == "adapter" else "peft", "pack_size": pack_size, "steps": steps,
            "trainable_parameters": 1000, "total_parameters": 40000, "adapter_bytes": 4000,
            "peak_memory_bytes": 3 * 2**30, "peak_memory_kind": "process_rss",
            "estimated_memory_bytes": 2 * 2**30, "hold_dequantised": hold, "halved_from": None,
            "device": "cpu: AMD EPYC, 2 threads", "tokens_per_second": 500.0, "pack_tokens_per_second": 500.0 * pack_size,
            "train_seconds": 60.0, "train_tokens": 30000,
            "metrics": {} if loss is None else {"test/loss": loss, "val/loss": loss + 0.1, "test/exact_match": 0.5},
            "checks": {"base_unchanged": {"ok": True, "detail": "equal"}},
        }  # fmt: skip
        folder.write_json("result.json", record | result)
        return run

    return make_run
