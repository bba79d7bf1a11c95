"""Load English prose that no run trains on: forgetting shows as a higher log-loss on it (Biderman et al., arXiv 2405.09673).

By default the prose is documentation that scikit-learn ships (BSD-3-Clause): the descriptions of its datasets, then the
docstrings of ``SUBPACKAGES``, without tables, lists, code and references. Some 6,500 tokens on a narrow subject: they
show which run forgets more, and compare with no published number. For that, set ``forgetting.path`` to a file such as
WikiText-2's test set. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ForgettingConfig
from ..files.errors import ConfigError
from . import inputs
from .datasets import Example

if TYPE_CHECKING:
    from .batches import Item

SUBPACKAGES = ("cluster", "ensemble", "metrics", "model_selection", "preprocessing")
WINDOW = 256  # tokens of a row, at most
# Characters to tokenize for each token asked for, so that a long file is not tokenized to its end. No tokenizer that fits
# the text makes tokens this long on average.
CHARACTERS_PER_TOKEN = 16

SHORTEST = 25  # words of a paragraph
PLAIN_WORDS = 0.8  # share of a paragraph's words in small letters: references and names of classes have fewer
# A role, a link, code or emphasis of reStructuredText; a group holds the text inside.
MARKUP = re.compile(r":[\w:]+:`~?([^`<]+?)(?: *<[^`]*>)?`|`([^`<]+?) *<[^`]*>`_{0,2}|`{1,2}([^`]+)`{1,2}_{0,2}|\*\*([^*]+)\*\*")
FOOTNOTE = re.compile(r" *\[\w+\]_")
CODE = re.compile(r"[`*=<>\\|{}_\[\]$#@/~^]|::|--|\.\.\.|\.py\b")


@dataclass(frozen=True)
class Prose:
    """A text to score. ``source`` names its origin: a package with its version, or a file's path."""

    source: str
    text: str

    def fingerprint(self) -> str:
        """Hash the text (SHA-256): losses are comparable only on the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load(forgetting: ForgettingConfig) -> Prose:
    """Load the text to score.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is empty; the message names it.
    """
    return _default() if forgetting.path is None else _read(forgetting.path)


def _read(path: str) -> Prose:
    try:
        text = inputs.read(path, "forgetting.path").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"forgetting.path={path}: not UTF-8 (byte {error.start + 1})") from error
    if not text.strip():
        raise ConfigError(f"forgetting.path={path}: the file is empty")
    return Prose(str(Path(path).expanduser()), text)


@cache
def _default() -> Prose:
    kept = dict.fromkeys(paragraph for text in _documentation() for paragraph in paragraphs(text))  # docstrings repeat
    return Prose(f"scikit-learn {metadata.version('scikit-learn')}", "\n\n".join(kept))


def _documentation() -> Iterator[str]:
    """Yield scikit-learn's descriptions of datasets, then its docstrings, in the order of the files' names."""
    spec = util.find_spec("sklearn")  # not imported: that would count as memory of the run
    assert spec is not None and spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    for folder in (package / "datasets" / "descr", *(package / name for name in SUBPACKAGES)):
        for file in sorted(folder.iterdir()):
            if file.suffix == ".rst":
                yield file.read_text(encoding="utf-8")
            elif file.suffix == ".py":
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                        yield ast.get_docstring(node) or ""


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a reStructuredText that are prose, each as one line without markup."""
    for block in re.split(r"\n\s*\n", text):
        if any(line[:1].isspace() for line in block.splitlines()):  # a list entry, or code
            continue
        line = FOOTNOTE.sub("", MARKUP.sub(lambda match: next(filter(None, match.groups())), " ".join(block.split())))
        if _is_prose(line):
            yield line


def _is_prose(line: str) -> bool:
    words = [word.strip("""(),.;:"'""").replace("-", "").replace("'", "") for word in line.split()]
    if len(words) < SHORTEST or not line[0].isupper() or not line.endswith(".") or CODE.search(line):
        return False
    return sum(word.isalpha() and word.islower() for word in words) >= PLAIN_WORDS * len(words)


def windows(prose: Prose, tokenizer: Any, tokens: int, width: int) -> list[Item]:
    """Cut the first ``tokens`` tokens of the text into rows of at most ``width`` tokens, to be scored like targets.

    A row begins with the begin-of-sequence token if the tokenizer adds one to a text; if not, with a token of the text
    that is not scored.

    Raises:
        ConfigError: no token is left to score.
    """
    from .batches import Item

    text = prose.text[: tokens * CHARACTERS_PER_TOKEN]
    ids = tokenizer(text, add_special_tokens=False).input_ids[:tokens]
    start = [token for token in tokenizer("").input_ids[:1] if token == tokenizer.bos_token_id]
    step = width - len(start)
    rows = [start + ids[first : first + step] for first in range(0, len(ids), step)]
    nothing = Example("prose", "", "", "")
    items = [Item(nothing, row[:1], row[1:], cut=False) for row in rows if len(row) > 1]
    if not items:
        raise ConfigError(f"forgetting.tokens={tokens}: leaves no token of {prose.source} to score")
    return items
