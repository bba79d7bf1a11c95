"""Answers of a trained adapter: greedy as the run's own predictions, sampled where asked, and printed alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.adapter.adapted import find
from src.adapter.generate import generate, printable, uses_chat
from src.record.records import RunFolder
from tests.conftest import Run, evaluate

QUICK = ["forgetting.tokens=0", "lora.r=4", "train.lr=0.05", "eval.max_new_tokens=8"]


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_greedy_answers_are_the_runs_own_predictions(run: Run, variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    from src.data import datasets

    record, _ = run(*QUICK, f"variant={variant}", "train.steps=6")
    source = find({"run": record.run_id})
    examples = datasets.load(source.config.dataset).test[:4]
    wanted = [json.loads(line)["prediction"] for line in record.predictions.read_text().splitlines()]
    prompts = [str(example.prompt) for example in examples]
    answers = generate(source, prompts, max_new_tokens=8, chat=False)
    # One by one in bf16 where the run answered four at once: a near tie may fall the other way.
    assert sum(a == b for a, b in zip(answers, wanted, strict=True)) >= 3
    capsys.readouterr()
    assert evaluate(["generate", f"run={record.run_id}", "--", prompts[0]]) == 0
    assert capsys.readouterr().out == printable(answers[0]) + "\n"


def test_several_prompts_and_their_seeds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(*QUICK, "variant=dora")
    printed = []
    for seed in (0, 0, 1):
        capsys.readouterr()
        words = [f"run={record.run_id}", "ab cd", "temperature=1.0", f"seed={seed}", "max_new_tokens=12", "--", "x=3"]
        assert evaluate(["generate", *words]) == 0
        captured = capsys.readouterr()
        printed.append(captured.out)
        assert "vLLM refuses this adapter" in captured.err and "merge first" in captured.err
    assert printed[0] == printed[1] != printed[2]
    assert printed[0].startswith("> ab cd\n") and "\n> x=3\n" in printed[0]


def test_a_chats_run_answers_chats(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n + 1}"}]} for n in range(60)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n}?", "completion": f"{n}"}) + "\n" for n in range(60)))
    record, _ = run(*QUICK, "dataset=jsonl", "dataset.path=rows.jsonl", "train.steps=1")
    source = find({"run": record.run_id})
    assert not uses_chat(source)
    source.config.dataset.path = "chats.jsonl"
    assert uses_chat(source)
    (folder / "rows.jsonl").unlink()
    capsys.readouterr()
    assert evaluate(["generate", f"run={record.run_id}", "hi", "max_new_tokens=2"]) == 0
    assert "dataset cannot be read, so prompts are taken as plain text" in capsys.readouterr().err
    assert evaluate(["generate", f"run={record.run_id}", "hi", "chat=true"]) == 2  # the byte tokenizer has no template
    assert capsys.readouterr().err == "error: dataset.chat_template: this model's tokenizer has no chat template\n"


def test_a_prompt_that_does_not_fit_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(*QUICK)
    capsys.readouterr()
    assert evaluate(["generate", f"run={record.run_id}", "a" * 600]) == 2
    assert "more than the 512 positions of the model" in capsys.readouterr().err
    assert RunFolder(record.run_id).damage(record.result() or {}) == []


def test_a_terminal_is_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\n\tü\x07") == "a\\x1b[2Jb\n\tü\\x07"
