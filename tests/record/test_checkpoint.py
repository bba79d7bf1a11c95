"""Checkpoints: which stand, which are kept, and that none is taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.files.durable import CannotWrite, Damaged
from src.record import checkpoint
from src.record.checkpoint import CheckpointState, Progress, together
from src.record.metrics_log import Mark


def tensors(step: int) -> dict[str, torch.Tensor]:
    """Of several formats and shapes: no dimension, none of one, one that is not contiguous."""
    grown = torch.arange(6.0).view(2, 3) + step
    return {"a": grown, "b": torch.tensor(step), "c": grown.T, "d": torch.zeros(0, 4), "e": grown.bfloat16(), "f": -grown}


def save(folder: Path, *steps: int) -> CheckpointState:
    for step in steps:
        state = CheckpointState(Progress(step, tokens=5 * step, loss=1 / 3), Mark(7, "f" * 64), {"base": "b"})
        checkpoint.save(folder, tensors(step), state)
    return state


def test_a_checkpoint_gives_back_what_was_saved(folder: Path) -> None:
    state = save(folder / "c", 3)
    ((step, path),) = checkpoint.steps(folder / "c").items()
    read, found = checkpoint.load(path)
    assert (step, found) == (3, state)
    assert list(read) == list(tensors(3))
    for name, tensor in tensors(3).items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype, name


def test_the_newest_two_are_kept_and_nothing_else_stands_there(folder: Path) -> None:
    (folder / "c").mkdir()
    (folder / "c" / ".00000001.99.tmp").write_text("left by a crash")
    (folder / "c" / "00000099.safetensors").write_text("not one of ours")
    save(folder / "c", 9, 10, 100)
    assert list(checkpoint.steps(folder / "c")) == [10, 100]
    assert len(list((folder / "c").iterdir())) == 3
    assert checkpoint.steps(folder / "nosuch") == {}


def test_a_step_that_is_saved_again_replaces_what_an_earlier_attempt_left(folder: Path) -> None:
    save(folder, 3, 4)
    state = CheckpointState(Progress(4, tokens=99))
    checkpoint.save(folder, {"a": torch.ones(1)}, state)
    assert list(checkpoint.steps(folder)) == [3, 4] and len(list(folder.iterdir())) == 2
    assert checkpoint.load(checkpoint.steps(folder)[4])[1] == state
    checkpoint.drop_after(folder, 3)
    assert list(checkpoint.steps(folder)) == [3]


def test_no_bit_of_a_checkpoint_can_change_unseen(folder: Path) -> None:
    save(folder, 3)
    (path,) = checkpoint.steps(folder).values()
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            checkpoint.load(path)
    other = path.with_name(path.name.replace("0003", "0004"))
    path.write_bytes(whole)
    path.rename(other)
    assert checkpoint.load(other)[1].progress.step == 3, "which is why a run compares it with the name"


def test_a_checkpoint_that_cannot_be_written_leaves_those_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1, 2)

    def full(*_: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CannotWrite, match="No space left on device"):
        save(folder, 3)
    assert list(checkpoint.steps(folder)) == [1, 2] and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(("available", "found"), [
    ([], []),
    ([{1, 2}, {1, 2}], [(2, [0, 1])]),
    ([{2, 3}, {1, 2}, {2, 3}], [(2, [0, 1, 2])]),  # killed while checkpoint 3 was being written
    ([set(), {5}, {5, 6}], [(5, [1, 2]), (0, [0])]),
    ([{10, 20}, set(), {30, 40}, {30, 40}, {10}], [(40, [2, 3]), (10, [0, 4]), (0, [1])]),
    ([{3}, {3}, set(), set()], [(0, [0, 1, 2, 3])]),  # killed while the first checkpoint was being written
    ([{3}, {3}], [(3, [0, 1])]),
    ([set(), set()], [(0, [0, 1])]),
])  # fmt: skip
def test_which_runs_go_on_together(available: list[set[int]], found: list[tuple[int, list[int]]]) -> None:
    assert together(available) == found
