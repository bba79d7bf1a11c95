"""Append to metrics.jsonl while a run trains, and truncate it when the run resumes.

Each checkpoint holds a mark: the length and checksum of the log at that moment. A run that resumes cuts off the lines after
the mark and logs them again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.durable import Damaged, finite, sync, writing


@dataclass(frozen=True)
class Mark:
    """The length of the log in bytes and its SHA-256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


START = Mark()


class MetricsLog:
    """The metrics.jsonl of one run, with a running checksum of its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._bytes = 0

    def append(self, line: dict[str, Any]) -> None:
        """Add one line, in a single write unless the disk takes only a part of it."""
        data = (json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n").encode()
        with writing(self.path), open(self.path, "ab") as file:
            file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def mark(self) -> Mark:
        """Sync the log to disk and return its length and checksum."""
        if self._bytes:
            with writing(self.path):
                sync(self.path)
        return Mark(self._bytes, self._digest.hexdigest())

    def holds(self, mark: Mark) -> bool:
        """Tell whether the file begins with the bytes that were marked."""
        return self._begins_with(mark) is not None

    def _begins_with(self, mark: Mark) -> bytes | None:
        if mark.bytes == 0:
            return b""
        try:
            with open(self.path, "rb") as file:
                data = file.read(mark.bytes)
        except OSError:
            return None
        return data if len(data) == mark.bytes and hashlib.sha256(data).hexdigest() == mark.sha256 else None

    def go_back_to(self, mark: Mark) -> None:
        """Cut off the lines after the mark.

        Raises:
            Damaged: the file does not begin with the bytes that were marked.
        """
        data = self._begins_with(mark)
        if data is None:
            raise Damaged("the log is not what it was at the checkpoint")
        with writing(self.path), open(self.path, "ab") as file:
            os.ftruncate(file.fileno(), mark.bytes)
        self._digest, self._bytes = hashlib.sha256(data), mark.bytes
