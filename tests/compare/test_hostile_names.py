"""Names, reasons and files that anyone may have edited harm no output of the command, and TeX compiles."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.compare import writers
from src.compare.findings import method
from src.compare.frame import gather, run_ids
from src.compare.writers import TEX_BEGIN
from src.record.records import RUNS, write_sweep
from tests.compare import synthetic
from tests.compare.page_reports import HOSTILE
from tests.compare.synthetic import DORA, QLORA, RSLORA, assayed
from tests.compare.test_page import Document
from tests.conftest import evaluate

NAMES = [
    *HOSTILE,
    "two\nlines\r\n\tand \x00\x1b[31mred\x07",
    "half \ud83d of a pair",
    "%s {0} ${x} \\newcommand{\\x}{y} \\end{document} ^^5cinput{x} a_b^c~d&e#f",
    " ",
    "-1+1",
    "| a | b |",
]
ROWS = len(NAMES) + 1
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What a file's name can hold.
SWEEP = "=cmd() \\input{x} <b> a|b 🧪 \u202e $y$ `z` x\ny"
METRIC = "test/exact_match"
NO_METRIC = "test/<img src=x onerror=alert(1)> =cmd() \\input{x} a|b 🧪 \u202e $y$\n" + "m" * 1000
PDFLATEX = shutil.which("pdflatex")


@dataclass(frozen=True)
class Written:
    """The files and the output of the command for a sweep of hostile names, one row a name."""

    folder: Path
    printed: str
    warned: str

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


def plant(index: int, name: str) -> None:
    """A finished run and a failed one with this name wherever a record has one; the failed one's folder has it too."""
    hostile: dict[str, Any] = {key: name for key in ("model", "dataset", "variant", "engine", "peak_memory_kind")} | {
        "model_note": f"{name} 4-bit", "device": f"{name}: {name}", "checks": {name: {"ok": False, "detail": name}},
    }  # fmt: skip
    loss = 2.0 + 0.1 * index
    metrics = {"test/loss": loss, METRIC: 0.5, "val/loss": loss, f"{name}/{name}": 1.0, NO_METRIC: 2.0}
    options = {
        "r": 4 ** (1 + index % 2),
        "fields": {"train.weight_decay": index / 1000},
        "trainable_parameters": 1000 * (1 + index % 2),
    }
    runs = [synthetic.run(seed=seed, **options) for seed in (0, 1)]
    for run, own in zip(runs, ({"metrics": metrics}, {"status": name[:200], "reason": name, "metrics": {}}), strict=True):
        path = RUNS / run / "result.json"
        synthetic.forge(path, json.loads(path.read_text()) | hostile | own)
        provenance = {"commit": name, "dirty": True, "python": name, "packages": {name: name}}
        synthetic.forge(RUNS / run / "provenance.json", provenance)
    folder = re.sub(r"[/\x00\ud800-\udfff]", "", name)[:60].strip() or f"nameless {index}"
    (RUNS / runs[1]).rename(RUNS / folder)
    write_sweep(SWEEP, [runs[0], folder], add=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("hostile"), NAMES)


def write(folder: Path, names: list[str]) -> Written:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for index, name in enumerate(names):
            plant(index, name)
        pair = synthetic.run(1.0, r=4, variant=DORA, metrics={"test/loss": 1.0, METRIC: 1.0})
        write_sweep(SWEEP, [pair], add=True)
        assert evaluate([f"sweep={SWEEP}", f"metric={METRIC}", f"reference={names[0]}"]) == 0, err.getvalue()
        return Written(Path("reports", SWEEP).absolute(), out.getvalue(), err.getvalue())


def test_all_is_written(written) -> None:
    names = {path.name for path in written.folder.iterdir()}
    assert {"comparison.csv", "comparison.md", "comparison.tex", "rates.csv", "report.html"} <= names
    assert written.warned == ""


