"""Records become rows; a broken record is named and does nothing to the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from src.compare.assay import assay
from src.compare.frame import gather, known_sweeps, run_ids
from src.files.durable import dump_json
from src.record.records import RUNS
from tests.compare.synthetic import DORA, FROZEN, FULL, QLORA, RSLORA, forge
from tests.conftest import evaluate

DEEP = 10_000


def rewrite(run: str, change: Any) -> None:
    """Let ``change`` edit the run's record, as a hand might."""
    path = RUNS / run / "result.json"
    record = json.loads(path.read_text())
    change(record)
    forge(path, record)


@pytest.mark.parametrize("variant", [{}, RSLORA, DORA, QLORA, FROZEN, FULL])
def test_a_record_says_what_config_yaml_says(make, variant) -> None:
    run = make(variant=variant, configured=True, fields={"lora.alpha": 24.0, "train.weight_decay": 0.1})
    by_record = gather([run])
    rewrite(run, lambda record: record.pop("identity"))
    by_config = gather([run])
    assert by_record.problems == by_config.problems == []
    assert by_record.rows == by_config.rows
    assert by_record.rows[0]["status"] == "ok"


def test_a_finished_run_needs_no_config_yaml(make) -> None:
    run = make(configured=False)
    found = gather(run_ids())
    assert found.problems == [] and found.rows[0]["status"] == "ok"
    rewrite(run, lambda record: record.pop("identity"))
    found = gather(run_ids())
    assert found.rows == [] and f"{run}/config.yaml: not there" in found.problems[0]


def test_a_run_is_absent_until_it_has_a_record(make) -> None:
    run, waiting = make(), make(seed=1, recorded=False)
    found = gather([run, waiting, "0123456789"])
    assert (found.absent, found.expected, found.problems) == ([waiting, "0123456789"], 3, [])
    assert [row["status"] for row in found.rows] == ["ok", "missing"]


@pytest.mark.parametrize(("provenance", "origin"), [
    (None, (None, None, None)),
    ({"commit": "abc", "dirty": True, "python": "3.12", "packages": {"torch": "2.11"}},
     ("abc", True, '{"python": "3.12", "torch": "2.11"}')),
    ({"commit": ["x"], "dirty": "yes", "packages": 3}, ("['x']", None, '{"python": null}')),
])  # fmt: skip
def test_where_a_run_came_from(make, provenance, origin) -> None:
    [row] = gather([make(provenance=provenance)]).rows
    assert (row["commit"], row["dirty"], row["versions"]) == origin


@pytest.mark.parametrize("how", ["broken", "of another run"])
def test_a_provenance_that_is_not_what_was_written_is_an_unknown_one_and_is_said(make, how) -> None:
    run, other = make(provenance={"commit": "abc"}), make(seed=1, provenance={"commit": "def"})
    path = RUNS / run / "provenance.json"
    path.write_text("[" * DEEP) if how == "broken" else shutil.copy(RUNS / other / "provenance.json", path)
    found = gather([run])
    assert found.rows[0]["status"] == "ok" and found.rows[0]["commit"] is None
    [problem] = found.problems
    assert problem.startswith(f"runs/{run}/provenance.json: cannot be read, so nothing says which code the run came from: ")


def test_a_config_that_is_not_its_folders_is_no_run(make) -> None:
    run = make(recorded=False)
    path = RUNS / run / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.003"))
    found = gather([run])
    assert found.rows == [] and "its fields are not those that the folder's name is the hash of" in found.problems[0]


def test_forgetting_is_after_minus_before(make) -> None:
    make(metrics={"test/loss": 1.0, "forgetting/before": 3.25, "forgetting/after": 3.5})
    make(seed=1, metrics={"test/loss": 1.0, "forgetting/before": 3.25})
    assert [row["metrics"].get("forgetting/change") for row in sorted(gather(run_ids()).rows, key=lambda row: row["seed"])] == [
        0.25,
        None,
    ]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


