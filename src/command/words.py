"""Read the ``key=value`` words of a command line and check each value; every command whose keys are its own reads them here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files.errors import ConfigError
from .messages import suggest

ASSIGNMENT = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
Read = Callable[[str], Any]  # makes a value of a text; raises ValueError with what is needed, such as "true or false"


@dataclass(frozen=True)
class Key:
    """A key of a command: how its value is read, and an example value for the messages."""

    read: Read
    example: str


def read(words: Sequence[str], keys: Mapping[str, Key], free: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return (values by key, the words that are no assignment).

    ``free`` says what the words without a key are, such as ``a prompt``; None: there are none. After a word ``--`` all are
    free, so that one can be ``x=3``.

    Raises:
        ConfigError: one line; a key that is unknown, empty or given twice, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    rest: list[str] = []
    for position, word in enumerate(words):
        if word == "--" and free is not None:
            rest += words[position + 1 :]
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
    """Accept one of these words."""

    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return check


def switch(value: str) -> bool:
    """Read ``true`` or ``false``."""
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def whole(low: int, high: int) -> Read:
    """Read a whole number within these bounds, both included."""

    def check(value: str) -> int:
        if not re.fullmatch(r"\d{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return check


def number(low: float, high: float) -> Read:
    """Read a number within these bounds, both included."""

    def check(value: str) -> float:
        result = _float(value)
        if not low <= result <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return result

    return check


def positive(value: str) -> float:
    """Read a finite number above 0."""
    result = _float(value)
    if not 0 < result < math.inf:
        raise ValueError("a number above 0")
    return result


def _float(value: str) -> float:
    """Return the number, or NaN, which is within no bounds."""
    try:
        return float(value)
    except ValueError:
        return math.nan


def run_id(value: str) -> str:
    """Read ten hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-f]{10}", value):
        raise ValueError("the id of a run")
    return value


def matching(pattern: str, needed: str) -> Read:
    """Accept a text that matches ``pattern`` as a whole; ``needed`` says in words what that is."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(needed)
        return value

    return check
