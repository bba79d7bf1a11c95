"""Train at every rank under both scalings, and measure: ``python -m experiments.rank_stability.measure [key=value ...]``.

    out=FOLDER     where results.csv and provenance.json are written (default: this folder)
    ranks=4,8      numbers, or ranges such as 1-4 (default 4,8,16,32,64,128,256); so are seeds= and logged=. Ranges may
                   overlap, as in 0-3,2-5; what adds nothing, as in 4,4 or 0-3,2, is refused
    seeds=0-5      of adapter and data order, such as 0-5 or 0,3 (default 0-5)
    rate=1e-3      the one learning rate of form "fixed" (default 1e-3)
    rates=FILE     a CSV with the columns variant,r,learning_rate: these (variant, rank) train at their own rates too, as
                   form "best"; variant is lora or rslora, other columns are left alone
    alpha=16 steps=300 rows=16 schedule=linear model=smollm2_135m test=N (test rows, default all)
    logged=0,1,2   steps at which all is measured (default 0,1,2,10,30,100,300; the last step always)
    runs=N         runs in one pack at most (default: whole seeds, as many as memory holds)

results.csv has one row for each form, run, step and module ("all", or a kind such as q_proj). ``step`` t is after t updates:

    train_loss            nats per target token, mean over the steps since the last multiple of 10
    val_loss, test_loss   nats per target token, after the last update
    grad_A, grad_B        2-norm of the gradient at these weights on the rows of step t, before clipping
    weight                ||s B A|| / ||W||, Frobenius, mean over modules
    change                the same of what update t + 1 adds to s B A
    activation            RMS of s B A x over RMS of W x on 32 validation rows, mean over modules

A run that diverged has no val_loss and no test_loss. Rows are written as they are measured.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import folders
from experiments.rank_stability.norms import Norms
from experiments.rank_stability.plan import DEFAULTS, KEYS, VARIANTS, Planned, config_of, in_slots, planned, read_rates
from experiments.rank_stability.results import Sheet, rows_of
from src.command import cli
from src.command.words import read
from src.files.durable import dump_json, write_atomically
from src.files.terminal import quiet_libraries
from src.model import device
from src.record import records
from src.train import session

EVERY = 10  # steps between two training losses
WATCHED_ROWS = 32  # validation rows that the activations are measured on


class Study:
    """The runs of one command, pack by pack."""

    def __init__(self, values: dict[str, Any], runs: Sequence[Planned], sheet: Sheet) -> None:
        self.values = values
        self.sheet = sheet
        self.started = time.monotonic()
        self.peak = 0
        loaded = session.load(config_of(runs[0], values))
        self.rows, self.numerics = loaded.rows, loaded.numerics
        # Its base goes with it: a pack adapts the base, so each takes a fresh one, and they share the rows.
        self.packs = self._packs(runs, loaded)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def _packs(self, runs: Sequence[Planned], loaded: session.Loaded) -> list[list[Planned]]:
        """Group the runs in as few packs as memory holds and ``runs=`` allows, each of whole seeds where one seed fits."""
        seeds = list(dict.fromkeys(run.seed for run in runs))
        of_seed = {seed: [run for run in runs if run.seed == seed] for seed in seeds}
        most = self.values["runs"]
        fitting = len(seeds) if most is None else max(1, min(len(seeds), most // len(of_seed[seeds[0]])))
        while most is None and fitting > 1 and not self._fit([r for seed in seeds[:fitting] for r in of_seed[seed]], loaded):
            fitting -= 1
        count = -(-len(seeds) // fitting)  # packs, of nearly equal size
        groups = [seeds[i * len(seeds) // count : (i + 1) * len(seeds) // count] for i in range(count)]
        whole_seeds = [[run for seed in group for run in of_seed[seed]] for group in groups]
        return [pack[i : i + (most or len(pack))] for pack in whole_seeds for i in range(0, len(pack), most or len(pack))]

    def _fit(self, runs: Sequence[Planned], loaded: session.Loaded) -> bool:
        """Ask the worker's estimate, with room for ``change``: 4 of the 18 bytes a trained number takes are copied for it."""
        fit = session.fit_of(loaded, in_slots(runs, self.values)[1])
        return fit.count == len(runs) and (fit.bytes or 0) * (1 + 4 / 18) <= fit.usable

    def train(self, pack: Sequence[Planned]) -> None:
        """Train one pack, from its base model to its last row."""
        values, steps = self.values, self.values["steps"]
        runs, configs = in_slots(pack, values)
        opened = session.open(configs, self.rows)
        engine: Any = opened.engine
        norms = Norms(engine.model, opened.batch("val", WATCHED_ROWS))
        self.say(f"{len(runs)} runs are built ({engine.speed_layers})")
        logged = {step for step in values["logged"] if step < steps} | {steps}
        losses: list[list[float]] = []
        marks = sorted(logged | set(range(0, steps, EVERY)))
        for step, until in zip(marks, [*marks[1:], steps], strict=True):
            measured: dict[str, Any] = {}
            if losses and (step % EVERY == 0 or step == steps):
                measured["train_loss"] = [sum(of_run) / len(losses) for of_run in zip(*losses, strict=True)]
                losses = []
            done = step
            if step in logged:
                measured |= {"weight": norms.weights(), "activation": norms.activations()}
                if step == steps:
                    measured |= _last(opened, norms)
                else:
                    before = norms.values()
                    losses += [taken.loss for taken in engine.advance(step, step + 1)]
                    measured |= {"grad_A": norms.gradients("A"), "grad_B": norms.gradients("B"), "change": norms.changes(before)}
                    del before
                    done += 1
                self.say(f"step {step} is measured")
            self.sheet.add(rows_of(runs, engine, step, measured))
            losses += [taken.loss for taken in engine.advance(done, until)]
        self.peak = max(self.peak, device.peak_memory(self.numerics.device)[0])


