"""Headers of safetensors files: what they hold, and every way in which a file is not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from src.files.errors import ConfigError
from src.model import headers

NAME = headers.SINGLE


def written(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / NAME).write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return folder


def says(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        headers.read(folder, "model.path=here")
    line = str(error.value)
    assert line.startswith("model.path=here: ") and "\n" not in line
    return line


def test_what_safetensors_writes_is_read(folder: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, folder / NAME)
    assert headers.read(folder, "x") == {"a.weight": headers.Tensor("F32", (2, 3)), "b": headers.Tensor("BF16", (4,))}
    (folder / NAME).unlink()
    assert headers.read(folder, "x") is None


@pytest.mark.parametrize("kept", [0, 5, 8, 20, -1])
def test_a_file_that_is_cut_anywhere(folder: Path, kept: int) -> None:
    save_file({"a.weight": torch.zeros(2, 3)}, folder / NAME)
    whole = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(whole[:kept])
    assert NAME in says(folder) and "download it again" in says(folder)
    (folder / NAME).write_bytes(whole + b"more")
    assert f"has {len(whole) + 4} bytes of the {len(whole)} that its header says" in says(folder)


@pytest.mark.parametrize("header", [b"[" * 9000, b"\xff\xfe", [], {"a": 3}, {"a": {"dtype": "F32"}}, {"a": {"dtype": "F32",
    "shape": [1], "data_offsets": []}}])  # fmt: skip
def test_a_header_that_is_none(folder: Path, header: Any) -> None:
    assert "no safetensors file" in says(written(folder, header))


def test_a_git_lfs_pointer(folder: Path) -> None:
    (folder / NAME).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in says(folder)


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("I8", 1), ("U8", 1)])
def test_numbers_of_a_format_that_is_no_plain_weight(folder: Path, dtype: str, size: int) -> None:
    entry = {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 6 * size]}
    assert f"holds a.weight as {dtype}" in says(written(folder, {"a.weight": entry}, b"0" * 6 * size))


def test_an_index(folder: Path) -> None:
    places = {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / headers.INDEX).write_text(json.dumps({"weight_map": places}))
    save_file({"a.weight": torch.zeros(2, 3)}, folder / "model-1.safetensors")
    assert "1 of 2 files" in says(folder) and "model-2.safetensors" in says(folder)
    save_file({"b": torch.zeros(1)}, folder / "model-2.safetensors")
    known = headers.read(folder, "x")
    assert known is not None and known.keys() == places.keys()
    for content in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}):
        (folder / headers.INDEX).write_text(json.dumps(content))
        assert "weight_map" in says(folder)
    (folder / headers.INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    assert "no file of this folder" in says(folder)
