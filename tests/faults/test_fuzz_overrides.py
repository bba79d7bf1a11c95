"""Command lines at random: each runs, or ends in one clear line and exit code 2, and nothing is written."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from src.command.cli import compose
from src.config.schema import Config
from src.config.values import check
from src.record.records import ENDED, run_id
from src.sweep.plan import Job
from tests.conftest import written
from tests.faults import entry
from tests.faults.overrides import KNOWN, NAMES, budget_lines, lines

Size = Callable[[int, int], int]
Figure = Callable[[str, str], None]

ROW = "Bad input: overrides"
# The same cases every time, since a test that fails now and then is no test; a failure is reported as it was found.
STEADY = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


def names_of(line: list[str]) -> list[str]:
    """List the words that an error about these arguments may name."""
    keys = [word.lstrip("+~").partition("=")[0] for word in line]
    return [*KNOWN, *NAMES, "--", *line, *keys, *(key.partition(".")[0] for key in keys)]


def bounded(config: Config) -> Config:
    """The config of a line that was accepted, made so small that it trains in a second."""
    small = copy.deepcopy(config)
    small.model = compose(["model=tiny"]).model
    small.device, small.tracking.mode, small.forgetting.tokens, small.pack.compile = "cpu", "disabled", 0, None
    small.train.steps, small.train.epochs, small.train.batch_size, small.train.grad_accum = 1, None, 2, 1
    small.dataset.max_length, small.dataset.train_examples = min(small.dataset.max_length, 64), 8
    small.eval.val_examples = small.eval.test_examples = 2
    small.eval.max_new_tokens = 2
    small.lora.r = min(small.lora.r, 64)
    check(small)
    return small


def train_to_a_record(config: Config) -> None:
    """A need that no check before the start can know, such as a chat template, may be named in the record instead."""
    from src.sweep.events import Events
    from src.train import worker

    record = written(config)
    worker.run([record.path], Events(None))
    result = record.result()
    assert result is not None
    clear = result["status"] == "failed" and result["reason"].split(":")[0] in KNOWN and not record.error.exists()
    assert result["status"] in ENDED or clear, result["reason"]


def test_a_line_trains_or_is_refused_in_one_line(folder: Path, rows: Path, size: Size, figure: Figure) -> None:
    (folder / "pipe").touch()
    before = entry.tree(folder)
    counts: Counter[str] = Counter()
    accepted: dict[str, Job] = {}

    @settings(STEADY, max_examples=size(20, 2400))
    @given(lines())
    def one(line: list[str]) -> None:
        try:
            ended = entry.train(*line)
            entry.check(ended, names_of(line), before)
        finally:
            entry.restore(folder, before)
        counts[entry.what(ended)] += 1
        accepted.update({job.run_id: job for job in ended.jobs})

    one()
    local = [job.config for job in accepted.values() if job.config.dataset.source != "hub"]
    wanted = size(1, 40)
    chosen = {run_id(small): small for small in map(bounded, local)}
    for small in list(chosen.values())[:wanted]:
        train_to_a_record(small)
    figure(ROW, f"{entry.tally(counts)}; {min(wanted, len(chosen))} of the accepted trained to a record")


def test_the_cost_of_a_line_is_counted_or_refused_in_one_line(folder: Path, size: Size, figure: Figure) -> None:
    before = entry.tree(folder)
    counts: Counter[str] = Counter()

    @settings(STEADY, max_examples=size(15, 1000))
    @given(budget_lines())
    def one(line: list[str]) -> None:
        ended = entry.variants(*line)
        entry.check(ended, [*names_of(line), "match"], before)
        counts[entry.what(ended)] += 1

    one()
    figure(ROW, f"python -m src.variants, {entry.tally(counts)}")
