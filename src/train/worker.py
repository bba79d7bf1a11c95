"""A child process: one pack from its configs to its results. ``python -m src.train.worker runs/<id> [runs/<id> ...]``

``--ahead N`` in place of all else: import, then read the command line from the socket of that number.

A process of its own keeps memory peaks clean, and a crash ends one pack.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ..adapter import card
from ..command import cli
from ..config.schema import Config, is_packed
from ..data import batches, datasets, prose
from ..data.batches import Item
from ..engine.peft import PeftEngine
from ..engine.protocol import Engine
from ..files.durable import CannotWrite, replacing
from ..files.terminal import quiet_libraries
from ..measure.scorer import Scorer, per_token
from ..model import device, models
from ..model.device import Numerics
from ..record import checkpoint
from ..record.wandb import mirror
from ..sweep import handover, room
from ..sweep.child import CANNOT_WRITE, OUT_OF_MEMORY
from ..sweep.events import Events
from ..sweep.locks import turn
from ..sweep.memory import Tokens, tokens_of
from ..variants import adapters, counts, quantization
from ..variants.counts import Linear
from ..variants.methods.precision import FOUR_BIT
from . import final
from .checks import LiveChecks
from .loop import Divergence, Hooks, steps_of, train
from .run import Run
from .stop import Stop

CHECKPOINT_WRITERS = 8  # threads; each holds a copy of one run's state


class Pack:
    """The runs that this process trains together. ``runs`` shrinks before training if not all fit."""

    def __init__(self, runs: Sequence[Run], events: Events, stop: Stop) -> None:
        self.runs = room.in_slot_order(runs)
        self.events = events
        self.stop = stop
        self.config = runs[0].config  # for what the runs agree on
        self.has_base = False  # the base model is where it computes

    def execute(self) -> None:
        """Load, train, check, save, score; fills the outcomes and writes the results."""
        self._go_on()
        self.events.phase(f"loading {self.config.model.name}")
        self.numerics = numerics = device.choose(self.config)
        if is_packed(self.config):
            from ..engine.packed.speed import prepare_to_compile

            prepare_to_compile(self.config, numerics)
        network, self.tokenizer = models.load(self.config.model, numerics.base, numerics.device)
        linears = adapters.linears_of(network)
        total = sum(p.numel() for p in network.parameters())
        targets = counts.targets(linears, self.config.lora.target_modules, self.config.model.name)
        splits = datasets.load(self.config.dataset)
        datasets.refuse_empty(splits, self.config.dataset)  # a hub's is read only here
        self.labels = splits.labels
        self._tokenise(splits)
        self._read_prose()
        for run in self.runs:
            trainable = counts.trainable_parameters(run.config.variant, run.config.lora, targets, total)
            run.outcome.measured |= {
                "total_parameters": total,
                "trainable_parameters": trainable,
                "estimated_memory_bytes": room.alone(run.config, targets, self._tokens),
            }
        self._take(numerics, targets)
        network = quantization.place(network, self.config.variant, numerics.device, numerics.compute)
        self.has_base = True
        engine = self._engine(network, numerics, steps_of(self.config, len(splits.train)))
        for run in self.runs:
            run.outcome.measured |= self._known(numerics, engine, splits)
        live = LiveChecks(
            engine,
            [run.config for run in self.runs],
            [run.outcome.measured["trainable_parameters"] for run in self.runs],
            sum(linear.count for linear in linears),
        )
        # Equal text can still be unequal tokens: library versions read one tokenizer file differently.
        self.fingerprints = {"token_fingerprint": batches.fingerprint(self.items), "base_fingerprint": live.base_before}
        prints = {
            "data_fingerprint": splits.fingerprint(),
            "prose_fingerprint": self.prose_read and self.prose_read["fingerprint"],
            **self.fingerprints,
        }
        self._refuse_other_fingerprints()
        for run in self.runs:
            known = run.folder.provenance() or {}
            run.folder.write_provenance(known | {"device": run.outcome.measured["device"], **prints})
            run.start()
        pad, trains = self.tokenizer.pad_token_id, self.config.variant.trains != "none"
        self.scorer = Scorer(engine.scored, self.config.eval.batch_size, pad)
        self.forgetting = final.Forgetting(engine.scored, self.prose, pad, self.events)
        if trains:
            self.forgetting.before(self.runs)
        device.reset_peak(numerics.device)
        try:
            if trains:
                self._train(engine)
            self._measure_peak(self.runs)
            engine.finish()
            self._conclude(engine, live)
        except KeyboardInterrupt:
            self._save_what_is_trained(engine)
            raise

    def _go_on(self) -> None:
        """Keep the runs that go on from one step together; a checkpoint that is damaged makes way for the one before."""
        while True:
            (step, places), *_ = checkpoint.together([run.checkpoints() for run in self.runs])
            runs = [self.runs[at] for at in places]
            if all([run.resume_from(step) for run in runs]):
                break
        if len(runs) < len(self.runs):
            self.events.taken([run.folder.run_id for run in runs], None, "one checkpoint is shared by")
        self.runs = runs

    def _refuse_other_fingerprints(self) -> None:
        """Start over where checkpoints are of other base weights or tokens: a model's folder may hold others by now."""
        other = [run for run in self.runs if not run.matches(self.fingerprints)]
        if other:
            names = ", ".join(run.folder.run_id for run in other)
            print(f"{names}: the checkpoints are of other base weights or tokens; starting from step 0", file=sys.stderr)
            for run in self.runs:
                run.start_over()

    def _take(self, numerics: Numerics, targets: Sequence[Linear]) -> None:
        """Keep the runs that fit into memory, in the order of their slots."""
        count, memory = room.fitting([run.config for run in self.runs], targets, self._tokens, numerics.device)
        self.runs = self.runs[:count]
        self.events.taken([run.folder.run_id for run in self.runs], memory, "memory holds")

    @cached_property
    def _tokens(self) -> Tokens:
        return tokens_of([len(item) for item in self.items["train"]], self.config.train.batch_size)

    def _engine(self, network: Any, numerics: Numerics, steps: int) -> Engine:
        """The engine of these runs: the packed one wherever there is an adapter, unless PEFT's is asked for."""
        config, items, pad = self.config, self.items["train"], self.tokenizer.pad_token_id
        if is_packed(self.config):
            from ..engine.packed.engine import PackedEngine

            self.events.phase("building the pack")
            return PackedEngine(network, [run.config for run in self.runs], items, pad, steps, numerics)
        if config.variant.trains == "adapter":
            network = adapters.attach(network, config.variant, config.lora, config.seed)
        else:
            network.requires_grad_(config.variant.trains == "all")
        return PeftEngine(network, config, items, pad, steps, numerics)

    def _known(self, numerics: Numerics, engine: Engine, splits: datasets.Splits) -> dict[str, Any]:
        """What the runs' results share before a step is taken."""
        model, variant = self.config.model, self.config.variant
        return {
            "device": device.describe(numerics.device),
            "base_precision": _precision(self.config, numerics),
            "engine": engine.name,
            "pack_size": len(self.runs),
            "hold_dequantised": engine.name == "packed" and model.hold_dequantised and variant.base_precision in FOUR_BIT,
            "speed": engine.speed_layers,
            "steps": engine.steps,
            "rows_left_out": splits.left_out,
            "test_rows_repeated": splits.repeated,
            "rows_cut": {name: sum(item.cut for item in items) for name, items in self.items.items()},
            "prose": self.prose_read,
        }

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

    def _read_prose(self) -> None:
        """The rows that show what was forgotten, and what the record says of them; none where nothing is asked for."""
        forgetting, longest = self.config.forgetting, min(prose.WINDOW, self.config.dataset.max_length)
        self.prose: list[Item] = []
        self.prose_read: dict[str, Any] | None = None
        if forgetting.tokens:
            text = prose.load(forgetting)
            self.prose = prose.windows(text, self.tokenizer, forgetting.tokens, longest)
            tokens = sum(len(item.target) for item in self.prose)
            self.prose_read = {"source": text.source, "fingerprint": text.fingerprint(), "tokens": tokens}

    def _train(self, engine: Engine) -> None:
        for at, run in enumerate(self.runs):
            if run.tensors is not None:
                engine.load_state(at, run.tensors)
                run.tensors = None
        self.events.phase("warming up")
        hooks = Hooks(
            log=lambda at, line: self.runs[at].log(line),
            validate=lambda: [per_token(losses) for losses in self.scorer.losses(self.items["val"])],
            checkpoint=lambda places: self._checkpoint(engine, places),
            advance=lambda done, losses, rate: self._advance(engine, done, losses, rate),
            diverged=self._diverged,
            stopping=lambda: self.stop.asked is not None,
            checkpoint_bytes=sum(12 * run.outcome.measured["trainable_parameters"] for run in self.runs),
            turn=lambda: self._turn(engine),
        )
        before = [replace(run.progress) for run in self.runs]
        with self.stop.between_steps():
            train(engine, self.config, [run.progress for run in self.runs], hooks)
        tokens = sum(run.progress.rated_tokens - was.rated_tokens for run, was in zip(self.runs, before, strict=True))
        seconds = max(run.progress.rated_seconds - was.rated_seconds for run, was in zip(self.runs, before, strict=True))
        for run in self.runs:
            if run.outcome.status == "ok":
                run.trained()
            run.outcome.measured["pack_tokens_per_second"] = tokens / seconds if seconds else None

    def _turn(self, engine: Engine) -> AbstractContextManager[None]:
        if not engine.fills_device:
            return nullcontext()
        lock = self.runs[0].folder.path.parent / f".turn-{device.identity(self.numerics.device)}"
        signs = itertools.count(1)

        def waiting() -> None:
            self.events.phase("waiting for the pack that trains")
            if next(signs) == 2:  # between short packs the first wait is over by then
                print("waiting: another pack trains on this GPU", file=sys.stderr)

        return turn(lock, waiting, lambda: self.stop.asked is not None)

    def _checkpoint(self, engine: Engine, places: list[int]) -> None:
        """Side by side, since each waits for the disk, then for a digest."""
        states = {at: engine.state(at) for at in places}
        with ThreadPoolExecutor(CHECKPOINT_WRITERS) as writers:
            list(writers.map(lambda at: self.runs[at].save(states[at], self.fingerprints), places))

    def _save_what_is_trained(self, engine: Engine) -> None:
        """Checkpoints of the runs that have taken all their steps and have no result yet."""
        trained = [at for at, run in enumerate(self.runs) if not run.ended and run.progress.step == engine.steps]
        self._checkpoint(engine, [at for at in trained if engine.steps not in self.runs[at].checkpoints()])

    def _measure_peak(self, runs: Sequence[Run]) -> None:
        peak, kind = device.peak_memory(self.numerics.device)
        for run in runs:
            run.outcome.measured |= {"peak_memory_bytes": peak, "peak_memory_kind": kind}

    def _advance(self, engine: Engine, done: int, losses: list[float | None], rate: float | None) -> None:
        named = {run.folder.run_id: loss for run, loss in zip(self.runs, losses, strict=True)}
        self.events.step(done, engine.steps, named, rate)

    def _diverged(self, at: int, divergence: Divergence) -> None:
        """It has ended, so its record is written at once: whatever happens to the others, it is not trained again."""
        self.runs[at].diverged(divergence)
        self._measure_peak([self.runs[at]])
        self._finish(self.runs[at])

    def _conclude(self, engine: Engine, live: LiveChecks) -> None:
        """Checks, adapters, scores and results of the runs that did not diverge."""
        good = {at: run for at, run in enumerate(self.runs) if run.outcome.status == "ok"}
        for at, run in good.items():
            run.outcome.checks = live.judge(at)
        # Writing is work for the disk, so it goes on beside the scoring; what has not begun is dropped where that fails.
        writing = ThreadPoolExecutor(max_workers=1)
        try:
            saved = [writing.submit(self._save, engine, at, run) for at, run in good.items() if run.config.keep_weights]
            if good:
                final.test(good, self.scorer, self.tokenizer, self.items["test"], self.events, self.labels)
                self.forgetting.after({at: run for at, run in good.items() if run.outcome.status == "ok"})
            for one in saved:
                one.result()
        finally:
            writing.shutdown(cancel_futures=True)
        for run in good.values():
            failed = [name for name, check in run.outcome.checks.items() if not check["ok"]]
            if failed:
                details = "; ".join(f"{name}: {run.outcome.checks[name]['detail']}" for name in failed)
                run.outcome.status, run.outcome.reason = "failed", f"live check failed: {details}"
            if run.config.variant.trains == "adapter" and run.config.keep_weights:
                card.write(run.folder.adapter, run.config, run.values(), {name: len(rows) for name, rows in self.items.items()})
            self._finish(run)

    def _save(self, engine: Engine, at: int, run: Run) -> None:
        if run.config.variant.trains == "adapter":
            with replacing(run.folder.adapter) as folder:
                engine.save_adapter(at, run.config, folder)
                card.name_base(folder, run.config)
            run.outcome.measured["adapter_bytes"] = (run.folder.adapter / "adapter_model.safetensors").stat().st_size
        elif run.config.variant.trains == "all":
            with replacing(run.folder.model) as folder:
                engine.network.save_pretrained(folder)

    def _finish(self, run: Run) -> None:
        run.finish()
        self.events.ended(run.folder.run_id)

    def fail(self, error: BaseException) -> None:
        """Record what happened as the end of every run that has none."""
        for run in self.runs:
            if run.ended:
                continue
            if run.outcome.status == "ok":
                run.fail(error)
            self._finish(run)


