"""Send signals: the worker is patient between steps, immediate elsewhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from src.train import stop
from src.train.stop import SIGNALS, Interrupted, Stop


@pytest.fixture
def listening() -> Iterator[Stop]:
    # As a process has them that nothing was done to: under nohup one would be ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (*SIGNALS, signal.SIGALRM)}
    listening = Stop()
    listening.listen()
    yield listening
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_elsewhere_a_signal_stops_at_once(listening: Stop, number: int) -> None:
    with pytest.raises(Interrupted):
        send(number)
    assert listening.asked == number


@pytest.mark.parametrize("number", SIGNALS)
def test_while_training_it_waits_for_the_end_of_the_step(listening: Stop, number: int) -> None:
    ended = False
    with pytest.raises(Interrupted), listening.between_steps():
        send(number)
        assert listening.asked == number
        ended = True
    assert ended
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "nothing strikes later"


def test_a_second_signal_does_not_wait(listening: Stop) -> None:
    with pytest.raises(Interrupted), listening.between_steps():
        send(signal.SIGTERM)
        send(signal.SIGINT)
        pytest.fail("not reached")
    assert listening.asked == signal.SIGTERM


def test_patience_ends(listening: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "PATIENCE", 0.05)
    started = time.monotonic()
    with pytest.raises(Interrupted), listening.between_steps():
        send(signal.SIGTERM)
        time.sleep(20)
    assert time.monotonic() - started < 5


def test_without_a_signal_nothing_happens(listening: Stop) -> None:
    with listening.between_steps():
        pass
    assert listening.asked is None


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Stop().listen()
        send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
