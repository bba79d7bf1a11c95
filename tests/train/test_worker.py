"""One run from config to record: what it writes, how it resumes, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src import models
from src.cli import compose
from src.records import RunFolder, run_id
from src.train import worker
from src.train.checks import LiveChecks
from src.train.peft_engine import PeftEngine, StepResult
from tests.conftest import TINY, Run


def lines(record: RunFolder, key: str) -> list[Any]:
    return [line[key] for line in record.logged() if key in line]


def test_the_record_of_a_run(run: Run) -> None:
    record, result = run("variant=dora", "lora.r=4", "eval.every=2")
    assert result["status"] == "ok", result["reason"]
    assert {path.name for path in record.path.iterdir()} == {
        "config.yaml", "provenance.json", "metrics.jsonl", "predictions.jsonl", "adapter", "result.json",
    }  # fmt: skip
    assert lines(record, "train/loss") and [line["step"] for line in record.logged() if "val/loss" in line] == [2, 3]
    predictions = [json.loads(line) for line in record.predictions.read_text().splitlines()]
    assert len(predictions) == 4
    assert set(predictions[0]) == {"id", "target", "log_loss", "tokens", "prediction", "correct"}
    total = sum(row["log_loss"] for row in predictions) / sum(row["tokens"] for row in predictions)
    assert result["metrics"]["test/loss"] == pytest.approx(total, rel=1e-12)
    assert result["metrics"]["train/loss"] == lines(record, "train/loss")[-1]
    assert all(check["ok"] for check in result["checks"].values())
    assert result["effective_scale"] == 4.0
    assert result["adapter_bytes"] == (record.adapter / "adapter_model.safetensors").stat().st_size
    assert result["train_tokens"] == lines(record, "train/tokens")[-1]
    saved = load_file(record.adapter / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == result["trainable_parameters"]


def test_controls(run: Run) -> None:
    _, frozen = run("variant=frozen")
    record, full = run("variant=full", "train.lr=0.003")
    assert frozen["status"] == full["status"] == "ok"
    assert (frozen["trainable_parameters"], frozen["r"], frozen["learning_rate"]) == (0, None, None)
    assert full["trainable_parameters"] == full["total_parameters"] == 98624
    assert "train/loss" not in frozen["metrics"]
    assert full["metrics"]["test/loss"] < frozen["metrics"]["test/loss"]
    assert (record.model / "model.safetensors").exists()


@pytest.mark.parametrize("variant", ["lora", "qdora"])
def test_an_interrupted_run_goes_on_to_the_same_bits(run: Run, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [f"variant={variant}", "train.steps=6", "train.checkpoint_every=2", "lora.dropout=0.1", "train.grad_accum=2"]
    record, whole = run(*settings)
    adapter = (record.adapter / "adapter_model.safetensors").read_bytes()
    metrics = record.metrics.read_text()
    record.path.rename(record.path.with_name("whole"))

    step = PeftEngine.step

    def killed(self: PeftEngine, at: int, batches: Any) -> StepResult:
        if at == 5:
            raise KeyboardInterrupt
        return step(self, at, batches)

    monkeypatch.setattr(PeftEngine, "step", killed)
    config = compose([*TINY, *settings])
    record.write_config(config)
    with pytest.raises(KeyboardInterrupt):
        worker.run(record.path)
    assert record.checkpoint.exists() and record.result() is None
    assert len(lines(record, "train/loss")) == 5  # one step more than the checkpoint has
    seen = []

    def resumed(self: PeftEngine, at: int, batches: Any) -> StepResult:
        seen.append(at)
        return step(self, at, batches)

    monkeypatch.setattr(PeftEngine, "step", resumed)
    record, result = run(*settings)
    assert seen == [4, 5]
    assert (record.adapter / "adapter_model.safetensors").read_bytes() == adapter
    assert record.metrics.read_text() == metrics
    assert result["metrics"] == whole["metrics"]
    assert result["train_tokens"] == whole["train_tokens"]
    assert not record.checkpoint.exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_whose_numbers_stop_being_finite_is_diverged(run: Run, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PeftEngine.step

    def poisoned(self: PeftEngine, at: int, batches: Any) -> StepResult:
        if at == 2 and what == "loss":
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(math.nan)
        result = step(self, at, batches)
        return StepResult(result.loss, math.inf, result.lr) if at == 2 and what == "gradient" else result

    monkeypatch.setattr(PeftEngine, "step", poisoned)
    record, result = run("train.steps=5")
    last = lines(record, "train/loss")[1]
    assert result["status"] == "diverged"
    assert (
        result["reason"]
        == f"{'loss' if what == 'loss' else 'gradient norm'} was not finite at step 3; last finite loss {last:.4f}"
    )
    assert "test/loss" not in result["metrics"] and "train/loss" not in result["metrics"]
    assert lines(record, "train/loss")[2:] == ([None] if what == "loss" else [pytest.approx(last, rel=0.5)])
    assert not record.adapter.exists()


def test_a_huge_learning_rate_never_yields_a_number(run: Run) -> None:
    _, result = run("variant=full", "train.lr=100", "train.clip=0", "train.steps=40", "train.schedule=constant", "train.warmup=0")
    assert result["status"] in ("diverged", "ok")
    if result["status"] == "ok":  # it stayed finite: then the loss is really that bad, and never 0
        assert result["metrics"]["test/loss"] > 5


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory\nmore"), "out_of_memory", "CUDA out of memory"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (RuntimeError("bad luck\nsecond line"), "failed", "RuntimeError: bad luck"),
    ],
)  # fmt: skip
def test_an_error_becomes_a_row_that_says_why(
    run: Run, error: BaseException, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> StepResult:
        raise error

    monkeypatch.setattr(PeftEngine, "step", fail)
    record, result = run()
    assert (result["status"], result["reason"]) == (status, reason)
    assert result["trainable_parameters"] > 0 and result["metrics"] == {}
    assert record.error.exists() == (status == "failed")


@pytest.mark.parametrize("name", ["base_unchanged", "effective_scale", "magnitude", "trainable_parameters", "quantised_layers"])
def test_a_variant_that_is_not_live_fails_its_run(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each live check is made to see what it guards against, after the last step."""
    judge = LiveChecks.judge

    def sabotaged(self: LiveChecks) -> Any:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            if name == "base_unchanged":
                next(p for n, p in parameters.items() if "base_layer" in n).flatten()[0] += 1
            if name == "magnitude":
                for key, p in self._named("lora_magnitude_vector"):
                    p.copy_(self.magnitudes_before[key])
            if name == "trainable_parameters":
                next(p for n, p in parameters.items() if "base_layer" in n).requires_grad_(True)
        if name == "effective_scale":
            self.lora.alpha *= 2
        if name == "quantised_layers":
            self.variant.base_precision = "nf4"
        return judge(self)

    monkeypatch.setattr(LiveChecks, "judge", sabotaged)
    _, result = run("variant=dora")
    assert result["status"] == "failed"
    assert result["reason"].startswith("live check failed: ") and name in result["reason"]
    assert not result["checks"][name]["ok"]


