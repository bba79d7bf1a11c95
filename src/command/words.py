"""``key=value`` words of a command line, checked: what the commands beside the table's have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files.errors import ConfigError
from .cli import suggest

ASSIGNMENT = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
Read = Callable[[str], Any]  # raises ValueError with what is needed


@dataclass(frozen=True)
class Key:
    read: Read
    example: str


def read(words: Sequence[str], keys: Mapping[str, Key], free: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """(values by key, the words that are no assignment). ``free`` says what such words are; None: there are none.

    After a word ``--`` all are free, so that one can be ``x=3``.

    Raises:
        ConfigError: one line; a key that is unknown, empty or given twice, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    rest: list[str] = []
    for at, word in enumerate(words):
        if word == "--" and free is not None:
            rest += words[at + 1 :]
            break
        match = ASSIGNMENT.fullmatch(word)
        if match is None and free is not None and not word.startswith("--"):
            rest.append(word)
            continue
        key, value = (match[1], match[2]) if match else (word, "")
        if key not in keys:
            known = ", ".join(f"{name}=" for name in keys)
            hint = f"; {free} with such a beginning stands after --" if free is not None and match else ""
            raise ConfigError(f"{key!r}: no such key{suggest(key, keys)}; choose from {known} or --help{hint}")
        if not value:
            raise ConfigError(f"{key}: needs a value, such as {key}={keys[key].example}")
        if key in values:
            raise ConfigError(f"{key}: given twice")
        try:
            values[key] = keys[key].read(value)
        except ValueError as error:
            raise ConfigError(f"{key}={value}: needs {error}, such as {key}={keys[key].example}") from error
    return values, rest


def one_of(*choices: str) -> Read:
    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return check


def switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def whole(low: int, high: int) -> Read:
    def check(value: str) -> int:
        if not re.fullmatch(r"\d{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return check


def number(low: float, high: float) -> Read:
    def check(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = float("nan")
        if not low <= found <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return found

    return check


def run_id(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{10}", value):
        raise ValueError("the id of a run")
    return value


def matching(pattern: str, what: str) -> Read:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return check
