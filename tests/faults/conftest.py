"""Faults injected for real: a short form with all tests; the long one, ``make test-faults``, writes docs/reliability.md."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import page, sweep
from tests.faults.commands import kill_all
from tests.faults.sweep import Reference

# A shell without job control starts what runs in its background with Ctrl-C ignored, and so would every command here be.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG_TIMEOUT = 3 * 3600  # seconds; a long test may take most of an hour

_found: dict[str, dict[str, str]] = {}


def is_long(config: pytest.Config) -> bool:
    return bool(config.getoption("--long"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_long(config) and "faults" in item.path.parts:
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT))


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """``size(short, long)``: how many cases this session tries."""
    return lambda short, long: long if is_long(pytestconfig) else short


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``figure(row, text)``: what a test measured, for a row of docs/reliability.md (a key of ``page.ROWS``)."""

    def tell(row: str, text: str) -> None:
        assert row in page.ROWS, row
        _found.setdefault(row, {})[request.node.nodeid.split("::", 1)[-1]] = text
        print(f"\n{row}: {text}")

    return tell


@pytest.fixture
def no_survivors(folder: Path) -> Iterator[None]:
    """End what a failed test has left running in its folder."""
    yield
    kill_all(folder)


@pytest.fixture(scope="session")
def precisions(size: Callable[[int, int], int]) -> str:
    """The override that decides how many packs the sweep has that gets disturbed."""
    return [sweep.ONE_PACK, sweep.TWO_PACKS][size(0, 1)]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, precisions: str) -> Reference:
    """The sweep without a fault."""
    return sweep.undisturbed(tmp_path_factory.mktemp("undisturbed") / "sweep", precisions)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if is_long(session.config) and _found:
        page.write(_found)
