"""What runs logged and answered: loss curves from metrics.jsonl, items from predictions.jsonl. Read for the runs drawn alone."""

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
    """frame: one row a logged loss (run_id, step, metric, value in nats per target token); problems: a line a broken file."""

    frame: pd.DataFrame
    problems: list[str] = field(default_factory=list)


def curves(ids: Sequence[str], root: Path = RUNS) -> Curves:
    """The losses that these runs logged. A file that is not what was written is not read, and that is a problem."""
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
    """The test examples of one run: ids, summed log-loss of each target in nats, its tokens, and whether it was answered right.

    ``correct`` is None where nothing was generated; ``clusters`` is None where the examples name none.
    """

    ids: tuple[str, ...]
    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_] | None
    clusters: tuple[str, ...] | None


def items(run: str, root: Path = RUNS) -> Items | None:
    """The predictions of a run, in the order of their ids; None where there are none, or the file is no such thing.

    A loss that is not finite, or a target without tokens, is no such thing.
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
            correct=np.array(correct, dtype=bool) if all(isinstance(one, bool) for one in correct) else None,
            clusters=None if any(one is None for one in clusters) else tuple(str(one) for one in clusters),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
