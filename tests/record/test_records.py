"""Records: readable by strict parsers, and never read as something else than was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from src.command.cli import compose
from src.files.durable import Damaged, dump_json
from src.record.records import RESULT, RunFolder, provenance, read_lines, read_sweep, run_id, write_sweep


def test_a_config_survives_its_file() -> None:
    config = compose(["model=tiny", "lora.target_modules=[q_proj,v_proj]", "variant=dora_rs", "seed=3", "dataset.labels=[a,b]"])
    folder = RunFolder(run_id(config))
    folder.write_config(config)
    assert folder.read_config() == config
    assert run_id(folder.read_config()) == folder.run_id


def test_numbers_that_are_not_finite_become_null() -> None:
    text = dump_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def finished(run: str = "run") -> RunFolder:
    """A record with one file of each kind."""
    record = RunFolder(run)
    (record.path / "adapter").mkdir(parents=True)
    (record.path / "adapter" / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    record.write_config(compose(["model=tiny"]))
    record.write_provenance({"commit": "abc"})
    record.metrics.write_text('{"step": 1}\n')
    record.write_predictions([{"id": "1"}])
    record.write_result({"run_id": run, "status": "ok"})
    return record


FILES = ["config.yaml", "provenance.json", "metrics.jsonl", "predictions.jsonl", "adapter/adapter_model.safetensors"]


def test_a_result_holds_the_digests_of_all_other_files() -> None:
    record = finished()
    result = record.result()
    assert result is not None and set(result["files"]) == set(FILES)
    assert result["files"]["metrics.jsonl"] == {"bytes": 12, "sha256": hashlib.sha256(b'{"step": 1}\n').hexdigest()}
    assert record.damage(result) == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_is_damage_and_is_set_aside(name: str) -> None:
    record = finished()
    path = record.path / name
    changed = path.read_bytes()[:-1] + b"#"
    path.write_bytes(changed)
    (line,) = record.damage(record.result() or {})
    assert line == f"{name} holds other bytes than were written"
    assert record.set_damage_aside() == [line]
    assert not path.exists() and (record.damaged / name.replace("/", ".")).read_bytes() == changed
    assert record.damage(record.result() or {}) == [f"{name}: No such file or directory"]


def test_a_result_that_changed_is_none_and_is_set_aside() -> None:
    record = finished()
    path = record.path / RESULT
    path.write_text(path.read_text().replace('"ok"', '"OK"'))
    assert record.result() is None
    assert record.set_damage_aside() == ["result.json is damaged"]
    assert not path.exists() and (record.damaged / RESULT).exists()
    assert record.set_damage_aside() == []


def test_checked_gives_the_bytes_that_were_written_or_nothing() -> None:
    record = finished()
    assert record.checked(record.predictions) == b'{"id": "1"}\n'
    assert record.checked(record.path / "nosuch.jsonl") == b""
    (record.path / "more.jsonl").write_text("x")
    with pytest.raises(Damaged, match="no record says"):
        record.checked(record.path / "more.jsonl")
    record.predictions.write_bytes(b'{"id": "2"}\n')
    with pytest.raises(Damaged, match="other bytes"):
        record.checked(record.predictions)


def test_what_a_link_in_a_run_points_to_is_left_alone(folder: Path) -> None:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    record = finished()
    for path in (record.adapter, record.checkpoints):
        if path.exists():
            path.rename(record.path / "moved")
        path.symlink_to(outside)
    record.clear_results()
    record.clear_progress()
    assert (outside / "mine").read_text() == "mine"
    assert not record.adapter.is_symlink() and not record.checkpoints.is_symlink()


def test_a_torn_last_line_is_left_out_at_every_byte() -> None:
    lines = [{"step": n, "train/loss": n / 3} for n in range(1, 4)]
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole)):
        assert list(read_lines(whole[:end])) == lines[:2]
    assert list(read_lines(whole)) == lines


def test_a_damaged_list_of_a_sweep_is_set_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep("mine", ["a"])
    path = folder / "runs/sweeps/mine.json"
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(Damaged):
        read_sweep("mine")
    write_sweep("mine", ["c"], add=True)
    assert read_sweep("mine") == ["c"]
    assert "set aside as mine.json.damaged" in capsys.readouterr().err and path.with_name("mine.json.damaged").exists()


def test_a_sweep_lists_its_runs() -> None:
    assert read_sweep("mine") is None
    write_sweep("mine", ["a", "b"])
    assert read_sweep("mine") == ["a", "b"]


def test_provenance_names_code_and_versions() -> None:
    value = provenance(["train", "seed=1"])
    assert value["argv"] == ["train", "seed=1"]
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(value["packages"])
    assert value["commit"] is None or len(value["commit"]) == 40
