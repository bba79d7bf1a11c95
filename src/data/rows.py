"""Read rows of JSONL, a JSON list, CSV, TSV or Parquet, from a file, a folder or a .zip; a bad row is refused with its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..files.errors import ConfigError
from . import inputs

DELIMITERS = {".csv": ",", ".tsv": "\t"}
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
    """Yield the rows of a file in the format of its name: .csv, .tsv, .parquet, .json where it holds a list, else JSONL.

    Raises:
        ConfigError: the file is malformed or has no row.
    """
    if file.contents.startswith(LFS):
        raise ConfigError(f"{file.key}: {file.path}: stands for a file that Git LFS keeps; 'git lfs pull' brings it")
    suffix = Path(file.name).suffix.casefold()
    parsed = None
    if suffix in DELIMITERS:
        parsed = _csv(file, DELIMITERS[suffix])
    elif suffix == ".parquet":
        parsed = _parquet(file)
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
        value = json.loads(raw.decode("utf-8-sig" if first else "utf-8"), object_pairs_hook=_object)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 (byte {error.start + 1} {part})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error.msg}, character {error.pos + 1} {part})") from error
    except _NamedTwice as error:
        raise ConfigError(f"{where}: has the key {str(error)!r} twice, and only one can be read") from error
    except (ValueError, RecursionError) as error:  # Python's own errors, for 5,000 digits or 1,000 brackets
        raise ConfigError(f"{where}: not JSON ({error})") from error
    return value


class _NamedTwice(Exception):
    """An object of JSON names a key twice; JSON's reader would keep the last value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _NamedTwice(next(key for key in keys if keys.count(key) > 1)[:60])
    return value


def without_nulls(value: Any) -> Any:
    """Leave out the empty keys of nested objects: a table's column has the same keys in every row, whoever gave them."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _parquet(file: File) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    where = f"{file.key}: {file.path}"
    try:
        table = parquet.read_table(pyarrow.BufferReader(file.contents))
        _refuse_doubles(table.column_names, where)
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: not Parquet ({' '.join(str(error).split())[:200]})") from error
    for number, value in enumerate(values, start=1):
        yield Row(number, f"{where}, row {number}", {key: without_nulls(part) for key, part in value.items()})


def _refuse_doubles(columns: list[str], where: str) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise ConfigError(f"{where}: has the column {name[:60]!r} twice, and only one can be read")


def _csv(file: File, delimiter: str) -> Iterator[Row]:
    """Yield rows as dicts; the first row names the columns. An empty cell is None, as a text in it cannot be told from none."""
    where = f"{file.key}: {file.path}"
    try:
        text = file.contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 (byte {error.start + 1} of the file)") from error
    names: list[str] | None = None
    number = 0
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            if not cells:
                continue
            if delimiter == "\t" and any("\n" in cell or "\r" in cell for cell in cells):
                place = f"row {number + 1}" if names else "the first line"
                raise ConfigError(f"{where}, {place}: a quotation mark opens a cell that goes on in the next, which TSV has not")
            if names is None:
                names = cells
                _refuse_doubles(names, where)
                continue
            number += 1
            here = f"{where}, row {number}"
            if len(cells) != len(names):
                raise ConfigError(f"{here}: has {len(cells)} cells where the first line names {len(names)}")
            yield Row(number, here, {name: cell or None for name, cell in zip(names, cells, strict=True)})
    except csv.Error as error:
        kind, why = "CSV" if delimiter == "," else "TSV", str(error).replace("'\t'", "a tab")
        raise ConfigError(f"{where}, row {number + 1}: not {kind} ({why})") from error
