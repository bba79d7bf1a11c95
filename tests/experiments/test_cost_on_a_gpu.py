"""Cases that fail, die or are known already, and the table made of them."""

from __future__ import annotations

import csv
import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks import cases, measure
from benchmarks.step import Case, config_of
from experiments.cost_on_a_gpu import report
from experiments.cost_on_a_gpu.measure import GROUPS, TINY
from src.files.errors import ConfigError
from src.variants import counts

ABOUT = {"gpu": "none", "python": "3", "torch": "2", "commit": "abc"}
FAILS = replace(TINY, overrides=("lora.target_modules=[nothing]",))  # a module that no layer is named


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def row(case: Case, about: dict[str, str] = ABOUT, **found: Any) -> dict[str, str]:
    return cases.filled(cases.identity(case) | found, about)


def test_a_case_that_fails_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    """Through the real child process: the failure ends it, another one measures what is left, and nothing is done twice."""
    path = tmp_path / "results.csv"
    cases.run([FAILS, TINY], path, 200)
    failed, measured = rows_of(path)
    assert "nothing" in failed["note"] and not failed["ms/step"]
    assert float(measured["ms/step"]) > 0 and not measured["note"] and measured["speed"] == "eager"
    again = path.read_text()
    cases.run([TINY], path, 200)
    assert path.read_text() == again


def test_a_process_that_dies_or_outlasts_its_time_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def dies(left: list[Case], path: Path, remaining: float) -> int:
        started.append(len(left))
        if len(left) == 2:
            cases.write(path, cases.filled(cases.identity(left[0]) | {"ms/step": 1.0}, measure.machine()))
        return -9

    monkeypatch.setattr(cases, "_in_a_child", dies)
    path = tmp_path / "results.csv"
    cases.run([TINY, replace(TINY, rows=3)], path, 100)
    assert started == [2]  # the second was under way when its process died
    assert [row["note"] for row in rows_of(path)] == ["", "its process ended with code -9"]
    cases.run([TINY, replace(TINY, rows=3)], path, 100)
    assert started == [2, 1] and len(rows_of(path)) == 2  # a failure is tried again, and stands there once


def test_no_case_is_begun_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "_in_a_child", lambda *_: pytest.fail("began"))
    cases.run([TINY], tmp_path / "results.csv", 0)
    assert "1 not begun, 0 s are spent: tiny lora ours" in capsys.readouterr().out


def test_what_is_known(tmp_path: Path) -> None:
    """Of such a machine and such versions, whatever the commit; a lack of memory counts, another failure does not."""
    path = tmp_path / "results.csv"
    others = [replace(TINY, rows=rows) for rows in (3, 4, 5)]
    cases.write(path, row(TINY, **{"ms/step": 1.0}))
    cases.write(path, row(others[0], note="out of memory"))
    cases.write(path, row(others[1], note="RuntimeError: no"))
    cases.write(path, row(others[2], ABOUT | {"torch": "1"}, **{"ms/step": 1.0}))
    found = cases.known([path], ABOUT | {"commit": "def"})
    assert set(found) == {cases.key_of(cases.identity(case)) for case in (TINY, others[0])}
    cases.write(path, row(TINY, ABOUT | {"commit": "def"}, **{"ms/step": 2.0}))
    assert [each["ms/step"] for each in rows_of(path) if each["rows"] == "2"] == ["2.0"]


def test_every_case_can_be_composed_and_70b_is_quantized() -> None:
    for name, group in GROUPS.items():
        for case in group:
            config = config_of(case)
            assert config.model.weights == "random"
            assert name != "70b" or config.variant.base_precision == "nf4"
            assert case.engine == "ours" or case.runs == 1


