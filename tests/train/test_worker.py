"""Run workers from configs to records: the files they write, how runs resume, and how they end when something goes wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src.adapter import adapted
from src.command.cli import compose
from src.engine.packed.engine import PackedEngine
from src.engine.peft import PeftEngine
from src.engine.protocol import Step
from src.files.errors import ConfigError
from src.model import models
from src.record import checkpoint
from src.record.records import RunFolder, run_id
from src.record.wandb import mirror as mirroring
from src.sweep.child import OUT_OF_MEMORY
from src.train import worker
from src.train.checks import LiveChecks
from src.train.run import Run as OneRun
from src.train.stop import Interrupted, Stop
from tests.conftest import TINY, Run, Trained, TrainPack, rounding, written

ENGINES: dict[str, Any] = {"packed": PackedEngine, "peft": PeftEngine}
QUICK = ("eval.generate=false",)


def lines(record: RunFolder, key: str) -> list[Any]:
    return [line[key] for line in record.logged() if key in line]


def adapter(record: RunFolder) -> bytes:
    return (record.adapter / "adapter_model.safetensors").read_bytes()


def told(trained: Trained, event: str) -> list[dict[str, Any]]:
    return [each for each in trained.events if each["event"] == event]


def interrupt(monkeypatch: pytest.MonkeyPatch, engine: str, step: int, error: BaseException | None = None) -> None:
    """Let the engine raise at a step, 0-based, or once more do what it does."""
    advance = ENGINES[engine].advance

    def interrupted(self: Any, first: int, last: int) -> list[Step]:
        if first <= step < last:
            raise error or KeyboardInterrupt
        found: list[Step] = advance(self, first, last)
        return found

    monkeypatch.setattr(ENGINES[engine], "advance", interrupted)


def poison(monkeypatch: pytest.MonkeyPatch, runs: tuple[int, ...], step: int) -> None:
    """Let the weights of these runs of a pack be NaN from a step on, 0-based."""
    advance = PackedEngine.advance

    def poisoned(self: PackedEngine, first: int, last: int) -> list[Step]:
        if first == step:
            for run in runs:
                bucket, row = self.model.bucket_of(run)
                bucket.values[:, row] = math.nan
        return advance(self, first, last)

    monkeypatch.setattr(PackedEngine, "advance", poisoned)


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
    assert result["metrics"]["val/loss"] == lines(record, "val/loss")[-1]
    assert all(check["ok"] for check in result["checks"].values())
    assert result["effective_scale"] == 4.0
    assert result["adapter_bytes"] == (record.adapter / "adapter_model.safetensors").stat().st_size
    assert result["train_tokens"] == lines(record, "train/tokens")[-1]
    assert (result["engine"], result["pack_size"], result["speed"]) == ("packed", 1, "eager")
    assert 0 < result["train_seconds"] < result["wall_seconds"]
    saved = load_file(record.adapter / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == result["trainable_parameters"]


def test_the_records_of_a_pack_and_what_is_said_on_the_way(train_pack: TrainPack) -> None:
    runs = [["variant=dora", "lora.r=4"], ["variant=rslora", "lora.r=8", "data_seed=1"], ["lora.r=4", "train.lr=0.01"]]
    trained = train_pack(*runs, halved_from=6)
    dora, rslora, lora = trained.results
    assert [result["status"] for result in trained.results] == ["ok"] * 3, [result["reason"] for result in trained.results]
    assert all(check["ok"] for result in trained.results for check in result["checks"].values())
    assert {(result["pack_size"], result["halved_from"]) for result in trained.results} == {(3, 6)}
    assert [result["trainable_parameters"] for result in trained.results] == [9216, 16384, 8192]  # r x 2 x 1024, DoRA 2 x 512
    assert dora["metrics"]["test/loss"] != lora["metrics"]["test/loss"] != rslora["metrics"]["test/loss"]
    assert lora["train_tokens"] == dora["train_tokens"] != rslora["train_tokens"]  # another order of the rows
    assert lora["pack_tokens_per_second"] == pytest.approx(sum(result["tokens_per_second"] for result in trained.results))
    for record, result in zip(trained.records, trained.results, strict=True):
        assert len(load_file(record.adapter / "adapter_model.safetensors")) == (42 if "dora" in result["variant"] else 28)
        rows = [json.loads(line) for line in record.predictions.read_text().splitlines()]
        total = sum(row["log_loss"] for row in rows) / sum(row["tokens"] for row in rows)
        assert result["metrics"]["test/loss"] == pytest.approx(total, rel=1e-12)

    ids = [record.run_id for record in trained.records]
    (taken,) = told(trained, "taken")
    assert sorted(taken["runs"]) == sorted(ids) == sorted(event["run"] for event in told(trained, "ended"))
    assert taken["memory_bytes"] > 0
    steps = told(trained, "step")
    assert [(event["step"], event["steps"]) for event in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[2]["losses"] == {id: result["metrics"]["train/loss"] for id, result in zip(ids, trained.results, strict=True)}
    scored = [(event["what"], event["done"]) for event in told(trained, "scoring") if "prose" not in event["what"]]
    assert scored == [(what, done) for what in ("scoring the test split", "generating answers") for done in (0, 4)]


def test_controls(run: Run) -> None:
    _, frozen = run("variant=frozen")
    record, full = run("variant=full", "train.lr=0.003")
    assert frozen["status"] == full["status"] == "ok"
    assert (frozen["trainable_parameters"], frozen["r"], frozen["learning_rate"]) == (0, None, None)
    assert (frozen["engine"], full["engine"]) == ("peft", "peft")  # though the config says packed
    assert full["trainable_parameters"] == full["total_parameters"] == 98624
    assert "train/loss" not in frozen["metrics"]
    assert full["metrics"]["test/loss"] < frozen["metrics"]["test/loss"]
    assert (record.model / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("engine", "variants"),
    [("peft", ["lora"]), ("peft", ["qdora"]), ("packed", ["lora", "dora"]), ("packed", ["qlora", "qdora"])],
)
def test_interrupted_runs_go_on_to_the_same_bits(
    train_pack: TrainPack, engine: str, variants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"engine={engine}", "train.steps=6", "train.checkpoint_every=2", "lora.dropout=0.1", "train.grad_accum=2"]
    runs = [[*settings, f"variant={variant}", f"seed={seed}"] for seed, variant in enumerate(variants)]
    whole = train_pack(*runs)
    adapters = [adapter(record) for record in whole.records]
    metrics = [record.metrics.read_text() for record in whole.records]
    results = whole.results
    for record in whole.records:
        shutil.rmtree(record.path)

    with monkeypatch.context() as patch:
        interrupt(patch, engine, 5)
        with pytest.raises(KeyboardInterrupt):
            train_pack(*runs)
    for record in whole.records:
        assert record.checkpoints.exists() and record.result() is None
        assert len(lines(record, "train/loss")) == 5  # one step more than the checkpoint has
    again = train_pack(*runs)
    assert [event["step"] for event in told(again, "step")] == [5, 6]
    for at, record in enumerate(again.records):
        assert adapter(record) == adapters[at]
        assert record.metrics.read_text() == metrics[at]
        assert again.results[at]["metrics"] == results[at]["metrics"]
        assert again.results[at]["train_tokens"] == results[at]["train_tokens"]
        assert not record.checkpoints.exists()


def stopped_at_5(train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[str]], list[RunFolder]]:
    """Three runs of a pack with checkpoints at 2 and 4 of 6 steps."""
    runs = [[*QUICK, "train.steps=6", "train.checkpoint_every=2", "lora.dropout=0.1", f"lora.r={r}"] for r in (4, 8, 16)]
    with monkeypatch.context() as patch:
        interrupt(patch, "packed", 5)
        with pytest.raises(KeyboardInterrupt):
            train_pack(*runs)
    records = [RunFolder(run_id(compose([*TINY, *overrides]))) for overrides in runs]
    assert all(set(checkpoint.steps(record.checkpoints)) == {2, 4} for record in records)
    return runs, records


def damage(path: Path, how: str, other: Path) -> None:
    if how == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "one bit":
        data = bytearray(path.read_bytes())
        data[-5] ^= 4
        path.write_bytes(data)
    else:
        path.unlink()
        shutil.copy(other, path.with_name(other.name))


@pytest.mark.parametrize("how", ["torn", "one bit", "of another run"])
def test_where_the_newest_checkpoint_is_damaged_the_pack_goes_on_from_the_one_before_to_the_same_bits(
    train_pack: TrainPack, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [[*QUICK, "train.steps=6", "train.checkpoint_every=2", "lora.dropout=0.1", f"lora.r={r}"] for r in (4, 8, 16)]
    whole = train_pack(*settings)
    kept = [(adapter(record), record.metrics.read_bytes()) for record in whole.records]
    for record in whole.records:
        shutil.rmtree(record.path)
    runs, (first, _, third) = stopped_at_5(train_pack, monkeypatch)
    path = checkpoint.steps(first.checkpoints)[4]
    damage(path, how, checkpoint.steps(third.checkpoints)[4])
    capsys.readouterr()
    trained = train_pack(*runs)
    (said,) = capsys.readouterr().err.splitlines()
    why = "it is another run's" if how == "of another run" else "it holds other bytes than were written"
    assert said.endswith(f": {why}; set aside in {first.damaged}"), said
    assert [event["step"] for event in told(trained, "step")] == [3, 4, 5, 6]
    assert [result["status"] for result in trained.results] == ["ok"] * 3
    assert [(adapter(record), record.metrics.read_bytes()) for record in trained.records] == kept
    assert len(list(first.damaged.iterdir())) == 1 and not first.checkpoints.exists()


def test_a_run_without_a_sound_checkpoint_starts_again_and_its_pack_goes_on_without_it(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, (first, second, third) = stopped_at_5(train_pack, monkeypatch)
    for path in checkpoint.steps(first.checkpoints).values():
        damage(path, "torn", path)
    trained = train_pack(*runs)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert trained.code == 0 and [result and result["status"] for result in trained.results] == [None, "ok", "ok"]
    taken = told(trained, "taken")[0]
    assert (taken["runs"], taken["why"]) == ([second.run_id, third.run_id], "one checkpoint is shared by")
    assert [event["step"] for event in told(trained, "step")] == [5, 6]
    alone = train_pack(runs[0])
    assert alone.results[0]["status"] == "ok" and lines(first, "step") == [0, 1, 2, 3, 4, 5, 6, 6]


def test_a_log_that_changed_takes_the_run_back_to_where_it_had_not(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, (first, *_) = stopped_at_5(train_pack, monkeypatch)
    whole = first.metrics.read_bytes()
    first.metrics.write_bytes(whole.replace(b'{"step": 3, "train/loss": ', b'{"step": 3, "train/loss": 1'))
    trained = train_pack(*runs)
    assert "metrics.jsonl is not what it was then" in capsys.readouterr().err
    assert [event["step"] for event in told(trained, "step")] == [3, 4, 5, 6]
    assert first.metrics.read_bytes().startswith(whole[: whole.rindex(b'{"step": 6') if b'{"step": 6' in whole else len(whole)])


def test_checkpoints_of_another_base_are_not_used(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, records = stopped_at_5(train_pack, monkeypatch)
    with monkeypatch.context() as patch:
        load = models.load

        def changed(*arguments: Any) -> Any:
            network, tokenizer = load(*arguments)
            with torch.no_grad():
                network.model.norm.weight[0] += 1
            return network, tokenizer

        patch.setattr(models, "load", changed)
        trained = train_pack(*runs)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(": the checkpoints are of other base weights or tokens; starting from step 0")
    assert [event["step"] for event in told(trained, "step")] == [1, 2, 3, 4, 5, 6]
    assert all(lines(record, "step") == [0, 1, 2, 3, 4, 5, 6, 6] for record in records)


@pytest.mark.parametrize("phase", ["training", "scoring"])
def test_a_signal_leaves_a_checkpoint_of_the_step_that_it_met(
    train_pack: TrainPack, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [[*QUICK, "train.steps=4", f"lora.r={r}"] for r in (4, 8)]
    whole = train_pack(*runs)
    metrics = [result["metrics"] for result in whole.results]
    kept = [(adapter(record), record.metrics.read_bytes()) for record in whole.records]
    for record in whole.records:
        shutil.rmtree(record.path)
    with monkeypatch.context() as patch:
        if phase == "training":
            stop = Stop()
            advance = PackedEngine.advance

            def signaled(self: PackedEngine, first: int, last: int) -> list[Step]:
                stop.asked = 15 if first == 1 else None  # what the handler does between two instructions
                return advance(self, first, last)

            patch.setattr(PackedEngine, "advance", signaled)
            patch.setattr(worker, "Stop", lambda: stop)
        else:

            def interrupted(*_: object) -> None:
                raise Interrupted

            patch.setattr("src.train.final.test", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_pack(*runs)
    at = 2 if phase == "training" else 4
    assert all(list(checkpoint.steps(record.checkpoints)) == [at] and record.result() is None for record in whole.records)
    again = train_pack(*runs)
    assert [event["step"] for event in told(again, "step")] == list(range(at + 1, 5))
    assert [(adapter(record), record.metrics.read_bytes()) for record in again.records] == kept
    assert [result["metrics"] for result in again.results] == metrics


def test_runs_for_which_there_is_no_room_are_left_untouched(train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.train.session.free_memory", lambda: 0)
    trained = train_pack([*QUICK, "lora.r=32"], [*QUICK, "lora.r=4"])
    larger, smaller = trained.records
    assert [result and result["status"] for result in trained.results] == [None, "ok"]
    assert told(trained, "taken")[0]["runs"] == [smaller.run_id]
    assert {path.name for path in larger.path.iterdir()} == {"config.yaml"}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_whose_numbers_stop_being_finite_is_diverged(run: Run, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PeftEngine.step

    def poisoned(self: PeftEngine, at: int, batches: Any) -> Step:
        if at == 2 and what == "loss":
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(math.nan)
        found = step(self, at, batches)
        return Step(found.loss, [math.inf], found.lr, found.tokens) if at == 2 and what == "gradient" else found

    monkeypatch.setattr(PeftEngine, "step", poisoned)
    record, result = run("train.steps=5", "engine=peft")
    last = lines(record, "train/loss")[1]
    assert result["status"] == "diverged"
    assert (
        result["reason"]
        == f"{'loss' if what == 'loss' else 'gradient norm'} was not finite at step 3; last finite loss {last:.4f}"
    )
    assert "test/loss" not in result["metrics"] and "train/loss" not in result["metrics"]
    assert lines(record, "train/loss")[2:] == ([None] if what == "loss" else [pytest.approx(last, rel=0.5)])
    assert not record.adapter.exists()


def test_a_run_of_a_pack_that_diverges_leaves_its_neighbors_as_they_are(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the order of their slots; the first two are multiplied together.
    runs = [
        [*QUICK, "train.steps=5", "train.checkpoint_every=2", *more] for more in (["lora.r=4"], ["lora.r=8"], ["variant=dora"])
    ]
    healthy = train_pack(*runs)
    adapters = [adapter(record) for record in healthy.records]
    metrics = [result["metrics"] for result in healthy.results]
    for record in healthy.records:
        shutil.rmtree(record.path)

    poison(monkeypatch, (1,), step=2)
    trained = train_pack(*runs)
    first, diverged, third = trained.records
    assert [result["status"] for result in trained.results] == ["ok", "diverged", "ok"]
    assert (adapter(first), adapter(third)) == (adapters[0], adapters[2])
    assert [trained.results[at]["metrics"] for at in (0, 2)] == [metrics[0], metrics[2]]

    result = trained.results[1]
    last = lines(diverged, "train/loss")[1]
    assert result["reason"] == f"loss was not finite at step 3; last finite loss {last:.4f}"
    assert lines(diverged, "train/loss")[2:] == [None] and lines(diverged, "val/loss") == []
    assert set(result["metrics"]) == {"forgetting/before"} and result["checks"] == {}
    assert 0 < result["train_seconds"] < trained.results[0]["train_seconds"]
    assert result["train_tokens"] == lines(first, "train/tokens")[2]
    assert not (diverged.adapter.exists() or diverged.predictions.exists() or diverged.checkpoints.exists())
    assert [event["losses"][diverged.run_id] is None for event in told(trained, "step")] == [False, False, True, True, True]


def test_a_pack_whose_runs_have_all_diverged_ends_there(train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (0, 1), step=0)
    trained = train_pack(["train.steps=5", "seed=1"], ["train.steps=5", "seed=2"])
    assert trained.code == 0
    assert {(r["status"], r["reason"]) for r in trained.results} == {
        ("diverged", "loss was not finite at step 1; no finite loss before")
    }
    assert [event["step"] for event in told(trained, "step")] == [1]
    assert {event["what"] for event in told(trained, "scoring")} == {"scoring held-out prose"}


def test_a_huge_learning_rate_never_yields_a_number(run: Run) -> None:
    _, result = run("variant=full", "train.lr=100", "train.clip=0", "train.steps=40", "train.schedule=constant", "train.warmup=0")
    assert result["status"] in ("diverged", "ok")
    if result["status"] == "ok":  # it stayed finite: then the loss is really that bad, and never 0
        assert result["metrics"]["test/loss"] > 5


ERRORS = [
    (torch.OutOfMemoryError("CUDA out of memory\nmore"), "out_of_memory", "CUDA out of memory"),
    (MemoryError(), "out_of_memory", "MemoryError"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", "DefaultCPUAllocator: can't allocate memory"),
    (RuntimeError("bad luck\nsecond line"), "failed", "RuntimeError: bad luck"),
]


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize(("error", "status", "reason"), ERRORS)
def test_an_error_becomes_a_row_that_says_why(
    run: Run, engine: str, error: BaseException, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, engine, 0, error)
    record, result = run(f"engine={engine}")
    assert (result["status"], result["reason"]) == (status, reason)
    assert result["trainable_parameters"] > 0 and set(result["metrics"]) == {"forgetting/before"}
    assert record.error.exists() == (status == "failed")


def test_an_error_in_a_pack_is_that_of_all_its_runs_but_one_that_had_diverged(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, (1,), step=0)
    interrupt(monkeypatch, "packed", 1, RuntimeError("bad luck\nsecond line"))
    trained = train_pack(["lora.r=4"], ["lora.r=8"], ["lora.r=16"])
    assert trained.code == 0
    assert [result["status"] for result in trained.results] == ["failed", "diverged", "failed"]
    assert {trained.results[at]["reason"] for at in (0, 2)} == {"RuntimeError: bad luck"}
    assert [record.error.exists() for record in trained.records] == [True, False, True]
    assert "second line" in trained.records[0].error.read_text()
    assert len(told(trained, "ended")) == 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_a_pack_that_runs_out_of_memory_is_tried_in_parts_from_its_checkpoints(
    train_pack: TrainPack, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [[*QUICK, "train.checkpoint_every=1", f"lora.r={r}"] for r in (4, 8)]
    with monkeypatch.context() as patch:
        interrupt(patch, "packed", 2, error)
        trained = train_pack(*runs)
    assert trained.code == OUT_OF_MEMORY and trained.results == [None, None] and told(trained, "ended") == []
    part = train_pack(runs[1], halved_from=2)
    assert part.code == 0 and [event["step"] for event in told(part, "step")] == [3]
    (result,) = part.results
    assert (result["status"], result["pack_size"], result["halved_from"]) == ("ok", 1, 2)
    assert lines(part.records[0], "step") == [0, 1, 2, 3, 3]


def test_a_base_too_large_for_memory_is_not_tried_again_with_fewer_runs(
    train_pack: TrainPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("src.variants.quantization.place", fail)
    trained = train_pack(["lora.r=4"], ["lora.r=8"])
    assert trained.code == 0 and [result["status"] for result in trained.results] == ["out_of_memory"] * 2


CHECKS = ["base_unchanged", "effective_scale", "magnitude", "trainable_parameters", "quantised_layers", "adapter_moved"]


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("name", CHECKS)
def test_a_variant_that_is_not_live_fails_its_run(
    train_pack: TrainPack, engine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each live check is made to see what it guards against, after the last step and before its verdict on one run."""
    judge = LiveChecks.judge

    def sabotaged(self: LiveChecks, run: int) -> Any:
        trained = self.engine.trained
        if name == "base_unchanged" and run == 0:  # all runs share it
            with torch.no_grad():
                next(p for p in self.engine.network.parameters() if not p.requires_grad).flatten()[0] += 1
        if self.configs[run].variant.magnitude == "dora":
            if name == "magnitude":
                self.before[run]["m"] = self.after[run]["m"]
            if name == "trainable_parameters":
                monkeypatch.setattr(self.engine, "trained", lambda run: trained(run) | {"one.more": torch.ones(1)})
            if name == "adapter_moved":
                self.before[run]["B"][-1] = self.after[run]["B"][-1]
            if name == "effective_scale":
                self.configs[run].lora.alpha *= 2
            if name == "quantised_layers":
                self.configs[run].variant.base_precision = "nf4"
        return judge(self, run)

    monkeypatch.setattr(LiveChecks, "judge", sabotaged)
    runs = [[*QUICK, f"engine={engine}", f"variant={variant}"] for variant in ("lora", "dora")]
    trained = train_pack(*(runs if engine == "packed" else runs[1:]))
    *neighbor, result = trained.results
    assert result["status"] == "failed"
    assert result["reason"].startswith("live check failed: ") and name in result["reason"]
    assert [key for key, check in result["checks"].items() if not check["ok"]] == [name]
    assert [each["status"] for each in neighbor] in ([], ["failed" if name == "base_unchanged" else "ok"])


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
    exact = "variant.base_precision=fp32"  # where a base is in bf16, torch 2.11 draws other numbers for it
    _, result = run("model=path", f"model.path={folder / 'mine'}", exact)
    _, same = run(exact)
    assert result["status"] == "ok", result["reason"]
    assert result["metrics"]["test/loss"] == pytest.approx(same["metrics"]["test/loss"], abs=rounding(128, 15))


