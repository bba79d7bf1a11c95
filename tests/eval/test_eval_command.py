"""``python -m src.eval`` as a user meets it: exit codes, one line for each refusal, what is printed and written."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from src.record.records import RUNS, write_sweep
from tests.compare.synthetic import DORA, RSLORA
from tests.conftest import evaluate, shown_on

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"PYTHONPATH": str(ROOT)}
FIGURES = ("quality_vs_rank", "loss_curves", "quality_vs_parameters")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "src.eval", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert evaluate(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_writes_tables_and_figures_and_names_them(make, capsys) -> None:
    write_sweep("study", [make(), make(seed=1), make(r=16)])
    make(r=64)
    assert evaluate(["sweep=study"]) == 0
    printed = capsys.readouterr().out
    folder = Path("reports/study")
    names = {"comparison.csv", "comparison.md", "comparison.tex", "rates.csv", "report.html"}
    names |= {f"{name}.{end}" for name in FIGURES for end in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == names
    assert all(str(folder / name) in printed.splitlines() for name in names)
    assert len((folder / "comparison.csv").read_text().splitlines()) == 1 + 2
    assert evaluate([]) == 0
    assert len(Path("reports/all/comparison.csv").read_text().splitlines()) == 1 + 3


def test_table_is_whole_when_piped(make) -> None:
    make(steps=100, model="a-model-with-a-name-that-takes-a-lot-of-room/in-any-table-of-a-reasonable-width-" + "x" * 80)
    make(seed=1, loss=None, status="out_of_memory", reason="out of memory")
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    header, _, *rows = lines[next(index for index, line in enumerate(lines) if line.strip().startswith("variant")) :]
    words = ["variant", "precision", "scale", "model.name", "train.steps", "trainable", "% of total", "test loss",
             "exact match", "peak memory", "tokens/s", "status"]  # fmt: skip
    assert all(word in header for word in words)
    assert "x" * 80 in rows[0] + rows[1] and "3.00 GiB" in rows[0] + rows[1] and "out_of_memory" in rows[0] + rows[1]
    assert "…" not in done.stdout and "\x1b" not in done.stdout


def test_table_fits_the_terminal(make) -> None:
    width = 60
    make()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen([sys.executable, "-m", "src.eval"], stdout=theirs, stderr=theirs, env=ENVIRONMENT)
    os.close(theirs)
    text = shown_on(ours)
    assert process.wait(60) == 0
    lines = text.replace("\r", "").splitlines()
    begin = next(index for index, line in enumerate(lines) if line.strip().startswith("variant"))
    table = lines[begin : next(index for index, line in enumerate(lines) if line.startswith("smollm2_135m on"))]
    assert max(len(line) for line in table) <= width
    assert "status" in "".join(table) and "…" not in "".join(table)


def test_runs_without_a_record_are_counted(make, capsys) -> None:
    write_sweep("study", [make(), make(seed=1, recorded=False), make(r=16, recorded=False), "0123456789"])
    assert evaluate(["sweep=study"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 4 runs have no record yet" in printed
    assert "1 ok, 1 missing" in printed


def test_torn_record_is_one_line_and_the_rest_goes_on(make, capsys) -> None:
    make()
    torn = make(r=16, configured=True)
    (RUNS / torn / "result.json").write_text('{"status": "o')
    noconfig = make(r=32, identified=False)
    (RUNS / noconfig / "config.yaml").write_text("model: [")
    assert evaluate([]) == 0
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 2
    assert f"{torn}/result.json" in captured.err and f"{noconfig}/config.yaml" in captured.err
    assert "unreadable" in captured.out


def test_unknown_sweep_names_the_known(make, capsys) -> None:
    write_sweep("first", [make()])
    write_sweep("second", [])
    line = refused(capsys, "sweep=thrid")
    assert "first, second" in line and "thrid" in line
    assert "no such sweep" in refused(capsys, "sweep=../sweeps/first")
    assert "no runs of sweep second" in refused(capsys, "sweep=second")
    (RUNS / "sweeps" / "torn.json").write_text("{")
    assert "torn.json" in refused(capsys, "sweep=torn")


def test_nothing_to_compare(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no runs in" in refused(capsys)
    assert "known are none" in refused(capsys, "sweep=x")


BAD = [
    ["foo=1"], ["sweep"], ["sweep="], ["--sweep=x"], ["sweep=a", "sweep=b"], ["a\nb=1"], ["tune=a"], ["tune=1,"], ["tune=-1"],
    ["tune=" + "9" * 11], ["margin=0"], ["margin=-1"], ["margin=nan"], ["margin=inf"], ["margin=x"], ["strict=yes"], ["strict=1"],
]  # fmt: skip


@pytest.mark.parametrize("words", BAD)
def test_bad_arguments(capsys, words) -> None:
    refused(capsys, *words)


def test_what_no_run_has_is_refused(make, capsys) -> None:
    make(variant=DORA)
    make(variant=DORA, seed=3)
    assert "tune=7,8: no run has such a seed; there are 0, 3" in refused(capsys, "tune=7,8")
    assert "reference=rslora: no run is of this variant; there are dora" in refused(capsys, "reference=rslora")


def test_the_arguments_are_heeded(make, capsys) -> None:
    """Seed 1 tunes, so seed 0 reports; of exact match more is better; rsLoRA is the reference."""
    for r, variant, share in ((4, RSLORA, 0.25), (8, RSLORA, 0.25), (4, DORA, 0.5)):
        for seed, lr in ((0, 1e-3), (1, 1e-3), (0, 1e-4), (1, 1e-4)):
            metrics = {"test/loss": 2.0, "val/loss": 2.0 + lr, "test/exact_match": share + seed}
            make(seed=seed, lr=lr, r=r, variant=variant, metrics=metrics, trainable_parameters=1000 * r)
    assert evaluate(["tune=1", "metric=test/exact_match", "reference=rslora", "margin=0.3"]) == 0
    printed = capsys.readouterr().out
    assert "Highest test exact match (share): dora r=4 at learning rate 0.0001, 0.5000, 1 seed." in printed
    assert "dora r=4 against rslora r=4" in printed and "over the tuning seeds 1;" in printed
    page = Path("reports/all/report.html").read_text()
    assert "python -m src.eval tune=1 metric=test/exact_match reference=rslora margin=0.3" in page


def test_unknown_metric_names_the_measured(make, capsys) -> None:
    make()
    assert "test/exact_match, test/loss, val/loss" in refused(capsys, "metric=test/f1")


def test_unwritable_reports(make, capsys) -> None:
    make()
    Path("reports").write_text("in the way")
    assert "reports/all: cannot be written" in refused(capsys)


def test_help(capsys) -> None:
    assert evaluate(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m src.eval")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["scroe"],
            "'scroe': no such command (did you mean score?); the first word can be score, generate, ",
        ),
        (["sweep=a", "score"], "'score': no such command (did you mean score?); the first word can be"),
        (["sweap"], "(did you mean sweep?)"),
        (["sweep"], "sweep: needs a value, such as sweep=NAME"),
        (["metrics=x"], "'metrics': no such key (did you mean metric?); choose from sweep=, reference=, "),
        (["tune=a"], "tune=a: needs seeds, such as tune=0,1,2"),
        (["margin=0"], "margin=0: needs a number above 0, such as margin=0.01"),
        (["strict=yes"], "strict=yes: needs true or false, such as strict=true"),
        (["pair=0eed806141"], "pair=0eed806141: needs the ids of two runs, such as pair=0eed806141,87a53e1b0f"),
        (["sweep=a", "sweep=b"], "sweep: given twice"),
    ],
)
def test_a_word_that_is_wrong_is_named_with_what_is_right(capsys, words, says) -> None:
    assert says in refused(capsys, *words)


def test_a_refusal_loads_nothing_heavy(make) -> None:
    make()
    code = """
import sys
from src.command import cli
from src.eval.__main__ import main

codes = []
for word in ("sweep=x", "metric=x", "y=1", "merge"):
    try:
        cli.run(lambda: main([word]))
    except SystemExit as end:
        codes.append(end.code)
sys.exit(f"{codes} {({'pandas', 'matplotlib', 'rich', 'torch'} & set(sys.modules))}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr.splitlines()[-1] == "[2, 2, 2, 2] set()"


def test_a_reader_that_leaves_early_is_no_error(make) -> None:
    make()
    words = f"{sys.executable} -m src.eval | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
