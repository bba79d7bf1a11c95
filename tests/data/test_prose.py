"""Prose is told from everything else in a text, cut into rows, and refused where there is none."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.config.schema import ForgettingConfig
from src.data import prose
from src.data.prose import Prose, paragraphs, windows
from src.files.errors import ConfigError

SENTENCES = """Some of the images were taken at different times, with other light and with other faces, but all of them before
the same dark wall, and with the same people in an upright, frontal position."""
ONE_LINE = " ".join(SENTENCES.split())


class Letters:
    """A tokenizer whose tokens are letters, with a begin-of-sequence token 0 in front of a text if it ``begins``."""

    bos_token_id = 0

    def __init__(self, begins: bool) -> None:
        self.begins = begins

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0] * (self.begins and add_special_tokens) + [ord(letter) for letter in text])


@pytest.mark.parametrize(
    "other",
    [
        "=====  =====\n" + "rows   30 of them, and of the columns there are as many as there are days in a year or more.\n" * 2,
        "- " + ONE_LINE,
        "* " + ONE_LINE,
        f">>> {ONE_LINE}",
        f"name : text, optional\n    {ONE_LINE}",  # a parameter of a function
        f"{ONE_LINE[:-1]}:",  # what it announces is not read
        f"{ONE_LINE} See https://example.org/a for all of it.",
        "Bradley Efron, Trevor Hastie, Iain Johnstone and Robert Tibshirani, Least Angle Regression, Annals of Statistics, with a"
        " discussion by David Madigan, Greg Ridgeway, Sanford Weisberg and others, Volume 32, Institute of Statistics, 2004.",
        "Too short to be told from a caption.",
        "and " + ONE_LINE,
    ],
)
def test_what_is_no_prose_is_left_out(other: str) -> None:
    assert list(paragraphs(f"{other}\n\n{SENTENCES}\n\n{other}\n")) == [ONE_LINE]


def test_markup_is_taken_off() -> None:
    marked = (
        "A :class:`~sklearn.tree.Tree` is what the :ref:`guide to trees <trees>` and `this page <https://example.org>`__ say"
        " [1]_, with ``fit`` and `predict` **both** there, and with nothing in it that a person could not read aloud to others."
    )
    (paragraph,) = paragraphs(marked)
    assert paragraph == (
        "A sklearn.tree.Tree is what the guide to trees and this page say, with fit and predict both there, and with nothing in"
        " it that a person could not read aloud to others."
    )


def test_the_default_is_english_in_whole_sentences() -> None:
    loaded = prose.load(ForgettingConfig())
    assert loaded.source == f"scikit-learn {version('scikit-learn')}"
    words = loaded.text.split()
    assert len(words) > 4_500  # a token is three quarters of a word or less
    lines = loaded.text.split("\n\n")
    assert len(lines) == len(set(lines))
    assert all(line[0].isupper() and line.endswith(".") and "\n" not in line for line in lines)
    assert not re.search(r"[`*=<>\\|{}_\[\]$#@]|https?:", loaded.text)
    # The five commonest words of English, as often as in English.
    assert 0.15 < sum(word in ("the", "of", "and", "to", "a") for word in words) / len(words) < 0.3


def test_the_fingerprint_is_that_of_the_text() -> None:
    # sha256sum of the three letters, as every implementation's test vector has it.
    assert Prose("x", "abc").fingerprint() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("begins", "tokens", "rows"),
    [
        (False, 10, [("a", "bcd"), ("e", "fgh"), ("i", "j")]),
        (False, 9, [("a", "bcd"), ("e", "fgh")]),  # i has nothing after it
        (True, 7, [("\0", "abc"), ("\0", "def"), ("\0", "g")]),
        (True, 100, [("\0", "abc"), ("\0", "def"), ("\0", "ghi"), ("\0", "j")]),
    ],
)
def test_rows_by_hand(begins: bool, tokens: int, rows: list[tuple[str, str]]) -> None:
    items = windows(Prose("x", "abcdefghij"), Letters(begins), tokens, 4)
    assert [("".join(map(chr, item.prompt)), "".join(map(chr, item.target))) for item in items] == rows


def test_a_row_must_have_something_to_score() -> None:
    with pytest.raises(ConfigError, match=r"^forgetting\.tokens=1: leaves no token of x to score$"):
        windows(Prose("x", "abc"), Letters(begins=False), 1, 4)


def test_a_text_of_ones_own(folder: Path) -> None:
    path = folder / "mine.txt"
    path.write_bytes("\ufeffÄ text\r\nin lines\n".encode())
    loaded = prose.load(ForgettingConfig(path=str(path)))
    assert (loaded.source, loaded.text) == (str(path), "Ä text\r\nin lines\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b" \n\t\n", "the file is empty"),
        ("naïve".encode("latin-1"), "not UTF-8 (byte 3)"),
        ("a folder", "is a folder, not a file"),
    ],
)
def test_what_is_no_text_is_refused(folder: Path, content: bytes | str | None, says: str) -> None:
    path = folder / "mine.txt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(ConfigError) as caught:
        prose.load(ForgettingConfig(path=str(path)))
    assert str(caught.value) == f"forgetting.path={path}: {says}"
