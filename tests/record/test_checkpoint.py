"""Write, keep and read checkpoints; a damaged or foreign file is never loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from src.files.durable import CannotWrite, Damaged
from src.record import checkpoint
from src.record.checkpoint import CheckpointState, Progress, together
from src.record.metrics_log import Mark


def tensors(step: int) -> dict[str, torch.Tensor]:
    """Make tensors of several formats and shapes: no dimension, an empty dimension, not contiguous."""
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
    read, loaded = checkpoint.load(path)
    assert (step, loaded) == (3, state)
    assert list(read) == list(tensors(3))
    for name, tensor in tensors(3).items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype, name


def test_a_checkpoint_of_the_first_records_is_read(folder: Path) -> None:
    """Commit 5b05114 wrote these keys; they stay, so that its runs resume."""
    progress = '{"step": 7, "tokens": 35, "seconds": 1.5, "rated_tokens": 30, "rated_seconds": 1.0'
    progress += ', "checkpoint_seconds": 0.5, "loss": 0.25}'
    stand = f'{{"progress": {progress}, "log": {{"bytes": 9, "sha256": "ab"}}, "rests_on": {{"run": "0123456789"}}}}'
    old = folder / "old"
    save_file({"torch.float32": torch.arange(3.0)}, old, {"stand": stand, "layout": '[["a", "torch.float32", [3, 1]]]'})
    path = folder / f"00000007.{hashlib.sha256(old.read_bytes()).hexdigest()[:16]}.safetensors"
    old.rename(path)
    read, state = checkpoint.load(path)
    assert torch.equal(read["a"], torch.tensor([[0.0], [1.0], [2.0]]))
    assert state == CheckpointState(Progress(7, 35, 1.5, 30, 1.0, 0.5, 0.25), Mark(9, "ab"), {"run": "0123456789"})
    assert state.to_json() == stand


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
    for index in range(len(whole)):
        flipped = bytearray(whole)
        flipped[index] ^= 1 << index % 8
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


@pytest.mark.parametrize(("available", "expected"), [
    ([], []),
    ([{1, 2}, {1, 2}], [(2, [0, 1])]),
    ([{2, 3}, {1, 2}, {2, 3}], [(2, [0, 1, 2])]),  # killed while checkpoint 3 was being written
    ([set(), {5}, {5, 6}], [(5, [1, 2]), (0, [0])]),
    ([{10, 20}, set(), {30, 40}, {30, 40}, {10}], [(40, [2, 3]), (10, [0, 4]), (0, [1])]),
    ([{3}, {3}, set(), set()], [(0, [0, 1, 2, 3])]),  # killed while the first checkpoint was being written
    ([{3}, {3}], [(3, [0, 1])]),
    ([set(), set()], [(0, [0, 1])]),
])  # fmt: skip
def test_which_runs_go_on_together(available: list[set[int]], expected: list[tuple[int, list[int]]]) -> None:
    assert together(available) == expected