def test_a_name_that_is_none_is_no_metric(make, capsys) -> None:
    synthetic.run(metrics={NO_METRIC: 1.0, "test/loss": 1.0, "test/ loss": 9.0, "loss": 9.0})
    assert gather(run_ids()).measured() == ["test/loss"]
    assert evaluate([f"metric={NO_METRIC}"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("no finished run has it; measured are test/loss\n") and not CONTROL.search(err) and err.count("\n") == 1


def test_the_terminal(written) -> None:
    assert not CONTROL.search(written.printed)
    assert "[31mred" in written.printed, "the word stays, its escape does not"


def test_csv(written) -> None:
    rows = list(csv.reader(io.StringIO(written.text("comparison.csv"))))
    assert len(rows) == 1 + ROWS and len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row):
        assert not CONTROL.search(cell) and "\n" not in cell
        with contextlib.suppress(ValueError):
            float(cell)
            continue
        assert not cell.startswith(("=", "+", "-", "@"))
    assert "'=cmd()|'/c'!A0" in {row[rows[0].index("variant")] for row in rows}
    assert any(len(cell) >= 10_000 for row in rows for cell in row), "nothing is cut"


def test_markdown(written) -> None:
    text = written.text("comparison.md")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + ROWS
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "as many cells in each row"
    assert not re.search(r"<[a-zA-Z/!]", text) and not CONTROL.search(text)
    assert not re.search(r"(?<!\\)[\[`$]", text), "no link, code or formula of a name's"


def test_page(written) -> None:
    document = Document(written.text("report.html"))
    assert len(document.scripts) == 3
    assert not {tag for tag, _ in document.elements} & {"img", "b", "iframe", "object", "embed", "form"}
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    assert [
        attributes.get("href") for tag, attributes in document.elements if tag == "a" and "javascript" in str(attributes)
    ] == []
    data = json.loads(document.scripts[0])
    assert len(data["rows"]) == len(data["arms"]) == ROWS
    assert not CONTROL.search(json.dumps(data, ensure_ascii=False))


def test_figures(written) -> None:
    for path in written.folder.glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert "script" not in tags and "image" not in tags and "a" not in tags


def compiled(folder: Path, tex: str) -> str:
    """The log of pdflatex; it must end well within 20 s."""
    if PDFLATEX is None:
        pytest.skip("needs pdflatex")
    (folder / "table.tex").write_text(tex, encoding="utf-8")
    words = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    return (folder / "table.log").read_text(encoding="latin-1")


def overfull(log: str) -> list[float]:
    """By how many points lines are too long."""
    return [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]


def test_tex(written) -> None:
    text = written.text("comparison.tex")
    assert "\\input{x}" not in text and "\\textbackslash{}input\\{x\\}" in text
    assert text.count("\\end{document}") == TEX_BEGIN.count("\\end{document}")


@pytest.mark.parametrize("names", [
    [name for name in NAMES if len(name) < 1000],
    NAMES,
], ids=["short", "long"])  # fmt: skip
def test_tex_of_hostile_names_compiles(make, tmp_path: Path, names) -> None:
    for index, name in enumerate(names):
        plant(index, name)
    result = assayed(reference=names[0])
    result.comparison.notes.extend(method(result))
    assert "Output written on table.pdf" in compiled(tmp_path, writers.tex_text(result.comparison))


def test_tex_of_sixteen_rows_fits_its_page(make, tmp_path: Path) -> None:
    for variant in ({}, RSLORA, DORA, QLORA):
        for index, r in enumerate((4, 16, 64, 256)):
            rates = {3e-4: 2.2, 1e-3: 2.1, 3e-3: 2.0 if index else 2.3}
            synthetic.grid(
                rates, r=r, variant=variant, model_note="its weights were 4-bit (Q4_1) before and were dequantised to bf16",
                trainable_parameters=305_280 * r, total_parameters=134_515_008, pack_size=48, adapter_bytes=305_280 * 4 * r,
                device="cuda: NVIDIA H100 80GB HBM3", peak_memory_kind="cuda_allocated",
                test=lambda rate, seed: 2.0 + 0.01 * seed + 10 * rate,
            )  # fmt: skip
    result = assayed()
    result.comparison.notes.extend(method(result))
    log = compiled(tmp_path, writers.tex_text(result.comparison))
    assert len(result.table) == 16
    assert [points for points in overfull(log) if points > 5] == []
    assert "Output written on table.pdf (1 page" in log


def test_tex_can_be_input_in_a_paper(make, tmp_path: Path) -> None:
    for variant in ({}, DORA):
        synthetic.run(variant=variant)
    (tmp_path / "comparison.tex").write_text(writers.tex_text(assayed().comparison))
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}Before.\input{comparison}After.\end{document}"
    assert "Output written on table.pdf" in compiled(tmp_path, paper)


def test_the_overfull_check_sees_an_overfull_line(tmp_path: Path) -> None:
    text = "\\documentclass{article}\n\\begin{document}\n\\noindent\\hbox to 500pt{a\\hfil}\n\\end{document}\n"
    assert max(overfull(compiled(tmp_path, text))) > 5


@pytest.mark.parametrize("value", ["sweep=\x1b[31m", "metric=\u202ex", "reference=a\nb", "tune=\x1b", "\x1b[2J=1"])
def test_a_refusal_of_a_hostile_word_is_one_clean_line(make, capsys, value) -> None:
    make()
    assert evaluate([value]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not CONTROL.search(err)
