"""metrics.jsonl while a run trains: lines at its end, and a mark in each checkpoint of where it stood.

A run that goes on from a checkpoint goes on from the mark: what came after is cut off, and logged again.
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
    """The first ``bytes`` of the log, and their SHA-256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


START = Mark()


class MetricsLog:
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
        """Where the log stands now, made to last."""
        if self._bytes:
            with writing(self.path):
                sync(self.path)
        return Mark(self._bytes, self._digest.hexdigest())

    def holds(self, mark: Mark) -> bool:
        """Whether the file begins with what was marked."""
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
        """Cut off what came after the mark.

        Raises:
            Damaged: the file does not begin with what was marked.
        """
        data = self._begins_with(mark)
        if data is None:
            raise Damaged("the log is not what it was at the checkpoint")
        with writing(self.path), open(self.path, "ab") as file:
            os.ftruncate(file.fileno(), mark.bytes)
        self._digest, self._bytes = hashlib.sha256(data), mark.bytes
