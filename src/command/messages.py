"""Say in one line what is wrong with a command line: the key, and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from types import TracebackType

from ..config.schema import Config
from ..files.errors import ConfigError

OURS = ("__main__", __name__.partition(".")[0], "hydra_plugins")
LIBRARIES = ("hydra", "omegaconf", "antlr4", "yaml")  # they read what the user wrote


def raised_by_libraries(error: BaseException) -> bool:
    """Tell whether one of ``LIBRARIES`` raised the error, or Python inside them: then the user's text is wrong, not our code."""
    called = ""
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        package = frame.tb_frame.f_globals.get("__name__", "").split(".")[0]
        if package in (*OURS, *LIBRARIES):
            called = package
        frame = frame.tb_next
    return called in LIBRARIES


def one_line(error: BaseException) -> str:
    """Say in one line what the user did wrong. Hydra's and OmegaConf's own messages span several lines and repeat themselves."""
    text = str(error)
    cause = f"{text}\n{error.__cause__ or ''}"
    if isinstance(error, ConfigError):
        return join_lines(text)
    if match := re.search(
        r"Could not find '(\w+)/([^']*)'.*?Available options in '\w+':\n(.*?)\n(?:Config search|\Z)", cause, re.S
    ):
        group, choice, options = match.groups()
        names = options.split()
        return f"{group}={choice}: no such {group}{suggest(choice, names)}; choose one of {', '.join(names)}"
    if match := re.search(r"Could not find '(\w+)/([^']*)'", cause):
        return f"{match[1]}={match[2]}: no such {match[1]}"
    if match := re.search(r"Ambiguous value for argument '(.*?)'", cause):
        return f"{match[1]}: several values make a sweep, which needs -m; a list is written key=[a,b]"
    if match := re.search(r"field '(\S+)' is not Optional", cause):
        return f"{match[1]}=null: needs a value"
    if match := re.search(r"Value '(.*?)'(?: of type '.*')? could not be converted to (\w+)", cause, re.S):
        wanted = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(match[2], match[2])
        return f"{_full_key(cause)}={match[1]}: needs {wanted}"
    if match := re.search(r"(?:Could not override|Error merging override) '?([^'\s=]+)", cause):
        if "not in struct" in cause or "not in 'Config'" in cause or re.search(r"Key '.*' (?:is )?not in", cause):
            key = match[1].lstrip("+~")
            return f"{key}: no such key{suggest(key, known_keys())}"
        return f"{match[1]}: {join_lines(str(error.__cause__ or text).splitlines()[0])}"
    if match := re.search(r"^(.+?)\n\s*full_key: (\S+)", text, re.S):
        return f"{match[2]}: {join_lines(match[1])}"
    return join_lines(text) or f"cannot be composed ({type(error).__name__})"


def join_lines(text: str) -> str:
    """Put the lines of a text that are not empty into one, with semicolons."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _full_key(text: str) -> str:
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else "a value"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)``, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def known_keys() -> list[str]:
    """List every key of the schema, dotted, such as ``train.lr``."""

    def below(node: object, prefix: str) -> list[str]:
        keys = []
        for entry in fields(node):  # type: ignore[arg-type]
            value = getattr(node, entry.name)
            keys.append(prefix + entry.name)
            if is_dataclass(value):
                keys += below(value, f"{prefix}{entry.name}.")
        return keys

    return below(Config(), "")
