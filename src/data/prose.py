"""English prose that no run trains on: what a run forgets shows as log-loss on it (Biderman et al., arXiv 2405.09673).

By default the prose is documentation that scikit-learn ships (BSD-3-Clause): the descriptions of its datasets, then the
docstrings of ``SUBPACKAGES``, without tables, lists, code and references. Some 6,500 tokens on a narrow subject: they
tell runs apart that forget more or less, and compare with no published number. For that, ``forgetting.path`` takes a
file such as WikiText-2's test set. Nothing here imports torch.
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
WINDOW = 256  # tokens that are read together, at most
# No tokenizer that fits the text makes tokens this long on average, so a long file is not read into tokens to its end.
CHARACTERS_PER_TOKEN = 16

SHORTEST = 25  # words of a paragraph
PLAIN_WORDS = 0.8  # share of a paragraph's words in small letters: references and names of classes have fewer
# A role, a link, code or emphasis of reStructuredText, around what is read.
MARKUP = re.compile(r":[\w:]+:`~?([^`<]+?)(?: *<[^`]*>)?`|`([^`<]+?) *<[^`]*>`_{0,2}|`{1,2}([^`]+)`{1,2}_{0,2}|\*\*([^*]+)\*\*")
FOOTNOTE = re.compile(r" *\[\w+\]_")
CODE = re.compile(r"[`*=<>\\|{}_\[\]$#@/~^]|::|--|\.\.\.|\.py\b")


@dataclass(frozen=True)
class Prose:
    """``source`` names where the text is from, with a package's version or a file's path."""

    source: str
    text: str

    def fingerprint(self) -> str:
        """SHA-256 of the text: losses compare only over the same one."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load(forgetting: ForgettingConfig) -> Prose:
    """The text to score.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or has nothing in it; the message names it.
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
    """scikit-learn's descriptions of datasets, and docstrings, in the order of the files' names."""
    spec = util.find_spec("sklearn")  # not imported, which would count as memory of the run
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
    """The paragraphs of a reStructuredText that are prose, each as one line without markup."""
    for block in re.split(r"\n\s*\n", text):
        if any(line[:1].isspace() for line in block.splitlines()):  # the entry of a list, or code
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
    """The first ``tokens`` tokens of the text in rows of at most ``width`` tokens, to be scored as targets are.

    A row begins with the begin-of-sequence token, if the tokenizer puts one in front of a text; if not, with a token of
    the text, which is read and not scored.

    Raises:
        ConfigError: no token is left to score.
    """
    from .batches import Item

    text = prose.text[: tokens * CHARACTERS_PER_TOKEN]
    ids = tokenizer(text, add_special_tokens=False).input_ids[:tokens]
    start = [token for token in tokenizer("").input_ids[:1] if token == tokenizer.bos_token_id]
    step = width - len(start)
    rows = [start + ids[at : at + step] for at in range(0, len(ids), step)]
    nothing = Example("prose", "", "", "")
    items = [Item(nothing, row[:1], row[1:], cut=False) for row in rows if len(row) > 1]
    if not items:
        raise ConfigError(f"forgetting.tokens={tokens}: leaves no token of {prose.source} to score")
    return items
