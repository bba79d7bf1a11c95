"""Score the test split of a pack: choices against transformers' own losses, and each task's metrics in the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from src.command.cli import compose
from src.model import models
from src.sweep.events import Events
from src.train import worker
from tests.conftest import TINY, Run, TrainPack, written


@pytest.fixture
def quiz(folder: Path) -> list[str]:
    """The overrides of a small commonsense task."""
    for name, numbers in (("train", range(40)), ("test", range(40, 46))):
        rows = [
            {"instruction": f"Is {n} even?\n\nAnswer format: true/false/maybe", "input": "", "answer": "",
             "output": f"the correct answer is {('true', 'false')[n % 2]}"} for n in numbers
        ]  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return ["dataset=boolq", f"dataset.path='{folder}'", "dataset.val_share=0.2"]


def test_a_choice_is_what_transformers_finds_likeliest(run: Run, quiz: list[str]) -> None:
    record, result = run(*quiz, "variant=frozen", "variant.base_precision=fp32", "eval.generate=false")
    network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    rows = [json.loads(line) for line in record.predictions.read_text().splitlines()]
    examples = {f"test.json:{at}": row for at, row in enumerate(json.loads(Path("test.json").read_text()), start=1)}
    assert len(rows) == 4 and "prediction" not in rows[0] and "test/exact_match" not in result["metrics"]
    pad = " " * 16
    for row in rows:
        prompt = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
            f"{pad}### Instruction:\n{pad}{examples[row['id']]['instruction']}\n\n{pad}### Response:\n{pad}"
        )
        start = tokenizer(prompt).input_ids[:-1]  # ByT5's tokenizer closes each text
        nats = {}
        for word in ("true", "false", "maybe"):
            choice = f"the correct answer is {word}"
            target = [*tokenizer(choice, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                labels = torch.tensor([[-100] * len(start) + target])
                nats[choice] = len(target) * network(input_ids=torch.tensor([start + target]), labels=labels).loss.item()
        assert row["choice"] == min(nats, key=lambda choice: nats[choice])
        assert row["log_loss"] == pytest.approx(nats[row["target"]], rel=1e-4)
        assert row["choice_correct"] == (row["choice"] == examples[row["id"]]["output"])
    assert result["metrics"]["test/choice_accuracy"] == sum(row["choice_correct"] for row in rows) / 4


def test_each_run_of_a_pack_makes_its_own_choices(
    train_pack: TrainPack, run: Run, quiz: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (Path("train.json"), Path("test.json")):  # choices of one length; the third is learned, or nothing is
        text = path.read_text().replace("true/false/maybe", "aaaa/bbbb/cccc").replace("is true", "is cccc")
        path.write_text(text.replace("is false", "is cccc"))
    runs = [[*quiz, f"train.lr={rate}", "train.steps=20", "eval.every=20", "eval.generate=false"] for rate in (1e-12, 0.03)]
    together = [record.predictions.read_text() for record in train_pack(*runs).records]
    choices = [[json.loads(line)["choice"] for line in text.splitlines()] for text in together]
    assert choices[0] != choices[1]
    (folder / "alone").mkdir()
    monkeypatch.chdir(folder / "alone")
    for one, wanted in zip(runs, choices, strict=True):
        record, result = run(*one)
        assert result["status"] == "ok", result["reason"]
        assert [json.loads(line)["choice"] for line in record.predictions.read_text().splitlines()] == wanted


CONTEXT = {"context": "Tag?", "target": "A"}
TASKS = {
    "gsm8k": ({"question": "How many?", "answer": "#### 3"}, {"exact_match", "parse_failures"}),
    "boolq": (
        {"instruction": "So?\n\nAnswer format: yes/no", "output": "the correct answer is yes"},
        {"choice_accuracy", "exact_match", "parse_failures"},
    ),
    "finlora_xbrl_tags": (CONTEXT, {"exact_match", "item_f1", "item_accuracy"}),
    "finlora_xbrl_term": (CONTEXT, {"exact_match", "chrf"}),
    "finlora_cfa": (CONTEXT, {"exact_match", "macro_f1", "parse_failures"}),
    "e2e_nlg": ({"mr": "name[X]", "ref": "X."}, {"exact_match", "bleu"}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_its_metrics_in_the_record(run: Run, folder: Path, task: str) -> None:
    row, metrics = TASKS[task]
    asked = next(iter(row))
    numbered = [row | {asked: f"{n} {row[asked]}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
    _, result = run(f"dataset={task}", "dataset.path=rows.jsonl", "dataset.max_length=200", "eval.max_new_tokens=3")
    assert result["status"] == "ok", result["reason"]
    found = {name.removeprefix("test/") for name in result["metrics"] if name.startswith("test/")}
    assert found == {"loss", *metrics}
    assert result["dataset_version"] == 1 and result["test_rows_repeated"] == 0


def test_a_dataset_without_validation_rows_fails_in_one_line(run: Run, folder: Path) -> None:
    """A hub's rows are not read before the worker does."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"row {at}", "completion": "x"}) + "\n" for at in range(40)))
    config = compose([*TINY, "dataset=jsonl", f"dataset.path={path}", "dataset.val_share=0"])
    record = written(config)
    assert worker.run([record.path], Events(None)) == 0
    result = record.result()
    assert result is not None and result["status"] == "failed"
    assert result["reason"].startswith("dataset=jsonl: no validation examples are left")
