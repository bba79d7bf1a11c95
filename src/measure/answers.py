"""How an answer is judged: pure functions of texts and examples. What is right is strict, and said here.

text     the target to the letter, surrounding white space aside.
label    one of the labels, nothing beside it: letter case, surrounding white space, quotes and closing punctuation aside.
choice   likewise one of the example's choices. ``chosen`` judges by log-loss instead, and needs no generation.
number   the final number is the target's, to within ``TOLERANCE``.
tags     a comma list, item by item in order, letter case and white space aside. ``item_f1`` counts items wherever they
         stand; ``item_accuracy`` is the share of places with the right item, which FinLoRA calls accuracy on FiNER.
overlap  the target to the letter; beside it chrF (Popović, 2015) by sacrebleu. FinLoRA's BERTScore needs a second model and
         is not computed.
bleu     any of the references to the letter; beside it corpus BLEU with all references by sacrebleu (13a, cased), which
         is not the script of the E2E challenge.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.schema import DatasetConfig
from ..data.datasets import Example
from ..data.formats import normalised
from ..files.errors import ConfigError

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
    """correct: one for each text. metrics: of all texts, without the name of a split; shares, but for chrf and bleu (0-100)."""

    correct: list[bool]
    metrics: dict[str, float]


def kind(dataset: DatasetConfig) -> str:
    """How answers of a dataset are judged: labels make a label task."""
    return "label" if dataset.labels and dataset.answer == "text" else dataset.answer


def judge(how: str, texts: Sequence[str], examples: Sequence[Example], labels: Sequence[str] = ()) -> Judged:
    """Judge generated answers; ``exact_match`` is the share that is right in the sense of ``how``, whatever else is measured."""
    targets = [example.target for example in examples]
    correct = exact_match(texts, targets)
    metrics: dict[str, float] = {}
    if how == "label":
        parsed = [parse_label(text, labels) for text in texts]
        gold = [parse_label(target, labels) for target in targets]
        correct = [p == g != UNPARSED for p, g in zip(parsed, gold, strict=True)]
        metrics = {"macro_f1": macro_f1(parsed, gold, labels), "parse_failures": _share(p == UNPARSED for p in parsed)}
    elif how == "choice":
        parsed = [parse_label(text, example.choices) for text, example in zip(texts, examples, strict=True)]
        correct = [p == target for p, target in zip(parsed, targets, strict=True)]
        metrics = {"parse_failures": _share(p == UNPARSED for p in parsed)}
    elif how == "number":
        numbers = [final_number(text) for text in texts]
        correct = [same_number(found, final_number(target)) for found, target in zip(numbers, targets, strict=True)]
        metrics = {"parse_failures": _share(number is None for number in numbers)}
    elif how == "tags":
        found, wanted = [items(text) for text in texts], [items(target) for target in targets]
        correct = [a == b for a, b in zip(found, wanted, strict=True)]
        metrics = {"item_f1": item_f1(found, wanted), "item_accuracy": item_accuracy(found, wanted)}
    elif how == "overlap":
        metrics = {"chrf": chrf(texts, targets)}
    elif how == "bleu":
        references = [example.references or (example.target,) for example in examples]
        correct = [any(exact_match([text] * len(known), known)) for text, known in zip(texts, references, strict=True)]
        metrics = {"bleu": bleu(texts, references)}
    return Judged(correct, {"exact_match": _share(correct), **metrics})


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
    """For each example the choice whose target text has the smallest summed log-loss; the first of equal ones.

    Args:
        nats: of each choice of each example, in order; one that is not finite is never chosen before one that is.
    """
    offered = sum(len(example.choices) for example in examples)
    if len(nats) != offered:
        raise ValueError(f"{len(nats)} log-losses for {offered} choices")
    found, at = [], 0
    for example in examples:
        own = [value if math.isfinite(value) else math.inf for value in nats[at : at + len(example.choices)]]
        found.append(example.choices[own.index(min(own))])
        at += len(own)
    return found


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> list[bool]:
    """Whether each prediction is its target, surrounding white space aside."""
    return [p.strip() == t.strip() for p, t in zip(predictions, targets, strict=True)]


def parse_label(prediction: str, labels: Sequence[str]) -> str:
    """The label that the answer is, or ``UNPARSED``.

    An answer that merely contains a label is not parsed: "not negative" is no vote for "negative". Nor is one with two labels.
    """
    for read in (_plain, _bare):
        found = [label for label in labels if read(label) == read(prediction)]
        if found:
            return found[-1] if read is _plain or len(found) == 1 else UNPARSED
    return UNPARSED


def _plain(text: str) -> str:
    return text.strip().casefold()


def _bare(text: str) -> str:
    """Without white space and quotes around it, and closing punctuation inside or outside of these."""
    return normalised(text).strip(QUOTES + " ").rstrip(CLOSING + " ").strip(QUOTES + " ")


def macro_f1(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> float:
    """Mean of F1 over those labels that are some target's; an unparsed answer is a class of its own and so always a miss.

    A label that no target has cannot be found, and would only count how many test examples were left out.
    """
    from sklearn.metrics import f1_score

    wanted = [label for label in labels if label in set(targets)]
    return float(f1_score(list(targets), list(predictions), labels=wanted, average="macro", zero_division=0.0)) if wanted else 0.0


def final_number(text: str) -> float | None:
    """The number after the last ``####``, else the last number; None where there is none.

    Commas between thousands and signs of currency are read over. A percent sign is too: 5% is 5. 1/2 is a half.
    """
    _, mark, after = text.rpartition("####")
    found = list(NUMBER.finditer(after))
    if not found:
        return None
    match = found[0] if mark else found[-1]
    sign = match["sign"] or match["inner"]
    negative = sign in ("-", "\u2212") and not MINUEND.search(after[: match.start()])
    value = float(match["digits"].replace(",", "") + (match["power"] or ""))
    if match["below"] and after[: match.start("digits")].rstrip().endswith("/"):  # of a date, which is no fraction
        value = float(match["below"])
    elif match["below"]:
        value = value / float(match["below"]) if float(match["below"]) else math.inf
    return (-value if negative else value) if math.isfinite(value) else None


def same_number(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= TOLERANCE


def items(text: str) -> list[str]:
    """The items of a comma list without letter case and white space; empty ones are none."""
    return [item for part in text.casefold().split(",") if (item := "".join(part.split()))]


def item_f1(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 of items, each example's a multiset: 2 hits / (items found + items wanted)."""
    hits = sum((Counter(a) & Counter(b)).total() for a, b in zip(found, wanted, strict=True))
    total = sum(map(len, found)) + sum(map(len, wanted))
    return 2 * hits / total if total else 0.0


def item_accuracy(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """Share of wanted items that stand at their place in the answer."""
    hits = sum(x == y for a, b in zip(found, wanted, strict=True) for x, y in zip(a, b, strict=False))
    return hits / max(1, sum(map(len, wanted)))


def chrf(texts: Sequence[str], targets: Sequence[str]) -> float:
    """Corpus chrF, 0 to 100."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(texts), [list(targets)]).score)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, each text against all of its references."""
    from sacrebleu import corpus_bleu

    # A text with fewer references than another has None in the last streams, which sacrebleu reads over.
    streams: Any = [[known[at] if at < len(known) else None for known in references] for at in range(max(map(len, references)))]
    return float(corpus_bleu(list(texts), streams).score)


def _share(flags: Iterable[bool]) -> float:
    known = list(flags)
    return sum(known) / len(known)
