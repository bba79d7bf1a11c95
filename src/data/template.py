"""Render chats by the model's own chat template, and read from it where an assistant's turn begins and ends.

A template is a program that knows one direction: messages to text. What is asked of it here is proven by rendering: the
prompt must be the beginning of the chat with its answer, the answer must follow as it stands in the row, and the special
token after it closes the turn. What a template does otherwise is refused, and so is what it leaves out: a text, a key of a
message, or the tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..files.errors import ConfigError
from .datasets import Example
from .ending import Special
from .formats import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_IN = "Xanswer0X"  # an answer that a template leaves as it is
ASSISTANT = "assistant"
# Ids that link a tool's result to its call. Many templates leave them to the order of the messages, and nothing else is lost.
LINKS = ("tool_call_id",)


@dataclass(frozen=True)
class Rendered:
    """A chat as text. Decoding goes on from ``prompt``; training shows ``prompt + target`` and the token ``end``."""

    example: Example  # as it is judged
    prompt: str
    target: str  # the answer, with what white space the template puts around it
    end: int
    earlier: tuple[tuple[int, int], ...]  # earlier turns of the assistant, as spans of the prompt's characters


@dataclass(frozen=True)
class Frame:
    """Texts that a template puts around an answer. ``mark`` is the special token that closes the turn, empty where none does."""

    before: str  # text that belongs to the prompt, such as an empty block of thoughts
    space: str  # white space that is answered with the answer
    after: str  # white space between the answer and the mark
    mark: str
    rest: str


class Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Special) -> None:
        if tokenizer.chat_template is None:
            raise ConfigError("dataset.chat_template: this model's tokenizer has no chat template")
        self.tokenizer = tokenizer
        self.special = special
        self.end = int(tokenizer.eos_token_id)
        self.frames: dict[Any, Frame] = {}

    def render(self, example: Example, turns: str) -> Rendered:
        """Render a chat, or a plain prompt as a chat of one message. An empty target is left to be answered.

        Raises:
            ConfigError: the template refuses the chat, changes it, or leaves something of it out; the message has the row's id.
        """
        messages, tools, where = messages_of(example), example.tools, example.id
        prompt = self._text(messages, tools, where, ask=True)
        if any(
            json.dumps(text, ensure_ascii=ascii_only) in prompt for text in arguments(messages) for ascii_only in (True, False)
        ):
            messages = with_objects(messages)  # or the template would write JSON inside of JSON
            prompt = self._text(messages, tools, where, ask=True)
        self._refuse_left_out(messages, prompt, where)
        frame = self._frame(messages, tools, where, prompt)
        earlier = []
        if turns == "all":
            earlier = [
                self._earlier(messages[: index + 1], tools, where, prompt)
                for index, message in enumerate(messages)
                if message["role"] == ASSISTANT
            ]
        example = self.special.judged(example, *filter(None, [frame.mark]))
        target = ""
        if example.target:
            answer = self._answer(messages, tools, where, prompt, frame, example.target)
            target = frame.space + answer + (frame.after if frame.mark else "")
        end = self.special.ids[frame.mark] if frame.mark else self.end
        return Rendered(example, prompt + frame.before, target, end, tuple(earlier))

    def _text(self, messages: Messages, tools: Any, where: str, ask: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # a template is someone else's program: whatever it raises, it refuses this chat
            words = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{where}: the model's chat template refuses this chat: {words}") from error
        return str(text)

    def _frame(self, messages: Messages, tools: Any, where: str, prompt: str) -> Frame:
        """Find what stands around an answer, once for all chats of one shape."""
        key = shape(messages, tools)
        if key not in self.frames:
            self._refuse_unread(messages, tools, where, prompt)
            whole = self._text([*messages, {"role": ASSISTANT, "content": STAND_IN}], tools, where, ask=False)
            before, stands, after = whole.removeprefix(prompt).partition(STAND_IN)
            if not whole.startswith(prompt) or not stands or STAND_IN in after:
                raise ConfigError(
                    f"{where}: the model's chat template renders this prompt otherwise where its answer stands after it"
                    " (add_generation_prompt), so an answer cannot be trained as it is asked for; use another template"
                )
            text = "" if before.isspace() else before
            mark = self.special.pattern.search(after)
            space, rest = (after[: mark.start()], after[mark.end() :]) if mark else ("", after)
            if space.strip():
                raise ConfigError(
                    f"{where}: the model's chat template puts {space.strip()!r} between an answer and the end of its turn, which"
                    " would count as part of the answer; use another template"
                )
            self.frames[key] = Frame(text, before[len(text) :], space, mark[0] if mark else "", rest)
        return self.frames[key]

    def _answer(self, messages: Messages, tools: Any, where: str, prompt: str, frame: Frame, answer: str) -> str:
        """Find an answer in its chat as the template writes it, which may be without white space around it."""
        whole = self._text([*messages, {"role": ASSISTANT, "content": answer}], tools, where, ask=False)
        before, after = prompt + frame.before + frame.space, frame.after + frame.mark + frame.rest
        written = whole[len(before) : len(whole) - len(after)]
        if not whole.startswith(before) or not whole.endswith(after) or written.strip() != answer.strip():
            raise ConfigError(
                f"{where}: the model's chat template does not render the answer as it stands in the row, or renders its prompt"
                " otherwise; remove what it changes from the text, or use another template"
            )
        return written

    def _earlier(self, messages: Messages, tools: Any, where: str, whole: str) -> tuple[int, int]:
        """Find the last of ``messages``, a turn of the assistant, in the whole prompt: from its answer to its closing token."""
        before = self._text(messages[:-1], tools, where, ask=True)
        frame = self._frame(messages[:-1], tools, where, before)
        content = messages[-1].get("content")
        if isinstance(content, str) and not set(messages[-1]) - {"role", "content"}:
            start = len(before + frame.before)
            answer = self._answer(messages[:-1], tools, where, before, frame, content)
            turn = before + frame.before + frame.space + answer + frame.after + frame.mark
        else:  # calls of tools, which each template writes in its own way
            start, turn = len(before), self._text(messages, tools, where, ask=False)
            marks = list(self.special.pattern.finditer(turn, start))
            turn = turn[: marks[-1].end()] if marks and turn.startswith(before) else ""
        if not frame.mark or not turn or not whole.startswith(turn):
            raise ConfigError(
                f"dataset.turns=all: {where}: the model's chat template renders an earlier turn of the assistant otherwise than"
                " its last, or closes it with no special token; use dataset.turns=last"
            )
        return start, len(turn)

    def _refuse_left_out(self, messages: Messages, text: str, where: str) -> None:
        """Raise ConfigError where a message's text is not in the rendered chat, in order, or would end a turn in its middle."""
        place = 0
        for index, message in enumerate(messages):
            for content in contents(message):
                self.special.refuse_inside(content, f"{where}: message {index + 1} ({message['role']})")
                written = content.strip()
                in_json = json.dumps(written, ensure_ascii=False)[1:-1]  # as many templates write the results of tools
                form = written if text.find(written, place) >= 0 else in_json
                place = text.find(form, place)
                if place < 0:
                    raise ConfigError(
                        f"{where}: the model's chat template leaves out or changes the text of message {index + 1}"
                        f" ({message['role']}); remove that message or what is changed, or use another template"
                    )
                place += len(form)

    def _refuse_unread(self, messages: Messages, tools: Any, where: str, prompt: str) -> None:
        """Raise ConfigError where the rendered prompt is the same without a key of a message, or without the tools.

        A short text may stand in a rendered chat by chance, so this looks at texts as well, once for each shape.
        """
        without: dict[str, tuple[Messages, Any]] = {"the tools": (messages, None)} if tools else {}
        for index, message in enumerate(messages):
            for key in sorted(filled(message) - {"role", *LINKS}):
                other = {name: value for name, value in message.items() if name != key}
                if key == "content":  # few templates can do without
                    other[key] = STAND_IN
                without[f"'{key}' of message {index + 1} ({message['role']})"] = (
                    [*messages[:index], other, *messages[index + 1 :]],
                    tools,
                )
        for name, (others, given) in without.items():
            try:
                same = self._text(others, given, where, ask=True) == prompt
            except ConfigError:  # it cannot do without: it reads it
                same = False
            if same:
                raise ConfigError(f"{where}: the model's chat template does not render {name}; remove it from the rows")


