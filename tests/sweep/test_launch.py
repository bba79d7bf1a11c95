"""Run packs: what becomes of their runs when the worker ends well, takes fewer, dies, or is not alone.

The worker here is a stand-in: it writes down how it was called and does what ``play.json`` says.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.command.cli import compose
from src.record.records import run_id
from src.sweep import child, launch
from src.sweep.display import Display
from src.sweep.fit import Memory
from src.sweep.launch import RunsFailed
from src.sweep.locks import Claims
from src.sweep.machine import Machine
from src.sweep.packs import group
from src.sweep.plan import Job
from tests.conftest import CODE, TINY, shown_on

WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from src.files.durable import seal

arguments = sys.argv[1:]
events = int(arguments[arguments.index("--events") + 1])
halved = int(arguments[arguments.index("--halved-from") + 1]) if "--halved-from" in arguments else None
folders = [Path(argument) for argument in arguments if argument.startswith("runs")]
play = json.loads(Path("play.json").read_text())
CHECKPOINT = "checkpoints/00000001.0123456789abcdef.safetensors"

def tell(**event):
    os.write(events, json.dumps(event).encode() + b"\\n")

def end(folder):
    time.sleep(play.get("seconds", 0))
    result = {"status": play.get("status", {}).get(folder.name, "ok"), "reason": "why", "metrics": {"test/loss": 2.5}}
    (folder / "result.json").write_text(seal(result))
    tell(event="ended", run=folder.name)

with open("calls.jsonl", "a") as file:
    checkpoints = [(folder / CHECKPOINT).exists() for folder in folders]
    call = {"runs": [f.name for f in folders], "halved_from": halved, "checkpoints": checkpoints, "pid": os.getpid()}
    file.write(json.dumps(call) + "\\n")
print("a word from the worker", file=sys.stderr)
tell(event="phase", what="loading tiny")
taken = folders[: play.get("take", len(folders))]
tell(event="taken", runs=[folder.name for folder in taken], memory_bytes=None, why="memory holds")
tell(event="from the future", what=1)
os.write(events, b"no json\\n[1]\\n")
for step in (1, 2):
    losses = {folder.name: 3.0 if step == 1 else None for folder in taken}
    tell(event="step", step=step, steps=2, losses=losses, tokens_per_second=1234.5)
tell(event="scoring", what="the test split", done=1, total=4)
for folder in taken[: play.get("end_first", 0)]:
    end(folder)
if "linger" in play:
    subprocess.Popen(["sleep", str(play["linger"])], pass_fds=[events])
if "sleep" in play:
    time.sleep(play["sleep"])
if len(taken) > play.get("memory_holds", len(taken)):
    for folder in taken:
        (folder / CHECKPOINT).parent.mkdir(exist_ok=True)
        (folder / CHECKPOINT).write_text("")
    sys.exit(3) if play["how"] == "exit" else os.kill(os.getpid(), signal.SIGKILL)
if "full" in play:
    tell(event="cannot_write", why=play["full"])
    sys.exit(4)
if "hang" in play:
    child = subprocess.Popen(["sleep", "60"])
    Path(f"child-of-{os.getpid()}").write_text(str(child.pid))
    time.sleep(60)
lives = len(Path("calls.jsonl").read_text().splitlines())
if lives <= play.get("lives", 99) and {folder.name for folder in folders} <= set(play.get("victims", [f.name for f in folders])):
    if "crash" in play:
        os.write(events, b'{"event": "ended", "ru')
        sys.exit(play["crash"])
    if "signal" in play:
        os.kill(os.getpid(), play["signal"])
for folder in taken[play.get("end_first", 0) :]:
    end(folder)
"""

COMMAND = """
import sys
sys.path.insert(0, {code!r})
from src.command import cli
from src.command.cli import compose
from src.record.records import run_id
from src.sweep import child
from src.sweep.launch import RunsFailed, launch
from src.sweep.plan import Job

child.WORKER = [sys.executable, "worker.py"]

def main():
    configs = [compose([*{overrides!r}, f"lora.r={{r}}"]) for r in map(int, sys.argv[1:])]
    launch([Job(run_id(config), config) for config in configs])

cli.run(main)
"""