def _last(opened: session.Session, norms: Norms) -> dict[str, Any]:
    """Measure after the last update: the gradient on the rows that would come next, and the losses."""
    engine: Any = opened.engine
    alive = engine.alive.clone()
    engine.alive.fill_(False)  # the step computes its gradient and changes no number
    engine.advance(engine.steps, engine.steps + 1)
    engine.alive.copy_(alive)
    measured: dict[str, Any] = {"grad_A": norms.gradients("A"), "grad_B": norms.gradients("B")}
    engine.finish()
    good = [went and finite for went, finite in zip(alive.tolist(), engine.finite(), strict=True)]
    for name in ("val", "test"):
        measured[f"{name}_loss"] = [loss if ok else math.nan for loss, ok in zip(opened.losses(name), good, strict=True)]
    return measured


def free() -> None:
    """Give back what a pack held, and the code compiled for it."""
    gc.collect()
    if torch.cuda.is_available():
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def halves(pack: Sequence[Planned]) -> list[list[Planned]]:
    """Split a pack that memory did not hold in two: by seeds, or if there is one, by runs."""
    seeds = list(dict.fromkeys(run.seed for run in pack))
    if len(seeds) == 1:
        return [list(pack[: len(pack) // 2]), list(pack[len(pack) // 2 :])]
    first = seeds[: len(seeds) // 2]
    return [[run for run in pack if run.seed in first], [run for run in pack if run.seed not in first]]


def provenance(study: Study, words: Sequence[str], runs: int, done: int) -> str:
    """Describe what was measured, with what, where; without the names of folders and of the host."""
    known = records.provenance([])
    del known["argv"], known["host"]
    arguments = [f"rates={Path(word[6:]).name}" if word.startswith("rates=") else word for word in words if word[:4] != "out="]
    return dump_json(
        {"command": " ".join(["python -m experiments.rank_stability.measure", *arguments])}
        | known
        | {
            "device": device.describe(study.numerics.device),
            "values": {key: value for key, value in study.values.items() if key not in ("out", "rates")},
            "runs": runs,
            "runs_done": done,
            "seconds": time.monotonic() - study.started,
            "peak_memory_bytes": study.peak,
            "data_fingerprint": study.rows.splits.fingerprint(),
        }
    )


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if "--help" in words:
        print(__doc__)
        return 0
    values = DEFAULTS | read(words, KEYS)[0]
    runs = planned(values, read_rates(Path(values["rates"])) if values["rates"] else {})
    folder = Path(values["out"])
    folders.fresh(folder, "results.csv")
    quiet_libraries()
    study = Study(values, runs, Sheet(folder / "results.csv"))
    study.say(
        f"{len(runs)} runs: {', '.join(VARIANTS)}, r {values['ranks'][0]}-{values['ranks'][-1]}, {len(values['seeds'])} seeds"
    )
    waiting = study.packs
    study.say(f"packs of {', '.join(str(len(pack)) for pack in waiting)} runs")
    try:
        _train_all(study, words, runs, waiting, folder / "provenance.json")
    except KeyboardInterrupt:
        print(f"interrupted; what was measured stays in {folder / 'results.csv'}", file=sys.stderr)
        return cli.SIGNALED + signal.SIGINT
    return 0


def _train_all(
    study: Study, words: Sequence[str], runs: Sequence[Planned], waiting: list[list[Planned]], provenance_file: Path
) -> None:
    """Train pack by pack; one that memory does not hold is halved."""
    done = 0
    write_atomically(provenance_file, provenance(study, words, len(runs), done))
    while waiting:
        pack = waiting.pop(0)
        held = True
        try:
            study.train(pack)
        except Exception as error:
            if not device.is_out_of_memory(error) or len(pack) == 1:
                raise
            held = False  # what follows stands outside, since the error holds the pack's memory
        free()
        if held:
            done += len(pack)
            study.say(f"{done} of {len(runs)} runs are done")
            write_atomically(provenance_file, provenance(study, words, len(runs), done))
        else:
            study.sheet.drop(pack)
            waiting[:0] = halves(pack)
            study.say(f"{len(pack)} runs are too many for the memory: {len(waiting[0])} and {len(waiting[1])}")


if __name__ == "__main__":
    cli.run(main)
