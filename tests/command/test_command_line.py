"""The commands as a new user types them, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bases import saved
from tests.conftest import ENVIRONMENT, TINY

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def assert_refused(done: subprocess.CompletedProcess[str], folder: Path, *says: str) -> None:
    """One line on stderr that says so, exit code 2, no traceback, nothing written."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for text in says:
        assert text in line
    assert not (folder / "runs").exists() and not (folder / "outputs").exists() and not (folder / "multirun").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lora.r=0"], "lora.r=0"),
        (["lora.r=abc"], "lora.r=abc"),
        (["variant=nosuch"], "variant=nosuch"),
        (["lora.rank=4"], "lora.rank: no such key"),
        (["+new=4"], "new: no such key"),
        (["=3"], "=3: not of the form key=value"),
        (["lora.r=4,8"], "needs -m"),
        (["train.steps=-1"], "train.steps=-1"),
        (["dataset=jsonl", "dataset.path=nosuch.jsonl"], "nosuch.jsonl: no such file"),
        (["model=path", "model.path=nosuch"], "model.path=nosuch"),
        (["model=tiny", "model.weights=pretrained"], "model.weights=pretrained"),
        (["model=tiny", "lora.target_modules=[q_proj,nosuch]"], "lora.target_modules=[nosuch]: matches no linear layer"),
        (["train.batch_size=9000"], "train.batch_size=9000"),
        (["-m", "lora.r=4,8,0"], "lora.r=0"),
        (["-m", "model=tiny", "variant=lora,nosuch"], "variant=nosuch"),
        (["-m", "model=tiny", "seed=0,1", "lora.target_modules=[nosuch]"], "lora.target_modules"),
        (["-m", "model=tiny", "lora.r=4,x"], "lora.r=x"),
        (["-m", "model=tiny", "sweep=a,b"], "sweep: needs one name"),
    ],
)
def test_bad_input_of_training(command: Command, folder: Path, arguments: list[str], says: str) -> None:
    assert_refused(command("src.train", *arguments), folder, says)


def test_a_bad_data_file(command: Command, folder: Path) -> None:
    path = folder / "data.jsonl"
    for content, says in [(b"", "is empty"), (b'{"context": "a"}\n', "line 1: no target"), (b"\xff\n", "line 1: not UTF-8")]:
        path.write_bytes(content)
        assert_refused(command("src.train", "dataset=jsonl", f"dataset.path={path}"), folder, str(path), says)


def test_help(command: Command) -> None:
    done = command("src.train", "--help")
    assert done.returncode == 0
    assert "variant: dora, dora_8bit" in done.stdout and "target_modules" in done.stdout


def test_a_sweep_its_table_and_its_repetition(command: Command, folder: Path) -> None:
    sweep = ["-m", *TINY, "variant=qdora,frozen", "lora.r=4,8", "sweep=mine"]
    done = command("src.train", *sweep)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    ids = json.loads((folder / "runs/sweeps/mine.json").read_text())["run_ids"]
    assert len(ids) == 3  # frozen does not depend on the rank
    assert {path.name for path in (folder / "runs").iterdir()} == {*ids, "sweeps"}
    assert {path.name for path in folder.iterdir()} == {"runs"}
    assert done.stdout.count(": ok, test/loss") == 3

    records = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/result.json")}
    again = command("src.train", *sweep)
    assert again.returncode == 0
    assert again.stdout.count("already done") == 3
    assert {path: path.stat().st_mtime_ns for path in records} == records

    table = command("src.eval", "sweep=mine")
    assert table.returncode == 0, table.stderr
    assert "qdora" in table.stdout
    produced = {path.name for path in (folder / "reports/mine").iterdir()}
    assert {"comparison.csv", "comparison.md", "comparison.tex", "quality_vs_rank.png", "loss_curves.png"} <= produced


