"""The folder that a study's measurements go into: made, and never written over."""

from __future__ import annotations

from pathlib import Path

from src.config import ConfigError


def fresh(folder: Path, *names: str) -> None:
    """Make ``folder``. Raises ConfigError where it cannot be made, or holds one of these files already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={folder}: {error.strerror}") from error
    for name in names:
        if (folder / name).exists():
            raise ConfigError(f"out={folder}: holds {name} already; take it away or name another folder")
