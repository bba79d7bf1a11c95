"""Read back a ``.wandb`` file, a LevelDB log of protocol buffers: W&B does not report that writing it failed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

HEADER = 7  # bytes before the first block
BLOCK = 32768  # bytes; a chunk never crosses the end of one
CHUNK = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def closed_with(path: Path) -> set[int] | None:
    """Read the steps in the history of a W&B run; None if the file is damaged or ends before the run's end."""
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
    """Yield the records of the log up to its end, or to the first chunk that was cut off."""
    position, parts = HEADER, b""
    while position + CHUNK.size <= len(file):
        if BLOCK - position % BLOCK < CHUNK.size:  # too little of this block was left for a chunk
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = CHUNK.unpack_from(file, position)
        position += CHUNK.size
        if not FULL <= kind <= LAST or position + length > len(file):
            return
        parts = file[position : position + length] if kind in (FULL, FIRST) else parts + file[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield parts
