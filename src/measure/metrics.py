"""List the metrics: one row each, which every judge, table, figure, page and model card reads.

A new metric is a row of ``METRICS`` and, if it is computed from answers, a function of a ``Reading``. Nothing else names it.
A metric's full name is ``split/name``, such as ``test/loss``; the row is the same for every split.

chrF is Popović's (2015) and BLEU is of the whole corpus with all references (13a, cased), both by sacrebleu. FinLoRA's
BERTScore needs a second model and is not computed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ANY = "any"  # in a row's ``kinds``: generated answers of every kind
LIKELIEST = "likeliest"  # in a row's ``kinds``: the choice of the smallest log-loss, for which nothing is generated
POINTS = "0 to 100"


@dataclass(frozen=True)
class Reading:
    """Answers [n] as a judge has read them.

    read, wanted: what each answer says and what its target says; correct: whether it is right; unreadable: whether
    nothing could be read in it, for kinds of answers of which that can happen; labels: of a label task.
    """

    read: Sequence[Any]
    wanted: Sequence[Any]
    correct: list[bool]
    unreadable: list[bool] = field(default_factory=list)
    labels: Sequence[str] = ()


Score = Callable[[Reading], float]


@dataclass(frozen=True)
class Metric:
    """A metric, and all that a reader of its numbers needs.

    name: the part after the split. label: in headings and on axes. meaning: in a model card, a phrase. unit: behind the
    label, in parentheses. margin: the largest difference that counts as none, in that unit. shown: as a column of the
    comparison always, where at least one run has it, or never. kinds: the kinds of answers (``answers.JUDGES``, ``ANY`` or
    ``LIKELIEST``) that ``score`` is computed from; without a score it is measured elsewhere.
    """

    name: str
    label: str
    meaning: str
    unit: str = ""
    lower_is_better: bool = False
    margin: float = 0.01
    shown: Literal["always", "where measured", "never"] = "where measured"
    kinds: tuple[str, ...] = ()
    score: Score | None = None


def share_correct(reading: Reading) -> float:
    return share(reading.correct)


def share_unreadable(reading: Reading) -> float:
    return share(reading.unreadable)


def macro_f1(reading: Reading) -> float:
    """Average F1 over those labels that are some target's; an unreadable answer is a class of its own and so always a miss.

    A label that no target has cannot be predicted rightly, and would only count how many test examples were left out.
    """
    from sklearn.metrics import f1_score

    wanted = [label for label in reading.labels if label in set(reading.wanted)]
    if not wanted:
        return 0.0
    return float(f1_score(list(reading.wanted), list(reading.read), labels=wanted, average="macro", zero_division=0.0))


def item_f1(reading: Reading) -> float:
    """Compute micro-averaged F1 of items, each example's a multiset in any order: 2 hits / (items read + items wanted)."""
    hits = sum((Counter(a) & Counter(b)).total() for a, b in zip(reading.read, reading.wanted, strict=True))
    total = sum(map(len, reading.read)) + sum(map(len, reading.wanted))
    return 2 * hits / total if total else 0.0


def item_accuracy(reading: Reading) -> float:
    """Compute the share of wanted items that stand at their place in the answer, which FinLoRA calls accuracy on FiNER."""
    hits: int = sum(x == y for a, b in zip(reading.read, reading.wanted, strict=True) for x, y in zip(a, b, strict=False))
    return hits / max(1, sum(map(len, reading.wanted)))


def chrf(reading: Reading) -> float:
    """Compute corpus chrF of texts against one target each, 0 to 100."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(reading.read), [list(reading.wanted)]).score)


def bleu(reading: Reading) -> float:
    """Compute corpus BLEU of texts, each against all of its references, 0 to 100. It is not the script of the E2E challenge."""
    from sacrebleu import corpus_bleu

    # A text with fewer references than another has None in the last streams, which sacrebleu reads over.
    longest = max(map(len, reading.wanted))
    streams: Any = [[known[i] if i < len(known) else None for known in reading.wanted] for i in range(longest)]
    return float(corpus_bleu(list(reading.read), streams).score)


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


# In the order of columns and of a card's lines.
METRICS = (
    Metric("loss", "loss", "log-loss", "nats per target token", lower_is_better=True, shown="always"),
    Metric(
        "exact_match", "exact match", "greedy answers that are right", "share", shown="always", kinds=(ANY,), score=share_correct
    ),
    Metric("macro_f1", "macro f1", "macro-F1", kinds=("label",), score=macro_f1),
    Metric(
        "choice_accuracy", "choice accuracy", "share of choices of the smallest log-loss that are right",
        kinds=(LIKELIEST,), score=share_correct,
    ),
    Metric("item_f1", "item f1", "F1 of listed items", kinds=("tags",), score=item_f1),
    Metric(
        "item_accuracy", "item accuracy", "share of listed items that are right at their place",
        kinds=("tags",), score=item_accuracy,
    ),
    Metric("chrf", "chrf", "chrF", POINTS, margin=1.0, kinds=("overlap",), score=chrf),
    Metric("bleu", "bleu", "BLEU", POINTS, margin=1.0, kinds=("bleu",), score=bleu),
    Metric(
        "parse_failures", "parse failures", "share of answers that could not be read",
        lower_is_better=True, kinds=("label", "choice", "number"), score=share_unreadable,
    ),
    # Forgetting: log-loss of held-out prose. The table has a column of its own for the change.
    Metric("before", "before", "log-loss per token of held-out prose in nats, the base", lower_is_better=True, shown="never"),
    Metric(
        "after", "after", "log-loss per token of held-out prose in nats, with the adapter", lower_is_better=True, shown="never"
    ),
    Metric("change", "change", "change of the log-loss of held-out prose in nats", lower_is_better=True, shown="never"),
)  # fmt: skip


def metric(full_name: str) -> Metric:
    """Find the row of ``split/name``. A name without a row is taken for a share, of which more is better."""
    name = full_name.rpartition("/")[2]
    return next((row for row in METRICS if row.name == name), Metric(name, name.replace("_", " "), name, shown="never"))


def words(full_name: str) -> str:
    """Name a metric with its split: ``test exact match``."""
    split = full_name.rpartition("/")[0]
    return " ".join([*filter(None, re.split("[/_]+", split)), metric(full_name).label])


def heading(full_name: str) -> str:
    """Name a metric above a column: without the test split, but for the loss, which has other splits beside it."""
    split, _, name = full_name.rpartition("/")
    return metric(full_name).label if split == "test" and name != "loss" else words(full_name)


def label(full_name: str) -> str:
    """Name a metric with its split and unit: ``test loss (nats per target token)``."""
    unit = metric(full_name).unit
    return words(full_name) + (f" ({unit})" if unit else "")


def scores(kinds: Iterable[str], reading: Reading) -> dict[str, float]:
    """Compute the metrics of answers of these kinds, by name, in the order of the rows."""
    return {row.name: row.score(reading) for row in METRICS if row.score is not None and set(row.kinds) & set(kinds)}
