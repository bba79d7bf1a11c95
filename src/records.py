"""The files of a run: its identity, its folder, atomic writes, provenance. What is written here is the only truth.

    runs/<run_id>/config.yaml provenance.json metrics.jsonl predictions.jsonl adapter/ result.json
    runs/sweeps/<name>.json   the run ids of a sweep

``result.json`` is written last, by temporary file and rename: its existence means that the run has ended.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.config import Config, ConfigError, ForgettingConfig

RUNS = Path("runs")
# A run with one of these is over: the same command would only give the same again.
ENDED = ("ok", "diverged")


def identity(config: Config) -> dict[str, Any]:
    """The fields of a config that decide its outcome: no tracking, packing, device, sweep name or checkpoint interval.

    A control without an adapter does not depend on the LoRA settings, so ``variant=frozen lora.r=4,8`` is one run.
    """
    fields = asdict(config)
    for key in ("tracking", "pack", "device", "sweep", "force"):
        del fields[key]
    del fields["train"]["checkpoint_every"]
    for key in ("name", "note"):
        del fields["model"][key]
    for key in ("name",):
        del fields["variant"][key]
    del fields["dataset"]["name"]
    # It came later than the first records and decides no weight: where it is the default, their ids stay.
    if config.forgetting == ForgettingConfig():
        del fields["forgetting"]
    if config.variant.base_precision != "nf4":
        del fields["model"]["hold_dequantised"]
    if config.variant.trains != "adapter":
        del fields["lora"], fields["engine"]
    if config.variant.trains == "none":
        del fields["train"]
    return fields


def run_id(config: Config) -> str:
    """Ten hexadecimal digits of the SHA-256 of ``identity``."""
    return id_of(identity(config))


def id_of(fields: dict[str, Any]) -> str:
    """The id of the run whose identity these fields are."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def write_atomically(path: Path, text: str) -> None:
    """Write so that a reader, or a crash, sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def dump_json(value: Any) -> str:
    """JSON that every parser accepts: a number that is not finite becomes null, never NaN."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


class RunFolder:
    """``runs/<run_id>/``: the record of one run while it grows and when it is done."""

    def __init__(self, run: str, root: Path = RUNS) -> None:
        self.run_id = run
        self.path = root / run
        self.metrics = self.path / "metrics.jsonl"
        self.predictions = self.path / "predictions.jsonl"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.error = self.path / "error.txt"

    def clear_results(self) -> None:
        """Take an earlier result away before a run is repeated; result.json goes first: without it nothing counts."""
        (self.path / "result.json").unlink(missing_ok=True)
        for folder in (self.adapter, self.model):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.error, self.predictions):
            file.unlink(missing_ok=True)

    def clear_progress(self) -> None:
        self.checkpoint.unlink(missing_ok=True)
        self.metrics.unlink(missing_ok=True)

    def write_config(self, config: Config) -> None:
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))

    def read_config(self) -> Config:
        node = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(self.path / "config.yaml"))
        config = OmegaConf.to_object(node)
        assert isinstance(config, Config)
        return config

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        write_atomically(self.path / name, dump_json(value))

    def result(self) -> dict[str, Any] | None:
        """The run's result, or None if it has none, or one that cannot be read: such a run has to be done again."""
        return self._readable("result.json")

    def provenance(self) -> dict[str, Any] | None:
        return self._readable("provenance.json")

    def _readable(self, name: str) -> dict[str, Any] | None:
        try:
            return read_json(self.path / name)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl in a single write."""
        text = json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.metrics, "ab", buffering=0) as file:
            file.write(text.encode())

    def logged(self) -> Iterator[dict[str, Any]]:
        yield from read_lines(self.metrics)

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after ``step``: a resumed run logs them again."""
        kept = [line for line in self.logged() if line["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        write_atomically(
            self.predictions,
            "".join(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows),
        )


def read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file. A last line that was cut off in the middle of a write is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def write_sweep(name: str, run_ids: list[str], add: bool = False, root: Path = RUNS) -> None:
    """List the runs of a sweep; ``add`` keeps those that an earlier command gave the same name."""
    if add:
        run_ids = list(dict.fromkeys([*(read_sweep(name, root) or []), *run_ids]))
    value = {"name": name, "run_ids": run_ids, "argv": sys.argv, "created": datetime.now(UTC).isoformat()}
    write_atomically(root / "sweeps" / f"{name}.json", dump_json(value))


def read_sweep(name: str, root: Path = RUNS) -> list[str] | None:
    """The run ids of a sweep, or None if there is no sweep of that name.

    Raises:
        ConfigError: the list is damaged; the message names its file.
    """
    path = root / "sweeps" / f"{name}.json"
    try:
        value = read_json(path)
        ids = [] if value is None else value["run_ids"]
        if not isinstance(ids, list):
            raise TypeError("its run_ids are no list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}; delete it to begin the list anew") from error
    # An id is a folder's name: a hand-edited list must not lead out of runs/.
    return None if value is None else [run for run in ids if isinstance(run, str) and Path(run).name == run]


PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "hydra-core", "wandb", "pandas", "numpy", "scipy")


def provenance(argv: list[str]) -> dict[str, Any]:
    """What produced a run: code, versions, machine. Device and data are added by the worker that knows them."""
    return {
        "argv": argv,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "started": datetime.now(UTC).isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    code = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=code, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
