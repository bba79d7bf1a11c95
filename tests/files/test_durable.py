"""Write files atomically, and refuse to read any with a changed byte."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from src.files.durable import CannotWrite, Damaged, remove, replacing, seal, seal_text, unseal, write_atomically, writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "file.json"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CannotWrite, match=r"file.json: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(folder.iterdir()) == [path]


def test_an_error_of_a_library_in_rust_is_named_by_the_system() -> None:
    with pytest.raises(CannotWrite, match=r"^here: Read-only file system$"), writing(Path("here")):
        raise RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)")
    with pytest.raises(ZeroDivisionError), writing(Path("here")):
        raise ZeroDivisionError


def test_a_folder_appears_whole_and_with_the_usual_permissions(folder: Path) -> None:
    with replacing(folder / "adapter") as written:
        written.mkdir()
        (written / "file").write_text("x")
        (written / "file").chmod(0o600)  # as safetensors does
        assert not (folder / "adapter").exists()
    (folder / "plain").write_text("x")
    assert stat.S_IMODE((folder / "adapter/file").stat().st_mode) == stat.S_IMODE((folder / "plain").stat().st_mode)
    with pytest.raises(KeyboardInterrupt), replacing(folder / "other") as written:
        written.mkdir()
        raise KeyboardInterrupt
    assert {path.name for path in folder.iterdir()} == {"adapter", "plain"}


def test_a_link_is_removed_and_not_what_it_points_to(folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / "kept/file").write_text("x")
    os.symlink(folder / "kept", folder / "link")
    remove(folder / "link")
    remove(folder / "nosuch")
    assert (folder / "kept/file").exists() and not (folder / "link").is_symlink()


VALUE = {"a": 1e-05, "b": [1, None, "tab\t and \u00e9"], "c": {"d": "}"}, "sha256 of b": "x"}


def test_a_sealed_file_is_json_and_gives_back_what_was_written() -> None:
    text = seal(VALUE)
    plain = json.loads(text)
    assert unseal(text.encode()) == VALUE
    assert {key: value for key, value in plain.items() if key != "sha256"} == VALUE
    assert unseal(seal({"nan": float("nan")}).encode()) == {"nan": None}


def test_no_bit_and_no_byte_of_a_sealed_file_can_change_unseen() -> None:
    whole = seal(VALUE).encode()
    for index in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[index] ^= 1 << bit
            with pytest.raises(Damaged):
                unseal(bytes(flipped))
        with pytest.raises(Damaged):
            unseal(whole[:index])
        with pytest.raises(Damaged):
            unseal(whole[:index] + whole[index + 1 :])


@pytest.mark.parametrize("data", [b"", b"{}\n", b"[]\n", json.dumps(VALUE).encode()])
def test_what_was_never_sealed_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        unseal(data)


def test_a_sealed_text_may_be_no_json() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        unseal(seal_text("{\n nonsense\n}\n").encode())
