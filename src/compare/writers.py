"""Write a comparison as text: CSV with every digit, Markdown, TeX (booktabs).

Names, reasons and notes come from files that anyone may have edited, so each format escapes them its own way.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from textwrap import shorten

import pandas as pd

from ..files.durable import write_atomically
from ..files.text import clean, few
from .columns import ABSENT, cells
from .comparison import Comparison
from .notes import named

NOT_IN_TEX = ("sd", "detectable", "train s", "adapter", "tuning runs", "Pareto front", "flags")
LONGEST_CAPTION, LONGEST_CELL = 1000, 200  # characters
# What a spreadsheet would run, after OWASP "CSV injection"; the last four are the signs of Japanese keyboards.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
AFTER_SEMICOLON = re.compile(r";(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")  # which separates cells in half of the world
MARKDOWN = re.compile(r"[\\|`*\[\]#$~{}!]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is harmless
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}", "`": "{`}", "[": "{[}", "*": "{*}",
}  # fmt: skip
# The file compiles alone and can be \input in a paper that loads booktabs: a preamble is only begun where none was.
TEX_BEGIN = r"""% Compiles alone, and as \input{comparison} in a document that loads booktabs.
\expandafter\ifx\csname @nodocument\endcsname\relax
\def\assayend{}%
\else
\def\assayend{\end{document}}%
\documentclass{article}
\usepackage{booktabs}
\usepackage[a4paper,landscape,margin=1cm]{geometry}
\begin{document}
\fi
"""


def csv_text(table: pd.DataFrame) -> str:
    """Write every column with every digit; an absent number is an empty field. No text can be run by a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_text(name) for name in table.columns])
    for row in table.astype(object).itertuples(index=False, name=None):
        writer.writerow(["" if pd.isna(value) else _csv_text(value) if isinstance(value, str) else value for value in row])
    return out.getvalue()


def _csv_text(value: str) -> str:
    cleaned = clean(value)
    # Cleaning takes away a tab in front, and uncovers a formula behind signs that nobody sees.
    live = any(text.startswith(FORMULA) for text in (value, value.lstrip(), cleaned))
    return ("'" if live else "") + AFTER_SEMICOLON.sub(";'", cleaned)


def markdown_text(comparison: Comparison) -> str:
    shown = cells(comparison)
    lines = [
        f"Table: {markdown(comparison.caption)}",
        "",
        _markdown_row([markdown(heading) for heading in shown.headings]),
        _markdown_row(["---:" if number else ":---" for number in shown.numeric]),
        *(_markdown_row([markdown(cell) for cell in row]) for row in shown.rows),
        "",
        *(f"- {markdown(note)}" for note in comparison.notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(parts: list[str]) -> str:
    return f"| {' | '.join(parts)} |"


def markdown(value: str) -> str:
    """Escape text for Markdown, which then shows it literally, on one line, in a table cell or not."""
    safe = re.sub(r"[&<>]", lambda match: HTML[match[0]], clean(value))
    # "&amp;" has no character that Markdown minds, so escaping for it second is safe.
    return MARKDOWN.sub(lambda match: "\\" + match[0], safe)


def tex_text(comparison: Comparison) -> str:
    """Write a floating table. It leaves some columns to the other formats, and the flags to notes, or no page would hold it."""
    shown = cells(comparison, NOT_IN_TEX)
    alignment = "".join("r" if number else "l" for number in shown.numeric)
    notes = [rf"\par\noindent {tex(note)}" for note in [*_flag_notes(comparison), *comparison.notes]]
    body = [
        r"\begin{table}[htbp]",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}%",
        rf"\caption{{{tex(shorten(comparison.caption, LONGEST_CAPTION, placeholder=' ...'))}}}",
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        _tex_row(shown.headings),
        r"\midrule",
        *(_tex_row(row) for row in shown.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\raggedright",
        *notes,
        r"\end{table}",
        r"\assayend",
    ]
    return TEX_BEGIN + "\n".join(body) + "\n"


def _flag_notes(comparison: Comparison) -> list[str]:
    if "flags" not in comparison.table:
        return []
    table = comparison.table
    by_words: dict[str, list[str]] = {}
    for name, words in zip(map(named, table["variant"], table["r"]), table["flags"], strict=True):
        for flag in [] if pd.isna(words) else words.split("; "):
            by_words.setdefault(flag, []).append(name)
    return [f"Flag, {flag}: {few(names)}." for flag, names in by_words.items()]


def _tex_row(parts: list[str]) -> str:
    # TeX gives up on a line that is wider than six meters.
    return " & ".join(ABSENT if part == ABSENT else tex(part[:LONGEST_CELL]) for part in parts) + r" \\"


def tex(value: str) -> str:
    """Escape text for TeX, which then prints it literally. A sign that pdflatex's default fonts lack becomes a question mark."""
    known = (c if c.isascii() or ("À" <= c <= "ÿ" and c not in "×÷ÐðÞþ") else "?" for c in clean(value))  # noqa: RUF001
    # Two of these in a row would become one other character: -- a dash, '' a closing quote.
    return re.sub(r"(?<=([-',]))(?=\1)", "{}", "".join(TEX.get(c, c) for c in known))


def write(comparison: Comparison, rates: pd.DataFrame, folder: Path) -> list[Path]:
    """Write comparison.csv, .md and .tex into ``folder``, and rates.csv with the whole learning-rate grid."""
    texts = {
        "comparison.csv": csv_text(comparison.table),
        "comparison.md": markdown_text(comparison),
        "comparison.tex": tex_text(comparison),
        "rates.csv": csv_text(rates),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]
