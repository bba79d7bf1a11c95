"""Read chats: the messages of a row as a chat template takes them. What no template would be given is refused, by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..files.errors import ConfigError
from .formats import Messages, ParsedRow, Shape, normalized

ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in ROLES}  # of ShareGPT
RENDERED = ("name", "tool_calls", "tool_call_id", "reasoning_content")  # beside "role" and "content"


def parse_messages(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse OpenAI's {"messages"}, with {"tools"}."""
    return chat(row["messages"], where, "messages", row.get("tools"))


def parse_conversations(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse ShareGPT's {"conversations"}: "from" and "value" are role and content; with {"system"} and {"tools"}."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ConfigError(f"{where}: 'conversations' needs a list of objects with the texts 'from' and 'value'")
    messages = []
    for number, turn in enumerate(turns, start=1):
        place = f"{where}: turn {number} of 'conversations'"
        if {"role", "content"} & set(turn):
            raise ConfigError(f"{place} has 'role' and 'content'; dataset.columns={{messages: conversations}} reads such turns")
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise ConfigError(f"{place}: 'from' is {_shown(speaker)}, and needs one of {', '.join(SPEAKERS)}")
        others = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({"role": SPEAKERS[speaker], "content": turn.get("value"), **others})
    return chat(messages, where, "conversations", row.get("tools"), system_message(row, where))


def system_message(row: dict[str, Any], where: str) -> Messages:
    """Make a message of the text "system" of a row; none where it is empty."""
    text = row.get("system")
    if text is not None and not isinstance(text, str):
        raise ConfigError(f"{where}: 'system' is no text")
    return [{"role": "system", "content": text}] if text and text.strip() else []


def chat(messages: Any, where: str, key: str, tools: Any = None, system: Sequence[dict[str, Any]] = ()) -> ParsedRow:
    """Check the messages under ``key``, of which the last is the target; ``system`` goes before them.

    Raises:
        ConfigError: something of a message would be lost, or there is no text to train; the line names the message.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ConfigError(f"{where}: '{key}' needs a list of objects with the texts 'role' and 'content'")
    # Tables have every key in every message, empty where it was not given.
    given = [{name: value for name, value in message.items() if value is not None} for message in messages]
    read = [_message(message, f"{where}: message {number} of '{key}'") for number, message in enumerate(given, start=1)]
    if system and any(message["role"] == "system" for message in read):
        raise ConfigError(f"{where}: has 'system' beside a message of that role; leave one of them")
    if len(read) + len(system) < 2 or read[-1]["role"] != "assistant":
        raise ConfigError(f"{where}: no target; the last of '{key}' needs the role 'assistant' and a text, after another message")
    last = read[-1]
    if others := [name for name in RENDERED if name in last]:
        raise ConfigError(
            f"{where}: the last of '{key}' has {', '.join(others)}, which would not be trained: a target is a text; end the chat"
            " at an answer in words, or leave the row out"
        )
    if not last["content"].strip():
        raise ConfigError(f"{where}: no target; the last of '{key}' needs the role 'assistant' and a text")
    prompt = [*system, *read[:-1]]
    weights = tuple(message.get("weight") if message["role"] == "assistant" else None for message in given)
    question = normalized(json.dumps(prompt, ensure_ascii=False))
    return ParsedRow(prompt, last["content"], question, tools=_tools(tools, where), weights=weights)


def refuse_weights(weights: tuple[int | None, ...], all_turns: bool, where: str) -> None:
    """Raise ConfigError where a message's weight says otherwise than dataset.turns, which decides what carries loss."""
    *earlier, last = weights
    if last == 0:
        raise ConfigError(f"{where}: the last message has weight 0, and its text is the target; leave the row or the weight out")
    for number, weight in enumerate(earlier, start=1):
        if weight == int(not all_turns):
            rule = "all trains every turn of the assistant" if all_turns else "last trains the last turn alone"
            raise ConfigError(
                f"{where}: message {number} has weight {weight}, but dataset.turns={rule}; leave the weight out, or set"
                f" dataset.turns={'last' if all_turns else 'all'}"
            )


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Keep what a template renders of a message, its content as one text. Raises ConfigError where that is not all of it."""
    role = message.get("role")
    if role not in ROLES:
        raise ConfigError(f"{where}: 'role' is {_shown(role)}, and needs one of {', '.join(ROLES)}")
    if others := [name for name in message if name not in ("role", "content", "weight", *RENDERED)]:
        raise ConfigError(f"{where} has keys that are not read: {', '.join(map(_shown, others))}; take them out of the file")
    kept = {"role": role, "content": _text(message.get("content"), "tool_calls" in message, where)}
    if "weight" in message:
        weight = message["weight"]
        if isinstance(weight, bool) or weight not in (0, 1) or (weight == 1 and role != "assistant"):
            raise ConfigError(f"{where}: 'weight' is {_shown(weight)}; needs 0, or 1 where the role is 'assistant'")
    if "tool_calls" in message and not _are_objects(message["tool_calls"]):
        raise ConfigError(f"{where}: 'tool_calls' needs a list of objects")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(name, ""), str):
            raise ConfigError(f"{where}: '{name}' is no text")
    return kept | {name: _json(message[name], where, name) for name in RENDERED if name in message}


def _text(content: Any, calls_tools: bool, where: str) -> str:
    """Join the parts of a content to one text. A call of a tool may stand without words."""
    if content is None and calls_tools:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ConfigError(f"{where}: 'content' is no text (needs the texts 'role' and 'content')")
    joined = ""
    for part in content:
        given = {name: value for name, value in part.items() if value is not None}
        if given.get("type") != "text" or set(given) != {"type", "text"} or not isinstance(given["text"], str):
            kind = given.get("type")
            what = f"the type {_shown(kind)}" if kind != "text" else f"the keys {', '.join(map(_shown, sorted(given)))}"
            raise ConfigError(f"{where}: a part of 'content' has {what}; only 'type': 'text' with a 'text' is read")
        joined += given["text"]
    return joined


def _tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """Check the tools of a row: a list of objects, or that list written as JSON."""
    if tools is None or tools == []:
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError as error:
            raise ConfigError(f"{where}: 'tools' is a text, but not JSON ({error})") from error
        if tools == []:
            return None
    if not _are_objects(tools):
        raise ConfigError(f"{where}: 'tools' needs a list of objects")
    checked: list[dict[str, Any]] = _json(tools, where, "tools")
    return checked


def _json(value: Any, where: str, name: str) -> Any:
    """Return the value; raise ConfigError where JSON cannot hold it, as a table's bytes or dates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: '{name}' holds what JSON has not ({' '.join(str(error).split())})") from error
    return value


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


CHATS = (
    Shape(("messages",), parse_messages, ("tools",)),
    Shape(("conversations",), parse_conversations, ("system", "tools")),
)
