"""Write and read the record of a run: its identity, its folder, its provenance. All tables are made from records alone.

    runs/<run_id>/config.yaml provenance.json metrics.jsonl predictions.jsonl adapter/ result.json
    runs/<run_id>/checkpoints/   while it trains
    runs/<run_id>/damaged/       files that no longer held what was written
    runs/sweeps/<name>.json      the run ids of a sweep

``result.json`` is written last and atomically: its existence means that the run has ended. It is sealed and holds the
checksums of the other files, so that no byte of a record can change unnoticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..config.schema import Config
from ..files.credentials import redact
from ..files.durable import (
    Damaged,
    difference,
    digests,
    dump_json,
    finite,
    remove,
    remove_temporary,
    seal_text,
    sync,
    unseal,
    write_atomically,
    writing,
)
from ..variants.methods import point
from ..variants.methods.precision import FOUR_BIT

RUNS = Path("runs")
RESULT, PROVENANCE = "result.json", "provenance.json"
# The files and whole folders whose checksums are in result.json.
FILES = ["config.yaml", PROVENANCE, "metrics.jsonl", "predictions.jsonl", "adapter", "model"]
# A run with one of these statuses is over: the same command would only repeat it.
ENDED = ("ok", "diverged")


# Fields that are younger than the first records. Left out of the identity at their default, so that old run ids stay.
LATER = (
    "forgetting",
    *("dataset.version", "dataset.format", "dataset.answer", "dataset.turns"),
    *("dataset.train_files", "dataset.val_files", "dataset.test_files"),
    *("dataset.columns", "dataset.ignore_columns", "dataset.leaks"),
    *("train.optimizer", "train.warmup_steps"),
    *(f"variant.{axis}" for axis in point.LATER),
)


@cache
def default_of(key: str) -> Any:
    """Look up the schema's default of a dotted key of an ``identity``."""
    node: Any = asdict(Config())
    for part in key.split("."):
        node = node[part]
    return node


def with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Add the ``LATER`` fields that a flat identity leaves out, so that identities can be compared field by field."""
    groups = {key.partition(".")[0] for key in fields}
    left_out = {key: default_of(key) for key in LATER if "." in key and key not in fields and key.partition(".")[0] in groups}
    return fields | left_out


def _drop_default(fields: dict[str, Any], default: Any, key: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        fields = fields[part]
    if fields[last] == default:
        del fields[last]


def identity(config: Config) -> dict[str, Any]:
    """Select the fields of a config that decide its outcome: no tracking, packing, device, sweep name, checkpoint
    interval, or whether weights are kept.

    A control without an adapter does not depend on the LoRA settings, so ``variant=frozen lora.r=4,8`` is one run.
    """
    fields = asdict(config)
    for key in ("tracking", "pack", "device", "sweep", "keep_weights", "force"):
        del fields[key]
    del fields["train"]["checkpoint_every"]
    for key in ("name", "note"):
        del fields["model"][key]
    for key in ("name",):
        del fields["variant"][key]
    del fields["dataset"]["name"]
    del fields["dataset"]["files_from"]
    for key in LATER:
        _drop_default(fields, default_of(key), key)
    if config.variant.base_precision not in FOUR_BIT:
        del fields["model"]["hold_dequantised"]
    if config.variant.trains != "adapter":
        del fields["lora"], fields["engine"]
    if config.variant.trains == "none":
        del fields["train"]
    return fields


def run_id(config: Config) -> str:
    """Hash the ``identity`` of a config to ten hexadecimal digits of SHA-256."""
    return id_of(identity(config))


def id_of(fields: dict[str, Any]) -> str:
    """Hash the fields of an ``identity`` to a run id."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


