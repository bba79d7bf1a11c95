"""Every study's tables and figures come again from its committed results: tables byte for byte, figures by what is drawn.

What is drawn is compared with ``figures.json``; where the installed matplotlib and FreeType are the ones that it names, the
pictures are compared byte for byte too. ``python -m tests.experiments.test_committed_tables`` writes figures.json, for a figure
that is meant to change.

The tables of the studies with a report.py stand in test_STUDY.py too, beside the numbers of their README.md; here are all, with
what those leave out: rslora_at_its_best, whose tables python -m src.eval has written, and the figures. FinLoRA's configs are in
tests/data/test_finlora.py.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import ft2font
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

from tests.conftest import evaluate

FOLDER = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file()) / "experiments"
FIGURES = Path(__file__).with_name("figures.json")
STUDIES = sorted(file.parent.name for file in FOLDER.glob("*/report.py"))
OF_RECORDS = sorted(file.parent.name for file in FOLDER.glob("*/records.jsonl"))
VERSIONS = {"matplotlib": matplotlib.__version__, "freetype": ft2font.__freetype_version__}
# What of rslora_at_its_best was made with predictions, which are too large to keep, or of records as that commit wrote them.
NOT_KEPT = {
    "dataset_version",
    "bootstrap_low",
    "bootstrap_high",
    "same_parameters_bootstrap_low",
    "same_parameters_bootstrap_high",
}
OF_PREDICTIONS = "those over seeds and examples together (hierarchical bootstrap)"


def summed(points: Any) -> list[float]:
    """How many points, and sums of their coordinates that no other order and no other place of one of them has."""
    points = np.nan_to_num(np.asarray(points, dtype=float).reshape(-1, 2))
    order = np.arange(1, len(points) + 1)[:, None]
    return [len(points), *np.abs(points).sum(0), *(np.abs(points) * order).sum(0)]


def drawn(figure: Figure) -> list[dict[str, Any]]:
    """Of each panel its words and limits, and the data of its lines, dots, bars and areas with their colors."""
    found = []
    for axes in figure.axes:
        patches = [
            (each.get_patch_transform().transform_path(each.get_path()).vertices, each.get_facecolor()) for each in axes.patches
        ]
        lines = [(line.get_xydata(), line.get_color()) for line in axes.lines]
        dots = [(each.get_offsets(), each.get_facecolor()) for each in axes.collections]
        paths = [(np.concatenate([path.vertices for path in each.get_paths()] or [np.zeros((0, 2))]), each.get_edgecolor())
                 for each in axes.collections]  # fmt: skip
        legend = axes.get_legend()
        words = [
            axes.get_title(),
            axes.get_title("left"),
            axes.get_xlabel(),
            axes.get_ylabel(),
            *(text.get_text() for text in axes.texts),
        ]
        found.append(
            {
                "words": [*words, *(text.get_text() for text in legend.get_texts())] if legend else words,
                "scales": [axes.get_xscale(), axes.get_yscale()],
                "limits": [*axes.get_xlim(), *axes.get_ylim()],
                **{
                    kind: summed(np.concatenate([np.asarray(points, dtype=float).reshape(-1, 2) for points, _ in artists]))
                    for kind, artists in (("lines", lines), ("bars", patches), ("dots", dots), ("areas", paths))
                    if artists
                },
                "colours": hashlib.sha256(repr([colors(c) for _, c in [*lines, *patches, *dots, *paths]]).encode()).hexdigest()[
                    :10
                ],
            }
        )
    legends = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    return [*found, {"legends": legends, "size": list(map(float, figure.get_size_inches()))}]


def colors(given: Any) -> Any:
    return np.round(to_rgba_array(given), 4).tolist()


@contextmanager
def watched() -> Iterator[list[Any]]:
    """What of each figure is drawn, in the order in which they are saved as PNG."""
    saved, seen = Figure.savefig, []

    def save(figure: Figure, place: Any, **options: Any) -> None:
        saved(figure, place, **options)
        if not str(place).endswith(".svg"):
            seen.append(drawn(figure))

    Figure.savefig = save  # type: ignore[method-assign, assignment]
    try:
        yield seen
    finally:
        Figure.savefig = saved  # type: ignore[method-assign]


def report(study: str, folder: Path) -> tuple[dict[str, bytes], list[Any]]:
    """(what the study's report makes of its committed results, what is drawn)"""
    module = import_module(f"experiments.{study}.report")
    for path in (FOLDER / study).iterdir():
        if path.is_file() and path.suffix in {".csv", ".gz", ".json"}:
            shutil.copy(path, folder)
    given, words = {path.name for path in folder.iterdir()}, [f"folder={folder}"]
    argv, sys.argv = sys.argv, ["report", *words]
    try:
        with watched() as seen:
            assert not module.main(*([words] if inspect.signature(module.main).parameters else []))
    finally:
        sys.argv = argv
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in given}, seen


