"""Read rows of the user's own that hold texts: a prompt and its target, an instruction and its output, or one text alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..files.errors import ConfigError
from .chats import chat, system_message
from .formats import ParsedRow, Shape, listed, normalized, texts

NAMES = (("context", "target"), ("prompt", "completion"), ("prompt", "target"))
PREFERENCE = ("chosen", "rejected")


def pair(asked: str, answered: str) -> Callable[[dict[str, Any], str], ParsedRow]:
    """Make the function that reads a prompt and its target under these names, each a text, or each a list of messages."""

    def parse(row: dict[str, Any], where: str) -> ParsedRow:
        prompt, target = row[asked], row[answered]
        if isinstance(prompt, list) and isinstance(target, list):
            return _conversational(row, asked, answered, where)
        for key in (asked, answered):
            if not isinstance(row[key], str):
                raise ConfigError(f"{where}: no target; needs {listed((asked, answered))}, each a text; '{key}' is no text")
        if not target.strip():
            raise ConfigError(f"{where}: the target '{answered}' is empty")
        return _asked(prompt, target, row, where)

    return parse


def alpaca(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse Alpaca's {"instruction","input","output"}. The prompt is the instruction; then, after a blank line, the input.

    Alpaca's own wording ("Below is an instruction ...") is of its paper's models; other trainers have others.
    """
    instruction, output = texts(row, where, "instruction", "output")
    more = row.get("input")
    if more is not None and not isinstance(more, str):
        raise ConfigError(f"{where}: 'input' is no text")
    return _asked(f"{instruction}\n\n{more}" if more and more.strip() else instruction, output, row, where)


def text_alone(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse {"text"}: the prompt is empty, and all of the text is the target."""
    (text,) = texts(row, where, "text")
    return ParsedRow("", text, normalized(text))


def refuse_preference(row: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a row of preferences, which has two answers."""
    if named := [key for key in PREFERENCE if row.get(key) is not None]:
        raise ConfigError(
            f"{where}: has {listed(named)}, as preference pairs do; a run here learns one target:"
            " dataset.columns={target: chosen} dataset.ignore_columns=[rejected] trains on the chosen one"
        )


def _asked(prompt: str, target: str, row: dict[str, Any], where: str) -> ParsedRow:
    """Make a chat of a row that has a key "system", even where it is empty: all rows of a file are asked in one way."""
    if row.get("tools") is not None:
        raise ConfigError(f"{where}: has 'tools' beside a prompt that is a text; tools belong to messages")
    if "system" not in row:
        return ParsedRow(prompt, target, normalized(prompt))
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
    return chat(messages, where, "messages", system=system_message(row, where))


def _conversational(row: dict[str, Any], asked: str, answered: str, where: str) -> ParsedRow:
    """Read TRL's conversational form: the messages of the prompt, then the one of the answer."""
    if row.get("system") is not None:
        raise ConfigError(f"{where}: has 'system' beside a list of messages; make it the first message")
    if len(row[answered]) != 1:
        raise ConfigError(f"{where}: '{answered}' needs one message, of the assistant; it has {len(row[answered])}")
    return chat([*row[asked], *row[answered]], where, f"{asked} and {answered}", row.get("tools"))


PAIRS = (
    *(Shape(names, pair(*names), ("system", "tools")) for names in NAMES),
    Shape(("instruction", "output"), alpaca, ("input", "system")),
    Shape(("text",), text_alone),
)
