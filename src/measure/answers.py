"""Judge answers: which are right, and what a metric may count of them. Pure functions of texts and examples.

What is right is strict, and defined here by kind of answer:

text     the target to the letter, surrounding white space aside.
label    one of the labels, nothing beside it: letter case, surrounding white space, quotes and closing punctuation aside.
choice   likewise one of the example's choices. ``chosen`` judges by log-loss instead, and needs no generation.
number   the final number is the target's, to within ``TOLERANCE``.
tags     a comma list, item by item in order, letter case and white space aside.
overlap  the target to the letter.
bleu     any of the references to the letter.

src/measure/metrics.py has what is computed beside the share that is right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..config.schema import DatasetConfig
from ..data.datasets import Example
from ..data.formats import normalized
from ..files.errors import ConfigError
from .metrics import ANY, LIKELIEST, Reading, scores

UNPARSED = "<unparsed>"
TOLERANCE = 1e-6  # absolute
QUOTES = "\"'`“”‘’«»"  # noqa: RUF001
CLOSING = ".,;:!?"
# Thousands may be set apart by commas. A sign stands right before its number, and after nothing it could be subtracted from.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]%])[-+\u2212](?=[$€£¥]?[\d.]))?(?:[$€£¥]\s?(?P<inner>[-+\u2212])?)?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)(?P<power>[eE][-+]?\d{1,3})?"
    r"(?:\s?/\s?(?P<below>\d+(?:\.\d+)?)(?![\d/]))?"
)
MINUEND = re.compile(r"[\d)\]%]\s*$")


@dataclass(frozen=True)
class Judged:
    """The verdict on answers. correct: one for each text; metrics: of all texts, without the name of a split."""

    correct: list[bool]
    metrics: dict[str, float]


def kind(dataset: DatasetConfig) -> str:
    """Name the judge of a dataset's answers, a key of ``JUDGES``: labels make a label task."""
    return "label" if dataset.labels and dataset.answer == "text" else dataset.answer


def judge(kind: str, texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str] = ()) -> Judged:
    """Judge generated answers; whatever else is measured, the share that is right in the sense of ``kind`` is.

    Raises:
        KeyError: there is no such kind of answers.
    """
    reading = JUDGES[kind](texts, examples, labels)
    return Judged(reading.correct, scores((ANY, kind), reading))


def judge_chosen(choices: Sequence[str], examples: Sequence[Example]) -> Judged:
    """Judge the choices of the smallest log-loss, see ``chosen``."""
    targets = [example.target for example in examples]
    reading = Reading(choices, targets, [a == b for a, b in zip(choices, targets, strict=True)])
    return Judged(reading.correct, scores((LIKELIEST,), reading))


def _text(texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Reading:
    targets = [example.target for example in examples]
    return Reading(texts, targets, exact_match(texts, targets))


def _label(texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Reading:
    parsed = [parse_label(text, labels) for text in texts]
    wanted = [parse_label(example.target, labels) for example in examples]
    correct = [a == b != UNPARSED for a, b in zip(parsed, wanted, strict=True)]
    return Reading(parsed, wanted, correct, [label == UNPARSED for label in parsed], labels)


def _choice(texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Reading:
    parsed = [parse_label(text, example.choices) for text, example in zip(texts, examples, strict=True)]
    wanted = [example.target for example in examples]
    correct = [a == b for a, b in zip(parsed, wanted, strict=True)]
    return Reading(parsed, wanted, correct, [choice == UNPARSED for choice in parsed])


def _number(texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Reading:
    numbers = [final_number(text) for text in texts]
    wanted = [final_number(example.target) for example in examples]
    correct = [same_number(a, b) for a, b in zip(numbers, wanted, strict=True)]
    return Reading(numbers, wanted, correct, [number is None for number in numbers])


def _tags(texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Reading:
    listed, wanted = [items(text) for text in texts], [items(example.target) for example in examples]
    return Reading(listed, wanted, [a == b for a, b in zip(listed, wanted, strict=True)])


def _references(texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Reading:
    references = [example.references or (example.target,) for example in examples]
    correct = [any(exact_match([text] * len(known), known)) for text, known in zip(texts, references, strict=True)]
    return Reading(texts, references, correct)


# By ``dataset.answer``: (texts [n], examples [n], the labels of a label task) -> what was read.
JUDGES: dict[str, Callable[[Sequence[str], Sequence[Example], Sequence[str]], Reading]] = {
    "text": _text,
    "label": _label,
    "number": _number,
    "choice": _choice,
    "tags": _tags,
    "overlap": _text,
    "bleu": _references,
}


def refuse_unanswerable(dataset: DatasetConfig, examples: Iterable[Example]) -> None:
    """Raise ConfigError where a target cannot be right, whatever the answer."""
    if dataset.answer != "number":
        return
    for example in examples:
        if final_number(example.target) is None:
            raise ConfigError(
                f"dataset.answer=number: {example.id} has the target {example.target!r}, in which there is no number"
            )


def chosen(nats: Sequence[float], examples: Sequence[Example]) -> list[str]:
    """Choose for each example the choice of the smallest summed log-loss; the first of equal ones.

    Args:
        nats: of each choice of each example, in order; one that is not finite is never chosen before one that is.
    """
    offered = sum(len(example.choices) for example in examples)
    if len(nats) != offered:
        raise ValueError(f"{len(nats)} log-losses for {offered} choices")
    choices, start = [], 0
    for example in examples:
        own = [value if math.isfinite(value) else math.inf for value in nats[start : start + len(example.choices)]]
        choices.append(example.choices[own.index(min(own))])
        start += len(own)
    return choices


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> list[bool]:
    """Compare each prediction with its target, surrounding white space aside."""
    return [p.strip() == t.strip() for p, t in zip(predictions, targets, strict=True)]


def parse_label(prediction: str, labels: Sequence[str]) -> str:
    """Find the label that the answer is, or return ``UNPARSED``.

    An answer that merely contains a label is not parsed: "not negative" is no vote for "negative". Nor is one with two labels.
    """
    for read in (_plain, _bare):
        matches = [label for label in labels if read(label) == read(prediction)]
        if matches:
            return matches[-1] if read is _plain or len(matches) == 1 else UNPARSED
    return UNPARSED


def _plain(text: str) -> str:
    return text.strip().casefold()


def _bare(text: str) -> str:
    """Strip white space and quotes around a text, and closing punctuation inside or outside of these."""
    return normalized(text).strip(QUOTES + " ").rstrip(CLOSING + " ").strip(QUOTES + " ")


def final_number(text: str) -> float | None:
    """Read the number after the last ``####``, else the last number; None where there is none.

    Commas between thousands and signs of currency are read over. A percent sign is too: 5% is 5. 1/2 is a half.
    """
    _, mark, after = text.rpartition("####")
    numbers = list(NUMBER.finditer(after))
    if not numbers:
        return None
    match = numbers[0] if mark else numbers[-1]
    sign = match["sign"] or match["inner"]
    negative = sign in ("-", "\u2212") and not MINUEND.search(after[: match.start()])
    value = float(match["digits"].replace(",", "") + (match["power"] or ""))
    if match["below"] and after[: match.start("digits")].rstrip().endswith("/"):  # of a date, which is no fraction
        value = float(match["below"])
    elif match["below"]:
        value = value / float(match["below"]) if float(match["below"]) else math.inf
    return (-value if negative else value) if math.isfinite(value) else None


def same_number(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= TOLERANCE


def items(text: str) -> list[str]:
    """Split a comma list into items without letter case and white space; empty ones are left out."""
    return [item for part in text.casefold().split(",") if (item := "".join(part.split()))]
