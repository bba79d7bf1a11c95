"""The house: a folder imports only folders above it, and nothing in the product knows the name it is installed under."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CODE, TINY

SOURCE = CODE / "src"
# From the ground floor up. A folder may import itself and every folder above it in this list, none below.
ROOMS = (
    *("files", "variants/methods", "config", "data", "model", "command", "measure", "variants", "record", "record/wandb"),
    *("engine", "engine/packed", "adapter", "sweep", "train", "compare", "compare/page", "eval"),
)
DOORS = {"embedded.py": "model"}  # a command line that must go on working; the room that it leads to


def files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).as_posix() not in ("__init__.py", *DOORS))


def room_of(path: Path) -> str:
    return path.parent.relative_to(SOURCE).as_posix()


def imported(path: Path) -> Iterator[tuple[int, Path]]:
    """(line, file or folder) of everything of the product that a file imports, wherever in it that stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                inside = folder / alias.name
                if inside.with_suffix(".py").exists() or inside.is_dir():
                    yield node.lineno, inside if inside.is_dir() else inside.with_suffix(".py")
                else:
                    yield node.lineno, folder if folder.is_dir() else folder.with_suffix(".py")


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in files()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_imports_only_folders_above_it(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    wrong = [
        f"{path.relative_to(CODE)}:{line} imports {target.relative_to(SOURCE)}"
        for path in files()
        if room_of(path) == room
        for line, target in imported(path)
        if room_of(target / "x" if target.is_dir() else target) not in allowed
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {path: {target for _, target in imported(path) if target.suffix and target != path} for path in files()}
    while free := [path for path, targets in arrows.items() if not targets & arrows.keys()]:
        for path in free:
            del arrows[path]
    assert sorted(str(path.relative_to(CODE)) for path in arrows) == []


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CODE)))
def test_no_file_knows_the_name_of_the_product(path: Path) -> None:
    """So that the tree can be installed as another package: imports are relative, and children are started by our own name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level or (node.module or "").split(".")[0] != "src", node.lineno
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "src" for alias in node.names), node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("src."), node.lineno


def test_the_product_works_under_another_name(folder: Path) -> None:
    """Costs, a sweep with its child processes and Hydra's plugin, and its table, from a copy that is called lora_assay.

    The checkout is not on the path, and the name ``src`` is taken by a file that fails when it is imported.
    """
    installed, work = folder / "installed", folder / "work"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE, installed / "lora_assay", ignore=ignore)
    for name in ("conf", "hydra_plugins"):
        shutil.copytree(CODE / name, installed / name, ignore=ignore)
    (installed / "src.py").write_text("raise ImportError('the product knows the name of its folder')\n")
    work.mkdir()

    def command(module: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"lora_assay.{module}", *words],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    # r (in + out) over q, k, v, o, gate, up and down of 30 layers of SmolLM2-135M, and DoRA's magnitude for each output.
    lora = 8 * 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    magnitude = 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)
    assert f"{lora + magnitude:,}" in command("variants", "variant=dora", "lora.r=8")
    assert command("eval", "--help").startswith("usage: ")
    command("train", "-m", *TINY, "variant=lora,dora", "lora.r=4", "sweep=renamed")
    assert len(list((work / "runs").glob("*/result.json"))) == 2
    table = command("eval", "sweep=renamed")
    assert "dora" in table and (work / "reports" / "renamed" / "report.html").exists()