@pytest.fixture(autouse=True)
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "worker.py").write_text(WORKER)
    (folder / "command.py").write_text(COMMAND.format(code=str(CODE), overrides=TINY))
    monkeypatch.setattr(child, "WORKER", [sys.executable, "worker.py"])
    monkeypatch.setattr(Memory, "machine", lambda self, device: Machine("a GPU", None))
    play()


def play(**what: Any) -> None:
    Path("play.json").write_text(json.dumps(what))


def ranks(*values: int) -> list[Job]:
    config = compose(TINY)
    configs = [replace(config, lora=replace(config.lora, r=r)) for r in values]
    return [Job(run_id(each), each) for each in configs]


def calls() -> list[dict[str, Any]]:
    path = Path("calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def called(jobs: Sequence[Job]) -> list[list[int]]:
    """The ranks that each call of the worker was given."""
    of = {job.run_id: job.config.lora.r for job in jobs}
    return [[of[run] for run in call["runs"]] for call in calls()]


def statuses(jobs: Sequence[Job]) -> list[str]:
    return [job.folder.result()["status"] for job in jobs]  # type: ignore[index]


def without_time(line: str) -> str:
    assert re.search(r", \d+ s$", line), line
    return line.rpartition(", ")[0]


def test_a_pack_and_what_is_said_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(8, 4)
    launch.launch(jobs)
    assert called(jobs) == [[4, 8]] and calls()[0]["halved_from"] is None
    said = capfd.readouterr()
    summary, pack, started, first, second = said.out.splitlines()
    assert summary == "1 pack, 2 runs: tiny on cldr_names, 3 steps of 4 rows"
    assert pack.startswith("  1  bf16  2 runs  lora  r 4-8  about ") and pack.endswith(" MiB")
    assert started == "pack 1: bf16, 2 runs: lora, r 4-8 ..."
    assert without_time(first) == f"[1/2] {jobs[1].run_id} lora r=4 lr=0.001 seed=0: ok, test/loss 2.500"
    assert second.startswith(f"[2/2] {jobs[0].run_id} lora r=8 ")
    assert said.err == "a word from the worker\n"
    assert {path.name for path in jobs[0].folder.path.iterdir()} == {"config.yaml", "provenance.json", "result.json", ".lock"}

    launch.launch(jobs)
    assert len(calls()) == 1
    again = capfd.readouterr().out.splitlines()
    assert again[0] == f"[1/2] {jobs[0].run_id} lora r=8 lr=0.001 seed=0: already done, ok, test/loss 2.500"
    assert len(again) == 2


def test_a_done_run_says_where_the_weights_that_are_asked_for_were_not_kept(capfd: pytest.CaptureFixture[str]) -> None:
    (job,) = ranks(4)
    job.config.keep_weights = False
    launch.launch([job])
    for asked, said in ((False, "test/loss 2.500"), (True, "weights were not kept: force=true trains it again")):
        job.config.keep_weights = asked
        capfd.readouterr()
        launch.launch([job])
        assert capfd.readouterr().out.rstrip().endswith(said)


@pytest.mark.parametrize("name", ["adapter", "model"])
def test_earlier_weights_that_a_repeated_run_takes_away_for_good_are_named(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(4, 8, 16)
    said = "earlier weights are deleted, and keep_weights=false keeps none of this time\n"
    for keep, having, words in ((False, 1, f"{jobs[0].run_id}: its {said}"), (False, 2, f"2 runs: their {said}"), (True, 2, "")):
        for job in jobs:
            job.config.force, job.config.keep_weights = True, keep
            shutil.rmtree(job.folder.path, ignore_errors=True)
        for job in jobs[:having]:
            getattr(job.folder, name).mkdir(parents=True)
        launch.launch(jobs)
        assert capfd.readouterr().err == words + "a word from the worker\n"
        assert not any(job.folder.has_weights for job in jobs)


def test_a_single_run_prints_its_start_and_its_end(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(4)
    launch.launch(jobs)
    head = f"[1/1] {jobs[0].run_id} lora r=4 lr=0.001 seed=0"
    start, end = capfd.readouterr().out.splitlines()
    assert (start, without_time(end)) == (f"{head} ...", f"{head}: ok, test/loss 2.500")


def test_a_run_that_is_done_is_not_part_of_the_plan(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(4, 8, 16)
    launch.launch(jobs[1:2])
    capfd.readouterr()
    play(status={jobs[0].run_id: "diverged"})
    launch.launch(jobs)  # a run that diverged is no failure of the command
    assert called(jobs) == [[8], [4, 16]]
    out = capfd.readouterr().out.splitlines()
    assert "already done" in out[0] and out[1].startswith("1 pack, 2 runs: ")
    assert out[-2].startswith("[2/3] ") and without_time(out[-2]).endswith("diverged: why") and out[-1].startswith("[3/3] ")


def test_a_failed_run_fails_the_command_and_is_done_again() -> None:
    jobs = ranks(4, 8)
    play(status={jobs[0].run_id: "failed"})
    with pytest.raises(RunsFailed):
        launch.launch(jobs)
    assert statuses(jobs) == ["failed", "ok"]
    play()
    launch.launch(jobs)
    assert called(jobs) == [[4, 8], [4]] and statuses(jobs) == ["ok", "ok"]


def test_what_the_worker_has_no_room_for_follows_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(1, 2, 3, 4, 5)
    play(take=2)
    launch.launch(jobs)
    assert called(jobs) == [[1, 2, 3, 4, 5], [3, 4, 5], [5]]
    assert statuses(jobs) == ["ok"] * 5
    assert "memory holds 2 of these 5 runs; the other 3 follow" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["exit", "kill", "kill where the kernel says nothing"])
def test_out_of_memory_halves_the_pack_and_limits_later_ones(
    how: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(100))
    monkeypatch.setattr("src.sweep.attempt.oom_kills", lambda: next(kills) if how == "kill" else None)
    jobs = ranks(*range(1, 13))
    other = compose([*TINY, "variant=qlora"])
    later = [replace(other, seed=seed, data_seed=seed) for seed in range(8)]
    quantized = [Job(run_id(config), config) for config in later]
    play(memory_holds=6, how=how, end_first=2)
    launch.launch([*jobs, *quantized])
    sizes = [len(call["runs"]) for call in calls()]
    assert sizes == [12, 5, 5, 4, 4]  # two had ended before; 8 would fit no more than 12 did
    assert called([*jobs, *quantized])[:3] == [list(range(1, 13)), list(range(3, 8)), list(range(8, 13))]
    assert [call["halved_from"] for call in calls()] == [None, 12, 12, None, None]
    assert [all(call["checkpoints"]) for call in calls()] == [False, True, True, False, False]
    assert statuses([*jobs, *quantized]) == ["ok"] * 20
    assert "out of memory with 12 runs: going on with 5 and 5 from the last checkpoints" in capfd.readouterr().err


def test_halving_goes_on_until_it_fits_and_ends_with_one() -> None:
    jobs = ranks(1, 2, 3, 4, 5)
    play(memory_holds=1, how="exit")
    launch.launch(jobs)
    assert called(jobs) == [[1, 2, 3, 4, 5], [1, 2, 3], [1, 2], [1], [2], [3], [4], [5]]
    assert {call["halved_from"] for call in calls()[1:]} == {5}


def test_a_forced_run_is_cleared_once_and_not_when_it_goes_on() -> None:
    jobs = ranks(1, 2, 3, 4)
    for job in jobs:
        job.config.force = True
        job.folder.checkpoints.mkdir(parents=True)
        (job.folder.checkpoints / "00000001.0123456789abcdef.safetensors").write_text("old")
        job.folder.write_result({"status": "ok", "metrics": {}})
    play(memory_holds=2, how="exit")
    launch.launch(jobs)
    assert called(jobs) == [[1, 2, 3, 4], [1, 2], [3, 4]]
    assert [call["checkpoints"][0] for call in calls()] == [False, True, True]
    assert jobs[0].folder.read_config().lora.r == 1


def test_a_worker_that_dies_is_tried_once_more(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(1, 2, 3)
    play(crash=7, end_first=1, lives=1)  # its last event is torn
    launch.launch(jobs)
    assert called(jobs) == [[1, 2, 3], [2, 3]] and statuses(jobs) == ["ok"] * 3
    assert "its process ended with exit code 7: 2 runs are tried once more" in capfd.readouterr().err


@pytest.mark.parametrize(("how", "words"), [
    ({"crash": 7}, "its process ended with exit code 7"),
    ({"signal": signal.SIGSEGV}, "its process was killed by SIGSEGV"),
    ({"signal": signal.SIGKILL}, "its process was killed by SIGKILL"),
])  # fmt: skip
def test_runs_whose_worker_dies_twice_are_failed_and_the_sweep_goes_on(
    capfd: pytest.CaptureFixture[str], how: dict[str, Any], words: str
) -> None:
    jobs = ranks(1, 2, 3)
    config = compose([*TINY, "variant=qlora"])
    quantized = Job(run_id(config), config)
    play(**how, victims=[job.run_id for job in jobs])
    with pytest.raises(RunsFailed):
        launch.launch([*jobs, quantized])
    assert [len(call["runs"]) for call in calls()] == [3, 3, 1]
    assert statuses([*jobs, quantized]) == ["failed"] * 3 + ["ok"]
    assert jobs[2].folder.result()["reason"] == words  # type: ignore[index]
    said = capfd.readouterr()
    assert said.out.count(f"failed: {words}") == 3
    assert [line.split()[0] for line in said.err.splitlines()[-3:]] == [job.run_id for job in jobs], "all are named at the end"


def test_a_worker_that_says_nothing_is_stopped_with_its_children(capfd: pytest.CaptureFixture[str]) -> None:
    (job,) = ranks(1)
    job.config.pack.silence = 1.0
    play(hang=True)
    started = time.monotonic()
    with pytest.raises(RunsFailed):
        launch.launch([job])
    assert time.monotonic() - started < 2 * (1.0 + 2.0)
    assert len(calls()) == 2 and job.folder.result()["reason"] == "its process gave no sign of life for 1 s"  # type: ignore[index]
    for call in calls():
        for process in (call["pid"], int(Path(f"child-of-{call['pid']}").read_text())):
            wait_for(lambda process=process: not is_alive(process))
            assert not is_alive(process)


def is_alive(process: int) -> bool:
    """Tell whether it runs; what nobody has waited for yet is a zombie and does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_run_that_the_kernel_killed_for_memory_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter(range(10))
    monkeypatch.setattr("src.sweep.attempt.oom_kills", lambda: next(kills))
    (job,) = ranks(1)
    play(signal=signal.SIGKILL)
    with pytest.raises(RunsFailed):
        launch.launch([job])
    assert len(calls()) == 1 and statuses([job]) == ["out_of_memory"]


def test_a_worker_that_cannot_write_ends_the_command_and_fails_no_run() -> None:
    jobs = ranks(1, 2)
    play(end_first=1, full="runs/x: No space left on device")
    process = command(1, 2)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.splitlines()[-1] == (
        "error: runs/x: No space left on device; what is done stays, and the same command goes on from here"
    )
    assert jobs[0].folder.result() is not None and jobs[1].folder.result() is None
    play()
    again = command(1, 2)
    again.communicate(timeout=60)
    assert again.returncode == 0 and called(jobs) == [[1, 2], [2]]


@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_a_done_run_whose_record_is_damaged_is_set_aside_and_done_again(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = ranks(1, 2)
    launch.launch(jobs)
    jobs[0].folder.write_result(jobs[0].folder.result() or {})  # with digests, which the stand-in does not take
    path = jobs[0].folder.path / name
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    launch.launch(jobs)
    assert called(jobs) == [[1, 2], [1]] and statuses(jobs) == ["ok", "ok"]
    assert (jobs[0].folder.damaged / name).exists()
    assert f"{jobs[0].run_id}: {name} " in capfd.readouterr().err


def test_checkpoints_that_a_kill_left_beside_a_result_are_taken_away() -> None:
    jobs = ranks(1)
    launch.launch(jobs)
    (jobs[0].folder.checkpoints).mkdir()
    launch.launch(jobs)
    assert len(calls()) == 1 and not jobs[0].folder.checkpoints.exists()


def test_only_untaken_runs_are_free_while_the_worker_is_busy() -> None:
    jobs = ranks(1, 2, 3)
    play(take=2, sleep=1.5)
    process = command(1, 2, 3)
    wait_for(calls)
    with Claims() as claims:
        wait_for(lambda: claims.take(jobs[2].folder))
        assert [claims.take(job.folder) for job in jobs] == [False, False, True]
        assert process.poll() is None and len(calls()) == 1
    process.communicate(timeout=60)
    assert process.returncode == 0 and statuses(jobs) == ["ok"] * 3


def test_runs_that_were_brought_further_since_the_plan_are_grouped_anew() -> None:
    jobs = ranks(1, 2, 3)
    memory = Memory()
    packs = group(jobs, memory)
    assert [len(pack.jobs) for pack in packs] == [3]
    jobs[1].folder.checkpoints.mkdir(parents=True)
    for step in ("00000040", "00000050"):
        (jobs[1].folder.checkpoints / f"{step}.0123456789abcdef.safetensors").write_text("")
    with Display(3) as display:
        launch.Launch(display, memory).run(packs)
    assert called(jobs) == [[1, 3], [2]]


def test_a_process_that_outlives_its_worker_holds_nothing_up() -> None:
    play(linger=6)
    started = time.monotonic()
    launch.launch(ranks(1, 2))
    assert len(calls()) == 1 and time.monotonic() - started < 5


def command(*values: int, **options: Any) -> subprocess.Popen[str]:
    arguments = [sys.executable, "command.py", *map(str, values)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(arguments, text=True, **pipes | options)


def wait_for(what: Any) -> None:
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_two_commands_that_want_the_same_runs_train_each_once() -> None:
    jobs = ranks(1, 2, 3, 4, 5, 6)
    play(seconds=0.2)
    both = [command(1, 2, 3, 4, 6), command(6, 5, 4, 3, 2, 1)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(rank for call in called(jobs) for rank in call) == [1, 2, 3, 4, 5, 6]
    assert sum(out.count(": ok, test/loss") for out, _ in said) == 6
    assert sum(out.count("already done, ok") for out, _ in said) == 5
    assert any("being trained by another process; waiting for" in error for _, error in said)


def test_what_another_process_left_undone_is_taken_over() -> None:
    jobs = ranks(1, 2, 3)
    play(sleep=30)
    first = command(1, 2)
    wait_for(calls)
    play()
    second = command(1, 2, 3)
    wait_for(lambda: jobs[2].folder.result())
    assert jobs[0].folder.result() is None
    first.terminate()
    assert "interrupted" in first.communicate(timeout=60)[1] and first.returncode == 143
    _, error = second.communicate(timeout=60)
    assert second.returncode == 0 and "2 runs are being trained by another process; waiting for them" in error
    assert called(jobs) == [[1, 2], [3], [1, 2]]
    with pytest.raises(ProcessLookupError):  # SIGTERM ended the first worker too
        os.kill(calls()[0]["pid"], 0)


def test_on_a_terminal_there_are_bars_and_the_lines_stay_whole() -> None:
    ours, theirs = pty.openpty()
    play(seconds=0.3)
    process = command(1, 2, stderr=theirs)
    os.close(theirs)
    text = shown_on(ours)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert [line[:5] for line in out.splitlines()[-2:]] == ["[1/2]", "[2/2]"]  # stdout was no terminal
    assert "1,234 tokens/s" in text and "0/2 runs" in text and "a word from the worker" in text