# What is wrong with a record, and a word of the line that says so.
LIES = {
    "a list": (lambda record: record.update(identity=[1, 2]), "identity"),
    "a text": (lambda record: record.update(identity="lora"), "identity"),
    "empty": (lambda record: record.update(identity={}), "identity"),
    "another rank": (lambda record: record["identity"]["lora"].update(r=64), "identity"),
    "another rate": (lambda record: record["identity"]["train"].update(lr=1e-4), "identity"),
    "a text for a seed": (lambda record: record["identity"].update(seed="0"), "identity"),
    "a huge rank": (lambda record: record["identity"]["lora"].update(r=10**400), "identity"),
    "one field more": (lambda record: record["identity"].update(more=1), "identity"),
    "of another run": (lambda record: record.update(run_id="0123456789"), "identity"),
    "deep": (lambda record: record.update(identity=nested(900)), "identity"),
    "an unnamed variant": (lambda record: record.update(variant=["lora"]), "variant"),
    "metrics in a list": (lambda record: record.update(metrics=[1.0]), "metrics"),
    "checks in a text": (lambda record: record.update(checks="ok"), "checks"),
    "a loss in words": (lambda record: record["metrics"].update({"test/loss": "low"}), "test/loss"),
    "a loss of true": (lambda record: record["metrics"].update({"test/loss": True}), "test/loss"),
    "a huge loss": (lambda record: record["metrics"].update({"test/loss": 1e300}), "test/loss is too large"),
    "a huge whole loss": (lambda record: record["metrics"].update({"test/loss": -(10**400)}), "test/loss is too large"),
    "a huge count": (lambda record: record.update(trainable_parameters=1e30), "trainable_parameters is too large"),
    "a count below 0": (lambda record: record.update(trainable_parameters=-5), "trainable_parameters is below 0"),
    "a status of 1": (lambda record: record.update(status=1), "status"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "word"), LIES.values(), ids=LIES)
def test_a_record_that_lies_is_one_line_and_the_rest_goes_on(make, change, word) -> None:
    good, bad = make(1.0), make(3.0, seed=1, configured=True)
    rewrite(bad, change)
    found = gather([good, bad])
    [problem] = found.problems
    assert problem.startswith(f"runs/{bad}/result.json: cannot be read: ") and word in problem and "\n" not in problem
    assert [row["status"] for row in found.rows] == ["ok", "unreadable"]
    assert found.rows[1]["seed"] == 1, "config.yaml says what it was"
    [row] = assay(found).table.to_dict("records")
    assert (row["status"], row["n_seeds"], row["test_loss_mean"]) == ("1 ok, 1 unreadable", 1, 1.0)


TEXTS = {
    "cut": '{"status": "ok", "metrics": {"test/lo',
    "empty": "",
    "a number": "3",
    "a list": "[]",
    "nothing in it": "{}",
    "no text": "\ufffe",
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep identity": '{"status": "ok", "identity": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}",
    "digits": '{"status": ' + "9" * DEEP + "}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_record_is_one_line_and_the_rest_goes_on(make, text) -> None:
    good, bad = make(1.0), make(3.0, seed=1, configured=True)
    path = RUNS / bad / "result.json"
    path.write_text(text)
    if text.endswith("}"):
        forge(path, text)
    found = gather([good, bad])
    [problem] = found.problems
    assert problem.startswith(f"runs/{bad}/result.json: cannot be read: ") and "\n" not in problem
    assert [(row["status"], row["seed"]) for row in found.rows] == [("ok", 0), ("unreadable", 1)]


def test_a_broken_record_is_one_line_on_the_command_line(make, capsys) -> None:
    for seed in range(2):
        make(1.0, seed, r=4, trainable_parameters=500)
        bad = make(3.0, seed, configured=True)
    forge(RUNS / bad / "result.json", TEXTS["deep identity"])
    assert evaluate([]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: runs/{bad}/result.json: cannot be read: ") and captured.err.count("\n") == 1
    assert "1 ok, 1 unreadable" in captured.out


def test_values_that_are_no_numbers_are_absent(make) -> None:
    run = make(metrics={})
    path = RUNS / run / "result.json"
    forge(
        path, dump_json(json.loads(path.read_text())).replace('"metrics": {}', '"metrics": {"test/loss": NaN, "val/loss": 1e999}')
    )
    found = gather([run])
    assert found.problems == [] and found.rows[0]["metrics"] == {}


def test_a_broken_record_without_a_config_is_said_too(make) -> None:
    run = make(configured=False)
    (RUNS / run / "result.json").write_text("{")
    found = gather([run])
    assert found.rows == [] and len(found.problems) == 1
    assert f"{run}/result.json: cannot be read, and there is no config.yaml" in found.problems[0]


def test_a_copied_folder_is_left_out(make) -> None:
    run = make()
    shutil.copytree(RUNS / run, RUNS / "copy")
    found = gather(run_ids())
    assert len(found.rows) == 1
    assert found.problems in ([f"runs/copy: the same run as {run}, left out"], [f"runs/{run}: the same run as copy, left out"])


def test_a_sweep_leads_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps"
    folder.mkdir()
    for name in ("study.json", "...json", ".hidden.json"):
        (folder / name).write_text("{}")
    assert known_sweeps(tmp_path) == ["study"]