def messages_of(example: Example) -> Messages:
    """Give the messages of a chat before its answer; a plain prompt is a chat of one."""
    return [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else example.prompt


def contents(message: dict[str, Any]) -> list[str]:
    """List the texts of a message's content: one, none, or one for each part."""
    content = message.get("content")
    parts: Sequence[Any] = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def arguments(messages: Messages) -> list[str]:
    """List the arguments of tool calls that are JSON as a text, as OpenAI's rows have them, and say an object."""
    functions = [call.get("function", call) for message in messages for call in message.get("tool_calls") or []]
    given = [function.get("arguments") for function in functions if isinstance(function, dict)]
    return [text for text in given if isinstance(text, str) and _object(text) is not None]


def with_objects(messages: Messages) -> Messages:
    """Copy messages with the arguments of tool calls as objects, which most templates write as JSON themselves."""

    def decoded(value: Any, key: str = "") -> Any:
        if key == "arguments" and isinstance(value, str):
            return value if (read := _object(value)) is None else read
        if isinstance(value, dict):
            return {name: decoded(part, name) for name, part in value.items()}
        return [decoded(part) for part in value] if isinstance(value, list) else value

    return [
        message | {"tool_calls": decoded(message["tool_calls"])} if message.get("tool_calls") else message for message in messages
    ]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def filled(message: dict[str, Any]) -> set[str]:
    """Name the keys of a message that hold something."""
    return {key for key, value in message.items() if value not in (None, "", [], {})}


def shape(messages: Messages, tools: Any) -> tuple[Any, ...]:
    """Describe a chat by its roles and keys: chats of one shape take the same path through nearly every template."""
    return bool(tools), *((message["role"], *sorted(filled(message))) for message in messages)
