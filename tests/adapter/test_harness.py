"""The call of lm-evaluation-harness, through a stand-in that records it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from src.adapter import harness
from src.adapter.adapted import find
from src.command.cli import compose
from src.model import models
from tests.conftest import Run, evaluate

QUICK = ["forgetting.tokens=0", "eval.generate=false", "lora.r=4", "train.lr=0.05", "model=path", "model.path=base"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        calls.append(options)
        if "broken" in options["tasks"]:
            raise FileNotFoundError("no data\nat all")
        return {"results": {"mini": {"alias": "mini", "acc,none": 0.75, "acc_stderr,none": 0.25}}, "samples": [object()]}

    class TaskManager:
        all_tasks = ("mini", "broken")

        def __init__(self, include_path: str | None = None) -> None:
            self.include_path = include_path

        def match_tasks(self, names: list[str]) -> list[str]:
            return [name for name in names if name in self.all_tasks]

    package, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
    package.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    tasks.TaskManager = TaskManager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: object() if name == "lm_eval" else None)
    return calls


@pytest.fixture
def base(folder: Path) -> None:
    network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    for part in (network, tokenizer):
        part.save_pretrained("base")


@pytest.mark.usefixtures("base")
def test_base_and_adapter_go_by_name(run: Run, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(*QUICK)
    capsys.readouterr()
    assert evaluate(["harness", f"run={record.run_id}", "tasks=mini", "limit=5", "device=cpu"]) == 0
    (call,) = asked
    assert call["model"] == "hf" and call["tasks"] == ["mini"] and call["limit"] == 5 and call["device"] == "cpu"
    dtype = call["model_args"].pop("dtype")
    assert dtype in ("bfloat16", "float32") and call["model_args"] == {"pretrained": "base", "peft": str(record.adapter)}
    path = Path("reports/harness") / record.run_id / "results.json"
    assert json.loads(path.read_text())["results"]["mini"]["acc,none"] == 0.75 and "samples" not in path.read_text()
    assert capsys.readouterr().out == f"mini acc 0.7500 +- 0.2500\n{path}\n"


@pytest.mark.usefixtures("base")
def test_a_quantized_base_goes_as_a_model_and_full_as_its_folder(run: Run, asked: list[dict[str, Any]]) -> None:
    from src.variants.quantization import quantised_layers

    record, _ = run(*QUICK, "variant=qlora")
    arguments, _ = harness.model_arguments(find({"run": record.run_id}))
    assert quantised_layers(arguments["pretrained"])["nf4"] == 14 and arguments.keys() == {"pretrained", "tokenizer"}
    record, _ = run(*QUICK, "variant=full")
    arguments, _ = harness.model_arguments(find({"run": record.run_id}))
    assert arguments == {"pretrained": str(record.model), "dtype": "float32", "tokenizer": "base"}


@pytest.mark.usefixtures("base")
def test_what_the_harness_cannot_do_is_one_line(
    run: Run, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    record, _ = run(*QUICK)
    (random, _) = run("forgetting.tokens=0", "eval.generate=false")
    for folder, words, says in (
        (record, ["tasks=minni"], "the harness has no minni (did you mean mini?)"),
        (record, ["tasks=broken"], "tasks=broken: no data"),
        (record, ["tasks=mini", "include=nowhere"], "include=nowhere: no such folder"),
        (random, ["tasks=mini"], "random weights have none"),
    ):
        capsys.readouterr()
        assert evaluate(["harness", f"run={folder.run_id}", *words]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert not Path("reports").exists()


def test_without_the_harness_it_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, _ = run("forgetting.tokens=0", "eval.generate=false")
    monkeypatch.setattr(harness, "PACKAGE", "lm_eval_that_is_not_there")
    capsys.readouterr()
    assert evaluate(["harness", f"run={record.run_id}", "tasks=mini"]) == 2
    assert "pip install 'lm-eval>=0.4.9'" in capsys.readouterr().err
