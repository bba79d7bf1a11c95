"""Define what is read from a row, and read the rows of the named tasks as prompt and target.

The prompts of GSM8K, Banking77 and E2E are ours, with a line break before the answer, where every tokenizer starts a new
token. Those of the commonsense tasks are LLM-Adapters' (arXiv 2304.01933) and DoRA's (arXiv 2402.09353), white space
included, so that numbers compare with theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..files.errors import ConfigError

Messages = list[dict[str, Any]]  # as a chat template takes them: "role", "content", and what else it renders
INDENT = "\n" + " " * 16
TASK = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."
ANSWER_FORMAT = re.compile(r"Answer format: ?([^\n/]+(?:/[^\n/]+)+)\s*$")
ANSWER = "the correct answer is "


@dataclass(frozen=True)
class ParsedRow:
    """The content of a row. ``question`` is equal in two rows that ask the same question in another spelling.

    choices: the possible targets of a multiple-choice question; empty where the answer is free.
    """

    prompt: str | Messages
    target: str
    question: str
    choices: tuple[str, ...] = ()
    tools: list[dict[str, Any]] | None = None
    weights: tuple[int | None, ...] = ()  # of a chat's messages, where the assistant's name any


@dataclass(frozen=True)
class Shape:
    """One layout of a row, and the function that reads it. A key that stands in none of the three lists is not read.

    ``idle`` are keys of published files that this reading has no use for, such as an id.
    """

    needs: tuple[str, ...]
    parse: Callable[[dict[str, Any], str], ParsedRow]
    may: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


def normalized(text: str) -> str:
    """Remove differences in letter case and white space from a text."""
    return " ".join(text.casefold().split())


def wording(text: str) -> str:
    """Keep letters and digits alone: 29 test rows of Banking77 differ from training rows only by signs such as "?".

    Not for questions that differ by a sign alone, such as ``3+4`` and ``3-4``.
    """
    return "".join(filter(str.isalnum, text.casefold())) or normalized(text)


def texts(row: dict[str, Any], where: str, *keys: str) -> list[str]:
    """Look up the texts under ``keys``; raise ConfigError where one is missing or empty."""
    for key in keys:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ConfigError(f"{where}: needs {listed(keys)}, each a text; '{key}' is no text")
    return [row[key] for key in keys]


def listed(keys: Sequence[str]) -> str:
    """Join the names of keys for a message."""
    return " and ".join(f"'{key}'" for key in keys)


def gsm8k(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse grade-school math (arXiv 2110.14168). The target is the worked answer unchanged, with its ``<<3*4=12>>``."""
    question, answer = texts(row, where, "question", "answer")
    if not re.search(r"####\s*\S", answer):
        raise ConfigError(f"{where}: 'answer' needs '####' and a number at its end")
    return ParsedRow(f"Question: {question}\nAnswer:\n", answer, normalized(question))


def commonsense(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse a row of LLM-Adapters' files."""
    instruction, output = texts(row, where, "instruction", "output")
    context = row.get("input") or ""
    named = ANSWER_FORMAT.search(instruction)
    if named is None:
        raise ConfigError(f"{where}: 'instruction' needs 'Answer format: A/B' at its end")
    if not isinstance(context, str):
        raise ConfigError(f"{where}: 'input' is no text")
    choices = tuple(ANSWER + name.strip() for name in named[1].split("/"))
    if output not in choices:
        raise ConfigError(f"{where}: 'output' is none of '{ANSWER}' and {named[1].strip()}")
    parts = [f"{TASK}, paired with an input that provides further context. {REQUEST}" if context else f"{TASK}. {REQUEST} "]
    parts += ["", "### Instruction:", instruction]
    parts += ["", "### Input:", context] if context else []
    parts += ["", "### Response:", ""]
    prompt = "".join(part if not i else "\n" if not part and i < len(parts) - 1 else INDENT + part
                     for i, part in enumerate(parts))  # fmt: skip
    return ParsedRow(prompt, output, wording(f"{instruction} {context}"), choices)


def boolq(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse a row of the hub's BoolQ: rephrased as LLM-Adapters does."""
    (question,) = texts(row, where, "question")
    if not isinstance(row["answer"], bool):
        raise ConfigError(f"{where}: 'answer' needs true or false")
    text = f"Please answer the following question with true or false, question: {question}?\n\nAnswer format: true/false"
    return commonsense({"instruction": text, "output": ANSWER + str(row["answer"]).lower()}, where)


def multiple_choice(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse a row of the hub's ARC or OpenBookQA: rephrased as LLM-Adapters does."""
    (question,) = texts(row, where, "question_stem" if "question_stem" in row else "question")
    offered = row["choices"] if isinstance(row["choices"], dict) and set(row["choices"]) == {"text", "label"} else {}
    options, keys = offered.get("text"), offered.get("label")
    if not _are_texts(options) or not _are_texts(keys) or len(options) != len(keys) or row["answerKey"] not in keys:
        raise ConfigError(f"{where}: 'choices' needs the lists 'text' and 'label', and 'answerKey' one of the labels")
    offers = " ".join(f"Answer{number}: {text}" for number, text in enumerate(options, start=1))
    names = [f"answer{number}" for number in range(1, len(options) + 1)]
    text = f"Please choose the correct answer to the question: {question}\n\n{offers}\n\nAnswer format: {'/'.join(names)}"
    return commonsense({"instruction": text, "output": ANSWER + names[keys.index(row["answerKey"])]}, where)


def banking77(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse a customer's query and its intent (arXiv 2003.04807): ``text`` and ``category``, or ``label_text`` as on the hub."""
    text, category = texts(row, where, "text", "label_text" if "label_text" in row else "category")
    return ParsedRow(f"Query: {text}\nIntent:\n", category, wording(text))


def e2e(row: dict[str, Any], where: str) -> ParsedRow:
    """Parse a meaning representation and a text that expresses it (arXiv 1706.09254); held-out rows are pooled."""
    hub = "meaning_representation" in row
    mr, ref = texts(row, where, *(("meaning_representation", "human_reference") if hub else ("mr", "ref")))
    return ParsedRow(f"Data: {mr}\nText:\n", ref, normalized(mr))


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


TASKS: dict[str, tuple[Shape, ...]] = {
    "gsm8k": (Shape(("question", "answer"), gsm8k),),
    "commonsense": (
        Shape(("instruction", "output"), commonsense, ("input",), idle=("answer",)),
        Shape(("question", "answer"), boolq, idle=("passage", "title")),  # asked without its passage
        Shape(("question", "choices", "answerKey"), multiple_choice, idle=("id",)),
        Shape(("question_stem", "choices", "answerKey"), multiple_choice, idle=("id",)),
    ),
    "banking77": (
        Shape(("text", "category"), banking77),
        Shape(("text", "label_text"), banking77, idle=("label",)),  # the number of the label
    ),
    "e2e": (Shape(("mr", "ref"), e2e), Shape(("meaning_representation", "human_reference"), e2e)),
}
POOLED = ("e2e",)  # held-out rows with the same question become one example with several references
