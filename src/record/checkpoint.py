"""Write and read checkpoints, from which a run resumes exactly: trained tensors, optimizer moments, counters.

    runs/<run_id>/checkpoints/<step>.<digest>.safetensors

The name holds the first 16 digits of the file's SHA-256, so a damaged or foreign file is never loaded. Each write is
atomic, and the two newest checkpoints are kept: if one is damaged, the run resumes from the one before.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.durable import Damaged, digest, remove, remove_temporary, replacing, writing
from .metrics_log import START, Mark

if TYPE_CHECKING:
    import torch

KEPT = 2
NAME = re.compile(r"(\d{8,})\.([0-9a-f]{16})\.safetensors")


@dataclass
class Progress:
    """Counters of a run. ``seconds`` is time spent in training steps; validation and checkpoints are excluded."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rated_tokens: int = 0  # tokens and seconds without each process's first step, which pays for warming up
    rated_seconds: float = 0.0
    checkpoint_seconds: float = 0.0  # of the whole pack's checkpoints
    loss: float | None = None


@dataclass(frozen=True)
class CheckpointState:
    """Everything in a checkpoint but the tensors.

    log: the length and digest of metrics.jsonl at that moment.
    fingerprints: of base weights, tokens and run; on others these tensors would be another run's.
    """

    progress: Progress
    log: Mark = START
    fingerprints: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Serialize under the keys that the checkpoints of all versions have."""
        return json.dumps({"progress": asdict(self.progress), "log": asdict(self.log), "rests_on": self.fingerprints})

    @classmethod
    def from_json(cls, text: str) -> CheckpointState:
        value = json.loads(text)
        return cls(Progress(**value["progress"]), Mark(**value["log"]), value["rests_on"])


def steps(folder: Path) -> dict[int, Path]:
    """List the checkpoints of a folder by step, from their names alone and without torch."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    return {int(match[1]): folder / name for name in names if (match := NAME.fullmatch(name))}


def together(available: Sequence[set[int]]) -> list[tuple[int, list[int]]]:
    """Group runs by the step that they resume from: [(step, indices of its runs)], the step that most runs have first.

    ``available`` holds the steps of each run's checkpoints; of steps that equally many runs have, the newest is taken.
    A crash in the middle of a pack's checkpoint leaves some runs one interval ahead: all resume from the checkpoint
    before, so that the pack stays together. Before the first checkpoint that is step 0, so a run with fewer than
    ``KEPT`` checkpoints may start over; it repeats one interval at most.
    """
    left = {index: run | ({0} if len(run) < KEPT else set()) for index, run in enumerate(available)}
    groups = []
    while left:
        counts = Counter(step for run in left.values() for step in run)
        best = max(counts, key=lambda step: (counts[step], step))
        groups.append((best, [index for index, run in left.items() if best in run]))
        left = {index: run for index, run in left.items() if best not in run}
    return groups


def save(folder: Path, tensors: dict[str, torch.Tensor], state: CheckpointState) -> None:
    """Write a checkpoint, then delete all but the newest.

    Raises:
        CannotWrite: and then the earlier checkpoints are still there.
    """
    from safetensors.torch import save_file

    flat, layout = _flatten(tensors)
    name = f"{state.progress.step:08d}"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        remove_temporary(folder)
        before = set(steps(folder).values())
        with replacing(folder / name, lambda path: f"{name}.{_short_digest(path)}.safetensors") as temporary:
            save_file(flat, temporary, {"stand": state.to_json(), "layout": json.dumps(layout)})
        kept = sorted(step for step in steps(folder) if step < state.progress.step)[1 - KEPT :]
        for path in before - {steps(folder)[step] for step in kept}:
            remove(path)


def _flatten(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[tuple[str, str, list[int]]]]:
    """Concatenate tensors, of which a run has over a thousand: ({dtype: 1-D tensor}, [(name, dtype, shape) of each])."""
    import torch

    layout = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()]
    dtypes = dict.fromkeys(dtype for _, dtype, _ in layout)
    parts = {dtype: [t.detach().reshape(-1).cpu() for t in tensors.values() if str(t.dtype) == dtype] for dtype in dtypes}
    return {dtype: torch.cat(flat) for dtype, flat in parts.items()}, layout


def _unflatten(flat: dict[str, torch.Tensor], layout: list[tuple[str, str, list[int]]]) -> dict[str, torch.Tensor]:
    """Invert ``_flatten``."""
    offsets = dict.fromkeys(flat, 0)
    tensors = {}
    for name, dtype, shape in layout:
        end = offsets[dtype] + math.prod(shape)
        tensors[name] = flat[dtype][offsets[dtype] : end].view(shape)
        offsets[dtype] = end
    return tensors


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps: a run that resumes from ``step`` writes them again, after its own log."""
    with writing(folder):
        for later, path in steps(folder).items():
            if later > step:
                remove(path)


def _short_digest(path: Path) -> str:
    return str(digest(path)["sha256"])[:16]


def load(path: Path) -> tuple[dict[str, torch.Tensor], CheckpointState]:
    """Read the tensors and the state of a checkpoint.

    Raises:
        Damaged: the file is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    match = NAME.fullmatch(path.name)
    try:
        if match is None or _short_digest(path) != match[2]:
            raise Damaged("it holds other bytes than were written")
        with safe_open(path, framework="pt") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            texts = file.metadata()
        return _unflatten(flat, json.loads(texts["layout"])), CheckpointState.from_json(texts["stand"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise error if isinstance(error, Damaged) else Damaged(str(error)) from error
