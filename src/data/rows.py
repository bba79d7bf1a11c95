"""Read rows of JSONL, a JSON list or CSV, from a file, a folder or a .zip; a malformed row is refused with its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..files.errors import ConfigError
from . import inputs

LFS = b"version https://git-lfs.github.com/spec/v1"


class Row(NamedTuple):
    """``number`` counts lines of JSONL and rows elsewhere, from 1; ``where`` names key, file and place for a message."""

    number: int
    where: str
    value: Any


class File(NamedTuple):
    """An input file. Messages call it by ``key`` and ``path``; ``name`` is the last part of its path."""

    key: str
    path: str
    name: str
    contents: bytes


def open_file(path: str, key: str) -> File:
    """Read one file; raises ConfigError where it cannot be read."""
    return File(key, path, Path(path).name, inputs.read(path, key))


def open_member(path: str, key: str, name: str, origin: str | None) -> File:
    """Read a file of a folder or of a .zip, under any of its ``places``.

    Raises:
        ConfigError: there is none; the message names it and ``origin``, where the user can get it.
    """
    folder = inputs.is_folder(path)
    for place in places(name):
        if folder:
            file = Path(path).expanduser() / place
            contents = inputs.read(str(file), key) if file.exists() else None
        else:
            contents = inputs.member(path, key, place)
        if contents is not None:
            return File(key, f"{path}/{place}", PurePosixPath(name).name, contents)
    raise ConfigError(f"{key}={path}: has no {name}{f', which is from {origin}' if origin else ''}")


def holds_files(path: str) -> bool:
    return inputs.is_folder(path) or path.casefold().endswith(".zip")


def places(name: str) -> list[str]:
    """List the paths to try for ``boolq/train.json``: itself, ``boolq_train.json`` and ``train.json``."""
    return list(dict.fromkeys([name, name.replace("/", "_"), PurePosixPath(name).name]))


def rows(file: File) -> Iterator[Row]:
    """Yield the rows of a file in the format of its name: .csv, .json where it holds a list, else JSONL.

    Raises:
        ConfigError: the file is malformed or has no row.
    """
    if file.contents.startswith(LFS):
        raise ConfigError(f"{file.key}: {file.path}: stands for a file that Git LFS keeps; 'git lfs pull' brings it")
    suffix = Path(file.name).suffix.casefold()
    parsed = None
    if suffix == ".csv":
        parsed = _csv(file)
    elif suffix == ".json" and file.contents.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        parsed = _json(file)
    empty = True
    for row in parsed or _jsonl(file):
        empty = False
        yield row
    if empty:
        raise ConfigError(f"{file.key}={file.path}: the file is empty")


def _jsonl(file: File) -> Iterator[Row]:
    for number, raw in enumerate(file.contents.split(b"\n"), start=1):
        if raw.strip():
            where = f"{file.key}: {file.path}, line {number}"
            yield Row(number, where, _decoded(raw, where, "of the line", first=number == 1))


def _json(file: File) -> Iterator[Row]:
    where = f"{file.key}: {file.path}"
    for number, value in enumerate(_decoded(file.contents, where, "of the file", first=True), start=1):
        yield Row(number, f"{where}, row {number}", value)


def _decoded(raw: bytes, where: str, part: str, first: bool) -> Any:
    """Parse JSON and check that its texts are valid Unicode; ``first``: a byte order mark may precede it."""
    try:
        value = json.loads(raw.decode("utf-8-sig" if first else "utf-8"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 (byte {error.start + 1} {part})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error.msg}, character {error.pos + 1} {part})") from error
    except (ValueError, RecursionError) as error:  # Python's own errors, for 5,000 digits or 1,000 brackets
        raise ConfigError(f"{where}: not JSON ({error})") from error
    return value


def _csv(file: File) -> Iterator[Row]:
    """Yield rows as dicts; the first row names the columns."""
    where = f"{file.key}: {file.path}"
    try:
        text = file.contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 (byte {error.start + 1} of the file)") from error
    names: list[str] | None = None
    number = 0
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), strict=True):
            if not cells:
                continue
            if names is None:
                names = cells
                continue
            number += 1
            here = f"{where}, row {number}"
            if len(cells) != len(names):
                raise ConfigError(f"{here}: has {len(cells)} cells where the first line names {len(names)}")
            yield Row(number, here, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{where}, row {number + 1}: not CSV ({error})") from error