def test_a_run_has_the_same_id_alone_and_in_a_sweep_and_force_repeats_it(command: Command, folder: Path) -> None:
    command("src.train", "-m", *TINY, "lora.r=4", "seed=0")
    (result,) = (folder / "runs").glob("*/result.json")
    first = result.stat().st_mtime_ns
    assert "already done" in command("src.train", *TINY, "lora.r=4").stdout
    assert result.stat().st_mtime_ns == first
    done = command("src.train", *TINY, "lora.r=4", "force=true")
    assert done.returncode == 0 and "already done" not in done.stdout
    assert result.stat().st_mtime_ns > first


def test_one_failing_job_leaves_the_others_running(command: Command, folder: Path) -> None:
    # Passes the checks before the start, as the byte tokenizer has no file to count with, and is refused when it is loaded.
    broken = saved(folder / "broken", max_position_embeddings=8)
    done = command("src.train", "-m", *TINY, "model=path,tiny", f"model.path={broken}", "sweep=mixed")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    results = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/result.json")]
    assert sorted(result["status"] for result in results) == ["failed", "ok"]
    (failed,) = (result for result in results if result["status"] == "failed")
    assert "the model has 8 positions" in failed["reason"]
    table = command("src.eval", "sweep=mixed")
    assert table.returncode == 0 and "failed" in table.stdout


def test_a_changed_data_file_is_not_mistaken_for_the_old_one(command: Command, rows: Path, folder: Path) -> None:
    arguments = [*TINY, "dataset=jsonl", f"dataset.path={rows}"]
    assert command("src.train", *arguments).returncode == 0
    rows.write_text(rows.read_text() + '{"context": "new ", "target": "row"}\n')
    done = command("src.train", *arguments)
    assert done.returncode == 2 and "other contents" in done.stderr
    assert command("src.train", *arguments, "force=true").returncode == 0


def test_a_control_can_be_added_to_a_sweep_by_its_name(command: Command, folder: Path) -> None:
    assert command("src.train", *TINY, "variant=frozen", "sweep=mine").returncode == 0
    assert command("src.train", *TINY, "-m", "variant=lora", "sweep=mine").returncode == 0  # -m may stand anywhere
    assert len(json.loads((folder / "runs/sweeps/mine.json").read_text())["run_ids"]) == 2


def test_a_torn_result_is_done_again_and_a_file_named_runs_is_one_line(command: Command, folder: Path) -> None:
    command("src.train", *TINY)
    (result,) = (folder / "runs").glob("*/result.json")
    result.write_text(result.read_text()[:50])
    again = command("src.train", *TINY)
    assert again.returncode == 0 and ": ok" in again.stdout and json.loads(result.read_text())["status"] == "ok"
    (folder / "runs").rename(folder / "elsewhere")
    (folder / "runs").write_text("a file")
    done = command("src.train", *TINY)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "runs" in done.stderr


def test_two_commands_for_one_run_train_it_once(folder: Path) -> None:
    arguments = [sys.executable, "-m", "src.train", *TINY]
    options = {"cwd": folder, "env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE}
    both = [subprocess.Popen(arguments, **options) for _ in range(2)]  # type: ignore[call-overload]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("already done" in text for text in outputs) == 1
    (metrics,) = (folder / "runs").glob("*/metrics.jsonl")
    # Step 0 is the prose before training, and step 3 is validated too.
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [0, 1, 2, 3, 3]


def test_sigterm_stops_the_worker_too_and_the_same_command_goes_on(command: Command, folder: Path) -> None:
    arguments = [*TINY, "train.steps=4000", "train.checkpoint_every=10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list((folder / "runs").glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert error.splitlines() == ["interrupted; the same command goes on from here"]
    (metrics,) = (folder / "runs").glob("*/metrics.jsonl")
    stopped = metrics.stat().st_size
    time.sleep(1)
    assert metrics.stat().st_size == stopped  # no orphan goes on writing
    assert not list((folder / "runs").glob("*/result.json"))
