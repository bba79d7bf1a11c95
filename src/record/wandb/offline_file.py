"""What a ``.wandb`` file really holds. W&B writes it as a LevelDB log of protocol buffers, and says nothing where that failed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

HEADER = 7  # bytes before the first block
BLOCK = 32768  # bytes; a chunk never crosses the end of one
CHUNK = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def closed_with(path: Path) -> set[int] | None:
    """The steps in the history of a W&B run, or None if the file does not come, or not undamaged, to the run's end."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    steps, closed = set(), False
    for data in _records(path.read_bytes()):
        try:
            record = Record.FromString(data)
        except DecodeError:
            return None
        kind = record.WhichOneof("record_type")
        if kind == "history":
            steps.add(record.history.step.num)
        closed = closed or kind == "exit"
    return steps if closed else None


def _records(file: bytes) -> Iterator[bytes]:
    """The records of the log up to its end, or to the first chunk that was cut off."""
    at, parts = HEADER, b""
    while at + CHUNK.size <= len(file):
        if BLOCK - at % BLOCK < CHUNK.size:  # too little of this block was left for a chunk
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = CHUNK.unpack_from(file, at)
        at += CHUNK.size
        if not FULL <= kind <= LAST or at + length > len(file):
            return
        parts = file[at : at + length] if kind in (FULL, FIRST) else parts + file[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts
