"""Time steps, and write what the benchmarks measured."""

from __future__ import annotations

import csv
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton")


def matmul_peak(size: int = 8192, repeats: int = 20) -> float:
    """Measure FLOP/s of a large bf16 product on this device, random operands: the ceiling that shares are of."""
    if not torch.cuda.is_available():
        size, repeats = 1024, 3
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - started)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(step: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Time ``step``: (median, spread as half the distance of the quartiles) of its seconds, each waited for."""
    seconds = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - started)
    low, middle, high = statistics.quantiles(seconds, n=4) if repeats > 1 else [seconds[0]] * 3
    return middle, (high - low) / 2


def free() -> None:
    """Give everything of the last case back, so that its memory and compiled code do not count for the next."""
    torch._dynamo.reset()
    free_unused()


def free_unused() -> None:
    """Give back what nothing holds, and count the peak of memory from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def machine() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent)
    return {"gpu": gpu, "python": platform.python_version(), **versions, "commit": commit.stdout.strip() or "unknown"}


def write(name: str, rows: Sequence[dict[str, Any]], folder: Path = RESULTS, show: bool = True) -> None:
    """Write ``name``.csv with every column and ``name``.md, the table that ``show`` prints.

    Rows of other cases that stand there from the same kind of machine and the same versions stay, each with its commit: a
    lease of a GPU is shorter than all cases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    fresh = [{**row, **about} for row in rows]
    kept = [
        row
        for row in _written(folder / f"{name}.csv")
        if _same_machine(row, about) and row.get("case") not in {r.get("case") for r in rows}
    ]
    every = [*kept, *fresh]
    columns = list(dict.fromkeys(key for row in every for key in row if key not in about))
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *about])
        writer.writeheader()
        writer.writerows(every)
    shown = [*columns, "commit"]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(_text(row.get(column)) for column in shown) + " |" for row in every]
    same = {key: value for key, value in about.items() if key != "commit"}
    (folder / f"{name}.md").write_text("\n".join([*lines, "", _listed(same), ""]), encoding="utf-8")
    if show:
        print_table(rows)


def _written(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an earlier table, numbers as numbers."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{key: _value(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _same_machine(row: dict[str, Any], about: dict[str, str]) -> bool:
    return all(str(row.get(key)) == value for key, value in about.items() if key != "commit")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    console = Console(width=220, highlight=False)
    console.print(table)
    console.print(_listed(machine()))


def _listed(about: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
