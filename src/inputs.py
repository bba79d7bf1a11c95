"""Files that the user names: read whole, or refused in one line."""

from __future__ import annotations

import stat
from pathlib import Path

from src.config import ConfigError


def read(path: str, key: str) -> bytes:
    """The contents of a regular file; a pipe or a device could give no end of them, and not the same twice.

    Raises:
        ConfigError: there is no such file, or it cannot be read; the message names ``key`` and the path.
    """
    where = f"{key}={path}"
    try:
        file = Path(path).expanduser()
        mode = file.stat().st_mode
        contents = file.read_bytes() if stat.S_ISREG(mode) else b""
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    except RuntimeError as error:  # ~NAME, where there is no such user
        raise ConfigError(f"{where}: {error}") from error
    except ValueError as error:  # a NUL or half of a surrogate pair, from a YAML
        raise ConfigError(f"{where}: is no path") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{where}: is a {'folder' if stat.S_ISDIR(mode) else 'pipe or a device'}, not a file")
    return contents
