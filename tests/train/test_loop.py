"""Run the training loop over an engine that only plays one: which steps it asks for, when it does what, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.command.cli import compose
from src.config.schema import Config
from src.engine.protocol import Step
from src.model.device import Numerics
from src.record.checkpoint import Progress
from src.train import loop
from src.train.loop import Divergence, Hooks, steps_of
from src.train.stop import Interrupted

CPU = Numerics(torch.device("cpu"), torch.float32, None)
WARM_UP = 100.0  # seconds that the first call of an engine takes on top


class Clock:
    """Stands still but where the engine lets it go on."""

    def __init__(self) -> None:
        self.now = 5.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@dataclass
class Played:
    """Run k loses ``100 k + step`` at a 1-based step, where ``losses`` and ``norms`` say nothing else."""

    clock: Clock
    steps: int = 30
    chunk: int = 10
    tokens: Sequence[int] = (3, 5)
    seconds: float = 2.0  # for a step
    losses: dict[tuple[int, int], float] = field(default_factory=dict)
    norms: dict[tuple[int, int], float] = field(default_factory=dict)
    weights: Sequence[bool] = (True, True)
    calls: list[tuple[int, int]] = field(default_factory=list)
    numerics: Numerics = CPU

    def advance(self, first: int, last: int) -> list[Step]:
        self.clock.now += (WARM_UP if not self.calls else 0.0) + (last - first) * self.seconds
        self.calls.append((first, last))
        runs = range(len(self.tokens))
        return [
            Step(
                [self.losses.get((run, at), 100.0 * run + at) for run in runs],
                [self.norms.get((run, at), 1.0) for run in runs],
                [0.5 for _ in runs],
                list(self.tokens),
            )
            for at in range(first + 1, last + 1)
        ]

    def finite(self) -> list[bool]:
        return list(self.weights)


@dataclass
class Told:
    """All that the hooks were told, in order; ``events`` has validations and checkpoints with the number of calls before."""

    engine: Played
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: int = 0
    lines: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    events: list[tuple[str, int]] = field(default_factory=list)
    saved: list[list[int]] = field(default_factory=list)
    progress: list[tuple[int, list[float | None], float | None]] = field(default_factory=list)
    ends: list[tuple[int, Divergence]] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)  # the steps at which one begins or ends
    wait: float = 0.0  # seconds for a turn
    stops: bool = False  # while it waits
    stopping: bool = False

    def hooks(self) -> Hooks:
        return Hooks(
            log=lambda run, line: self.lines.append((run, dict(line))),
            validate=self._validate,
            checkpoint=self._checkpoint,
            advance=lambda done, losses, rate: self.progress.append((done, losses, rate)),
            diverged=lambda run, divergence: self.ends.append((run, divergence)),
            checkpoint_bytes=self.checkpoint_bytes,
            turn=self._turn,
            stopping=lambda: self.stopping,
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self.engine.clock.now += self.wait
        self.stopping = self.stops
        self.turns.append(self.engine.calls[-1][1])
        yield
        self.turns.append(self.engine.calls[-1][1])

    def _validate(self) -> list[float]:
        self.events.append(("val", self.engine.calls[-1][1]))
        return [7.0 + run for run in range(len(self.engine.tokens))]

    def _checkpoint(self, runs: list[int]) -> None:
        self.engine.clock.now += self.checkpoint_seconds
        self.events.append(("save", self.engine.calls[-1][1]))
        self.saved.append(list(runs))

    def steps(self, what: str) -> list[int]:
        return [step for event, step in self.events if event == what]

    def logged(self, run: int, key: str) -> list[tuple[int, float]]:
        return [(line["step"], line[key]) for at, line in self.lines if at == run and key in line]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def config(every: int = 1000, checkpoint_every: int | None = 1000) -> Config:
    found = compose(["model=tiny"])
    return replace(found, eval=replace(found.eval, every=every), train=replace(found.train, checkpoint_every=checkpoint_every))


def play(
    engine: Played, settings: Config, runs: Sequence[Progress] | None = None, seen: list[Told] | None = None, **options: Any
) -> tuple[Told, Sequence[Progress]]:
    runs = [Progress() for _ in engine.tokens] if runs is None else runs
    told = Told(engine, **options)
    if seen is not None:
        seen.append(told)
    loop.train(engine, settings, runs, told.hooks())  # type: ignore[arg-type]
    return told, runs


def test_steps_are_asked_for_up_to_the_next_event(clock: Clock) -> None:
    engine = Played(clock)
    told, _ = play(engine, config(every=7, checkpoint_every=5))
    assert engine.calls == [(0, 5), (5, 7), (7, 10), (10, 14), (14, 15), (15, 20), (20, 21), (21, 25), (25, 28), (28, 30)]
    assert told.steps("val") == [7, 14, 21, 28, 30]
    assert told.steps("save") == [5, 10, 15, 20, 25]  # at the end the result takes the checkpoint's place
    assert told.saved == [[0, 1]] * 5
    assert told.logged(1, "val/loss") == [(7, 8.0), (14, 8.0), (21, 8.0), (28, 8.0), (30, 8.0)]


def test_without_an_event_the_engine_gets_as_many_steps_as_it_likes_at_once(clock: Clock) -> None:
    engine = Played(clock, steps=25)
    told, _ = play(engine, config())
    assert engine.calls == [(0, 10), (10, 20), (20, 25)]
    assert told.events == [("val", 25)]
    assert [done for done, _, _ in told.progress] == [10, 20, 25]


def test_the_turn_begins_after_the_first_call_which_compiles(clock: Clock) -> None:
    assert play(Played(clock, steps=25), config())[0].turns == [10, 25]
    assert play(Played(clock, steps=10), config())[0].turns == []  # nothing is left to wait for


def test_who_is_asked_to_stop_while_waiting_saves_what_it_has_and_trains_no_more(clock: Clock) -> None:
    engine: Played = Played(clock, steps=25)
    told: list[Told] = []
    with pytest.raises(Interrupted):
        play(engine, config(), seen=told, stops=True)
    assert engine.calls == [(0, 10)] and told[0].steps("save") == [10]


def test_a_wait_is_no_reason_for_a_checkpoint(clock: Clock) -> None:
    told, _ = play(Played(clock, steps=70, seconds=0.1), config(checkpoint_every=None), wait=1000.0)
    assert told.steps("save") == [10]  # as without: the first steps took more than a minute, the others 1 s a chunk


def test_runs_go_on_from_their_step_and_events_stay_where_they_are(clock: Clock) -> None:
    engine = Played(clock, steps=22)
    before = Progress(step=12, tokens=36, seconds=50.0, rated_tokens=30, rated_seconds=20.0, loss=9.0)
    told, (first, _) = play(engine, config(every=5), [before, replace(before)])
    assert engine.calls == [(12, 15), (15, 20), (20, 22)]
    assert told.steps("val") == [15, 20, 22]
    assert [line["step"] for run, line in told.lines if run == 0 and "train/loss" in line] == list(range(13, 23))
    assert (first.step, first.tokens, first.rated_tokens) == (22, 36 + 10 * 3, 30 + 7 * 3)
    assert first.seconds == pytest.approx(50.0 + WARM_UP + 20.0)
    assert first.rated_seconds == pytest.approx(20.0 + 14.0)  # this process's first three steps are left out


def test_runs_that_are_done_are_not_trained(clock: Clock) -> None:
    engine = Played(clock, steps=4, weights=(True, False))
    told, _ = play(engine, config(), [Progress(step=4, loss=2.0), Progress(step=4, loss=3.0)])
    assert engine.calls == [] and told.events == [] and told.lines == []
    assert told.ends == [(1, Divergence(4, "a trained weight was not finite", 3.0))]


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (7.0, [10, 20, 30, 40, 50, 60]),  # a chunk takes 70 s
        (2.5, [10, 40]),  # the first takes 125 s, the others 25 s
        (0.1, [10]),
    ],
)
def test_a_checkpoint_is_written_about_once_a_minute_if_no_interval_is_given(
    clock: Clock, seconds: float, wanted: list[int]
) -> None:
    told, _ = play(Played(clock, steps=70, seconds=seconds), config(checkpoint_every=None))
    assert told.steps("save") == wanted


def test_checkpoints_take_no_more_than_a_fiftieth_of_the_time(clock: Clock) -> None:
    engine = Played(clock, steps=200, seconds=2.5)  # 25 s a chunk, and 100 s more for the first
    told, _ = play(engine, config(checkpoint_every=None), checkpoint_seconds=4.0)
    assert told.steps("save") == [10, 90, 170]  # the first after a minute, then every 200 s
    told, _ = play(Played(clock, steps=400, seconds=2.5), config(checkpoint_every=None), checkpoint_bytes=10**10)
    assert told.steps("save") == [360, 390]  # 20 s were expected of it, and so 1,000 s waited; it took none
    told, _ = play(Played(clock, steps=50), config(checkpoint_every=20), checkpoint_seconds=100.0)
    assert told.steps("save") == [20, 40]  # as asked for


def test_what_is_counted_and_what_the_first_chunk_is_left_out_of(clock: Clock) -> None:
    told, (first, second) = play(Played(clock, steps=25), config())
    assert (first.step, first.tokens, second.tokens) == (25, 75, 125)
    assert first.seconds == second.seconds == pytest.approx(WARM_UP + 50.0)
    assert (first.rated_tokens, second.rated_tokens) == (45, 75)
    assert first.rated_seconds == second.rated_seconds == pytest.approx(30.0)
    assert (first.loss, second.loss) == (25.0, 125.0)
    assert told.progress == [(10, [10.0, 110.0], None), (20, [20.0, 120.0], 4.0), (25, [25.0, 125.0], 4.0)]
    assert told.lines[3] == (
        1, {"step": 2, "train/loss": 102.0, "train/grad_norm": 1.0, "train/lr": 0.5, "train/tokens": 10}
    )  # fmt: skip


def test_a_run_that_diverges_is_left_and_the_others_go_on(clock: Clock) -> None:
    engine = Played(clock, tokens=(3, 5, 7), losses={(1, at): math.nan for at in range(4, 31)}, weights=(True, False, True))
    told, (_, diverged, _) = play(engine, config(every=10, checkpoint_every=5))
    assert told.ends == [(1, Divergence(4, "loss was not finite", 103.0))]
    assert told.ends[0][1].reason() == "loss was not finite at step 4; last finite loss 103.0000"
    assert [step for step, _ in told.logged(1, "train/loss")] == [1, 2, 3, 4]
    assert math.isnan(told.logged(1, "train/loss")[-1][1]) and told.logged(1, "val/loss") == []
    assert (diverged.step, diverged.tokens, diverged.loss) == (4, 20, 103.0)
    assert told.saved == [[0, 2]] * 5
    assert [step for step, _ in told.logged(2, "train/loss")] == list(range(1, 31))
    assert told.logged(0, "val/loss") == [(10, 7.0), (20, 7.0), (30, 7.0)]
    assert told.progress[-1] == (30, [30.0, None, 230.0], 5.0)  # the 3 + 7 tokens a step that still train


@pytest.mark.parametrize(
    ("losses", "norms", "divergence", "reason"),
    [
        ({(0, 1): math.inf}, {(0, 1): 2.0}, Divergence(1, "loss was not finite", None), "loss was not finite at step 1; no "),
        ({}, {(0, 3): math.inf}, Divergence(3, "gradient norm was not finite", 2.0), "gradient norm was not finite at step 3; "),
        ({(0, 2): math.nan}, {(0, 2): math.nan}, Divergence(2, "loss was not finite", 1.0), "loss was not finite at step 2; "),
    ],
)
def test_what_made_a_run_diverge_and_the_last_loss_before(
    clock: Clock, losses: Any, norms: Any, divergence: Divergence, reason: str
) -> None:
    told, _ = play(Played(clock, tokens=(3,), losses=losses, norms=norms, weights=(True,)), config())
    assert told.ends == [(0, divergence)]
    assert told.ends[0][1].reason().startswith(reason)


def test_where_all_runs_have_diverged_training_ends(clock: Clock) -> None:
    engine = Played(clock, losses={(0, 3): math.nan, (1, 14): math.inf})
    told, runs = play(engine, config(every=10, checkpoint_every=20))
    assert [(run, divergence.step) for run, divergence in told.ends] == [(0, 3), (1, 14)]
    assert engine.calls == [(0, 10), (10, 20)]
    assert told.events == [("val", 10)]
    assert [run.step for run in runs] == [3, 14]
    assert told.progress[-1] == (20, [None, None], 0.0)


def test_a_weight_that_is_not_finite_after_the_last_step(clock: Clock) -> None:
    told, _ = play(Played(clock, steps=5, weights=(False, True)), config())
    assert told.ends == [(0, Divergence(5, "a trained weight was not finite", 5.0))]
    assert told.steps("val") == [5]


def test_how_many_steps_a_run_takes(folder: Path) -> None:
    found = compose(["model=tiny", "train.steps=9", "train.batch_size=4"])
    assert steps_of(found, 20) == 9
    found.train.epochs = 2.0
    assert steps_of(found, 20) == 10  # 20 rows twice, four at a time
    found.train.grad_accum = 2
    assert steps_of(found, 20) == 5
    found.train.epochs = 0.01
    assert steps_of(found, 20) == 1
