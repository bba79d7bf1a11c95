"""Files from which a run goes on exactly where it was: trained tensors, optimizer moments, counters.

    runs/<run_id>/checkpoints/<step>.<digest>.safetensors

The name holds the first digits of the file's SHA-256, so nothing else is ever taken for it. A file is written aside and
renamed, and the two newest are kept: if one turns out to be damaged, there is the one before.
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
    """What a run has done so far. ``seconds`` is time spent in training steps, validation and checkpoints excluded."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rated_tokens: int = 0  # tokens and seconds without each process's first step, which pays for warming up
    rated_seconds: float = 0.0
    checkpoint_seconds: float = 0.0  # of the whole pack's checkpoints
    loss: float | None = None


@dataclass(frozen=True)
class Stand:
    """Where a checkpoint stands: the progress, the log at that moment, and what it rests on.

    ``rests_on`` names the fingerprints of base weights and tokens: on others these tensors would be another run's.
    """

    progress: Progress
    log: Mark = START
    rests_on: dict[str, str] = field(default_factory=dict)


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints that stand in a folder, by their step; from their names alone, and without torch."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    return {int(match[1]): folder / name for name in names if (match := NAME.fullmatch(name))}


def together(available: Sequence[set[int]]) -> list[tuple[int, list[int]]]:
    """(step, which runs go on from it together): first the step that most runs have, of several the newest.

    ``available`` holds the steps of each run's checkpoints. A crash in the middle of a pack's checkpoint leaves some runs
    one ahead: all go on from the one before, so the pack stays together. For the first checkpoint that is step 0, so a run
    that has fewer than are kept may start over; it repeats one interval at most.
    """
    left = {at: run | ({0} if len(run) < KEPT else set()) for at, run in enumerate(available)}
    found = []
    while left:
        counts = Counter(step for run in left.values() for step in run)
        best = max(counts, key=lambda step: (counts[step], step))
        found.append((best, [at for at, run in left.items() if best in run]))
        left = {at: run for at, run in left.items() if best not in run}
    return found


def save(folder: Path, tensors: dict[str, torch.Tensor], stand: Stand) -> None:
    """Write a checkpoint, then take away all but the newest.

    Raises:
        CannotWrite: and then the checkpoints before still stand.
    """
    from safetensors.torch import save_file

    flat, layout = _flat(tensors)
    name = f"{stand.progress.step:08d}"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        remove_temporary(folder)
        before = set(steps(folder).values())
        with replacing(folder / name, lambda path: f"{name}.{_digest(path)}.safetensors") as temporary:
            save_file(flat, temporary, {"stand": json.dumps(asdict(stand)), "layout": json.dumps(layout)})
        kept = sorted(step for step in steps(folder) if step < stand.progress.step)[1 - KEPT :]
        for path in before - {steps(folder)[step] for step in kept}:
            remove(path)


def _flat(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[tuple[str, str, list[int]]]]:
    """({format: all tensors of it end to end}, (name, format, shape) of each): a run has over a thousand small ones."""
    import torch

    layout = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()]
    kinds = dict.fromkeys(kind for _, kind, _ in layout)
    parts = {kind: [t.detach().reshape(-1).cpu() for t in tensors.values() if str(t.dtype) == kind] for kind in kinds}
    return {kind: torch.cat(found) for kind, found in parts.items()}, layout


def _apart(flat: dict[str, torch.Tensor], layout: list[tuple[str, str, list[int]]]) -> dict[str, torch.Tensor]:
    """The inverse of ``_flat``."""
    at = dict.fromkeys(flat, 0)
    found = {}
    for name, kind, shape in layout:
        end = at[kind] + math.prod(shape)
        found[name] = flat[kind][at[kind] : end].view(shape)
        at[kind] = end
    return found


def drop_after(folder: Path, step: int) -> None:
    """Take away the checkpoints of later steps: what goes on from ``step`` will write them again, after its own log."""
    with writing(folder):
        for later, path in steps(folder).items():
            if later > step:
                remove(path)


def _digest(path: Path) -> str:
    return str(digest(path)["sha256"])[:16]


def load(path: Path) -> tuple[dict[str, torch.Tensor], Stand]:
    """The tensors of a checkpoint and where it stands.

    Raises:
        Damaged: the file is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    match = NAME.fullmatch(path.name)
    try:
        if match is None or _digest(path) != match[2]:
            raise Damaged("it holds other bytes than were written")
        with safe_open(path, framework="pt") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            stand, layout = (json.loads(file.metadata()[name]) for name in ("stand", "layout"))
        return _apart(flat, layout), Stand(Progress(**stand["progress"]), Mark(**stand["log"]), stand["rests_on"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise error if isinstance(error, Damaged) else Damaged(str(error)) from error
