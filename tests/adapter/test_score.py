"""``python -m src.eval score``: a run's own metrics again, the base beside it, other datasets, and one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.command.cli import compose
from src.data import datasets
from src.files.durable import unseal
from tests.conftest import Run, evaluate

SETTINGS = ["dataset=jsonl", "dataset.path=rows.jsonl", "dataset.labels=[yes,no]", "variant.base_precision=fp32", "train.lr=0.01"]


@pytest.fixture
def rows(folder: Path) -> None:
    lines = ({"context": f"Is {index} even? ", "target": "no" if index % 2 else "yes"} for index in range(120))
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def scored(*words: str) -> dict[str, Any]:
    assert evaluate(["score", *words]) == 0
    newest = max(Path("reports/scores").glob("*/*.json"), key=lambda path: path.stat().st_mtime_ns)
    return unseal(newest.read_bytes())


@pytest.mark.usefixtures("rows")
def test_a_run_scores_again_what_its_record_says_and_its_base_what_a_frozen_one_does(run: Run) -> None:
    """The packed engine wrote the record; PEFT scores the saved adapter."""
    record, result = run(*SETTINGS, "variant=dora", "train.steps=20")
    again = scored(f"run={record.run_id}")
    assert {f"test/{name}" for name in again["metrics"]} == {name for name in result["metrics"] if name.startswith("test/")}
    for name, value in again["metrics"].items():
        assert value == pytest.approx(result["metrics"][f"test/{name}"], abs=1e-5), name
    written = [json.loads(line) for line in record.predictions.read_text().splitlines()]
    (place,) = Path(f"reports/scores/{record.run_id}").glob("*.jsonl")
    scored_rows = [json.loads(line) for line in place.read_text().splitlines()]
    assert [row["prediction"] for row in scored_rows] == [row["prediction"] for row in written]

    folder = scored(f"adapter={record.adapter}", "model=tiny", "precision=fp32", *SETTINGS[:3], "examples=4", "generate=false")
    assert folder["metrics"].keys() == {"loss"} and folder["examples"] == 4

    frozen = run(*SETTINGS[:4], "variant=frozen")[1]["metrics"]["test/loss"]
    base = scored(f"run={record.run_id}", "base=true")["metrics"]["loss"]
    assert base == pytest.approx(frozen, abs=1e-5) and abs(base - again["metrics"]["loss"]) > 1e-2


def test_another_datasets_test_files_need_no_training_file(run: Run, folder: Path) -> None:
    record, _ = run("lora.r=2")
    place = folder / "data" / "test" / "tfns_test.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("".join(json.dumps({"context": f"tweet {index}", "target": "neutral"}) + "\n" for index in range(6)))
    report = scored(f"run={record.run_id}", "dataset=finlora_tfns", f"dataset.path={folder / 'data'}", "max_new_tokens=2")
    assert (report["dataset"], report["dataset_version"], report["examples"], report["test_split"]) == ("finlora_tfns", 1, 6, 6)
    assert report["metrics"]["parse_failures"] == 1.0 and report["metrics"]["macro_f1"] == 0.0


def test_the_test_split_alone_is_that_of_the_whole(folder: Path) -> None:
    """Also where the test has a file of its own whose rows repeat a training row."""
    for name, first, count in (("train", 0, 50), ("test", 45, 10)):
        path = folder / "data" / name / ("finlora_sentiment_train.jsonl" if name == "train" else "tfns_test.jsonl")
        path.parent.mkdir(parents=True)
        path.write_text(
            "".join(json.dumps({"context": f"row {index}", "target": "neutral"}) + "\n" for index in range(first, first + count))
        )
    dataset = compose(["dataset=finlora_tfns", f"dataset.path={folder / 'data'}"]).dataset
    assert datasets.load_test(dataset).test == datasets.load(dataset).test and datasets.load(dataset).left_out == 5
    own = compose(["dataset=jsonl", f"dataset.path={folder}/data/train/finlora_sentiment_train.jsonl"]).dataset
    assert datasets.load_test(own) == datasets.load(own)  # a file that was split stays split


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run=0123456789"], "run=0123456789: no finished run"),
        (["dataset=gsm8k"], "needs one of run=ID and adapter=FOLDER"),
        (["run=0123456789", "adapter=x"], "needs one of run=ID and adapter=FOLDER"),
        (["adapter=~nobody-here/x", "dataset=gsm8k"], "home directory"),
        (["run=0123456789", "exmples=3"], "did you mean examples?"),
        (["run=0123456789", "examples=0"], "examples=0: needs a whole number"),
    ],
)
def test_bad_input_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["score", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err and captured.err.count("\n") == 1


def test_an_unknown_dataset_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run()
    capsys.readouterr()
    assert evaluate(["score", f"run={record.run_id}", "dataset=gsm9k"]) == 2
    assert "dataset=gsm9k: no such dataset (did you mean gsm8k?)" in capsys.readouterr().err
    assert evaluate(["score", f"run={record.run_id}", "dataset=gsm8k", "dataset.path=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not Path("reports").exists()


def test_a_question_about_other_data_is_never_answered_with_the_default_dataset(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    record, _ = run()
    capsys.readouterr()
    assert evaluate(["score", f"run={record.run_id}", "dataset.max_length=64"]) == 2
    assert capsys.readouterr().err == "error: dataset.max_length: says more about a dataset, which dataset=NAME chooses\n"


def test_a_full_run_has_no_adapter_to_switch_off(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run("variant=full")
    capsys.readouterr()
    assert evaluate(["score", f"run={record.run_id}", "base=true"]) == 2
    assert "has no adapter to switch off" in capsys.readouterr().err


@pytest.mark.usefixtures("rows")
def test_the_name_of_a_dataset_leads_nowhere_and_scores_stand_beside_each_other(run: Run, folder: Path) -> None:
    record, _ = run(*SETTINGS, "dataset.name=../../../out")
    for more in ([], ["examples=3"], ["base=true"]):
        scored(f"run={record.run_id}", "generate=false", *more)
    written = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl") and "out" in path.name]
    assert len(written) == 6 and {path.parent for path in written} == {folder / "reports" / "scores" / record.run_id}


@pytest.mark.usefixtures("rows")
def test_data_that_changed_is_said(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(*SETTINGS)
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("even", "odd"))
    scored(f"run={record.run_id}", "generate=false")
    assert "no longer what the run was trained on" in capsys.readouterr().err
