"""Records that commit 5b05114 has written, in records_of_5b05114/, are read, gone on from, compared and used as that commit did.

What is compared in numbers, or gone on from, is in fp32 over a base whose weights stand beside it: a processor with bf16 products
takes a 16-bit base in bf16, and random weights are drawn with other last digits where there is no AVX2.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
RECORDS = next((ROOT / "tests").rglob("records_of_5b05114"))
EXPECTED = RECORDS / "expected"
COMMANDS = json.loads((RECORDS / "commands.json").read_text(encoding="utf-8"))
IDS = json.loads((RECORDS / "ids.json").read_text(encoding="utf-8"))
PLACES = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": PLACES,
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

# A log-loss in fp32 comes of about 1,050 roundings one after the other: in each of two layers two norms over 32, products over 32
# (four) and 64 (one), scores over 8, weights over up to 40 positions; then a norm, the head and a sum over 384. Each is at most
# 2^-24 of a number below 20 in size. Another processor adds in another order: the roundings are then others, as good as
# independent, and add up to sqrt(1050) x 2^-24 x 20 = 4e-5 nats.
FP32 = 4e-5
# 25 more steps of Adam, each of which moves a weight by at most 0.01: a gradient near its rounding may turn its sign
# and so its weight's step, which to first order leaves the loss. Not derived beyond that; a thousandth of a nat is set.
TRAINED = 1e-3


def words(line: str) -> list[str]:
    """The words of a training command; its own come after those of all, and one of its own takes the place of theirs."""
    given = line.split()
    keys = {word.partition("=")[0] for word in given}
    shared = [word for word in COMMANDS["of all"] if word.partition("=")[0] not in keys]
    return [*(word for word in given if word == "-m"), *shared, *(word for word in given if word != "-m")]


def contents(runs: Path) -> dict[str, str]:
    """The digest of every file of the records; a sweep's list by its runs alone, since it says when it was asked for."""
    found = {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file() and path.name != ".lock"):
        data = path.read_bytes()
        if path.parent.name == "sweeps":
            data = json.dumps(json.loads(data)["run_ids"]).encode()
        found[path.relative_to(runs).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


@dataclass
class Said:
    """What the commands made of the records: (exit code, stdout, stderr) of each, and the folder that they ran in."""

    folder: Path
    before: dict[str, str]
    after: dict[str, str]
    of: dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for name in ("runs", "base"):
        shutil.copytree(RECORDS / name, folder / name)
    shutil.copy(RECORDS / "rows.jsonl", folder)
    return folder


@pytest.fixture(scope="module")
def said(place: Path) -> Said:
    """All commands that end at once, in one process."""
    commands = {name: ["src.train", *words(line)] for name, line in COMMANDS["finished"].items()} | COMMANDS["asked"]
    before = contents(place / "runs")
    done = subprocess.run(
        [sys.executable, RECORDS / "in_one_process.py"],
        cwd=place,
        env=ENVIRONMENT,
        input=json.dumps(list(commands.values())),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answers = [tuple(answer) for answer in json.loads(done.stdout)]
    return Said(place, before, contents(place / "runs"), dict(zip(commands, answers, strict=True)))


@pytest.mark.parametrize("name", COMMANDS["finished"])
def test_a_command_whose_runs_are_done_trains_nothing(said: Said, name: str) -> None:
    code, out, err = said.of[name]
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines and all(": already done, " in line for line in lines)
    found = {line.split()[1] for line in lines}
    assert len(found) == len(lines) and found <= {path.name for path in (RECORDS / "runs").iterdir()}


def test_all_finished_runs_are_asked_for_and_no_byte_of_a_record_has_changed(said: Said) -> None:
    finished = {path.parent.name for path in (RECORDS / "runs").glob("*/result.json")}
    asked = [line.split()[1] for name in COMMANDS["finished"] for line in said.of[name][1].splitlines()]
    assert sorted(asked) == sorted(finished) and len(finished) == 30
    results = [json.loads((RECORDS / "runs" / run / "result.json").read_text()) for run in finished]
    assert {result["status"] for result in results} == {"ok", "diverged"}
    assert said.after == said.before


def test_the_printed_table_is_the_same(said: Said) -> None:
    code, out, err = said.of["table"]
    assert (code, err) == (0, "")
    # The last lines name the files that were written, which may become more.
    tables = [[line for line in text.splitlines() if not line.startswith("reports/")] for text in (out, recorded("table.txt"))]
    assert tables[0] == tables[1]
    named = [line for line in recorded("table.txt").splitlines() if line.startswith("reports/")]
    assert named and set(named) <= set(out.splitlines())


@pytest.mark.parametrize("name", ["comparison.csv", "rates.csv"])
def test_the_csv_is_the_same_to_the_last_digits(said: Said, name: str) -> None:
    """Sums of a few numbers in fp64 in any order: 1e-12."""
    now, before = (
        list(csv.reader(text.splitlines())) for text in ((said.folder / "reports/before" / name).read_text(), recorded(name))
    )
    assert [len(row) for row in now] == [len(row) for row in before] and len(now) > 5
    differing = [(a, b) for one, two in zip(now, before, strict=True) for a, b in zip(one, two, strict=True) if not same(a, b)]
    assert differing == []


@pytest.mark.parametrize("name", ["comparison.md", "comparison.tex"])
def test_the_written_table_is_the_same(said: Said, name: str) -> None:
    assert (said.folder / "reports/before" / name).read_text(encoding="utf-8") == recorded(name)


def test_the_old_adapter_answers_as_it_did(said: Said) -> None:
    code, out, err = said.of["generate"]
    assert (code, err) == (0, "")
    assert out == answers()["generate"]


def test_the_old_adapter_and_its_base_have_the_losses_that_they_had(said: Said) -> None:
    for name in ("score", "score of the base"):
        assert said.of[name][0] == 0 and said.of[name][2] == "", said.of[name]
    found = {
        "base" if json.loads(path.read_text())["base_only"] else "adapter": json.loads(path.read_text())["metrics"]
        for path in said.folder.glob("reports/scores/*/*.json")
    }
    wanted = answers()["score"]
    for name in ("adapter", "base"):
        assert found[name].keys() == wanted[name].keys()
        assert found[name] == pytest.approx(wanted[name], abs=FP32, rel=0)
    # So a base without its adapter would be seen.
    assert abs(wanted["adapter"]["loss"] - wanted["base"]["loss"]) > 100 * FP32


def test_the_old_adapter_is_merged_as_it_was(said: Said) -> None:
    code, _, err = said.of["merge"]
    assert (code, err) == (0, "")
    assert (said.folder / "merged/model.safetensors").is_file()
    merged, wanted = json.loads((said.folder / "merged/merge.json").read_text()), answers()["merge"]
    for key in ("base", "base_precision", "onto", "saved_as", "variant"):
        assert merged[key] == wanted[key]
    # The merge is fp32 arithmetic rounded once to bf16, and a sum midway between two of its numbers may be rounded the other
    # way: the gap is then another one of the same size, and the losses are those of the unmerged adapter to within the gap.
    for part in ("fidelity", "fp32_control"):
        assert merged[part].keys() == wanted[part].keys()
        for key in ("examples", "tokens"):
            assert merged[part][key] == wanted[part][key]
        assert merged[part]["loss_unmerged"] == pytest.approx(wanted[part]["loss_unmerged"], abs=FP32)
    assert merged["fp32_control"]["loss_merged"] == pytest.approx(wanted["fp32_control"]["loss_merged"], abs=FP32)
    assert merged["fidelity"]["loss_merged"] == pytest.approx(wanted["fidelity"]["loss_merged"], abs=2 * FP32)
    assert merged["fp32_control"]["logit_max"] < 20 * FP32
    assert merged["fidelity"]["logit_max"] == pytest.approx(wanted["fidelity"]["logit_max"], rel=0.05)


def test_an_interrupted_pack_goes_on_from_its_checkpoints_to_the_end(said: Said) -> None:
    runs = {path.parent.name: (path.parent / "metrics.jsonl").read_bytes() for path in (RECORDS / "runs").glob("*/checkpoints")}
    wanted = json.loads(recorded("resumed.json"))
    assert runs.keys() == wanted.keys() and len(runs) == 2
    done = subprocess.run(
        [sys.executable, "-m", "src.train", *words(COMMANDS["interrupted"])],
        cwd=said.folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    for run, log in runs.items():
        folder = said.folder / "runs" / run
        assert not (folder / "checkpoints").exists()
        gone_on = (folder / "metrics.jsonl").read_bytes()
        assert gone_on.startswith(log) and log.count(b"\n") > 10  # what was logged before is there, byte for byte
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "ok" and result["run_id"] == run
        assert result["metrics"].keys() == wanted[run].keys()
        assert result["metrics"] == pytest.approx(wanted[run], abs=TRAINED, rel=0)
        earlier = json.loads((folder / "provenance.json").read_text())["earlier"]
        assert [each["commit"] for each in earlier] == ["5b051145a4b1416ce00e37b7469af36532c7a159"]
        now, before = ([json.loads(line) for line in text.splitlines()] for text in (gone_on, recorded(f"resumed.{run}.jsonl")))
        assert [line.keys() for line in now] == [line.keys() for line in before]
        for one, two in zip(now, before, strict=True):
            assert one == pytest.approx(two, abs=TRAINED, rel=TRAINED)


@pytest.mark.parametrize("first_word", sorted({line.split()[0].split("=")[0] for line in IDS}))
def test_the_ids_of_command_lines_stay(first_word: str) -> None:
    from src.command.cli import compose
    from src.record.records import run_id

    wanted = {line: known for line, known in IDS.items() if line.split()[0].split("=")[0] == first_word}
    assert {line: run_id(compose(line.split())) for line in wanted} == wanted


def test_the_ids_are_of_every_named_variant_and_are_those_of_committed_results() -> None:
    later = {"loraplus", "lora_frozen_a"}  # named after 5b05114
    names = {path.stem for path in (ROOT / "conf/variant").glob("*.yaml")} - later
    assert {f"variant={name}" for name in names} <= IDS.keys()
    sweep = (ROOT / "experiments/variants_at_their_best/results.csv").read_text(encoding="utf-8")
    of_sweep = [known for line, known in IDS.items() if line.startswith("experiment=variants_at_their_best")]
    assert len(of_sweep) == 4 and all(f"{known}," in sweep for known in of_sweep)
    assert IDS["variant=lora lora.r=4 train.lr=3e-4 train.steps=300"] == "1808d10137"  # as README.md shows it


def recorded(name: str) -> str:
    return (EXPECTED / name).read_text(encoding="utf-8")


def answers() -> Any:
    return json.loads(recorded("answers.json"))


def same(one: str, two: str) -> bool:
    try:
        return math.isclose(float(one), float(two), rel_tol=1e-12)
    except ValueError:
        return one == two
