"""Parse rows of each format into prompt and target: ``FORMATS`` maps a name to a pure function of the row and its place.

The prompts of GSM8K, Banking77 and E2E are ours, with a line break before the answer, where every tokenizer starts a new
token. Those of the commonsense tasks are LLM-Adapters' (arXiv 2304.01933) and DoRA's (arXiv 2402.09353), white space
included, so that numbers compare with theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..files.errors import ConfigError

Messages = list[dict[str, Any]]  # as a chat template takes them: "role", "content", and what else it renders
PAIRS = (("context", "target"), ("prompt", "completion"), ("prompt", "target"))
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


def normalized(text: str) -> str:
    """Remove differences in letter case and white space from a text."""
    return " ".join(text.casefold().split())


def wording(text: str) -> str:
    """Keep letters and digits alone: 29 test rows of Banking77 differ from training rows only by signs such as "?".

    Not for questions that differ by a sign alone, such as ``3+4`` and ``3-4``.
    """
    return "".join(filter(str.isalnum, text.casefold())) or normalized(text)


def pairs(row: Any, where: str) -> ParsedRow:
    """Parse {"context","target"}, {"prompt","completion"}, {"prompt","target"} or chat {"messages"}."""
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: needs an object such as {{'prompt': ..., 'completion': ...}}")
    if "messages" in row:
        prompt, target = _chat(row["messages"], where)
        return ParsedRow(prompt, target, normalized(json.dumps(prompt, ensure_ascii=False)))
    for asked, answered in PAIRS:
        if isinstance(row.get(asked), str) and isinstance(row.get(answered), str):
            if not row[answered].strip():
                raise ConfigError(f"{where}: the target '{answered}' is empty")
            return ParsedRow(row[asked], row[answered], normalized(row[asked]))
    if "context" in row or "prompt" in row:
        raise ConfigError(f"{where}: no target; needs 'target' beside 'context', 'completion' beside 'prompt', each a text")
    raise ConfigError(f"{where}: needs the keys 'context' and 'target', 'prompt' and 'completion', or 'messages'")


def _chat(messages: Any, where: str) -> tuple[Messages, str]:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        raise ConfigError(f"{where}: 'messages' needs a list of objects with the texts 'role' and 'content'")
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ConfigError(f"{where}: no target; the last of 'messages' needs the role 'assistant' and a text")
    return [{"role": m["role"], "content": m["content"]} for m in messages[:-1]], messages[-1]["content"]


def gsm8k(row: Any, where: str) -> ParsedRow:
    """Parse grade-school math (arXiv 2110.14168). The target is the worked answer unchanged, with its ``<<3*4=12>>``."""
    question, answer = _texts(row, where, "question", "answer")
    if not re.search(r"####\s*\S", answer):
        raise ConfigError(f"{where}: 'answer' needs '####' and a number at its end")
    return ParsedRow(f"Question: {question}\nAnswer:\n", answer, normalized(question))


def commonsense(row: Any, where: str) -> ParsedRow:
    """Parse a row of LLM-Adapters' files, or of BoolQ, ARC and OpenBookQA as the Hugging Face hub has them."""
    row = _as_instruction(row, where)
    instruction, output = _texts(row, where, "instruction", "output")
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


def _as_instruction(row: Any, where: str) -> Any:
    """Rephrase a row of the hub's BoolQ, ARC or OpenBookQA as LLM-Adapters does; return any other row unchanged."""
    if not isinstance(row, dict) or "instruction" in row:
        return row
    question = row.get("question_stem", row.get("question"))
    if isinstance(question, str) and isinstance(row.get("answer"), bool):
        answer = str(row["answer"]).lower()
        text = f"Please answer the following question with true or false, question: {question}?\n\nAnswer format: true/false"
        return {"instruction": text, "output": ANSWER + answer}
    offered = row.get("choices")
    if not isinstance(question, str) or not isinstance(offered, dict):
        return row
    texts, keys = offered.get("text") or [], offered.get("label") or []
    if not _are_texts(texts) or not _are_texts(keys) or len(texts) != len(keys) or row.get("answerKey") not in keys:
        raise ConfigError(f"{where}: 'choices' needs the lists 'text' and 'label', and 'answerKey' one of the labels")
    listed = " ".join(f"Answer{number}: {text}" for number, text in enumerate(texts, start=1))
    names = [f"answer{number}" for number in range(1, len(texts) + 1)]
    text = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\nAnswer format: {'/'.join(names)}"
    return {"instruction": text, "output": ANSWER + names[keys.index(row["answerKey"])]}


def banking77(row: Any, where: str) -> ParsedRow:
    """Parse a customer's query and its intent (arXiv 2003.04807): ``text`` and ``category``, or ``label_text`` as on the hub."""
    text, category = _texts(row, where, "text", "label_text" if isinstance(row, dict) and "label_text" in row else "category")
    return ParsedRow(f"Query: {text}\nIntent:\n", category, wording(text))


def e2e(row: Any, where: str) -> ParsedRow:
    """Parse a meaning representation and a text that expresses it (arXiv 1706.09254); held-out rows are pooled."""
    hub = isinstance(row, dict) and "meaning_representation" in row
    mr, ref = _texts(row, where, *(("meaning_representation", "human_reference") if hub else ("mr", "ref")))
    return ParsedRow(f"Data: {mr}\nText:\n", ref, normalized(mr))


FORMATS: dict[str, Callable[[Any, str], ParsedRow]] = {
    "pairs": pairs,
    "gsm8k": gsm8k,
    "commonsense": commonsense,
    "banking77": banking77,
    "e2e": e2e,
}
POOLED = ("e2e",)  # held-out rows with the same question become one example with several references


def _texts(row: Any, where: str, *keys: str) -> list[str]:
    """Look up the texts under ``keys``; raise ConfigError where one is missing or empty."""
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: needs an object with {_listed(keys)}")
    for key in keys:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ConfigError(f"{where}: needs {_listed(keys)}, each a text; '{key}' is none")
    return [row[key] for key in keys]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _listed(keys: Sequence[str]) -> str:
    return " and ".join(f"'{key}'" for key in keys)