def _precision(config: Config, numerics: Numerics) -> str:
    """What the base really was held or multiplied in: bf16 becomes fp32 on a processor without bf16 products."""
    if config.variant.base_precision == "bf16" and numerics.compute is None:
        return "fp32"
    return config.variant.base_precision


def run(paths: Sequence[Path], events: Events, halved_from: int | None = None, stop: Stop | None = None) -> int:
    """Run what the ``config.yaml`` files say and write the results. Returns the exit code."""
    pack = Pack([Run(path) for path in paths], events, stop or Stop())
    for this in pack.runs:
        this.outcome.measured["halved_from"] = halved_from
    try:
        try:
            pack.execute()
        except CannotWrite:
            raise
        except Exception as error:
            if device.is_out_of_memory(error) and len(pack.runs) > 1 and pack.has_base:
                return OUT_OF_MEMORY  # a smaller pack may do it
            pack.fail(error)
    except CannotWrite as error:
        events.cannot_write(str(error))
        return CANNOT_WRITE
    mirror.flush()
    return 0


def _begun_ahead(descriptor: int) -> list[str]:
    """Import what takes its time and wait for the command line; what is printed from then on goes where it says."""
    import peft  # noqa: F401

    from ..engine.packed import engine  # noqa: F401

    with socket.socket(fileno=descriptor) as channel:
        received = handover.receive(channel)
    if received is None:
        raise SystemExit  # the command has ended and needs no worker
    arguments, (events, output, *_) = received  # the others are locks, which are held as long as this process lives
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return ["--events", str(events), *arguments]


def main() -> NoReturn:
    stop = Stop()
    try:
        stop.listen()
        quiet_libraries()
        parser = argparse.ArgumentParser(prog="python -m src.train.worker")
        parser.add_argument("--events", type=int)
        parser.add_argument("--halved-from", type=int)
        parser.add_argument("paths", nargs="+", type=Path)
        ahead = sys.argv[1:2] == ["--ahead"]
        arguments = parser.parse_args(_begun_ahead(int(sys.argv[2])) if ahead else None)
        code = run(arguments.paths, Events(arguments.events), arguments.halved_from, stop)
    except KeyboardInterrupt:
        code = cli.SIGNALLED + (stop.asked or signal.SIGINT)  # the parent got a signal too, and says so once
    finally:
        mirror.close()
    # Python takes seconds to take torch's modules apart, and a signal leaves ten in all. What has to be done at the exit
    # is done: W&B removes its temporary folders there.
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    cli.run(main)
