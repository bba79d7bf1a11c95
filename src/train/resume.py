"""Decide from which step the runs of a pack go on, and open their records there."""

from __future__ import annotations

import sys

from ..record import checkpoint
from .pack import Pack


def choose(pack: Pack) -> None:
    """Keep the runs that go on from one step together; a checkpoint that is damaged makes way for the one before."""
    while True:
        (step, places), *_ = checkpoint.together([run.checkpoints() for run in pack.runs])
        if all([pack.runs[place].resume_from(step) for place in places]):
            break
    if len(places) < len(pack.runs):
        pack.keep(places, None, "one checkpoint is shared by")


def refuse_others(pack: Pack, fingerprints: dict[str, str]) -> None:
    """Start over where checkpoints are of other base weights or tokens: a model's folder may hold others by now."""
    others = [run for run in pack.runs if not run.matches(fingerprints)]
    if others:
        names = ", ".join(run.folder.run_id for run in others)
        print(f"{names}: the checkpoints are of other base weights or tokens; starting from step 0", file=sys.stderr)
        for run in pack.runs:
            run.start_over()


def start(pack: Pack, facts: dict[str, object]) -> None:
    """Add ``facts`` to what each record says of its origin, and open its log and its mirror at the step it goes on from."""
    for run in pack.runs:
        run.folder.write_provenance((run.folder.provenance() or {}) | facts)
        run.start()
