"""The notebooks run from top to bottom, and what they show is what is committed."""

from __future__ import annotations

import copy
import csv
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.magnitude_direction import report
from tests.conftest import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {"compare_variants", "rank_stability", "magnitude_direction"}


def execute(name: str, folder: Path = ROOT / "notebooks") -> nbformat.NotebookNode:
    """A copy of the notebook after all of its cells have run in ``folder``; a cell that fails raises."""
    fresh = copy.deepcopy(nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4))
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return fresh


def outputs(executed: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in executed.cells for output in cell.get("outputs", [])]


def printed(executed: nbformat.NotebookNode) -> str:
    """What the cells printed; nothing else may come that way, such as a warning."""
    streams = [output for output in outputs(executed) if output.output_type == "stream"]
    assert all(output.name == "stdout" for output in streams), [output.text for output in streams if output.name != "stdout"]
    return "".join(output.text for output in streams)


def figures(executed: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(executed))


def test_each_is_executed_here_and_kept_without_outputs() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == NOTEBOOKS
    for name in NOTEBOOKS:
        kept = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
        nbformat.validate(kept)
        assert not outputs(kept) and not any(cell.get("execution_count") for cell in kept.cells)


@pytest.fixture(scope="module")
def compared() -> nbformat.NotebookNode:
    return execute("compare_variants")


def test_the_table_of_the_notebook_is_the_one_of_the_study(compared: nbformat.NotebookNode) -> None:
    with open(ROOT / "experiments/rslora_at_its_best/comparison.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = "\n".join(output.get("data", {}).get("text/html", "") for output in outputs(compared))
    for row in rows:
        assert f"{float(row['test_loss_mean']):.6f}" in shown


def test_its_check_by_hand_agrees_and_it_draws_two_figures(compared: nbformat.NotebookNode) -> None:
    said = printed(compared)
    assert "r=4: " in said and "r=64: " in said and "exact p = " in said
    assert figures(compared) == 2


def test_rank_stability_agrees_with_its_tables() -> None:
    executed = execute("rank_stability")
    said = printed(executed)
    assert "14 slopes agree with first_update/tables.md" in said
    longer = (ROOT / "experiments/rank_stability/results.csv").is_file()
    assert f"slopes agree with {'rank_stability' if longer else 'first_update'}/tables.md" in said.rpartition("runs lost")[2]
    assert figures(executed) == 2


def test_magnitude_direction_agrees_with_its_tables(tmp_path: Path) -> None:
    folder = ROOT / "notebooks"
    if not (ROOT / "experiments/magnitude_direction/results.csv.gz").is_file():  # the study is not run yet: a small one of it
        folder, study = tmp_path / "notebooks", tmp_path / "experiments/magnitude_direction"
        folder.mkdir()
        small = ["model=tiny", "steps=8", "batch=2", "seeds=0,1", "ranks=2,4", "val=4", "test=4", f"out={study}"]
        command = [sys.executable, "-m", "experiments.magnitude_direction.measure", *small]
        subprocess.run(command, check=True, env=ENVIRONMENT, timeout=250)
        report.report(study, draws=10)
    executed = execute("magnitude_direction", folder)
    said = printed(executed)
    assert "agrees with tables.md" in said and "those by the folded normal agree with tables.md" in said
    assert "coefficients and their intervals over seeds agree with tables.md" in said
    assert figures(executed) == 2
