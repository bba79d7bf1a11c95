"""Read a regular expression from a file of somebody else, and refuse one that could search for hours.

Python's ``re`` tries ways of matching one after the other. Where a group repeats, as in ``(a+)+``, their number doubles with each
character. So a group may not repeat here, and the ways that are left are counted.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from math import prod
from typing import Any

from ..files.errors import ConfigError

LONGEST = 1000  # characters
NAME = 64  # characters of a module's name, as they commonly are: so many ways has each repetition to end
MOST_WAYS = 8 * NAME**3  # a second or two for all modules of a large model, by count of the matcher's steps

# The parser that ``re`` itself compiles with. What it gives and is not named below is refused.
_parser: Any = importlib.import_module("re._parser")
SINGLE = ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "CATEGORY")  # one character or none, in one way


class _TooMany(Exception):
    pass


def refuse_slow(pattern: str, where: str) -> None:
    """Raise ConfigError, in one line, for what is no regular expression or could take long; ``where`` names the key."""
    if len(pattern) > LONGEST:
        raise ConfigError(f"{where}: a pattern needs at most {LONGEST:,} characters; a list of names does as well")
    try:
        re.compile(pattern)
        many = _ways(_parser.parse(pattern)) > MOST_WAYS
    except _TooMany:
        many = True
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{where}: {pattern[:80]!r} is no regular expression ({error})") from error
    if many:
        raise ConfigError(
            f"{where}: the pattern {pattern[:80]!r} could take too long to match: a group may not repeat, and at most three"
            " repetitions may follow each other; a list of names does as well"
        )


def _ways(tokens: Iterable[Any]) -> int:
    """Count, from above, the ways in which the parts of a sequence can match some name."""
    return prod(_ways_of(str(kind), value) for kind, value in tokens)


def _ways_of(kind: str, value: Any) -> int:
    if kind in SINGLE:
        return 1
    if kind == "SUBPATTERN":
        return _ways(value[-1])
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _ways(value[1])
    if kind == "BRANCH":
        return _ways_of_branch([list(branch) for branch in value[1]])
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        _, most, body = value
        if most == 1:
            return 1 + _ways(body)
        if len(body) == 1 and str(body[0][0]) in SINGLE:
            return NAME
    raise _TooMany  # a group that repeats, a reference to a group, or what a later Python adds


def _ways_of_branch(branches: list[list[Any]]) -> int:
    """Of alternatives that begin with different letters only one can match."""
    first = [branch[0][1] if branch and str(branch[0][0]) == "LITERAL" else None for branch in branches]
    ways = [_ways(branch) for branch in branches]
    anywhere = sum(count for letter, count in zip(first, ways, strict=True) if letter is None)
    by_letter: dict[Any, int] = {}
    for letter, count in zip(first, ways, strict=True):
        if letter is not None:
            by_letter[letter] = by_letter.get(letter, 0) + count
    return anywhere + max(by_letter.values(), default=0)