def test_label_task(run: Run, folder: Any) -> None:
    path = folder / "labels.jsonl"
    rows = [{"context": f"news {n} is ", "target": ("good", "bad")[n % 2]} for n in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, result = run("dataset=jsonl", f"dataset.path={path}", "dataset.labels=[good,bad]")
    assert result["status"] == "ok", result["reason"]
    assert 0 <= result["metrics"]["test/macro_f1"] <= 1
    assert result["metrics"]["test/parse_failures"] == 1.0  # random weights never say good or bad


def test_rows_that_were_cut_are_counted_in_the_record(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = run("dataset.max_length=40", "dataset.train_examples=2000")
    assert result["rows_cut"]["train"] > 1000
    assert "were cut" in capsys.readouterr().err


def test_epochs_decide_the_steps(run: Run, rows: Any) -> None:
    _, result = run(
        "dataset=jsonl", f"dataset.path={rows}", "train.epochs=2", "dataset.train_examples=20", "dataset.val_share=0.2"
    )
    assert result["steps"] == 10  # 20 rows twice, four at a time


def test_the_run_id_is_the_folder(run: Run) -> None:
    record, result = run()
    assert result["run_id"] == record.run_id == run_id(compose(TINY))


def test_a_model_in_a_local_folder(run: Run, folder: Path) -> None:
    network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    network.save_pretrained(folder / "mine")
    tokenizer.save_pretrained(folder / "mine")
    _, result = run("model=path", f"model.path={folder / 'mine'}")
    _, same = run()
    assert result["status"] == "ok", result["reason"]
    assert result["metrics"]["test/loss"] == pytest.approx(same["metrics"]["test/loss"], abs=1e-3)


def test_a_device_that_cannot_quantise_says_so_before_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel for this device\nmore")

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", fail)
    record, result = run("variant=qlora")
    assert result["status"] == "failed"
    assert result["reason"] == ("variant.base_precision=nf4: bitsandbytes cannot train on cpu here (no kernel for this device)")
    assert not record.metrics.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(run: Run) -> None:
    _, result = run("device=cuda")
    assert (result["status"], result["reason"]) == ("failed", "device=cuda: no CUDA device is visible here")


def test_a_damaged_checkpoint_is_set_aside_and_the_run_starts_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose([*TINY, "seed=3"])
    record = RunFolder(run_id(config))
    record.path.mkdir(parents=True)
    record.checkpoint.write_bytes(b"\x10" * 100)
    _, result = run("seed=3")
    assert result["status"] == "ok"
    assert "is damaged" in capsys.readouterr().err
    assert len(lines(record, "train/loss")) == 3


def test_a_single_step_trains(run: Run) -> None:
    _, result = run("train.steps=1")
    assert result["status"] == "ok", result["reason"]


def test_full_training_that_moves_nothing_is_not_live(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    _, result = run("variant=full")
    assert result["status"] == "failed" and "weights_moved" in result["reason"]


def test_a_test_loss_that_is_not_finite_is_diverged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.train.worker.per_token", lambda losses: math.inf)
    _, result = run()
    assert (result["status"], result["reason"]) == ("diverged", "the test loss was not finite")
    assert "test/loss" not in result["metrics"]
