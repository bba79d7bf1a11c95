"""Choose the device and the number formats of a run, and measure its memory."""

from __future__ import annotations

import os
import resource
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..config.schema import Config
from ..files.errors import ConfigError

OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class Numerics:
    """Number formats of one run.

    ``base``: of the frozen weights. ``compute``: the autocast format of matrix products, or None. Adapters and optimizer
    states are always fp32.
    """

    device: torch.device
    base: torch.dtype
    compute: torch.dtype | None

    def autocast(self) -> AbstractContextManager[object]:
        if self.compute is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)


def choose(config: Config) -> Numerics:
    """Choose bf16 where the processor multiplies it, else fp32; fp32 too where the variant asks for it; never fp16."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: no CUDA device is visible here")
    use_cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if use_cuda else "cpu")
    half = config.variant.base_precision != "fp32" and (torch.cuda.is_bf16_supported() if use_cuda else cpu_multiplies_bf16())
    compute = torch.bfloat16 if half else None
    # Weights that train are kept in fp32 and rounded for each product: bf16 would lose most updates.
    base = torch.float32 if config.variant.trains == "all" or not half else torch.bfloat16
    return Numerics(device, base, compute)


def cpu_multiplies_bf16() -> bool:
    """Tell whether this processor multiplies bf16 (AVX512-BF16, AMX, or Arm's); without that bf16 is slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    name = str(torch.cpu.get_capabilities().get("cpu_name", "unknown processor"))
    return f"cpu: {name}, {torch.get_num_threads()} threads"


def identity(device: torch.device) -> str:
    """Identify a device equally in all processes, however they number it."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """(bytes that this process can have, those that it holds already among them; all bytes) of a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device), total


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Measure (bytes, kind): the allocator's peak on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda_allocated"
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process_rss"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error or one of its causes means out of memory.

    Torch has a type for that on a GPU only, and even there some libraries raise another type or wrap it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in OUT_OF_MEMORY_SIGNS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
