"""W&B unreachable, slow, broken or killed: the record is the same to the last bit, and the W&B file holds all of it."""

from __future__ import annotations

import gc
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from src.command.cli import compose
from src.record.records import RunFolder, run_id
from src.record.wandb import client
from src.record.wandb import mirror as mirroring
from src.record.wandb.mirror import Mirror
from src.record.wandb.offline_file import closed_with
from src.train.run import Run as TrainedRun
from tests.conftest import ENVIRONMENT, TINY, Run, written
from tests.faults.wandb_server import address, nobody, server
from tests.record.wandb.test_mirror import inspected

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROW = "W&B unreachable, slow, or killed"
KEY = "5ec2e7" * 6 + "abcd"  # of the form of a real one
FILES = ("metrics.jsonl", "predictions.jsonl", "adapter/adapter_model.safetensors")
TRAIN = [*TINY, "train.steps=6", "eval.every=2"]


def prints(record: RunFolder) -> dict[str, str]:
    return {name: hashlib.sha256((record.path / name).read_bytes()).hexdigest() for name in FILES}


def complete(record: RunFolder) -> list[Path]:
    """The W&B files of a run that hold each value of its record once, as W&B's own inspector reads them."""
    values: dict[int, dict[str, Any]] = {}
    for line in record.logged():
        values.setdefault(line["step"], {}).update({key: value for key, value in line.items() if value is not None})
    result = record.result()
    assert values and result is not None
    whole = []
    for path in sorted(record.path.glob("wandb/*run-*/run-*.wandb")):
        if closed_with(path) is None:
            continue
        found = inspected(path)
        history = [item["item"] for item in found.get("history", [])]
        summary = {key: value for update in found.get("summary", []) for key, value in update["update"].items()}
        if found.get("exit") and [item["_step"] for item in history] == sorted(values):
            for item in history:
                line = values[item["_step"]]
                assert {key: item[key] for key in line} == pytest.approx(line, rel=1e-6)
            assert summary["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-6)
            whole.append(path)
    return whole


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads its environment once, so each test gets a W&B of its own; and limits that tests can wait for."""
    monkeypatch.setattr(mirroring, "_online", True)
    monkeypatch.setattr(client, "INIT_SECONDS", 1)
    monkeypatch.setattr(client, "FINISH_SECONDS", 2)
    monkeypatch.setattr(mirroring, "WRITE_SECONDS", 1.5)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    client.teardown()
    yield
    client.teardown()
    gc.collect()  # W&B's handle of a service that was killed, which warns; here it does so where that is expected


def train(run: Run, tracked: str, *overrides: str) -> RunFolder:
    record, result = run(*TRAIN, f"tracking={tracked}", *overrides)
    assert result["status"] == "ok", result["reason"]
    return record


_expected: dict[str, str] = {}


@pytest.fixture
def expected(run: Run, folder: Path) -> dict[str, str]:
    """The record without W&B."""
    if not _expected:
        record = train(run, "disabled")
        _expected.update(prints(record))
        assert not (record.path / "wandb").exists()
        shutil.rmtree("runs")
    return _expected


@pytest.fixture
def long(size: Callable[[int, int], int]) -> None:
    if not size(0, 1):
        pytest.skip("of the long form: it takes half a minute or more")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[RunFolder], None]) -> None:
    """Do this once, when a run has logged this step."""
    log, done = TrainedRun.log, []

    def logging(self: TrainedRun, line: dict[str, Any]) -> None:
        log(self, line)
        if line["step"] == step and not done:
            done.append(step)
            action(self.folder)

    monkeypatch.setattr(TrainedRun, "log", logging)


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_the_record_is_the_same_whatever_becomes_of_wandb(
    run: Run,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    size: Callable[[int, int], int],
    figure: Callable[[str, str], None],
) -> None:
    said = {
        "stuck": "W&B: the server did not take everything in 2 s; later: wandb sync runs/",
        "unreachable": "W&B: online: Timed out ",
        "failing": "W&B: online: Timed out ",
        "silent": "W&B: online: Timed out ",
        "late": "W&B: online: Timed out ",
    }
    tried = list(said)[: size(1, len(said))]
    for manner in tried:
        with address(manner) as at:
            monkeypatch.setattr(mirroring, "_online", True)
            monkeypatch.setenv("WANDB_BASE_URL", at)
            client.teardown()
            record = train(run, "wandb_online")
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(said[manner]), manner
            assert prints(record) == expected, manner
            kinds = [path.parent.name.split("-")[0] for path in complete(record)]
            assert kinds == ["run" if manner == "stuck" else "offline"], manner
            assert_no_key(record)
            shutil.rmtree("runs")
    figure(
        ROW, f"server {', '.join(tried)}: {len(tried)} of {len(tried)} records bit-identical to those without W&B, files complete"
    )


def assert_no_key(record: RunFolder) -> None:
    files = [path for path in record.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_killed_service_costs_neither_the_record_nor_the_wandb_file(
    run: Run,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    size: Callable[[int, int], int],
    figure: Callable[[str, str], None],
) -> None:
    steps = (3, 0, 1, 2, 4, 5, 6)[: size(1, 7)]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for step in steps:
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda _: wait_for(client.services)[0].kill())
            record = train(run, "wandb_offline")
        assert prints(record) == expected
        (whole,) = complete(record)
        assert whole.parent.name.endswith(f"-{record.run_id}-1")  # made again
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"; the mirror of {record.path} was made again from its record")
        assert_no_key(record)
        shutil.rmtree("runs")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    figure(ROW, f"wandb-core killed at step {', '.join(map(str, steps))}: record bit-identical, W&B file complete")


def test_lines_that_wandb_could_not_write_are_noticed(
    run: Run, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B says nothing where its disk is full. Here its service may not make its files any longer, and no other's."""

    def fill(record: RunFolder) -> None:
        wait_for(lambda: list(record.path.glob("wandb/offline-run-*/run-*.wandb")))
        client.services()[0].rlimit(psutil.RLIMIT_FSIZE, (7, 7))

    at_step(monkeypatch, 1, fill)
    record = train(run, "wandb_offline")
    assert prints(record) == expected
    assert complete(record) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no complete mirror of {record.path}" in line and "its record is complete" in line


def test_a_stop_pressed_on_the_server_does_not_stop_a_pack(
    long: None, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""
    with server("stopping") as at:
        monkeypatch.setenv("WANDB_BASE_URL", at)
        mirror = Mirror(compose([*TINY, "tracking=wandb_online"]), "id", folder)
        until = time.monotonic() + 40
        while "is not followed" not in said and time.monotonic() < until:
            time.sleep(0.5)  # where KeyboardInterrupt would come
            said += capsys.readouterr().err
        mirror.finish({}, ok=True)
        mirroring.flush()
    assert said == "W&B: a stop of id asked for in W&B is not followed; Ctrl-C stops a sweep\n"


class Command:
    """A real ``python -m MODULE``, with its time and what it says on stderr."""

    def __init__(self, folder: Path, arguments: list[str], at: str | None = None, prefix: tuple[str, ...] = ()) -> None:
        environment = {**ENVIRONMENT, "WANDB_API_KEY": KEY, "OMP_NUM_THREADS": "1"} | ({"WANDB_BASE_URL": at} if at else {})
        command = [*prefix, sys.executable, "-m", *arguments]
        self.began = time.monotonic()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=pipe, text=True)

    def service(self) -> psutil.Process | None:
        """W&B's service process, once it serves."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE:
                return child
        return None

    def end(self) -> tuple[int, list[str], float]:
        """Exit code, what W&B said, seconds from the beginning until nobody holds stderr any longer."""
        error = self.process.communicate(timeout=300)[1]
        said = [line for line in error.splitlines() if "W&B" in line or "wandb" in line]
        return self.process.returncode, said, time.monotonic() - self.began


def training(tracked: str, *overrides: str) -> list[str]:
    return ["src.train", *TRAIN, f"tracking={tracked}", *overrides]


def the_run(folder: Path) -> RunFolder | None:
    found = [path.parent for path in (folder / "runs").glob("*/config.yaml")]
    return RunFolder(found[0].name, found[0].parent) if found else None


def test_a_real_worker_whose_service_is_killed(
    long: None, folder: Path, expected: dict[str, str], figure: Callable[[str, str], None]
) -> None:
    delays = [0.0, 0.2, 0.4, 0.6, 1.0, 1.5]
    for delay in delays:
        record = written(compose([*TRAIN, "tracking=wandb_offline"]))
        command = Command(folder, ["src.train.worker", str(record.path)])
        service = wait_for(command.service)
        time.sleep(delay)
        service.kill()
        code, said, _ = command.end()
        assert code == 0 and prints(record) == expected
        assert len(complete(record)) == 1 and len(said) <= 1, said  # none where all was written before
        shutil.rmtree(folder / "runs")
    figure(ROW, f"real workers, wandb-core killed: {len(delays)} of {len(delays)} records bit-identical, W&B files complete")


def test_a_real_command_is_held_no_longer_than_it_says(
    long: None, folder: Path, expected: dict[str, str], figure: Callable[[str, str], None]
) -> None:
    taken, wall = {}, {}
    for manner in ("disabled", "unreachable", "silent", "late", "failing", "stuck"):
        with nobody() if manner == "disabled" else address(manner) as at:
            code, said, taken[manner] = Command(
                folder, training("disabled" if manner == "disabled" else "wandb_online"), at
            ).end()
        record = the_run(folder)
        assert code == 0 and record is not None and prints(record) == expected
        assert manner == "disabled" or (len(complete(record)) == 1 and len(said) == 1), (manner, said)
        result = record.result()
        assert result is not None
        wall[manner] = result["wall_seconds"]
        assert taken[manner] < taken["disabled"] + mirroring.FLUSH_SECONDS
        shutil.rmtree(folder / "runs")
    told = ", ".join(f"{manner} {wall[manner]:.1f} s ({taken[manner]:.0f} s)" for manner in taken)
    figure(ROW, f"seconds of a run until its result (of its command): {told}; each record bit-identical, each W&B file complete")


@pytest.mark.parametrize("when", ["begins", "trains", "ends"])
def test_a_signal_ends_a_command_in_time_while_the_server_hangs(
    long: None, folder: Path, when: str, figure: Callable[[str, str], None]
) -> None:
    with server("silent" if when == "begins" else "stuck") as at:
        command = Command(folder, training("wandb_online", *(["train.steps=100000"] if when == "trains" else [])), at)
        wait_for(command.service)
        record = wait_for(lambda: the_run(folder))
        if when == "trains":
            wait_for(lambda: len(list(record.logged())) > 100)
        if when == "ends":
            wait_for(record.result)
        time.sleep(0.5)
        began = time.monotonic()
        command.process.terminate()
        code, said, _ = command.end()
        taken = time.monotonic() - began
    assert code != 0 and said == [] and taken < 10
    figure(ROW, f"SIGTERM while a run {when} and the server hangs: out after {taken:.1f} s, no process left")


def test_the_attempts_of_a_run_are_wandb_runs_with_each_step_once(long: None, folder: Path, run: Run) -> None:
    many = ("train.steps=200", "train.checkpoint_every=20", "eval.every=50")
    command = Command(folder, training("wandb_offline", *many))
    wait_for(command.service)
    record = wait_for(lambda: the_run(folder))
    wait_for(lambda: len(list(record.logged())) > 60)
    time.sleep(2)
    for child in psutil.Process(command.process.pid).children(recursive=True):
        child.kill()
    command.process.kill()
    command.end()
    assert record.result() is None
    assert train(run, "wandb_offline", *many).run_id == record.run_id
    first, second = sorted(record.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert complete(record) == [second]
    seen = [item["item"]["_step"] for item in inspected(first)["history"]]
    assert seen == sorted(set(seen)) and len(seen) > 20  # what a second before its death was logged


def test_a_disk_that_is_full_only_for_wandb(long: None, folder: Path, figure: Callable[[str, str], None]) -> None:
    full = 'mkdir -p {0} && mount -t tmpfs -o size=128k none {0} && exec "$@"'
    space = ("unshare", "-rm")
    if subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("needs a mount of its own")
    ours = compose([*TRAIN, "tracking=wandb_offline", "train.steps=400"])
    place = folder / "runs" / run_id(ours) / "wandb"
    command = Command(folder, training("wandb_offline", "train.steps=400"), prefix=(*space, "sh", "-c", full.format(place), "sh"))
    code, said, _ = command.end()
    result = RunFolder(run_id(ours), folder / "runs").result()
    assert code == 0 and result is not None and result["status"] == "ok"
    assert len(said) == 1 and "no complete mirror" in said[0], said
    figure(ROW, "128 kB of disk for W&B: the record is complete, one line says that the mirror is not")
