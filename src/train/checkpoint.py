"""One file per run from which it goes on exactly where it was: trained tensors, optimizer moments, counters.

A single safetensors file, written aside and renamed, so a crash leaves the previous checkpoint or the new one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100_000_000  # bytes; what safetensors itself allows


@dataclass
class Progress:
    """What a run has done so far. ``seconds`` is time spent in training steps, validation excluded."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rated_tokens: int = 0  # tokens and seconds without each process's first step, which pays for warming up
    rated_seconds: float = 0.0
    loss: float | None = None


def save(path: Path, tensors: dict[str, torch.Tensor], progress: Progress) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        temporary,
        {"progress": json.dumps(asdict(progress))},
    )
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> tuple[dict[str, torch.Tensor], Progress]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        progress = Progress(**json.loads(file.metadata()["progress"]))
    return tensors, progress


def step_of(path: Path) -> int:
    """The step at which a checkpoint stands, from its header alone and without torch; 0 where none can be read."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_LIMIT:
                return 0
            header = json.loads(file.read(length))
        return int(json.loads(header["__metadata__"]["progress"])["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
