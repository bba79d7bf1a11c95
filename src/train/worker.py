"""A child process: one run from its config.yaml to its result.json. ``python -m src.train.worker runs/<run_id>``

A process of its own keeps memory peaks clean, and a crash kills one run.
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from src import batches, cli, datasets, device, models
from src.batches import Item
from src.config import Config, ConfigError
from src.device import Numerics
from src.eval.score import UNPARSED, Scorer, TargetLoss, exact_match, macro_f1, parse_label, per_token
from src.progress import bar
from src.quiet import quiet_libraries
from src.records import ENDED, RunFolder
from src.tracking import Mirror
from src.train import checkpoint
from src.train.checkpoint import Progress
from src.train.checks import LiveChecks
from src.train.loop import Divergence, Hooks, steps_of, train
from src.train.peft_engine import PeftEngine
from src.train.result import Outcome, result
from src.variants import adapters, counts, quantization


class Run:
    """One run in this process."""

    def __init__(self, config: Config, folder: RunFolder, mirror: Mirror) -> None:
        self.config = config
        self.folder = folder
        self.mirror = mirror
        self.outcome = Outcome()

    def execute(self) -> None:
        """Load, train, check, score, save; fills ``self.outcome``."""
        config = self.config
        numerics = device.choose(config)
        self.outcome.measured |= {"device": device.describe(numerics.device), "base_precision": _precision(config, numerics)}
        with bar(f"loading {config.model.name}"):
            network, self.tokenizer = models.load(config.model, numerics.base, numerics.device)
            linears = adapters.linears_of(network)
            total = sum(p.numel() for p in network.parameters())
            targets = counts.targets(linears, config.lora.target_modules, config.model.name)
            network = quantization.place(network, config.variant, numerics.device, numerics.compute)
            model = self._adapt(network)
        splits = datasets.load(config.dataset)
        self._tokenise(splits)
        self.outcome.measured |= {
            "total_parameters": total,
            "trainable_parameters": counts.trainable_parameters(config.variant, config.lora, targets, total),
            "steps": steps_of(config, len(splits.train)),
            "rows_left_out": splits.left_out,
            "rows_cut": {name: sum(item.cut for item in items) for name, items in self.items.items()},
        }
        layers = sum(linear.count for linear in linears)
        live = LiveChecks(model, config.variant, config.lora, self.outcome.measured["trainable_parameters"], layers)
        self._add_provenance(data_fingerprint=splits.fingerprint(), base_fingerprint=live.base_before)
        device.reset_peak(numerics.device)
        self.scorer = Scorer(model, numerics, config.eval.batch_size, self.tokenizer.pad_token_id)
        divergence = None if config.variant.trains == "none" else self._train(model, numerics)
        peak, kind = device.peak_memory(numerics.device)
        self.outcome.measured |= {"peak_memory_bytes": peak, "peak_memory_kind": kind}
        if divergence is not None:
            self.outcome.status, self.outcome.reason = "diverged", divergence.reason()
            return
        self.outcome.checks = live.judge()
        self._save(model)
        self._test()
        failed = [name for name, check in self.outcome.checks.items() if not check["ok"]]
        if failed:
            details = "; ".join(f"{name}: {self.outcome.checks[name]['detail']}" for name in failed)
            self.outcome.status, self.outcome.reason = "failed", f"live check failed: {details}"

    def _adapt(self, network: Any) -> Any:
        if self.config.variant.trains == "adapter":
            return adapters.attach(network, self.config.variant, self.config.lora, self.config.seed)
        return network.requires_grad_(self.config.variant.trains == "all")

    def _tokenise(self, splits: datasets.Splits) -> None:
        config = self.config
        chosen = {
            "train": splits.train,
            "val": splits.val[: config.eval.val_examples],
            "test": splits.test[: config.eval.test_examples],
        }
        self.items: dict[str, list[Item]] = {
            name: batches.tokenise(examples, self.tokenizer, config.dataset.max_length, config.dataset.chat_template)
            for name, examples in chosen.items()
        }
        cut = sum(item.cut for items in self.items.values() for item in items)
        if cut:
            print(f"{cut} rows are longer than dataset.max_length={config.dataset.max_length} and were cut", file=sys.stderr)

    def _train(self, model: Any, numerics: Numerics) -> Divergence | None:
        config, measured = self.config, self.outcome.measured
        engine = PeftEngine(model, config.train, measured["steps"], config.seed, numerics)
        progress = Progress()
        if self.folder.checkpoint.exists():
            try:
                tensors, progress = checkpoint.load(self.folder.checkpoint)
                engine.load_state(tensors)
            except (SafetensorError, KeyError, ValueError) as error:
                print(f"{self.folder.checkpoint} is damaged ({_first_line(error)}); starting from step 0", file=sys.stderr)
                self.folder.checkpoint.unlink()
                return self._train(model, numerics)
        self.folder.keep_metrics_until(progress.step)
        for line in self.folder.logged():
            self.mirror.log(line)
            self.outcome.metrics |= {key: value for key, value in line.items() if key == "val/loss"}
        with bar("training", engine.steps, done=progress.step) as advance:
            hooks = Hooks(
                log=self._log,
                validate=lambda: per_token(self.scorer.losses(self.items["val"])),
                checkpoint=lambda at: checkpoint.save(self.folder.checkpoint, engine.state(), at),
                advance=lambda loss: advance(1, f"loss {loss:.3f}"),
            )
            divergence = train(engine, config, self.items["train"], self.tokenizer.pad_token_id, progress, hooks)
        measured |= {"train_seconds": progress.seconds, "train_tokens": progress.tokens}
        if progress.rated_seconds > 0:
            measured["tokens_per_second"] = progress.rated_tokens / progress.rated_seconds
        if divergence is None and progress.loss is not None:
            self.outcome.metrics["train/loss"] = progress.loss
        return divergence

    def _log(self, line: dict[str, float | int | None]) -> None:
        self.folder.log(line)
        self.mirror.log(line)
        if "val/loss" in line and line["val/loss"] is not None:
            self.outcome.metrics["val/loss"] = float(line["val/loss"])

    def _save(self, model: Any) -> None:
        if self.config.variant.trains == "adapter":
            model.save_pretrained(self.folder.adapter)
            self.outcome.measured["adapter_bytes"] = (self.folder.adapter / "adapter_model.safetensors").stat().st_size
        elif self.config.variant.trains == "all":
            model.save_pretrained(self.folder.model)

    def _test(self) -> None:
        items = self.items["test"]
        with bar("scoring the test split", len(items)) as advance:
            losses = self.scorer.losses(items, advance)
        loss = per_token(losses)
        if not math.isfinite(loss):
            self.outcome.status, self.outcome.reason = "diverged", "the test loss was not finite"
            return
        self.outcome.metrics["test/loss"] = loss
        texts: list[str] | None = None
        if self.config.eval.generate:
            longest = max(len(item.target) for item in items)
            with bar("generating answers", len(items)) as advance:
                ids = self.scorer.generate(
                    items, self.tokenizer.eos_token_id, self.config.eval.max_new_tokens or longest, advance
                )
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        self._write_predictions(items, losses, texts)

    def _write_predictions(self, items: list[Item], losses: list[TargetLoss], texts: list[str] | None) -> None:
        metrics, labels = self.outcome.metrics, self.config.dataset.labels
        rows: list[dict[str, Any]] = [
            {"id": item.example.id, "target": item.example.target, "log_loss": loss.nats, "tokens": loss.tokens}
            for item, loss in zip(items, losses, strict=True)
        ]
        if texts is not None:
            targets = [item.example.target for item in items]
            correct = exact_match(texts, targets)
            if labels:
                parsed = [parse_label(text, labels) for text in texts]
                gold = [parse_label(target, labels) for target in targets]
                correct = [p == g != UNPARSED for p, g in zip(parsed, gold, strict=True)]
                metrics["test/macro_f1"] = macro_f1(parsed, gold, labels)
                metrics["test/parse_failures"] = sum(p == UNPARSED for p in parsed) / len(parsed)
            metrics["test/exact_match"] = sum(correct) / len(correct)
            for row, text, right in zip(rows, texts, correct, strict=True):
                row |= {"prediction": text, "correct": right}
        self.folder.write_predictions(rows)

    def _add_provenance(self, **fingerprints: str) -> None:
        known = self.folder.provenance() or {}
        # Equal text can still be unequal tokens: library versions read one tokenizer file differently.
        more = {"device": self.outcome.measured["device"], "token_fingerprint": batches.fingerprint(self.items), **fingerprints}
        self.folder.write_json("provenance.json", known | more)


def _precision(config: Config, numerics: Numerics) -> str:
    """What the base really was held or multiplied in: bf16 becomes fp32 on a processor without bf16 products."""
    if config.variant.base_precision == "bf16" and numerics.compute is None:
        return "fp32"
    return config.variant.base_precision


def run(path: Path) -> str:
    """Run what ``path/config.yaml`` says and write its result. Returns the status."""
    folder = RunFolder(path.name, path.parent)
    config = folder.read_config()
    started = time.perf_counter()
    mirror = Mirror(config, folder.run_id, folder.path)
    this = Run(config, folder, mirror)
    try:
        this.execute()
    except (torch.OutOfMemoryError, MemoryError) as error:
        this.outcome.status, this.outcome.reason = "out_of_memory", _first_line(error)
    except ConfigError as error:
        this.outcome.status, this.outcome.reason = "failed", str(error)
    except Exception as error:  # a run that fails for any reason is a row that says why; the traceback is kept
        folder.error.write_text(traceback.format_exc(), encoding="utf-8")
        this.outcome.status, this.outcome.reason = "failed", f"{type(error).__name__}: {_first_line(error)}"
    this.outcome.measured["wall_seconds"] = time.perf_counter() - started
    values = result(config, folder.run_id, this.outcome)
    folder.write_json("result.json", values)
    if this.outcome.status in ENDED:
        folder.checkpoint.unlink(missing_ok=True)
    summary = {key: value for key, value in values.items() if key not in ("metrics", "checks") and value is not None}
    mirror.finish(summary | this.outcome.metrics, ok=this.outcome.status == "ok")
    return this.outcome.status


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main() -> int:
    quiet_libraries()
    try:
        run(Path(sys.argv[1]))
    except KeyboardInterrupt:
        return cli.INTERRUPTED  # the parent gets the signal too, and says so once
    return 0


if __name__ == "__main__":
    cli.run(main)
