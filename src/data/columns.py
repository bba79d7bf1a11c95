"""Decide for every key of a row whether it is read; one that is neither read nor named as ignored refuses the row."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable
from typing import Any

from ..config.schema import DatasetConfig
from ..files.errors import ConfigError
from .chats import CHATS, refuse_weights
from .formats import TASKS, ParsedRow, Shape, listed
from .pairs import PAIRS, refuse_preference

FORMATS: dict[str, tuple[Shape, ...]] = {"pairs": (*CHATS, *PAIRS), **TASKS}
SHORT = ("prompt", "target")  # dataset.prompt_column and dataset.target_column name these


class Reader:
    """The reading of all rows of a dataset, under its column map."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self.format = dataset.format
        self.columns, self.named_by = column_map(dataset)
        self.ignored = tuple(dataset.ignore_columns or ())
        self.all_turns = dataset.turns == "all"
        self.chat_template = dataset.chat_template
        self.seen: set[str] = set()
        self.first: tuple[bool, str] | None = None  # whether the first row is a chat, and its place

    def read(self, value: Any, where: str) -> ParsedRow:
        """Read one row.

        Raises:
            ConfigError: it is malformed, or holds what would not be read; the message begins with ``where``.
        """
        shapes = FORMATS[self.format]
        if not isinstance(value, dict):
            keys = ("prompt", "completion") if self.format == "pairs" else shapes[0].needs
            raise ConfigError(f"{where}: needs an object with {listed(keys)}")
        self.seen.update(value)
        for key, column in self.columns.items():
            if column not in value:
                raise ConfigError(
                    f"{where}: has no column {shown(column)}, which {self.named_by[key]} names{near(column, value)};"
                    f" it has {names(value)}"
                )
        taken = {*self.columns.values(), *self.ignored}
        row = {key: part for key, part in value.items() if key not in taken and key not in self.columns}
        row |= {key: value[column] for key, column in self.columns.items()}
        # A key that the map gives another meaning is not read under its own name.
        unread = [key for key in self.columns if key in value and key not in taken and value[key] is not None]
        if self.format == "pairs":
            refuse_preference(row, where)
        shape = _shape(self.format, row, where, self.columns)
        read = {*shape.needs, *shape.may, *shape.idle}
        unread += [self.columns.get(key, key) for key, part in row.items() if part is not None and key not in read]
        if unread:
            names_them = "name them in dataset.columns or dataset.ignore_columns"
            raise ConfigError(f"{where}: has keys that are not read: {names(unread)}; {names_them}")
        parsed = shape.parse(row, where)
        if any(weight is not None for weight in parsed.weights):
            refuse_weights(parsed.weights, self.all_turns, where)
        self._refuse_mixture(parsed, where)
        return parsed

    def _refuse_mixture(self, parsed: ParsedRow, where: str) -> None:
        """Raise ConfigError where some rows would go through the chat template and others not, or one has nothing to put in."""
        if self.chat_template:
            if parsed.prompt == "":
                raise ConfigError(f"{where}: has no prompt that a chat template could hold; leave dataset.chat_template=false")
            return
        is_chat = not isinstance(parsed.prompt, str)
        self.first = self.first or (is_chat, where)
        if self.first[0] != is_chat:
            kinds = ("a text", "a chat") if self.first[0] else ("a chat", "a text")
            raise ConfigError(
                f"{where}: is {kinds[0]} (a row with 'system' is a chat) and {self.first[1]} is {kinds[1]};"
                " dataset.chat_template=true makes chats of all"
            )

    def refuse_unknown(self) -> None:
        """Raise ConfigError where dataset.ignore_columns names what no row has: a slip of the pen."""
        for column in self.ignored:
            if column not in self.seen:
                raise ConfigError(
                    f"dataset.ignore_columns: no row has {shown(column)}{near(column, self.seen)};"
                    f" the rows have {names(sorted(self.seen))}"
                )


def column_map(dataset: DatasetConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names that the rows have for keys of the format, and for each key the config's key that says so.

    Raises:
        ConfigError: the format reads no such key, or two of them are to be read from one column.
    """
    short = {key: getattr(dataset, f"{key}_column") for key in SHORT}
    named_by = {key: f"dataset.{key}_column" for key, column in short.items() if column != key}
    columns = {key: short[key] for key in named_by} | (dataset.columns or {})
    named_by |= dict.fromkeys(dataset.columns or {}, "dataset.columns")
    known = sorted({key for shape in FORMATS[dataset.format] for key in (*shape.needs, *shape.may)})
    for key, column in columns.items():
        if key not in known:
            raise ConfigError(
                f"{named_by[key]}: dataset.format={dataset.format} reads no {shown(key)}{near(key, known)};"
                f" it reads {names(known)}"
            )
        if column in (dataset.ignore_columns or ()):
            raise ConfigError(f"dataset.ignore_columns: {shown(column)} is read, as {named_by[key]} names it")
        if list(columns.values()).count(column) > 1:
            raise ConfigError(f"{named_by[key]}: {shown(column)} is named twice")
    return columns, named_by


def near(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)``, or nothing where no known word is near."""
    words = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {shown(words[0])}?)" if words else ""


def names(keys: Iterable[str]) -> str:
    """Join up to ten names of keys for a message; a file may have thousands."""
    listed_keys = list(keys)
    more = f" and {len(listed_keys) - 10} more" if len(listed_keys) > 10 else ""
    return ", ".join(map(shown, listed_keys[:10])) + more


def shown(key: str) -> str:
    """Make a key of a stranger's file safe and short for a message."""
    text = key if key.isprintable() and key.strip() else repr(key)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shape(name: str, row: dict[str, Any], where: str, mapped: Container[str]) -> Shape:
    """Choose the layout whose keys the row has: of several the one that reads most of what is mapped, then the one with most."""
    shapes = FORMATS[name]
    given = {key for key, part in row.items() if part is not None}
    fitting = [shape for shape in shapes if given.issuperset(shape.needs)]
    if fitting:
        return max(fitting, key=lambda shape: (sum(key in mapped for key in (*shape.needs, *shape.may)), len(shape.needs)))
    nearest = max(shapes, key=lambda shape: (len(given.intersection(shape.needs)), sum(key in row for key in shape.needs)))
    lacking = [key for key in nearest.needs if key not in given]
    if name == "pairs" and (len(lacking) == len(nearest.needs) or lacking[0] == nearest.needs[0]):
        raise ConfigError(
            f"{where}: needs the keys 'prompt' and 'completion', 'context' and 'target', 'instruction' and 'output',"
            f" 'messages', 'conversations' or 'text'; it has {names(row) or 'none'};"
            " dataset.columns={prompt: NAME,target: NAME} reads others"
        )
    missing = "no target; " if lacking == [nearest.needs[-1]] else ""
    raise ConfigError(
        f"{where}: {missing}needs {listed(nearest.needs)}, each a text; '{lacking[0]}' is missing; it has {names(row)}"
    )
