"""Names that lead elsewhere, requests without end, cells that a spreadsheet would run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from src.command import admission, bounds
from src.command.cli import compose
from src.compare.writers import csv_text
from src.config.values import check
from src.files.errors import ConfigError
from src.record.records import RUNS, RunFolder, run_id
from tests.compare.synthetic import forge
from tests.conftest import ENVIRONMENT, TINY, Run, evaluate

NAMES = [
    *(
        "../x",
        "../../x",
        "..",
        ".",
        "",
        "/",
        "/tmp/x",
        "//x",
        "~",
        "~/x",
        "a/b",
        "a/../../x",
        "a\\b",
        "..\\x",
        "C:\\x",
        "\\\\host\\x",
    ),
    *(
        "x\0",
        "\0",
        "../x\0.json",
        "x" * 101,
        "x" * 300,
        "x" * 100_000,
        "-rf",
        "--help",
        "-",
        " ",
        " x",
        "x ",
        "a b",
        "x\n",
        "\nx",
        "x\r",
    ),
    *(
        "\u2025",
        "\u2024\u2024/x",
        "\uff0e\uff0e/x",
        "\u202e../x",
        "x\u200b",
        "\ud800",
        "x\udcff",
        "é",
        "x\t",
        "x:y",
        ".hidden",
        "CON ",
        "nul:",
    ),
    *("$(id)", "`id`", "x;y", "x|y", "x*", "?", "%2e%2e%2fx"),
]
GOOD = ["x", "CON", "a.b-c_d", "0", "x" * 100]


def tree(folder: Path) -> set[Path]:
    """All that stands outside of a ``runs`` and a ``reports``."""
    return {path for path in folder.rglob("*") if not {"runs", "reports"} & set(path.relative_to(folder).parts)}


def test_no_name_leads_out_of_runs_and_reports(
    folder: Path, capsys: pytest.CaptureFixture[str], figure: Callable[[str, str], None]
) -> None:
    place = folder / "a/b/c"
    place.mkdir(parents=True)
    os.chdir(place)
    config = compose(TINY)
    RunFolder(run_id(config)).write_config(config)
    before = tree(folder)
    for name in NAMES:
        with pytest.raises(ConfigError, match="sweep="):
            check(replace(config, sweep=name))
        if name != "a/b":  # which may be a file of a subfolder
            with pytest.raises(ConfigError, match="experiment="):
                admission._refuse_choice("experiment", name)
        for word in (f"sweep={name}", f"pair={name},0123456789"):
            assert evaluate([word]) == 2, word[:100]
            assert len(capsys.readouterr().err.splitlines()) == 1
    (RUNS / "sweeps").mkdir()
    forge(RUNS / "sweeps/mine.json", {"name": "mine", "run_ids": [*NAMES, 3, None, run_id(config)]})
    assert evaluate(["sweep=mine"]) == 0
    assert tree(folder) == before
    assert {path.name for path in place.iterdir()} == {"runs", "reports"}
    assert {path.name for path in (place / "reports").iterdir()} == {"mine"}
    for name in GOOD:
        check(replace(config, sweep=name))
    figure("Attacks", f"names that lead elsewhere: {len(NAMES)} tried, 0 files outside runs/ and reports/")


LINKS = (
    "adapter",
    "checkpoints",
    "damaged",
    "model",
    "config.yaml",
    "metrics.jsonl",
    "predictions.jsonl",
    "result.json",
    "wandb",
)


def test_a_link_in_a_runs_folder_is_not_followed(run: Run, folder: Path, size: Callable[[int, int], int]) -> None:
    record = RUNS / run_id(compose(TINY))
    for names in [LINKS[:-1]] if size(1, 0) else [[name] for name in LINKS]:
        outside = folder / "outside"
        (outside / "deep").mkdir(parents=True)
        for path in (outside / "precious.safetensors", outside / "deep/precious.jsonl"):
            path.write_text("precious")
        record.mkdir(parents=True)
        for name in names:
            (record / name).symlink_to(outside / "precious.safetensors" if "." in name else outside)
        with contextlib.suppress(OSError, ConfigError, AssertionError):  # to refuse is as good; then there is no result
            run("force=true", f"tracking={'wandb_offline' if 'wandb' in names else 'disabled'}")
            run("force=true")
        assert {path.name for path in outside.rglob("*")} == {"deep", "precious.jsonl", "precious.safetensors"}
        assert {path.read_text() for path in outside.rglob("*.*")} == {"precious"}
        shutil.rmtree(outside)
        shutil.rmtree(record)


# Each is refused within 2 s of processor time beyond the start, and 500 MB. They run one after the other in one process.
BOMBS: dict[str, tuple[list[str], str]] = {
    "a huge rank": (["lora.r=1000000000"], "lora.r=1000000000"),
    "a million jobs": (["-m", "seed=range(0,1000)", "train.lr=range(1,1001)"], "more than 100,000 jobs"),
    "10**12 jobs": (["-m", "seed=range(0,1000000000000)"], "more than 100,000 jobs"),
    "10**12 shuffled jobs": (["-m", "seed=shuffle(range(0,1000000000000))"], "more than 100,000 jobs"),
    "jobs without end": (["-m", "train.lr=range(0.0,inf,1e-30)"], "more than 100,000 jobs"),
    "an absurd shape": (["model=tiny", "model.shape.num_hidden_layers=1000000000"], "model.shape.num_hidden_layers"),
    "a shape beyond 64 bits": (["model=tiny", f"model.shape.hidden_size={10**30}"], "model.shape.hidden_size"),
    "tokens without end": (["eval.max_new_tokens=1000000000000"], "eval.max_new_tokens"),
    "a huge batch": (["train.batch_size=10000000000"], "train.batch_size"),
    "10,000 brackets": ([f"lora.target_modules={'[' * 10_000}{']' * 10_000}"], "lora.target_modules"),
    "100,000 values": ([f"dataset.labels=[{','.join('a' * 100_000)}]"], "dataset.labels"),
    "a regular expression": (["model=tiny", "lora.target_modules='(a+)+$'"], "lora.target_modules"),
    "YAML aliases": (["--config-dir=aliases", "experiment=x"], "alias"),
    "a large YAML file": (["--config-dir=large", "experiment=x"], "bytes"),
    "a deep YAML file": (["--config-dir=deep", "experiment=x"], "nested"),
    "a deep JSON row": (["model=tiny", "dataset=jsonl", "dataset.path=deep.jsonl"], "deep.jsonl, line 1"),
    "a model of a billion layers": (["model=path", "model.path=absurd"], "num_hidden_layers"),
    "a number of 5000 digits": (["model=path", "model.path=digits"], "config.json is not JSON"),
}  # fmt: skip
TRY = """
import contextlib, io, json, sys, time
from src.command import cli
from src.train import __main__ as training
tries = {}
for name, arguments in json.load(open("bombs.json")).items():
    sys.argv = ["src.train", *arguments]
    said, began, code = io.StringIO(), time.process_time(), None
    with contextlib.redirect_stderr(said):
        try:
            training._composed.clear()
            cli.run(training.main)
        except SystemExit as ended:
            code = ended.code
    (peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]  # ru_maxrss is the parent's, too
    rss = int(peak.split()[1]) * 1024
    tries[name] = [code, said.getvalue(), time.process_time() - began, rss]