class RunFolder:
    """``runs/<run_id>/``: the record of one run while it grows and when it is done."""

    def __init__(self, run: str, root: Path = RUNS) -> None:
        self.run_id = run
        self.path = root / run
        self.metrics = self.path / "metrics.jsonl"
        self.predictions = self.path / "predictions.jsonl"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.damaged = self.path / "damaged"
        self.error = self.path / "error.txt"

    @property
    def has_weights(self) -> bool:
        return self.adapter.exists() or self.model.exists()

    def drop_links(self) -> None:
        """Delete symbolic links, so that nothing is written, moved or removed outside of the folder through them."""
        with writing(self.path):
            for path in self.path.iterdir():
                if path.is_symlink():
                    remove(path)

    def set_damage_aside(self) -> list[str]:
        """Move the damaged files of an ended run to ``damaged/``; return a line for each file."""
        result = self.result()
        if result is None:
            problems = {RESULT: f"{RESULT} is damaged"} if (self.path / RESULT).exists() else {}
        else:
            problems = self._differences(result)
        for name in problems:
            self.set_aside(self.path / name)
        return list(problems.values())

    def clear_results(self) -> None:
        """Delete an earlier result before a run is repeated. result.json goes first: without it the rest is ignored."""
        with writing(self.path):
            for path in (self.path / RESULT, self.adapter, self.model, self.error, self.predictions):
                remove(path)
            remove_temporary(self.path)

    def clear_progress(self) -> None:
        """Delete checkpoints and the metrics log, so that the run starts at step 0."""
        with writing(self.path):
            remove(self.checkpoints)
            remove(self.metrics)

    def clear_checkpoints(self) -> None:
        """Delete the checkpoints of an ended run. A failure loses nothing, and the next command tries again."""
        with suppress(OSError):
            remove(self.checkpoints)

    def set_aside(self, path: Path) -> None:
        """Move a damaged file to ``damaged/``, replacing an earlier file of that name."""
        place = self.damaged / path.relative_to(self.path).as_posix().replace("/", ".")
        with writing(place):
            self.damaged.mkdir(exist_ok=True)
            if path.exists():
                remove(place)
                path.rename(place)

    def write_config(self, config: Config) -> None:
        write_atomically(self.path / "config.yaml", redact(OmegaConf.to_yaml(OmegaConf.structured(config))))

    def read_config(self) -> Config:
        node = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(self.path / "config.yaml"))
        config = OmegaConf.to_object(node)
        assert isinstance(config, Config)
        return config

    def write_provenance(self, value: dict[str, Any]) -> None:
        write_atomically(self.path / PROVENANCE, _sealed(value))

    def write_result(self, value: dict[str, Any]) -> None:
        """Write result.json with the checksums of all other files; this ends the run."""
        with writing(self.path):
            if self.metrics.exists():
                sync(self.metrics)
            value = value | {"files": digests(self.path, FILES)}
        write_atomically(self.path / RESULT, _sealed(value))

    def result(self) -> dict[str, Any] | None:
        """Read the run's result; None if there is none or it is damaged: such a run has to be repeated."""
        value = self._readable(RESULT)
        return None if value is None or value.get("run_id", self.run_id) != self.run_id else value

    def provenance(self) -> dict[str, Any] | None:
        return self._readable(PROVENANCE)

    def _readable(self, name: str) -> dict[str, Any] | None:
        try:
            return read_sealed(self.path / name)
        except Damaged:
            return None

    def damage(self, result: dict[str, Any]) -> list[str]:
        """Compare all files of the record with their checksums in ``result``; return a line for each difference."""
        return list(self._differences(result).values())

    def _differences(self, result: dict[str, Any]) -> dict[str, str]:
        known = result.get("files") or {}
        lines = {name: difference(self.path, name, written) for name, written in known.items()}
        return {name: line for name, line in lines.items() if line is not None}

    def checked(self, path: Path) -> bytes:
        """Read a file of the finished record and check it; empty where the record has no such file.

        Raises:
            Damaged: the file differs from its checksum, or no record has a checksum for it.
        """
        known = (self.result() or {}).get("files") or {}
        name = path.relative_to(self.path).as_posix()
        if name not in known:
            if path.exists():
                raise Damaged("no record says what was written")
            return b""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(str(error.strerror)) from error
        if hashlib.sha256(data).hexdigest() != known[name]["sha256"]:
            raise Damaged("it holds other bytes than were written")
        return data

    def logged(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of metrics.jsonl."""
        if self.metrics.exists():
            yield from read_lines(self.metrics.read_bytes())

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_atomically(self.predictions, text)


def _sealed(value: dict[str, Any]) -> str:
    """Write the text of a sealed file, with this machine's secrets redacted."""
    return seal_text(redact(dump_json(value)))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read a sealed file; None if there is no such file.

    Raises:
        Damaged: the file is not what was written.
    """
    try:
        return unseal(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Parse JSONL. A last line that was cut off in the middle of a write is left out."""
    for line in data.split(b"\n")[:-1]:
        yield json.loads(line)


def write_sweep(name: str, run_ids: list[str], add: bool = False, root: Path = RUNS) -> None:
    """Write the list of a sweep's runs; ``add`` keeps the runs that another command listed under this name."""
    path = root / "sweeps" / f"{name}.json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            remove_temporary(path.parent)
            if add:
                run_ids = list(dict.fromkeys([*(_known_runs(name, root) or []), *run_ids]))
            value = {"name": name, "run_ids": run_ids, "argv": sys.argv, "created": datetime.now(UTC).isoformat()}
            write_atomically(path, _sealed(value))


def _known_runs(name: str, root: Path) -> list[str] | None:
    """Read the list of a sweep's runs, or set a damaged list aside: the runs' own records say what is done."""
    try:
        return read_sweep(name, root)
    except Damaged as error:
        path = root / "sweeps" / f"{name}.json"
        print(f"{path}: {error}; set aside as {path.name}.damaged", file=sys.stderr)
        os.replace(path, path.with_name(f"{path.name}.damaged"))
        return None


def read_sweep(name: str, root: Path = RUNS) -> list[str] | None:
    """Read the run ids of a sweep; None if there is no sweep of that name.

    Raises:
        Damaged: the list is not what was written.
    """
    value = read_sealed(root / "sweeps" / f"{name}.json")
    if value is None:
        return None
    if value.get("name") != name or not isinstance(value.get("run_ids"), list):
        raise Damaged("it is not the list of this sweep")
    return list(value["run_ids"])


PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "hydra-core", "wandb", "pandas", "numpy", "scipy")


def provenance(argv: list[str]) -> dict[str, Any]:
    """Collect what produced a run: code, versions, machine. The worker adds device and data, which it knows."""
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
        process = subprocess.run(["git", *arguments], cwd=code, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
