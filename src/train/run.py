"""Keep one run of a pack: its config, its folder, its mirror, how far it is and what it came to."""

from __future__ import annotations

import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from ..files.credentials import redact
from ..files.durable import Damaged, write_atomically
from ..files.errors import ConfigError
from ..files.text import first_line
from ..model.device import is_out_of_memory
from ..record import checkpoint
from ..record.checkpoint import CheckpointState, Progress
from ..record.metrics_log import MetricsLog
from ..record.records import ENDED, RunFolder
from ..record.result import Outcome, result
from ..record.wandb.mirror import Mirror
from .loop import Divergence

RUN = "run"  # fingerprint that ties a checkpoint to its run, beside those of base weights and tokens


class Run:
    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path.name, path.parent)
        self.config = self.folder.read_config()
        self.lines = MetricsLog(self.folder.metrics)
        self.outcome = Outcome()
        self.resumed = CheckpointState(Progress())  # of the checkpoint that the run resumes from
        self.tensors: dict[str, torch.Tensor] | None = None  # likewise
        self.mirror: Mirror | None = None
        self.started = time.perf_counter()
        self.ended = False

    @property
    def progress(self) -> Progress:
        return self.resumed.progress

    def checkpoints(self) -> set[int]:
        """List the steps that it can resume from."""
        return set(checkpoint.steps(self.folder.checkpoints))

    def resume_from(self, step: int) -> bool:
        """Resume from the checkpoint of this step, or start over at step 0. False where the checkpoint had to be set aside."""
        if step == 0:
            self.start_over()
            return True
        path = checkpoint.steps(self.folder.checkpoints)[step]
        try:
            tensors, state = checkpoint.load(path)
            if state.fingerprints.get(RUN) != self.folder.run_id or state.progress.step != step:
                raise Damaged("it is another run's")
        except Damaged as error:
            self._set_aside(path, str(error))
            return False
        if not self.lines.holds(state.log):
            self._set_aside(path, f"{self.folder.metrics.name} is not what it was then")
            return False
        self.tensors, self.resumed = tensors, state
        return True

    def _set_aside(self, path: Path, why: str) -> None:
        print(f"{path}: {why}; set aside in {self.folder.damaged}", file=sys.stderr)
        self.folder.set_aside(path)

    def start_over(self) -> None:
        self.tensors, self.resumed = None, CheckpointState(Progress())

    def matches(self, fingerprints: dict[str, str]) -> bool:
        """Tell whether the checkpoint it resumes from was trained on these base weights and tokens; True without one."""
        return self.tensors is None or self.resumed.fingerprints == fingerprints | {RUN: self.folder.run_id}

    def save(self, tensors: dict[str, torch.Tensor], fingerprints: dict[str, str]) -> None:
        """Write a checkpoint of ``tensors`` at the step where the run is."""
        state = CheckpointState(self.progress, self.lines.mark(), fingerprints | {RUN: self.folder.run_id})
        checkpoint.save(self.folder.checkpoints, tensors, state)

    def start(self) -> None:
        """Open the mirror and tell it what the record holds already."""
        self.mirror = Mirror(self.config, self.folder.run_id, self.folder.path)
        checkpoint.drop_after(self.folder.checkpoints, self.progress.step)
        self.lines.go_back_to(self.resumed.log)
        for line in self.folder.logged():
            self.mirror.log(line)
            self._keep(line)

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.mirror is not None:
            self.mirror.log(line)
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        """Keep the last validation loss as a metric of the run; one that was not finite leaves none."""
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
        measured |= {
            "train_seconds": progress.seconds,
            "train_tokens": progress.tokens,
            "checkpoint_seconds": progress.checkpoint_seconds,
        }
        if progress.rated_seconds > 0:
            measured["tokens_per_second"] = progress.rated_tokens / progress.rated_seconds

    def fail(self, error: BaseException) -> None:
        """Make an error the run's outcome: a failed run is a row that says why. The traceback of a surprise is kept."""
        if is_out_of_memory(error):
            self.outcome.status, self.outcome.reason = "out_of_memory", first_line(error)
        elif isinstance(error, ConfigError):
            self.outcome.status, self.outcome.reason = "failed", str(error)
        else:
            text = "".join(traceback.format_exception(error))
            write_atomically(self.folder.error, redact(text))
            self.outcome.status, self.outcome.reason = "failed", f"{type(error).__name__}: {first_line(error)}"

    def values(self) -> dict[str, Any]:
        """Give the content of the result, as far as it is known."""
        return result(self.config, self.folder.run_id, self.outcome)

    def finish(self) -> None:
        """Write the result, the last file of the record, and close the mirror."""
        self.outcome.measured["wall_seconds"] = time.perf_counter() - self.started
        values = self.values()
        self.folder.write_result(values)
        self.ended = True
        if self.outcome.status in ENDED:
            self.folder.clear_checkpoints()
        summary = {key: value for key, value in values.items() if key not in ("metrics", "checks") and value is not None}
        if self.mirror is not None:
            self.mirror.finish(summary | self.outcome.metrics, ok=self.outcome.status == "ok")
