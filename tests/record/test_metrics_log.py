"""The log of metrics knows where it stood, and goes back there or says that it cannot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from src.files.durable import CannotWrite, Damaged
from src.record.metrics_log import START, Mark, MetricsLog


def logged(path: Path, *steps: int) -> MetricsLog:
    log = MetricsLog(path)
    for step in steps:
        log.append({"step": step, "train/loss": step / 3})
    return log


def test_a_mark_is_the_length_and_digest_of_the_file(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    assert MetricsLog(path).mark() == START == Mark(0, hashlib.sha256(b"").hexdigest())
    mark = logged(path, 1, 2).mark()
    data = path.read_bytes()
    assert mark == Mark(len(data), hashlib.sha256(data).hexdigest())
    assert [json.loads(line) for line in data.splitlines()] == [{"step": n, "train/loss": n / 3} for n in (1, 2)]


def test_what_came_after_a_mark_is_cut_off_and_logged_again(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    log = logged(path, 1, 2)
    mark = log.mark()
    log.append({"step": 3})
    with open(path, "ab") as file:
        file.write(b'{"step": 4, "tr')  # torn
    again = MetricsLog(path)
    assert again.holds(mark)
    again.go_back_to(mark)
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1, 2]
    again.append({"step": 3})
    assert again.mark() == log.mark()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data.replace(b"1", b"2", 1), lambda data: b""])
def test_a_log_that_is_not_what_was_marked_is_damaged(folder: Path, damage) -> None:
    path = folder / "metrics.jsonl"
    mark = logged(path, 1, 2).mark()
    path.write_bytes(damage(path.read_bytes()))
    log = MetricsLog(path)
    assert not log.holds(mark) and log.holds(START)
    with pytest.raises(Damaged, match="not what it was"):
        log.go_back_to(mark)
    path.unlink()
    assert not log.holds(mark)


def test_a_log_that_cannot_be_written_says_so(folder: Path) -> None:
    with pytest.raises(CannotWrite, match=r"nosuch/metrics.jsonl: No such file or directory"):
        MetricsLog(folder / "nosuch" / "metrics.jsonl").append({"step": 1})


def test_a_number_that_is_not_finite_is_null(folder: Path) -> None:
    MetricsLog(folder / "m").append({"step": 1, "train/loss": float("nan")})
    assert (folder / "m").read_text() == '{"step": 1, "train/loss": null}\n'
