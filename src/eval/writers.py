"""A comparison as text: CSV with every digit, Markdown, TeX (booktabs), and the cells that the terminal shows.

Names, reasons and notes come from files that anyone may have edited, so each format escapes them its own way.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.eval.comparison import Comparison, column
from src.eval.notes import own_peak
from src.records import write_atomically

ABSENT = "-"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run, after OWASP "CSV injection"
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


@dataclass(frozen=True)
class Cells:
    """A table as text: headings, whether a column holds numbers (right-aligned), how many columns name the row, rows."""

    headings: list[str]
    numeric: list[bool]
    naming: int
    rows: list[list[str]]


def clean(value: str) -> str:
    """One line without control characters, invisible direction marks or halves of surrogate pairs."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in value)).strip()


def cells(comparison: Comparison) -> Cells:
    """What a reader sees of the table: rounded numbers with units, ``-`` where there is none."""
    table = _readable(comparison.table)
    main, *others = comparison.metrics
    packed = bool((table["pack_sizes"].dropna() != "1").any())
    shown: list[tuple[str, str, Callable[[Any], str] | None]] = [
        ("variant", "variant", None),
        ("precision", "base_precision", None),
        ("r", "r", _count),
        ("scale", "effective_scale", _short),
        ("lr", "learning_rate", _short),
        *((key, key, None) for key in comparison.differing),
        ("n", "n_seeds", _count),
        ("trainable", "trainable_parameters", _count),
        ("% of total", "trainable_percent", lambda value: f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"),
        (_heading(main), f"{column(main)}_mean", _decimals),
        ("sd", f"{column(main)}_sd", _decimals),
        *((_heading(name), f"{column(name)}_mean", _decimals) for name in others),
        *([("pack", "pack_sizes", str)] if packed else []),
        ("peak memory", "memory", str),
        ("tokens/s", "tokens_per_second", lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"),
        ("status", "status", None),
    ]
    rows = [
        [ABSENT if pd.isna(row[name]) else clean((write or _plain)(row[name])) or ABSENT for _, name, write in shown]
        for _, row in table.iterrows()
    ]
    numeric = [write is not None for _, _, write in shown]
    return Cells([clean(heading) for heading, _, _ in shown], numeric, 5 + len(comparison.differing), rows)


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what only a reader needs: memory that a row can call its own, and a mark where a base was held."""
    memory = [
        _bytes(peak) if own else None if pd.isna(closed) else f"~{_bytes(closed)}"
        for own, peak, closed in zip(own_peak(table), table["peak_memory_bytes"], table["estimated_memory_bytes"], strict=True)
    ]
    precision = table["base_precision"] + table["hold_dequantised"].map({True: " (held)", False: ""})
    return table.assign(memory=memory, base_precision=precision)


def _heading(metric: str) -> str:
    return re.sub(r"[/_]+", " ", metric.removeprefix("test/") if metric != "test/loss" else metric)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: Any) -> str:
    return f"{int(value):,}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _decimals(value: float) -> str:
    """Four decimals; a small number that they would turn into zero keeps its two leading digits."""
    return f"{value:.1e}" if 0 < abs(value) < 0.00005 else f"{value:.4f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def csv_text(comparison: Comparison) -> str:
    """Every column with every digit; an absent number is an empty field. No text can be run by a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_text(name) for name in comparison.table.columns])
    for row in comparison.table.astype(object).itertuples(index=False, name=None):
        writer.writerow(["" if pd.isna(value) else _csv_text(value) if isinstance(value, str) else value for value in row])
    return out.getvalue()


def _csv_text(value: str) -> str:
    # Cleaning comes second: it would take away the tab or the blank in front of a formula.
    return ("'" if value.startswith(FORMULA) or value.lstrip().startswith(FORMULA) else "") + clean(value)


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
    """Text as Markdown that shows it literally, on one line, in a table cell or not."""
    safe = re.sub(r"[&<>]", lambda match: HTML[match[0]], clean(value))
    # "&amp;" has no character that Markdown minds, so escaping for it second is safe.
    return MARKDOWN.sub(lambda match: "\\" + match[0], safe)


def tex_text(comparison: Comparison) -> str:
    shown = cells(comparison)
    alignment = "".join("r" if number else "l" for number in shown.numeric)
    notes = [rf"\par\noindent {tex(note)}" for note in comparison.notes]
    body = [
        r"\begin{table}[htbp]",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}%",
        rf"\caption{{{tex(comparison.caption)}}}",
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


def _tex_row(parts: list[str]) -> str:
    return " & ".join(ABSENT if part == ABSENT else tex(part) for part in parts) + r" \\"


def tex(value: str) -> str:
    """Text as TeX that prints it literally. What pdflatex's default fonts may not have becomes a question mark."""
    known = (c if c.isascii() or ("À" <= c <= "ÿ" and c not in "×÷ÐðÞþ") else "?" for c in clean(value))  # noqa: RUF001
    # Two of these in a row would become one other character: -- a dash, '' a closing quote.
    return re.sub(r"(?<=([-',]))(?=\1)", "{}", "".join(TEX.get(c, c) for c in known))


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.csv, .md and .tex into ``folder``."""
    texts = {"csv": csv_text(comparison), "md": markdown_text(comparison), "tex": tex_text(comparison)}
    for ending, text in texts.items():
        write_atomically(folder / f"comparison.{ending}", text)
    return [folder / f"comparison.{ending}" for ending in texts]
