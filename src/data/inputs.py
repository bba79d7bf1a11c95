"""Read files that the user names whole, or refuse them in one line."""

from __future__ import annotations

import io
import lzma
import stat
import zipfile
import zlib
from pathlib import Path

from ..files.errors import ConfigError

UNPACKED = 256 * 2**20  # bytes of one file of an archive
ENTRIES = 10_000  # files of an archive


def read(path: str, key: str) -> bytes:
    """Read a regular file. A pipe or a device is refused: it may have no end, and may give other bytes the next time.

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


def expanded(path: str, key: str) -> Path:
    """Expand ``~`` to the home directory. Raises ConfigError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}={path}: {error}") from error


def is_folder(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False  # ``read`` then says why the path cannot be read


def is_missing(path: str) -> bool:
    try:
        return not Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False  # as above


def member(path: str, key: str, name: str) -> bytes | None:
    """Unpack the file ``name``, in any folder, of a .zip; None where there is none. At most ``UNPACKED`` bytes are unpacked.

    Raises:
        ConfigError: the archive cannot be read, or exceeds ``ENTRIES`` or ``UNPACKED``.
    """
    where = f"{key}={path}"
    try:
        with zipfile.ZipFile(io.BytesIO(read(path, key))) as archive:
            entries = archive.infolist()
            if len(entries) > ENTRIES:
                raise ConfigError(f"{where}: needs at most {ENTRIES:,} files in the archive")
            for entry in entries:
                if entry.filename == name or entry.filename.endswith(f"/{name}"):
                    with archive.open(entry) as file:  # the sizes that the archive states are not trusted
                        contents = file.read(UNPACKED + 1)
                    if len(contents) > UNPACKED:
                        raise ConfigError(f"{where}: {name} in it needs at most {UNPACKED // 2**20} MiB")
                    return contents
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: is no archive that can be read ({' '.join(str(error).split())})") from error
    except (NotImplementedError, RuntimeError) as error:  # another compression, or a password
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    return None
