"""Read loss curves from metrics.jsonl and test items from predictions.jsonl, only for the runs that need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..files.durable import Damaged
from ..files.text import first_line
from ..record.records import RUNS, RunFolder, read_lines
from .frame import METRICS_BELOW, number

CURVES = ("train/loss", "val/loss")


@dataclass
class Curves:
    """Logged losses: a frame of one row a loss (run_id, step, metric, value in nats per target token), a line a broken file."""

    frame: pd.DataFrame
    problems: list[str] = field(default_factory=list)


def curves(ids: Sequence[str], root: Path = RUNS) -> Curves:
    """Read the losses that these runs logged. A file whose checksum is not the recorded one is left out, as a problem."""
    rows: list[tuple[str, float, str, float]] = []
    problems = []
    for run in ids:
        folder = RunFolder(run, root)
        path = folder.metrics
        try:
            for line in read_lines(folder.checked(path)):
                step = number("step", line.get("step"), METRICS_BELOW) if isinstance(line, dict) else None
                if step is None:
                    raise ValueError("a line has no step")
                for metric in CURVES:
                    if (value := number(metric, line.get(metric), METRICS_BELOW)) is not None:
                        rows.append((run, step, metric, value))
        except Damaged as error:
            problems.append(f"{path}: {error}, so it is not read")
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{path}: read up to a line that is broken: {first_line(error)}")
    return Curves(pd.DataFrame(rows, columns=["run_id", "step", "metric", "value"]), problems)


@dataclass(frozen=True)
class Items:
    """The test examples of one run: ids, summed log-loss of each target in nats, its tokens, and whether the answer is right.

    An id names a file and a line, so two runs are of the same examples only where ``targets`` agree too. ``correct`` is None
    where nothing was generated; ``clusters`` is None where the examples name none.
    """

    ids: tuple[str, ...]
    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_] | None
    clusters: tuple[str, ...] | None
    targets: tuple[str, ...] = ()

    def same_examples(self, other: Items) -> bool:
        """Tell whether another run was scored on the same examples, as far as their records can say."""
        return self.ids == other.ids and self.targets == other.targets and bool((self.tokens == other.tokens).all())


def items(run: str, root: Path = RUNS) -> Items | None:
    """Read the predictions of a run, in the order of their ids; None where there are none, or the file cannot be used.

    A loss that is not finite, or a target without tokens, makes a file unusable.
    """
    folder = RunFolder(run, root)
    try:
        rows = sorted(read_lines(folder.checked(folder.predictions)), key=lambda row: str(row["id"]))
        if not rows:
            return None
        nats = np.array([number("log_loss", row["log_loss"], METRICS_BELOW) for row in rows], np.float64)
        tokens = np.array([number("tokens", row["tokens"], METRICS_BELOW) for row in rows], np.float64)
        if np.isnan(nats).any() or not (tokens > 0).all():
            return None
        correct = [row.get("correct") for row in rows]
        clusters = [row.get("cluster") for row in rows]
        return Items(
            ids=tuple(str(row["id"]) for row in rows),
            nats=nats,
            tokens=tokens,
            correct=np.array(correct, dtype=bool) if all(isinstance(flag, bool) for flag in correct) else None,
            clusters=None if any(name is None for name in clusters) else tuple(str(name) for name in clusters),
            targets=tuple(str(row.get("target")) for row in rows),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
