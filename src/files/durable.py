"""Write files atomically and check them by SHA-256, so that nobody reads half a file or damaged bytes.

A file is written under a temporary name, synced to disk and renamed. Its checksum is compared when it is read: a *sealed*
JSON file carries its own, and the checksums of other files are in a sealed file.
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

TEMPORARY = ".tmp"  # ending of a file that is being written; what a crash leaves under it is ignored
END = "\n}\n"  # of every JSON object that dump_json writes
SEAL = ',\n  "sha256": "'
SEAL_END = f'"{END}'
SEAL_LENGTH = len(SEAL) + 64 + len(SEAL_END)


class CannotWrite(OSError):
    """A file could not be written; the message names it and says why. Earlier files are unharmed."""


class Damaged(ValueError):
    """A file holds other bytes than were written. The message says what is wrong, without the file's name."""


_guards: dict[Path, Callable[[], None]] = {}


@contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Call ``check`` before anything in ``folder`` is written, while the ``with`` lasts; it raises CannotWrite to refuse."""
    before = _guards.get(folder)
    _guards[folder] = check
    try:
        yield
    finally:
        if before is None:
            del _guards[folder]
        else:
            _guards[folder] = before


def _guard_of(path: Path) -> Callable[[], None] | None:
    return next((_guards[folder] for folder in (path, *path.parents) if folder in _guards), None) if _guards else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors about writing ``path`` into CannotWrite, and ask the guard of its folder first."""
    try:
        if guard := _guard_of(path):
            guard()
        yield
    except CannotWrite:
        raise
    except Exception as error:
        # A library in Rust, such as safetensors, gives the system's error only within its own message.
        number = error.errno if isinstance(error, OSError) else _os_error(error)
        if number is None and not isinstance(error, OSError):
            raise
        raise CannotWrite(f"{path}: {error if number is None else os.strerror(number)}") from error


def _os_error(error: Exception) -> int | None:
    match = re.search(r"\bos error (\d+)\b", str(error))
    return int(match[1]) if match else None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, even after a crash, sees either the old file or the whole new one.

    Raises:
        CannotWrite: and then the old file is still there.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, name_of: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, then rename it to ``path`` if all went well.

    ``name_of`` computes another final name from what was written, such as one with its checksum.

    Raises:
        CannotWrite: and then the old file or folder is still there.
    """
    with writing(path):
        if _guard_of(path) is None:  # a guarded folder is there; if it goes away now, nobody makes it again
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")  # two processes never share it
        try:
            yield temporary
            for written in (temporary, *sorted(temporary.rglob("*"))):
                _sync_to_disk(written)
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


def _sync_to_disk(path: Path) -> None:
    """fsync a file or folder. A file first gets the usual permissions: safetensors writes files that only the owner can read."""
    if path.is_file():
        path.chmod(0o666 & ~_UMASK)
    sync(path)


def sync(path: Path) -> None:
    """fsync a file, or a folder's list of names, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, never the target of a link. A path that does not exist is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Delete the temporary files that a crash left in a folder, ours and those of safetensors (``.tmp`` and a word)."""
    for path in [*folder.glob(f".*{TEMPORARY}"), *folder.glob(f"{TEMPORARY}*")]:
        remove(path)


def dump_json(value: Any) -> str:
    """Write JSON that every parser accepts: a number that is not finite becomes null, never NaN."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Copy nested lists and dicts with None for each number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def seal(value: dict[str, Any]) -> str:
    """Write a JSON object whose last key, ``sha256``, is the digest of the same text without that key."""
    return seal_text(dump_json(value))


def seal_text(text: str) -> str:
    """Add the ``sha256`` key to the text of a JSON object that ``dump_json`` wrote."""
    assert text.endswith(END)
    return text.removesuffix(END) + SEAL + hashlib.sha256(text.encode()).hexdigest() + SEAL_END


def unseal(data: bytes) -> dict[str, Any]:
    """Check and read the object that ``seal`` wrote; the result has no ``sha256`` key.

    Raises:
        Damaged: a byte differs or is missing, or there is no seal.
    """
    body, end = data[:-SEAL_LENGTH] + END.encode(), data[-SEAL_LENGTH:]
    if end != f"{SEAL}{hashlib.sha256(body).hexdigest()}{SEAL_END}".encode():
        raise Damaged("its sha256 is not that of its text")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # not written by seal
        raise Damaged(str(error)) from error
    if not isinstance(value, dict):
        raise Damaged("it is no mapping")
    return value


def digest(path: Path) -> dict[str, Any]:
    """Compute {"bytes": size, "sha256": hexadecimal} of a file."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": sha256}


def digests(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Compute the digests of the files and whole folders of ``names`` that exist, by path relative to ``folder``."""
    paths = [folder / name for name in names]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    return {file.relative_to(folder).as_posix(): digest(file) for file in files}


def difference(folder: Path, name: str, known: dict[str, Any]) -> str | None:
    """Compare a file with its ``digest`` when it was written: one line on the difference, or None."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != known["bytes"]:
            return f"{name} has {size:,} bytes where {known['bytes']:,} were written"
        return None if digest(path) == known else f"{name} holds other bytes than were written"
    except OSError as error:
        return f"{name}: {error.strerror}"
