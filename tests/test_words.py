"""Read the product's docstrings and names: a docstring begins with a verb or a noun, and no name hides what it holds.

A docstring that begins with "What", "Whether" or "How" is half a sentence, which a reader has to finish. A variable called
``found`` or ``at`` says how its value was reached, not what it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
FOLDERS = tuple(sorted(path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__"))
OPENING = re.compile(r"(?:What|How|Which|Whose|Whether|Who|Where|When)\b")
RIDDLES = {"found", "at", "one", "mine", "its", "said", "alike"}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, message) for each docstring that begins with a question word."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if OPENING.match(text):
                yield node.body[0].lineno, f"docstring begins with {text.split()[0]}"


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, message) for each variable, argument, attribute, function or class that a file names with a riddle.

    Reading an attribute is free, since the name may be a library's: pandas has ``DataFrame.at``.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                pass
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                pass
            case _:
                continue
        if name in RIDDLES:
            yield getattr(node, "lineno", 1), name


def problems(text: str, place: str) -> list[str]:
    tree = ast.parse(text)
    return [f"{place}:{line}: {message}" for line, message in sorted([*docstrings(tree), *names(tree)])]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_names_can_be_read_at_once(folder: str) -> None:
    files = sorted((SRC / folder).rglob("*.py"))
    lines = [line for file in files for line in problems(file.read_text(encoding="utf-8"), str(file.relative_to(SRC.parent)))]
    assert not lines, "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""What it is."""', ["f:1: docstring begins with What"]),
        ('def f():\n    """Whether so."""', ["f:2: docstring begins with Whether"]),
        ('class A:\n    """Who knows."""', ["f:2: docstring begins with Who"]),
        ('"""Whole files."""', []),
        ('"""Howitzers."""', []),
        ("found = 1", ["f:1: found"]),
        ("def f(at): ...", ["f:1: at"]),
        ("[one for one in range(3)]", ["f:1: one"]),
        ("self.said = 1", ["f:1: said"]),
        ("def mine(): ...", ["f:1: mine"]),
        ("import numpy as its", ["f:1: its"]),
        ("lambda *alike: 0", ["f:1: alike"]),
        ("frame.at[0]; finding = attic = 1", []),
    ],
)
def test_what_is_a_problem(text: str, expected: list[str]) -> None:
    assert problems(text, "f") == expected