def test_the_table_sets_ours_beside_pefts(tmp_path: Path) -> None:
    numbers = {"spread ms": 1, "share of peak": 0.5, "peak GiB": 10.0}
    for case, found in [
        (TINY, {"ms/step": 100.0, "tokens/s": 3000.0, **numbers}),
        (replace(TINY, engine="peft", runs=1), {"ms/step": 50.0, "tokens/s": 1000.0, **numbers}),
        (replace(TINY, variant="dora", engine="peft", runs=1), {"note": "out of memory"}),
    ]:
        cases.write(tmp_path / "results.csv", row(case, **found))
    frame = report.load(tmp_path)
    lines = report.tables(frame).splitlines()
    assert lines[2].endswith("| 3.00 |") and "100.0 (± 1.0)" in lines[2]
    assert "out of memory" in lines[3] and "not measured" in lines[3] and lines[3].endswith("| - |")
    figure = report.draw(frame)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1,000", "out of memory", "3,000", "not measured"]
    assert isinstance(frame, pd.DataFrame)


def test_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from experiments.cost_on_a_gpu import measure as study

    monkeypatch.setattr(sys, "argv", ["measure", "cases=9b", f"out={tmp_path}"])
    with pytest.raises(ConfigError, match="cases=9b: choose from 8b, 70b"):
        study.main()
    monkeypatch.setattr(sys, "argv", ["measure", "cases=tiny", "out=/dev/null/nowhere"])
    with pytest.raises(ConfigError, match="out=/dev/null/nowhere: no folder to write to"):
        study.main()
    with pytest.raises(ConfigError, match=r"no results\.csv there"):
        report.load(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("study", "arguments", "said"),
    [
        ("cost_on_a_gpu", [], "no CUDA GPU on this machine"),
        ("cost_on_a_gpu", ["cases=tiny,8b", "out=new"], "no CUDA GPU on this machine"),
        ("cost_on_a_gpu", ["cases=tiny"], "cases=tiny: needs out=FOLDER"),
        ("four_bits", ["memory", "out=new"], "no CUDA GPU on this machine"),
    ],
)
def test_what_a_gpu_costs_is_not_measured_on_a_processor(
    study: str, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = importlib.import_module(f"experiments.{study}.measure")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cases, "run", lambda *_: pytest.fail("measured"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["measure", *arguments])
    with pytest.raises(ConfigError, match=said) as caught:
        measuring.main()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_table_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    cases.write(path, row(TINY, **{"ms/step": 1.0}))
    whole = path.read_text()
    for text, said, refused in (
        ("", "cannot be read", False),
        (whole.splitlines()[0] + "\n", "has no rows", False),
        (whole[: whole.rindex("tiny") + 9], "row 1 has 2 cells for ", True),
        (whole.replace("ms/step", "ms"), "has no column ms/step", True),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            report.load(tmp_path)
        if refused:
            with pytest.raises(ConfigError, match="a row has no "):
                cases.read(path)
        else:
            assert cases.read(path) == []  # nothing is known yet
    path.write_bytes(b"\xff\xfe\x00")
    for read in (report.load, lambda folder: cases.read(folder / "results.csv")):
        with pytest.raises(ConfigError, match=r"results\.csv: cannot be read"):
            read(tmp_path)


def test_the_committed_tables_come_from_the_committed_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(report.HERE / "results.csv", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", f"folder={tmp_path}"])
    assert report.main() == 0
    assert (tmp_path / "tables.md").read_text() == (report.HERE / "tables.md").read_text()


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    """results.csv by (model, variant, engine)."""
    return pd.read_csv(report.HERE / "results.csv").set_index(["model", "variant", "engine"])


@pytest.fixture(scope="module")
def readme() -> str:
    return " ".join((report.HERE / "README.md").read_text().split())


SIZES = {"8B": "llama_3_1_8b", "70B": "llama_3_1_70b", "1B": "llama_3_2_1b"}
SHAPES = {"8B": "8B, 1 run", "70B": "70B, 1 run", "1B": "1B, PEFT 1 run, ours 8"}


def test_every_case_is_measured_and_a_pair_is_of_one_machine(measured: pd.DataFrame, readme: str) -> None:
    wanted = {(c.model, c.variant, c.engine) for name in GROUPS if name != "tiny" for c in GROUPS[name]}
    assert set(measured.index) == wanted and measured["note"].isna().all() and measured["ms/step"].notna().all()
    assert f"{len(wanted)} cases, {measured['seconds'].sum():.0f} s in all" in readme
    peaks = measured["peak TFLOP/s"].groupby(["model", "variant"]).unique().map(list)
    first = {variant for (_, variant), found in peaks.items() if round(found[0]) == 810}
    assert peaks.map(len).eq(1).all() and first == {"lora", "dora"}
    assert set(measured["peak TFLOP/s"].round()) == {810, 789} and "810 TFLOP/s on the first machine, 789 on the second" in readme
    assert set(measured.loc[measured["peak TFLOP/s"].round() == 810, "commit"]) == {"e042f62"}
    assert set(measured.loc[measured["peak TFLOP/s"].round() == 789, "commit"]) == {"e042f62-dirty"}


def test_the_readmes_table(measured: pd.DataFrame) -> None:
    lines = (report.HERE / "README.md").read_text().splitlines()
    shown = []
    for size, model in SIZES.items():
        for at, name in enumerate(name for name in report.VARIANTS if (model, name, "ours") in measured.index):
            peft, ours = (measured.loc[(model, name, engine)] for engine in ("peft", "ours"))
            speeds = f"{peft['tokens/s']:,.0f} | {ours['tokens/s']:,.0f} | {ours['tokens/s'] / peft['tokens/s']:.2f}"
            shares = " | ".join(f"{100 * each['share of peak']:.0f} %" for each in (peft, ours))
            memory = f"{peft['peak GiB']:.1f} | {ours['peak GiB']:.1f}"
            shape = f" {SHAPES[size]}" if at == 0 else ""
            shown.append(f"|{shape} | {report.VARIANTS[name]} | {speeds} | {memory} | {shares} |")
    assert [line for line in lines if line.startswith("|")][2:] == shown


def test_the_readmes_answer(measured: pd.DataFrame, readme: str) -> None:
    """Each number of the text, computed here from results.csv."""
    ms, speed, peak = measured["ms/step"], measured["tokens/s"], measured["peak GiB"]
    ratio = speed.xs("ours", level=2) / speed.xs("peft", level=2)
    less = peak.xs("peft", level=2) - peak.xs("ours", level=2)
    more = (peak.xs("ours", level=2) / peak.xs("peft", level=2))[SIZES["1B"]]
    dora = ["dora", "qdora"]
    plain = ratio[SIZES["8B"]].drop(dora)
    saved = less[SIZES["8B"]]
    said = [
        f"at 8B ours makes {plain.min():.2f} to {plain.max():.2f} times PEFT's tokens/s without DoRA and 4.0 times with it, and "
        f"needs {saved.drop(dora).min():.1f} to {saved.drop(dora).max():.1f} GiB less at the peak, with DoRA "
        f"{saved['dora']:.1f} and with QDoRA {saved['qdora']:.1f}",
        f"eight runs in one pack make {ratio[SIZES['1B']].min():.1f} to {ratio[SIZES['1B']].max():.1f} times the tokens/s of "
        f"PEFT's one, in {more.min():.1f} to {more.max():.1f} times its memory",
    ]
    assert [f"{ratio[SIZES['8B'], name]:.1f}" for name in dora] == ["4.0", "4.0"]
    ours, peft = ((SIZES["70B"], "qlora", engine) for engine in ("ours", "peft"))
    said.append(
        f"{ms[ours]:.0f} ms a step of 1 x 512 in {peak[ours]:.1f} GiB, PEFT {ms[peft]:.0f} ms in {peak[peft]:.1f}"
    )  # fmt: skip

    def over(variant: str, base: str, engine: str, size: str = "8B") -> str:
        return f"{ms[SIZES[size], variant, engine] / ms[SIZES[size], base, engine]:.2f}"

    steps = [("dora", "lora"), ("qlora", "rslora"), ("lora_8bit", "rslora"), ("qdora", "qlora")]  # each pair on one machine
    said.append("ours DoRA {}, NF4 {}, int8 {}, and QDoRA {} over QLoRA".format(*(over(*pair, "ours") for pair in steps)))
    said.append("PEFT's DoRA {}, NF4 {}, int8 {}, QDoRA {}.".format(*(over(*pair, "peft") for pair in steps)))
    same = [over("rslora", "lora", engine, size) for engine in ("ours", "peft") for size in ("8B", "1B")]
    said.append("ours took {} (8B) and {} times (1B) LoRA's time, PEFT's {} and {}.".format(*same))
    for engine in ("ours", "peft"):
        named = {name: f"{ms[SIZES['8B'], name, engine]:.0f} ms" for name in ("lora_8bit", "dora", "qdora")}
        if engine == "ours":
            said.append(f"{named['lora_8bit']} at 8B where QDoRA takes {named['qdora'].removesuffix(' ms')}.")
            assert all(ms.xs("ours", level=2)[SIZES[size]].idxmax() == "lora_8bit" for size in ("8B", "1B"))
        else:
            said.append(f"DoRA ({named['dora']}) and QDoRA ({named['qdora']}) are slower than int8 ({named['lora_8bit']})")
    at, held = peak.xs("peft", level=2)[SIZES["8B"]], measured["held GiB"].xs("peft", level=2)[SIZES["8B"]]
    said.append(f"DoRA's peak, {at['qdora']:.1f} and {at['dora']:.1f} GiB, though")
    said.append(f"it holds {held['qdora']:.1f} against {held['dora']:.1f}")
    warm = measured["warm-up s"].groupby("engine").agg(["min", "max"])
    said.append(
        f"ours takes {warm['min']['ours']:.0f} to {warm['max']['ours']:.0f} s until the first timing, PEFT "
        f"{warm['min']['peft']:.1f} to {warm['max']['peft']:.1f} s"
    )
    earlier = pd.read_csv(Path(measure.__file__).parent / "results" / "step.csv")
    earlier = earlier[(earlier["model"] == SIZES["8B"]) & (earlier["engine"] == "peft")].set_index("variant")["ms/step"]
    said.append(
        f"took {earlier['lora']:.0f} ms for LoRA and {earlier['dora']:.0f} for DoRA (`benchmarks/results/step.csv`), "
        f"{earlier['dora'] / earlier['lora']:.2f} times, where it is {ms[SIZES['8B'], 'lora', 'peft']:.0f} and "
        f"{ms[SIZES['8B'], 'dora', 'peft']:.0f} here"
    )
    said.append(f"now {measured['building GiB'][SIZES['8B'], 'qlora', 'ours']:.1f}, and were thrown away")
    assert [one for one in said if one not in readme] == []


def test_what_earlier_cases_left_behind(measured: pd.DataFrame, readme: str) -> None:
    """rsLoRA is LoRA but for a factor; what is held has a closed form, fp32 states of 16 bytes a trained number, PEFT's of 4."""
    lora, rslora = (
        {engine: measured.loc[(SIZES["8B"], name, engine)] for engine in ("ours", "peft")} for name in ("lora", "rslora")
    )
    left = {(e, c): round(1024 * (rslora[e][c] - lora[e][c])) for e in lora for c in ("held GiB", "peak GiB")}
    assert set(left.values()) == {352, 320} and left["peft", "peak GiB"] == 320 and 11 * 32 == 352
    assert "holds and peaks 352 MiB over LoRA" in readme and "(PEFT's peak: 320 MiB)" in readme
    excess = {}
    for (model, variant, engine), row in measured.iterrows():
        config = config_of(Case(model, variant, int(row["runs"]), int(row["rows"]), int(row["length"]), engine))
        shape = config.model.shape
        assert shape is not None
        targets = counts.targets(counts.linears(shape), config.lora.target_modules, config.model.name)
        trained = counts.trainable_parameters(config.variant, config.lora, targets, counts.total_parameters(shape))
        base = counts.base_bytes(shape, config.variant.base_precision, config.variant.double_quant)
        states = row["runs"] * trained * {"ours": 16, "peft": 4}[engine]
        excess[model, variant, engine] = row["held GiB"] - (base + states) / 2**30
    assert f"the excess is {min(excess.values()):.2f} to {max(excess.values()):.2f} GiB, most for QDoRA" in readme
    assert max(excess, key=excess.__getitem__)[1] == "qdora"
