"""Read .wandb files as W&B's own inspector does; a file that was cut off is never taken for a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.record.wandb.offline_file import closed_with
from tests.record.wandb.test_mirror import inspected

STEPS = 700  # with enough values to cross several blocks of the file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import wandb

    folder = tmp_path_factory.mktemp("wandb")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(project="p", dir=str(folder), mode="offline", reinit="create_new", settings=settings)
    for step in range(STEPS):
        run.log({"loss": 1 / (step + 1), "text": "x" * (step % 300)}, step=step)
    run.finish()
    return Path(run.dir).parent / f"run-{run.id}.wandb"


def test_the_steps_are_those_that_the_inspector_finds(whole: Path) -> None:
    assert whole.stat().st_size > 4 * 32768
    steps = {item["item"]["_step"] for item in inspected(whole)["history"]}
    assert closed_with(whole) == steps == set(range(STEPS))


def test_a_file_that_was_cut_off_is_not_closed(whole: Path, folder: Path) -> None:
    data = whole.read_bytes()
    cut = folder / "cut.wandb"
    blocks = [end + off for end in range(32768, len(data), 32768) for off in (-8, -1, 0, 1, 7, 8)]
    for length in [0, 3, 7, 8, *blocks, *range(0, len(data) - 400, 4999)]:
        cut.write_bytes(data[:length])
        assert closed_with(cut) is None, length


def test_a_file_with_a_hole_does_not_hold_all_steps(whole: Path, folder: Path) -> None:
    data = whole.read_bytes()
    holed = folder / "holed.wandb"
    holed.write_bytes(data[:40000] + bytes(len(data) - 40000))
    assert closed_with(holed) is None
