"""One run of a pack as the worker sees it: its config, its folder, its mirror, how far it is and what it came to."""

from __future__ import annotations

import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from src.config import ConfigError
from src.device import is_out_of_memory
from src.records import ENDED, RunFolder
from src.tracking import Mirror
from src.train import checkpoint
from src.train.checkpoint import Progress
from src.train.loop import Divergence
from src.train.result import Outcome, result


class Run:
    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path.name, path.parent)
        self.config = self.folder.read_config()
        self.outcome = Outcome()
        self.progress = Progress()
        self.tensors: dict[str, torch.Tensor] | None = None  # of the checkpoint it goes on from
        self.mirror: Mirror | None = None
        self.started = time.perf_counter()
        self.ended = False

    def read_checkpoint(self) -> None:
        """Go on from the checkpoint, if there is one that can be read; a damaged one is taken away."""
        if not self.folder.checkpoint.exists():
            return
        try:
            self.tensors, self.progress = checkpoint.load(self.folder.checkpoint)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            self._forget_checkpoint(f"is damaged ({first_line(error)})")

    def refuse_foreign_checkpoint(self, trainable: int) -> None:
        """Take a checkpoint away that is not of this run's ``trainable`` numbers: its base model may have been replaced."""
        if self.tensors is None:
            return
        found = sum(tensor.numel() for name, tensor in self.tensors.items() if name.startswith("parameter/"))
        if found != trainable:
            self._forget_checkpoint(f"holds {found:,} parameters where {trainable:,} train")

    def _forget_checkpoint(self, why: str) -> None:
        print(f"{self.folder.checkpoint} {why}; starting from step 0", file=sys.stderr)
        self.folder.checkpoint.unlink(missing_ok=True)
        self.tensors, self.progress = None, Progress()

    def start(self) -> None:
        """Open the mirror and tell it what the record holds already."""
        self.mirror = Mirror(self.config, self.folder.run_id, self.folder.path)
        self.folder.keep_metrics_until(self.progress.step)
        for line in self.folder.logged():
            self.mirror.log(line)
            self._keep(line)

    def log(self, line: dict[str, Any]) -> None:
        self.folder.log(line)
        if self.mirror is not None:
            self.mirror.log(line)
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        """The last validation loss is a metric of the run; one that was not finite leaves none."""
        if "val/loss" not in line:
            return
        self.outcome.metrics.pop("val/loss", None)
        value = line["val/loss"]
        if value is not None and math.isfinite(value):
            self.outcome.metrics["val/loss"] = float(value)

    def diverged(self, divergence: Divergence) -> None:
        self.outcome.status, self.outcome.reason = "diverged", divergence.reason()
        self._count_training()

    def trained(self) -> None:
        self._count_training()
        if self.progress.loss is not None:
            self.outcome.metrics["train/loss"] = self.progress.loss

    def _count_training(self) -> None:
        progress, measured = self.progress, self.outcome.measured
        measured |= {"train_seconds": progress.seconds, "train_tokens": progress.tokens}
        if progress.rated_seconds > 0:
            measured["tokens_per_second"] = progress.rated_tokens / progress.rated_seconds

    def fail(self, error: BaseException) -> None:
        """A run that fails for any reason is a row that says why; the traceback of a surprise is kept."""
        if is_out_of_memory(error):
            self.outcome.status, self.outcome.reason = "out_of_memory", first_line(error)
        elif isinstance(error, ConfigError):
            self.outcome.status, self.outcome.reason = "failed", str(error)
        else:
            text = "".join(traceback.format_exception(error))
            self.folder.error.write_text(text, encoding="utf-8")
            self.outcome.status, self.outcome.reason = "failed", f"{type(error).__name__}: {first_line(error)}"

    def finish(self) -> None:
        """Write the result, the last file of the record, and close the mirror."""
        self.outcome.measured["wall_seconds"] = time.perf_counter() - self.started
        values = result(self.config, self.folder.run_id, self.outcome)
        self.folder.write_json("result.json", values)
        self.ended = True
        if self.outcome.status in ENDED:
            self.folder.checkpoint.unlink(missing_ok=True)
        summary = {key: value for key, value in values.items() if key not in ("metrics", "checks") and value is not None}
        if self.mirror is not None:
            self.mirror.finish(summary | self.outcome.metrics, ok=self.outcome.status == "ok")


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