print(json.dumps(tries))
"""


def plant_bombs(folder: Path) -> None:
    aliases = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for name, text in {"aliases": aliases, "large": "a: 1\n" * 1_000_000, "deep": "a: " + "[" * 5000 + "]" * 5000}.items():
        (folder / name / "experiment").mkdir(parents=True)
        (folder / name / "experiment/x.yaml").write_text(text)
    (folder / "deep.jsonl").write_text("[" * 200_000 + "]" * 200_000 + "\n")
    shape = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    for name, layers in {"absurd": "1000000000", "digits": "1" * 5000}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(shape)[:-1] + f', "num_hidden_layers": {layers}}}')


def test_bombs_are_refused_at_once(folder: Path, size: Callable[[int, int], int], figure: Callable[[str, str], None]) -> None:
    plant_bombs(folder)
    bombs = dict(list(BOMBS.items())[:: size(2, 1)])
    (folder / "bombs.json").write_text(json.dumps({name: arguments for name, (arguments, _) in bombs.items()}))
    done = subprocess.run([sys.executable, "-c", TRY], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tries = json.loads(done.stdout)
    for name, (_, says) in bombs.items():
        code, said, seconds, rss = tries[name]
        assert code == 2 and len(said.splitlines()) == 1 and says in said and len(said) < 1000, (name, said[:1000])
        assert seconds < 2 and rss < 500e6, (name, seconds, rss)
    assert not RUNS.exists()
    slowest, most = max(entry[2] for entry in tries.values()), max(entry[3] for entry in tries.values())
    figure("Attacks", f"{len(bombs)} resource bombs: each refused within {slowest:.1f} s and {most / 1e6:.0f} MB")


def test_a_sweep_of_100_000_jobs_is_let_in() -> None:
    bounds.refuse_many_jobs(bounds.parse(["seed=range(0,1000)", "lora.r=range(0,100)", "variant=dora"]))
    with pytest.raises(ConfigError, match="more than"):
        bounds.refuse_many_jobs(bounds.parse(["seed=range(0,1000)", "lora.r=range(0,100)", "variant=dora,lora"]))
    with pytest.raises(ConfigError, match="zero"):
        bounds.refuse_many_jobs(bounds.parse(["seed=range(0,10,0)"]))


def test_no_pattern_reaches_peft() -> None:
    """PEFT takes a text as a regular expression, over the name of every module; a name here is a name."""
    began = time.process_time()
    for pattern in ("(a+)+$", ".*", "q_proj|v_proj"):
        for value in (f"'{pattern}'", f"['{pattern}']"):
            with pytest.raises(ConfigError, match=r"lora\.target_modules"):
                compose(["model=path", f"lora.target_modules={value}"])
    assert time.process_time() - began < 10
    assert compose(["lora.target_modules=layers.0.self_attn.q_proj"]).lora.target_modules == ["layers.0.self_attn.q_proj"]


FORMULAS = [
    *("=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "\n=1+1", " =1+1", "x\n=1+1", "x\r\n=1+1", "x;=1+1", "x; @SUM(1)"),
    *("\u00a0=1+1", "\u200b=1+1", "\x00=1+1", "\ufeff=1+1", "\u202e=1+1", "\uff1d1+1", "\uff0b1+1", "\uff0d1+1", "\uff20SUM(1)"),
    *("=cmd|' /C calc'!A0", "+cmd|' /C calc'!A0", "@cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", '=HYPERLINK("http://x";"y")'),
    *('"=1+1', "=IMPORTXML(1)", "=", "-", "+", "@"),
]


def test_no_cell_is_a_formula(figure: Callable[[str, str], None]) -> None:
    starts = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    text = csv_text(pd.DataFrame({"=name": FORMULAS, "loss": [-0.3] * len(FORMULAS), "\u200b=x": ["a; b"] * len(FORMULAS)}))
    for separator in (",", ";"):
        for line in text.splitlines():
            for cell in next(csv.reader(io.StringIO(line), delimiter=separator)):
                assert not cell.lstrip().startswith(starts) or cell.startswith("-0.3"), (separator, line)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(FORMULAS) and {row["loss"] for row in rows} == {"-0.3"} and {row["'=x"] for row in rows} == {"a; b"}
    figure("Attacks", f"{len(FORMULAS)} spreadsheet formulas: 0 live in a CSV")
