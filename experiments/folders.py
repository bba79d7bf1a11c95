"""Make the folder for a study's measurements, and never overwrite a file in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from src.files.errors import ConfigError


def fresh(folder: Path, *names: str) -> None:
    """Make ``folder``. Raises ConfigError where it cannot be made or written to, or holds one of these files already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # else hours of measuring could end in an error
            pass
    except OSError as error:
        raise ConfigError(f"out={folder}: no folder to write to ({error.strerror})") from error
    for name in names:
        if (folder / name).exists():
            raise ConfigError(f"out={folder}: holds {name} already; take it away or name another folder")
