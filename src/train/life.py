"""The life of a pack: open -> train -> check -> save -> score -> record. Read this first.

``load`` ends with the base model where it computes. What goes wrong until then would go wrong with fewer runs too; what
goes wrong in ``train`` for lack of memory may not, so the worker lets the command try smaller packs.
"""

from __future__ import annotations

import sys

from ..config.schema import is_packed
from ..model import device
from . import resume, session
from .checks import LiveChecks
from .conclude import conclude
from .final import Forgetting
from .pack import Pack
from .session import Loaded
from .stop import Stop
from .training import Training


def load(pack: Pack) -> Loaded:
    """Choose the runs that go on together, read base and rows, keep the runs that memory holds, and place the base."""
    resume.choose(pack)
    pack.events.phase(f"loading {pack.config.model.name}")
    loaded = session.load(pack.config)
    if cut := sum(loaded.rows.cut.values()):
        longest = pack.config.dataset.max_length
        print(f"{cut} rows are longer than dataset.max_length={longest} and were cut", file=sys.stderr)
    for run in pack.runs:
        run.outcome.measured |= loaded.costs(run.config)
    fit = session.fit_of(loaded, pack.configs)
    pack.keep(range(fit.count), fit.bytes, "memory holds")
    return session.place(loaded)


def train(pack: Pack, placed: Loaded, stop: Stop) -> None:
    """Build the engine, train every run to its last step, and write the results.

    Raises:
        Interrupted: a signal asks to stop. What was trained is in checkpoints, and these runs have no result.
    """
    if is_packed(pack.config):
        pack.events.phase("building the pack")
    opened = session.build(placed, pack.configs)
    engine, rows = opened.engine, placed.rows
    facts = opened.facts()
    for run in pack.runs:
        run.outcome.measured |= facts
    trainable = [run.outcome.measured["trainable_parameters"] for run in pack.runs]
    layers = sum(linear.count for linear in placed.linears)
    live = LiveChecks(engine, pack.configs, trainable, layers, placed.closed_form)
    read = rows.fingerprints
    fingerprints = {"token_fingerprint": read["token_fingerprint"], "base_fingerprint": live.base_before}
    resume.refuse_others(pack, fingerprints)
    resume.start(pack, {"device": facts["device"], **read, **fingerprints})
    forgetting = Forgetting(engine.scored, rows.prose, rows.pad, pack.events)
    training, trains = Training(pack, opened, fingerprints, stop), pack.config.variant.trains != "none"
    if trains:
        forgetting.before(pack.runs)
    device.reset_peak(engine.numerics.device)
    try:
        if trains:
            training.train()
        training.measure_peak(pack.runs)
        engine.finish()
        conclude(pack, opened, live, forgetting)
    except KeyboardInterrupt:
        training.save_trained()
        raise
