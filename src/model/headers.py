"""Read the headers of a model's safetensors files, without torch: what a file holds, and whether all of it is there.

A file begins with 8 bytes, the length of a JSON that gives each tensor's format, shape and place in the rest of the file
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..files.errors import ConfigError
from .configs import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_BYTES = 100_000_000  # the format's own limit
LFS = b"version https://git-lfs"
FLOATS = ("F64", "F32", "F16", "BF16")  # what a 16- or 32-bit base can be read from


@dataclass(frozen=True)
class Tensor:
    """A tensor as its file describes it."""

    dtype: str
    shape: tuple[int, ...]


def read(folder: Path, where: str) -> dict[str, Tensor] | None:
    """Read what the weights of a folder hold, by name; None where it has no safetensors. ``where``: how a user names it.

    Raises:
        ConfigError: a file is missing, cut, no safetensors, or holds numbers that no run can train over; one line.
    """
    if (folder / SINGLE).is_file():  # transformers takes it even where there is an index
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = _shards(folder, where)
    else:
        return None
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= _header(folder / name, f"{where}: {name}")
    return tensors


def _shards(folder: Path, where: str) -> list[str]:
    index = read_json(folder, INDEX, where)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ConfigError(f"{where}: {INDEX} does not say which file holds which tensor (weight_map)")
    names = sorted(set(places.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ConfigError(f"{where}: {INDEX} names {outside[0]!r}, which is no file of this folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ConfigError(
            f"{where}: {len(missing)} of {len(names)} files that {INDEX} names are missing, the first is {missing[0]};"
            " download the model again"
        )
    return names


def _header(path: Path, where: str) -> dict[str, Tensor]:
    """Read one file's header. Raises ConfigError, too, where the file is shorter or longer than its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if LFS.startswith(start[: len(LFS)]) and len(start) == 8:
                raise ConfigError(f"{where} is a Git LFS pointer and not the weights; run git lfs pull in its folder")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > HEADER_BYTES or 8 + length > size:
                raise ConfigError(f"{where} is no safetensors file, or cut: it has {size:,} bytes; download it again")
            values = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is no safetensors file (its header is not JSON)") from error
    try:
        entries = {name: entry for name, entry in values.items() if name != "__metadata__"}
        tensors = {name: Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{where} is no safetensors file (its header describes no tensors)") from error
    if 8 + length + end != size:
        raise ConfigError(f"{where} has {size:,} bytes of the {8 + length + end:,} that its header says; download it again")
    for name, tensor in tensors.items():
        _refuse_numbers(name, tensor, where)
    return tensors


def _refuse_numbers(name: str, tensor: Tensor, where: str) -> None:
    """Raise ConfigError for a matrix that is not in 16 bits or more: read as numbers, without its scales, it means nothing."""
    if tensor.dtype not in FLOATS and len(tensor.shape) == 2 and name.endswith("weight"):
        raise ConfigError(f"{where} holds {name} as {tensor.dtype}; take weights in {', '.join(FLOATS[1:])}")
    if tensor.dtype.startswith(("F8", "F6", "F4")):
        raise ConfigError(f"{where} holds {name} as {tensor.dtype}; take weights in {', '.join(FLOATS[1:])}")
