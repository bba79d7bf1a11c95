"""The notebooks run from top to bottom, and what they show is what is committed."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    notebook = nbformat.read(ROOT / "notebooks/compare_variants.ipynb", as_version=4)
    fresh = copy.deepcopy(notebook)
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    return fresh


def test_the_table_of_the_notebook_is_the_one_of_the_study(executed: nbformat.NotebookNode) -> None:
    with open(ROOT / "experiments/rslora_at_its_best/comparison.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = "\n".join(
        output.get("data", {}).get("text/html", "") for cell in executed.cells for output in cell.get("outputs", [])
    )
    for row in rows:
        assert f"{float(row['test_loss_mean']):.6f}" in shown


def test_its_check_by_hand_agrees_and_it_draws_two_figures(executed: nbformat.NotebookNode) -> None:
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    printed = io.StringIO("".join(output.text for output in outputs if output.output_type == "stream")).read()
    assert "r=4: " in printed and "r=64: " in printed and "exact p = " in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