def test_a_device_that_cannot_quantize_says_so_before_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_single_step_trains(run: Run) -> None:
    _, result = run("train.steps=1")
    assert result["status"] == "ok", result["reason"]


def test_full_training_that_moves_nothing_is_not_live(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    _, result = run("variant=full")
    assert result["status"] == "failed" and "weights_moved" in result["reason"]


def test_a_test_loss_that_is_not_finite_is_diverged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.measure.measure.per_token", lambda losses: math.inf)
    record, result = run()
    assert (result["status"], result["reason"]) == ("diverged", "the test loss was not finite")
    assert "test/loss" not in result["metrics"] and not record.predictions.exists()


def test_a_validation_loss_that_was_not_finite_leaves_none(run: Run) -> None:
    one = OneRun(written(compose(TINY)).path)
    one.log({"step": 1, "val/loss": 2.0})
    one.log({"step": 1, "train/loss": 3.0})
    assert one.outcome.metrics == {"val/loss": 2.0}
    one.log({"step": 2, "val/loss": math.nan})
    assert one.outcome.metrics == {} and lines(one.folder, "val/loss") == [2.0, None]
    another = OneRun(one.folder.path)
    another.start()
    another.progress.step = 2
    assert another.outcome.metrics == {}
    mirroring.flush()


@pytest.mark.parametrize("variant", ["lora", "full"])
def test_weights_that_are_not_kept(run: Run, variant: str) -> None:
    record, result = run(f"variant={variant}", "keep_weights=false", *QUICK)
    assert result["status"] == "ok" and result["run_id"] == run_id(compose([*TINY, f"variant={variant}", *QUICK]))
    assert not record.adapter.exists() and not record.model.exists() and record.damage(result) == []
    assert result["adapter_bytes"] is None and all(check["ok"] for check in result["checks"].values())
    with pytest.raises(ConfigError, match="no weights were kept"):
        adapted.find({"run": record.run_id})