def evaluation(study: str, folder: Path) -> tuple[dict[str, bytes], list[Any]]:
    """The same of python -m src.eval, from the study's records; ``folder`` is the working folder."""
    ids = []
    for line in (FOLDER / study / "records.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        ids.append(record["result"]["run_id"])
        (folder / "runs" / ids[-1]).mkdir(parents=True)
        for name, content in record.items():
            (folder / "runs" / ids[-1] / f"{name}.json").write_text(sealed(content), encoding="utf-8")
    (folder / "runs/sweeps").mkdir()
    (folder / "runs/sweeps" / f"{study}.json").write_text(sealed({"name": study, "run_ids": ids}), encoding="utf-8")
    with watched() as seen:
        assert evaluate([f"sweep={study}"]) == 0
    return {path.name: path.read_bytes() for path in (folder / "reports" / study).iterdir()}, seen


def sealed(value: Any) -> str:
    """As records are on the disk: indented, and the last key is the digest of the text before it was added."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.removesuffix("\n}\n") + f',\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def assert_figures(study: str, made: dict[str, bytes], seen: list[Any]) -> None:
    known = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert alike(json.loads(json.dumps(seen)), known["drawn"][study])
    pictures = [path for path in (FOLDER / study).glob("*.png") if path.name != "page.png"]  # of a browser's window
    assert pictures and {path.name for path in pictures} <= made.keys()
    if known["versions"] == VERSIONS:
        assert [path.name for path in pictures if path.read_bytes() != made[path.name]] == []


def alike(one: Any, two: Any) -> bool:
    """Equal, and numbers to 1e-9 of their size: what is drawn is computed in fp64."""
    if isinstance(one, float | int) and isinstance(two, float | int):
        return bool(np.isclose(one, two, rtol=1e-9, atol=1e-9))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(alike, one, two))
    return bool(one == two)


@pytest.mark.parametrize("study", STUDIES)
def test_a_report_makes_the_committed_tables_and_figures(study: str, tmp_path: Path) -> None:
    made, seen = report(study, tmp_path)
    assert {name for name in made if not name.endswith(".png")} == {"tables.md"}
    assert made["tables.md"] == (FOLDER / study / "tables.md").read_bytes()
    assert_figures(study, made, seen)


@pytest.mark.parametrize("study", OF_RECORDS)
def test_the_tables_of_kept_records_come_again(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # which the command wraps
    made, seen = evaluation(study, tmp_path)
    assert made["rates.csv"] == (FOLDER / study / "rates.csv").read_bytes()
    tables = [
        list(csv.DictReader(text.decode().splitlines())) for text in (made["comparison.csv"], kept(study, "comparison.csv"))
    ]
    now, then = ([{key: value for key, value in row.items() if key not in NOT_KEPT} for row in table] for table in tables)
    assert now == then and len(now) == 4 and set(tables[0][0]) ^ set(tables[1][0]) <= NOT_KEPT
    lines = [text.decode().splitlines() for text in (made["comparison.md"], kept(study, "comparison.md"))]
    assert [line for line in lines[0] if OF_PREDICTIONS not in line] == [line for line in lines[1] if OF_PREDICTIONS not in line]
    assert [sum(OF_PREDICTIONS in line for line in text) for text in lines] == [1, 1]
    assert_figures(study, made, seen)


def test_every_committed_table_and_figure_of_a_study_is_compared() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/*.png")} == {*STUDIES, *OF_RECORDS}
    others = {"README.md", "comparison.md"}
    assert {path.name for path in FOLDER.glob("*/*.md")} - others == {"tables.md"}
    # again/ has a table of its own, repeats.md: test_repeats.py.
    assert [path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*/*.md")] == [
        "variants_at_their_best/again/repeats.md"
    ]


def kept(study: str, name: str) -> bytes:
    return (FOLDER / study / name).read_bytes()


def write() -> None:
    import os
    import tempfile

    found = {}
    for study in [*STUDIES, *OF_RECORDS]:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found[study] = (report if study in STUDIES else evaluation)(study, Path(folder))[1]
            os.chdir(FOLDER)
    FIGURES.write_text(json.dumps({"versions": VERSIONS, "drawn": found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
