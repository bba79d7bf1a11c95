"""Files of which nobody ever reads half, or other bytes than were written: whole or absent, and with their digests.

A file is written aside, synced and renamed. What it holds is compared with a SHA-256 when it is read: a *sealed* JSON
file carries its own, the digests of other files stand in one that is sealed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"  # ending of what is being written; after a crash it may stand there, and counts for nothing
END = "\n}\n"  # of every JSON object that dump_json writes
SEAL = ',\n  "sha256": "'
SEAL_END = f'"{END}'
SEAL_LENGTH = len(SEAL) + 64 + len(SEAL_END)


class CannotWrite(OSError):
    """A file could not be written; the message names it and says why. Nothing that was written before is harmed."""


class Damaged(ValueError):
    """A file holds something else than was written. The message says what, without the file's name."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing ``path`` into CannotWrite."""
    try:
        yield
    except CannotWrite:
        raise
    except Exception as error:
        # A library in Rust, such as safetensors, has the system's error in the middle of a text of its own.
        number = error.errno if isinstance(error, OSError) else _os_error(error)
        if number is None and not isinstance(error, OSError):
            raise
        raise CannotWrite(f"{path}: {error if number is None else os.strerror(number)}") from error


def _os_error(error: Exception) -> int | None:
    match = re.search(r"\bos error (\d+)\b", str(error))
    return int(match[1]) if match else None


def write_atomically(path: Path, text: str) -> None:
    """Write so that a reader, or a crash, sees either the old file or the whole new one.

    Raises:
        CannotWrite: and then the old file stands.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, name_of: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """A name to write a file or a folder under, which takes the place of ``path`` if all goes well.

    ``name_of`` gives it another name once it is written, as where the name tells of the content.

    Raises:
        CannotWrite: and then what was there before still is.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")  # two processes never share it
        try:
            yield temporary
            for written in (temporary, *sorted(temporary.rglob("*"))):
                _make_last(written)
            if path.is_dir():
                remove(path)  # no rename replaces a folder
            os.replace(temporary, path if name_of is None else path.with_name(name_of(temporary)))
        except BaseException:
            with suppress(OSError):
                remove(temporary)
            raise
        with suppress(OSError):  # not every file system can
            sync(path.parent)


_UMASK = os.umask(0o077)
os.umask(_UMASK)


def _make_last(path: Path) -> None:
    """Sync a file or folder. A file gets the usual permissions, for safetensors lets its owner alone read what it writes."""
    if path.is_file():
        path.chmod(0o666 & ~_UMASK)
    sync(path)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Take a file, a folder or a link away; never what a link points to. Nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Take away what a crash left half written in a folder, by us or by safetensors, whose names are ``.tmp`` and a word."""
    for path in [*folder.glob(f".*{TEMPORARY}"), *folder.glob(f"{TEMPORARY}*")]:
        remove(path)


def dump_json(value: Any) -> str:
    """JSON that every parser accepts: a number that is not finite becomes null, never NaN."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same with None for each number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def seal(value: dict[str, Any]) -> str:
    """A JSON object as text whose last key, ``sha256``, is the digest of the same text without it."""
    return seal_text(dump_json(value))


def seal_text(text: str) -> str:
    """The same for the text of a JSON object, which ends with a brace on a line of its own."""
    assert text.endswith(END)
    return text.removesuffix(END) + SEAL + hashlib.sha256(text.encode()).hexdigest() + SEAL_END


def unseal(data: bytes) -> dict[str, Any]:
    """The object that ``seal`` wrote, without its seal.

    Raises:
        Damaged: a single byte is another one, or is missing, or there was no seal.
    """
    body, end = data[:-SEAL_LENGTH] + END.encode(), data[-SEAL_LENGTH:]
    if end != f"{SEAL}{hashlib.sha256(body).hexdigest()}{SEAL_END}".encode():
        raise Damaged("its sha256 is not that of its text")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # nothing that seal wrote
        raise Damaged(str(error)) from error
    if not isinstance(value, dict):
        raise Damaged("it is no mapping")
    return value


def digest(path: Path) -> dict[str, Any]:
    """{"bytes": size, "sha256": hexadecimal} of a file."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": found}


def digests(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The digests of those of ``names`` that are there, files or folders with all below, by path relative to ``folder``."""
    found = [folder / name for name in names]
    files = [file for path in found for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    return {file.relative_to(folder).as_posix(): digest(file) for file in files}


def difference(folder: Path, name: str, known: dict[str, Any]) -> str | None:
    """What of a file is not as ``known`` (of ``digest``) says, None where nothing is."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != known["bytes"]:
            return f"{name} has {size:,} bytes where {known['bytes']:,} were written"
        return None if digest(path) == known else f"{name} holds other bytes than were written"
    except OSError as error:
        return f"{name}: {error.strerror}"
