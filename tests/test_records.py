"""Record files: whole or absent, readable by strict parsers, and tolerant of a torn last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.cli import compose
from src.records import RunFolder, dump_json, provenance, read_lines, read_sweep, run_id, write_atomically, write_sweep


def test_a_config_survives_its_file() -> None:
    config = compose(["model=tiny", "lora.target_modules=[q_proj,v_proj]", "variant=dora_rs", "seed=3", "dataset.labels=[a,b]"])
    folder = RunFolder(run_id(config))
    folder.write_config(config)
    assert folder.read_config() == config
    assert run_id(folder.read_config()) == folder.run_id


def test_numbers_that_are_not_finite_become_null() -> None:
    text = dump_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "file.json"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_torn_last_line_is_left_out_at_every_byte(folder: Path) -> None:
    lines = [{"step": n, "train/loss": n / 3} for n in range(1, 4)]
    record = RunFolder("run")
    record.path.mkdir(parents=True)
    for line in lines:
        record.log(line)
    whole = record.metrics.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole)):
        (folder / "torn.jsonl").write_bytes(whole[:end])
        assert list(read_lines(folder / "torn.jsonl")) == lines[:2]
    assert list(record.logged()) == lines


def test_metrics_after_a_checkpoint_are_dropped() -> None:
    record = RunFolder("run")
    record.path.mkdir(parents=True)
    for step in range(1, 6):
        record.log({"step": step})
    record.keep_metrics_until(3)
    assert [line["step"] for line in record.logged()] == [1, 2, 3]


def test_a_sweep_lists_its_runs() -> None:
    assert read_sweep("mine") is None
    write_sweep("mine", ["a", "b"])
    assert read_sweep("mine") == ["a", "b"]


def test_provenance_names_code_and_versions() -> None:
    found = provenance(["train", "seed=1"])
    assert found["argv"] == ["train", "seed=1"]
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(found["packages"])
    assert found["commit"] is None or len(found["commit"]) == 40
