"""SIGKILL at random moments, to any of the processes; then the same command brings the sweep to the same bits."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import moments, sweep
from tests.faults.commands import Command, wait_until_none_is_left
from tests.faults.sweep import Reference, Verdict

pytestmark = pytest.mark.usefixtures("no_survivors")

ROW = "SIGKILL at a random moment, then the same command"
CLOCK = 0.3  # of the kills come by the clock, the others at an event
AGAIN = 0.25  # of the cases are killed a second time
SWEEPS = 84  # in the long form: a hundred kills and some
MIRRORED = 0.15  # of the cases have W&B's offline mirror
VICTIMS = {"all": 0.5, "parent": 0.2, "worker": 0.3}
FEW = (24, 95)  # seeds: all processes in the middle of a checkpoint, the worker in the middle of training
WHO = {"all": "all processes", "parent": "the parent alone", "worker": "the worker alone"}


@dataclass
class Case:
    """One sweep that is killed once or twice, decided by its seed alone."""

    seed: int
    kills: list[str] = field(default_factory=list)  # victim and phase of each
    torn: int = 0  # kills that left a file half written
    verdict: Verdict = field(default_factory=lambda: Verdict(["never compared"]))
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"case {self.seed} ({', then '.join(self.kills)})"


def play(seed: int, folder: Path, precisions: str, reference: Reference) -> Case:
    case, rng, started = Case(seed), random.Random(seed), time.monotonic()
    more = ["tracking=wandb_offline"] if rng.random() < MIRRORED else []
    sweep.prepare(folder)
    commands = [sweep.start(folder, precisions, *more)]
    finished: dict[Path, tuple[int, int]] = {}
    workers_killed = 0
    for _ in range(1 + (rng.random() < AGAIN)):
        victim = rng.choices([*VICTIMS], [*VICTIMS.values()])[0]
        killed = strike(commands[-1], victim, rng, reference.seconds, case)
        finished |= {path: identity(path) for path in finished_runs(folder) if path not in finished}
        workers_killed += killed == "worker"
        if killed in ("all", "parent"):
            commands[-1].wait()
            commands.append(sweep.start(folder, precisions, *more))
    code = commands[-1].wait()
    if code == 1 and workers_killed > 1:  # twice in one pack: its runs are `failed`, and done again by the same command
        commands.append(sweep.start(folder, precisions, *more))
        code = commands[-1].wait()
    case.verdict = sweep.judge(folder, reference)
    wrong = case.verdict.wrong
    if code != 0:
        wrong.append(f"exit code {code}: {commands[-1].errors()}")
    wrong += [f"{path} was written again" for path, before in finished.items() if identity(path) != before]
    wrong += [f"a traceback: {command.errors()}" for command in commands if "Traceback" in command.errors()]
    wrong += [f"{process} is left" for process in wait_until_none_is_left(folder, 20)]
    case.seconds = time.monotonic() - started
    return case


def strike(command: Command, victim: str, rng: random.Random, seconds: float, case: Case) -> str | None:
    """Strike, and tell which process was killed: all where there was no worker, None where the command had ended."""
    if rng.random() < CLOCK:
        moment = moments.by_the_clock(rng.uniform(0, seconds))
    else:
        moment = moments.by_an_event(command, rng.choice([*moments.EVENTS]), rng)
    moment.come(command)
    phase = command.phase()
    if phase == "ended":
        return None
    if victim == "worker" and command.worker() is None:
        victim = "all"
    command.kill(victim)
    case.kills.append(f"{victim}, {phase}")
    case.torn += victim != "parent" and bool(moments.half_written(command.folder))
    return victim


def finished_runs(folder: Path) -> list[Path]:
    """Results that say ``ok``."""
    return [path for path in folder.glob("runs/*/result.json") if json.loads(path.read_text())["status"] == "ok"]


def identity(path: Path) -> tuple[int, int]:
    """Changes when the file is written again, even with the same content."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def test_after_a_kill_the_same_command_ends_with_the_same_bits(
    folder: Path, size: Callable[[int, int], int], undisturbed: Reference, precisions: str, figure: Callable[[str, str], None]
) -> None:
    def one(seed: int) -> Case:
        """The case of this seed, or where its moment does not come, that of another."""
        place = folder / f"case{seed}"
        case = play(seed, place, precisions, undisturbed)
        verdict = case.verdict
        print(f"{case}: {verdict.identical} same bits, {verdict.near} near, {case.seconds:.0f} s", *verdict.wrong, sep="\n  ")
        if not verdict.wrong:
            shutil.rmtree(place)
        return case if case.kills or verdict.wrong else one(seed + 1000)

    with ThreadPoolExecutor(max_workers=2) as two:
        cases = list(two.map(one, range(size(0, SWEEPS)) or FEW))
    wrong = [f"{case}: {text}" for case in cases for text in case.verdict.wrong]
    assert not wrong, "\n".join(wrong)
    figure(ROW, summary(cases, len(undisturbed.records)))


def summary(cases: list[Case], runs: int) -> str:
    kills = Counter(kill.partition(", ")[2] for case in cases for kill in case.kills)
    victims = Counter(kill.partition(", ")[0] for case in cases for kill in case.kills)
    verdicts = [case.verdict for case in cases]
    identical, near = sum(v.identical for v in verdicts), sum(v.near for v in verdicts)
    text = (
        f"{sum(kills.values())} kills in {len(cases)} sweeps of {runs} runs"
        f" ({', '.join(f'{n} of {WHO[who]}' for who, n in victims.most_common())};"
        f" {', '.join(f'{n} {phase}' for phase, n in kills.most_common())};"
        f" {sum(case.torn for case in cases)} left a half-written file):"
        f" {len(cases)} of {len(cases)} sweeps ended with every record, none lost, doubled or repeated;"
        f" {identical} of {identical + near} runs bit-identical"
        f" ({sum(v.regrouped for v in verdicts)} of them in another pack)"
    )
    for precision in sorted({precision for verdict in verdicts for precision in verdict.gaps}):
        gaps = [gap for verdict in verdicts for gap in verdict.gaps.get(precision, [])]
        loss, weight = (max(values) for values in zip(*gaps, strict=True))
        text += f", {len(gaps)} of {precision} in another pack within {loss:.0e} of every loss and {weight:.0e} of every weight"
    return f"{text}; {sum(case.seconds for case in cases) / len(cases):.0f} s a case"
