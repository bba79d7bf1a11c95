"""Repeat each bad input that the fuzz has found, so that each stays fixed whatever the fuzz draws."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import entry


def refused(*arguments: str) -> str:
    """The one line with which ``python -m src.train`` refuses these arguments."""
    before = entry.tree(Path.cwd())
    ended = entry.train(*arguments)
    assert ended.refused, ended
    entry.check(ended, ["error"], before)
    return ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "'': not of the form key=value"),
        (["-x"], "unrecognized arguments: -x"),
        (["--cfg", "nosuch"], "--cfg/-c: invalid choice: 'nosuch'"),
        (["lora.r=4", "--cfg", "job", "seed=1"], "options come before the overrides"),
        (["--resolve"], "--resolve"),
        (["--cfg", "job", "-m"], "--multirun"),
        (["-cn", "other"], "--config-name: is not accepted"),
        (["model.name=a\nb"], "model.name=a; b: not of the form"),
        (["model.name=\x1b[31m"], "model.name=\\x1b[31m"),
        (["model.name=\udcff("], "model.name=\\udcff("),
        (["seed=" + "9" * 5000], "cannot be read (Exceeds the limit (4300 digits)"),
        (["seed=" + "[" * 2000 + "]" * 2000], "seed: needs at most 20 brackets"),
        (["model=${seed}"], "model='${seed}': is the name of a file"),
        (["experiment=[demo,demo]"], "experiment=[demo,demo]: needs one name"),
        (["hydra/launcher=true"], "hydra/launcher: cannot be set"),
        (["hydra=true"], "hydra: cannot be set"),
        (["lora=${lora}"], "Recursive interpolation detected; in: lora=${lora}"),
        (["eval.every=[q_proj]"], "eval.every=['q_proj']: needs a whole number"),
        (["dataset.max_length=3"], "from 8 to 1048576"),
        (["dataset.labels=[[yes]]"], "dataset.labels=[['yes']]: needs a list of texts"),
        (["seed=${nosuch}"], "Interpolation key 'nosuch' not found; in: seed=${nosuch}"),
        (["seed=${data_seed}", "data_seed=${seed}"], "Recursive interpolation detected; in: seed="),
        (["sweep=${oc.select:sweep}"], "sweep: only another key can be referred to"),
        (["model=tiny", "model.shape.hidden_size=0"], "model.shape.hidden_size=0: needs a whole number from 1"),
        (["model=tiny", "model.shape.hidden_size=65"], "needs a multiple of num_attention_heads=4"),
        (["model=tiny", "model.shape.num_key_value_heads=3"], "needs a divisor of num_attention_heads=4"),
        (["model=tiny", "model.shape.vocab_size=" + "9" * 400], "needs a whole number from 1 to 100000000"),
        (["model=tiny", "model.shape.vocab_size=300"], "needs 384"),
    ],
)
def test_a_line(arguments: list[str], says: str) -> None:
    assert says in refused(*arguments)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("pipe", "is a pipe or a device"),
        ("/dev/zero", "is a pipe or a device"),
        (".", "is a folder"),
        ("a" * 300, "File name too long"),
        ("'~nobody-here/x'", "home directory"),
        ("here/x", "Not a directory"),
    ],
)
@pytest.mark.parametrize("key", ["dataset.path", "dataset.val_path", "forgetting.path"])
def test_a_path_that_is_no_file(folder: Path, key: str, path: str, says: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "here").write_text('{"prompt": "a", "target": "b"}\n')
    arguments = ["model=tiny"] if key == "forgetting.path" else ["model=tiny", "dataset=jsonl", "dataset.path=here"]
    line = refused(*arguments, f"{key}={path}")
    assert f"{key}={path.strip(chr(39))[:100]}" in line and says in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"prompt": "a", "target": "b", "x": ' + b"9" * 5000 + b"}", "line 1: not JSON (Exceeds the limit"),
        (b"[" * 100_000, "line 1: not JSON (maximum recursion depth"),
        (b'\n{"prompt": "a" "target": "b"}', "line 2: not JSON (Expecting ',' delimiter, character 16 of the line)"),
    ],
)
def test_a_data_file(folder: Path, content: bytes, says: str) -> None:
    (folder / "rows.jsonl").write_bytes(content)
    assert f"dataset.path: rows.jsonl, {says}" in refused("dataset=jsonl", "dataset.path=rows.jsonl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"7", "Invalid loaded object type: int"),
        (b"seed: \xff", "is not YAML: unacceptable character"),
        (b"null: [1]", "cannot be composed"),
        (b"# @pack\nseed: 1", "Expected header format"),
        (b"defaults: [[1]]", "Unsupported type in defaults"),
        (b"seed: [", "x.yaml"),
        (b"# @package _global_\nseed: !!python/name:os.system", "python/name:os.system"),
        (b"# @package _global_\nsweep: !!python/object/apply:os.system ['touch owned']", "python/object/apply"),
    ],
)
def test_an_experiment(folder: Path, content: bytes, says: str) -> None:
    path = folder / "mine" / "experiment" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    line = refused("--config-dir", "mine", "experiment=x", "model=tiny")
    assert says in line and ("experiment=x" in line or "x.yaml" in line)


def test_a_list_of_runs_that_is_damaged(folder: Path) -> None:
    (folder / "runs" / "sweeps").mkdir(parents=True)
    for content in ("[" * 100_000, "3", '{"run_ids": "abc"}', '{"run_ids"'):
        (folder / "runs" / "sweeps" / "study.json").write_text(content)
        ended = entry.evaluate("sweep=study")
        assert ended.refused and "runs/sweeps/study.json: cannot be read" in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert "study.json.damaged" in entry.train("model=tiny", "sweep=study").stderr  # the list is begun anew


def test_a_model_that_is_none(folder: Path) -> None:
    (folder / "here").mkdir()
    for content in ("[" * 100_000, "9" * 5000, "[]"):
        (folder / "here" / "config.json").write_text(content)
        assert "model.path=here: config.json is not" in refused("model=path", "model.path=here")
    for path, says in (("a" * 300, "File name too long"), ("'~nobody-here/x'", "home directory"), ("nosuch", "is missing")):
        assert says in refused("model=path", f"model.path={path}")


def test_a_budget_beyond_all_numbers() -> None:
    ended = entry.variants("model=tiny", "match=" + "9" * 5000)
    assert ended.refused and "or VARIANT:RANK" in ended.stderr


def test_a_defect_of_ours_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.sweep import launch

    def broken(nodes: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(launch, "plan", broken)
    for arguments in (["model=tiny"], ["-m", "model=tiny", "seed=0,1"]):  # behind Hydra, and inside it
        with pytest.raises(KeyError, match="ours"):
            entry.train(*arguments)
