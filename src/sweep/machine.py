"""Ask the machine, without torch: its GPU, its free memory, and how often the kernel killed for memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Machine:
    """The device that a run computes on."""

    gpu: str | None  # its name
    total: int | None  # bytes of the GPU, or those that the system says it can still give; None if unknown


def machine_of(device: str) -> Machine:
    """Find where a run with this ``device`` of its config computes: the GPU if there is one, unless it says ``cpu``."""
    return (None if device == "cpu" else _gpu()) or Machine(None, free_memory())


def untested() -> str | None:
    """Say in a line why nothing is known of this platform; None on Linux with a processor or a GPU of NVIDIA's."""
    if sys.platform == "darwin":
        return "macOS: runs on the processor, Apple's GPU is not used; lora-assay is tested on Linux alone"
    if not sys.platform.startswith("linux"):
        return f"{sys.platform}: lora-assay is tested on Linux alone"
    if "rocm" in metadata.version("torch"):
        return "ROCm: an AMD GPU is used as device=cuda; lora-assay is tested with NVIDIA's GPUs and processors alone"
    return None


def _gpu() -> Machine | None:
    """Find the first GPU that CUDA shows to this process, as nvidia-smi knows it; None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = None if visible is None else visible.split(",")[0].strip()
    if first in ("", "-1"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*command, *(["-i", first] if first else [])], capture_output=True, text=True, timeout=20)
        total, name = done.stdout.splitlines()[0].split(",", 1)
        return Machine(name.strip(), int(total) * 2**20)
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def free_memory() -> int:
    """Bytes that the system can still give to processes, swapping nothing out."""
    return int(psutil.virtual_memory().available)


def oom_kills(path: Path = Path("/proc/vmstat")) -> int | None:
    """Count the processes that the kernel has killed for memory since it started; None where it does not say.

    Read by hand, because psutil has no call for it.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    counts = [int(words[1]) for words in map(str.split, lines) if words[:1] == ["oom_kill"]]
    return counts[0] if counts else None
