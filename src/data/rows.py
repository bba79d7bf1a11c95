"""Rows of files: JSONL, a JSON list or CSV; by itself, in a folder or in a .zip. What is malformed is named with its place."""

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


class Source(NamedTuple):
    """``key`` and ``path`` are what a message calls the file; ``name`` is its own."""

    key: str
    path: str
    name: str
    contents: bytes


def one(path: str, key: str) -> Source:
    """A file by itself; raises ConfigError where it cannot be read."""
    return Source(key, path, Path(path).name, inputs.read(path, key))


def among(path: str, key: str, name: str, origin: str | None) -> Source:
    """A file of a folder or of a .zip, under any of ``places``.

    Raises:
        ConfigError: there is none; the message names it and where it comes from.
    """
    folder = inputs.is_folder(path)
    for place in places(name):
        if folder:
            file = Path(path).expanduser() / place
            contents = inputs.read(str(file), key) if file.exists() else None
        else:
            contents = inputs.member(path, key, place)
        if contents is not None:
            return Source(key, f"{path}/{place}", PurePosixPath(name).name, contents)
    raise ConfigError(f"{key}={path}: has no {name}{f', which is from {origin}' if origin else ''}")


def holds_files(path: str) -> bool:
    return inputs.is_folder(path) or path.casefold().endswith(".zip")


def places(name: str) -> list[str]:
    """Where ``boolq/train.json`` is looked for: there, as ``boolq_train.json``, and as ``train.json``."""
    return list(dict.fromkeys([name, name.replace("/", "_"), PurePosixPath(name).name]))


def rows(source: Source) -> Iterator[Row]:
    """The rows of a file, read as its name says: .csv, .json where it holds a list, and JSONL.

    Raises:
        ConfigError: it is malformed, or has no row.
    """
    if source.contents.startswith(LFS):
        raise ConfigError(f"{source.key}: {source.path}: stands for a file that Git LFS keeps; 'git lfs pull' brings it")
    suffix = Path(source.name).suffix.casefold()
    found = None
    if suffix == ".csv":
        found = _csv(source)
    elif suffix == ".json" and source.contents.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        found = _json(source)
    empty = True
    for row in found or _jsonl(source):
        empty = False
        yield row
    if empty:
        raise ConfigError(f"{source.key}={source.path}: the file is empty")


def _jsonl(source: Source) -> Iterator[Row]:
    for number, raw in enumerate(source.contents.split(b"\n"), start=1):
        if raw.strip():
            where = f"{source.key}: {source.path}, line {number}"
            yield Row(number, where, _decoded(raw, where, "of the line", first=number == 1))


def _json(source: Source) -> Iterator[Row]:
    where = f"{source.key}: {source.path}"
    for number, value in enumerate(_decoded(source.contents, where, "of the file", first=True), start=1):
        yield Row(number, f"{where}, row {number}", value)


def _decoded(raw: bytes, where: str, of_what: str, first: bool) -> Any:
    """The value that some JSON spells, all of its texts whole; ``first``: a byte order mark may stand before it."""
    try:
        value = json.loads(raw.decode("utf-8-sig" if first else "utf-8"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 (byte {error.start + 1} {of_what})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error.msg}, character {error.pos + 1} {of_what})") from error
    except (ValueError, RecursionError) as error:  # Python's own, on 5,000 digits or 1,000 brackets
        raise ConfigError(f"{where}: not JSON ({error})") from error
    return value


def _csv(source: Source) -> Iterator[Row]:
    """Rows as dicts, under the names of the first row."""
    where = f"{source.key}: {source.path}"
    try:
        text = source.contents.decode("utf-8-sig")
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
