"""Measure cases of ``benchmarks.step`` one after the other, within a budget of seconds; none of them can end the others.

A child process measures; each case becomes a row of a CSV as soon as it is done. Where a case fails with more
than a lack of memory, its process ends, as its GPU may be broken, and another takes the cases after it. A case that the
table holds already, from the same kind of machine and versions, is not measured again.

``python -m benchmarks.cases TABLE`` is the child: the cases come as JSON on its standard input.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.step import Case, measured
from src.command.messages import one_line
from src.files.durable import write_atomically
from src.files.errors import ConfigError
from src.files.terminal import quiet_libraries
from src.model import device

Row = dict[str, Any]
CASE = ("model", "variant", "engine", "runs", "rows", "length", "r", "options", "steps")
MEASURED = (
    "speed", "ms/step", "spread ms", "tokens/s", "share of peak", "peak GiB", "held GiB", "building GiB", "build s", "warm-up s",
    "note", "peak TFLOP/s", "seconds",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
OUT_OF_MEMORY = "out of memory"
BROKEN = 3  # exit code: the last case failed, and so may whatever follows in this process
GRACE = 60  # seconds beyond the budget after which a case that is still on its way is given up
REPEATS = 5


def identity(case: Case) -> Row:
    """Describe a case in the columns of ``CASE``."""
    return {**asdict(case), "options": " ".join(case.overrides)}


def key_of(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in CASE)


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table, none where there is no file. Raises ConfigError where it is another table; one line."""
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    for row in rows:
        if missing := [name for name in (*CASE, "ms/step", "note") if row.get(name) is None]:
            raise ConfigError(f"{path}: a row has no {missing[0]}, so it is no table of measured cases")
    return rows


def known(paths: Sequence[Path], about: dict[str, str]) -> dict[tuple[str, ...], dict[str, str]]:
    """Find rows, by case, that need not be measured again: of such a machine, with a time or a lack of memory."""
    rows = [row for path in reversed(paths) for row in read(path) if _same_machine(row, about)]
    return {key_of(row): row for row in rows if row["ms/step"] or row["note"] == OUT_OF_MEMORY}


def filled(row: Row, about: dict[str, str]) -> dict[str, str]:
    """Fill a row up to a whole line of the table."""
    return {name: "" if row.get(name) is None else str(row[name]) for name in (*CASE, *MEASURED)} | about


def write(path: Path, row: dict[str, str]) -> None:
    """Put ``row`` into the table at ``path``, in the place of an earlier one of its case on such a machine."""
    about = {name: row[name] for name in row if name not in (*CASE, *MEASURED)}
    rows = [other for other in read(path) if key_of(other) != key_of(row) or not _same_machine(other, about)]
    _replace(path, [*rows, row])


def forget(path: Path, cases: Sequence[Case], about: dict[str, str]) -> None:
    """Take the failures of ``cases`` on such a machine out of the table: they are tried again."""
    gone = {key_of(identity(case)) for case in cases}
    rows = read(path)
    kept = [row for row in rows if key_of(row) not in gone or not _same_machine(row, about)]
    if len(kept) < len(rows):
        _replace(path, kept)


def _replace(path: Path, rows: Sequence[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)) or [*CASE, *MEASURED])
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())


def _same_machine(row: dict[str, str], about: dict[str, str]) -> bool:
    return all(row.get(name) == value for name, value in about.items() if name != "commit")


def run(cases: Sequence[Case], path: Path, seconds: float, reuse: Sequence[Path] = ()) -> None:
    """Measure ``cases`` in their order into the table at ``path`` until ``seconds`` are spent.

    Rows of the tables ``reuse`` are taken over. A case is not begun without time left; one that is still on its way
    ``GRACE`` seconds later is given up, and becomes a row that says so.
    """
    started, about = time.monotonic(), measure.machine()
    left = []
    for case in cases:
        row = known([path, *reuse], about).get(key_of(identity(case)))
        if row is None:
            left.append(case)
        else:
            print(f"known already: {name_of(case)}", flush=True)
            write(path, row)
    forget(path, left, about)
    while left and (remaining := seconds - (time.monotonic() - started)) > 0:
        begun = time.monotonic()
        code = _in_a_child(left, path, remaining)
        tried = {key_of(row) for row in read(path) if _same_machine(row, about)}
        left = [case for case in left if key_of(identity(case)) not in tried]
        if code not in (0, BROKEN) and left:
            lost = {"note": f"its process ended with code {code}", "seconds": f"{time.monotonic() - begun:.1f}"}
            print(f"{name_of(left[0])}: {lost['note']}", flush=True)
            write(path, filled(identity(left[0]) | lost, about))
            left = left[1:]
    if left:
        print(f"{len(left)} not begun, {seconds:g} s are spent: {'; '.join(name_of(case) for case in left)}", flush=True)


def note(path: Path, started: float) -> None:
    """Add to ``provenance.json`` beside ``path`` what this command is, its machine, and its seconds since ``started``."""
    file = path.with_name("provenance.json")
    calls = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    module = Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("")
    command = ["python", "-m", ".".join(module.parts), *sys.argv[1:]]
    seconds = round(time.monotonic() - started, 1)
    calls.append({"table": path.name, "command": " ".join(command), "seconds": seconds, **measure.machine()})
    write_atomically(file, json.dumps(calls, indent=1) + "\n")


def _in_a_child(cases: Sequence[Case], path: Path, remaining: float) -> int:
    """Measure in a child process; gives its exit code, -9 where it was given up."""
    stated = json.dumps({"cases": [asdict(case) for case in cases], "seconds": remaining})
    command = [sys.executable, "-m", "benchmarks.cases", str(path.resolve())]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        child.communicate(stated, timeout=remaining + GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return child.returncode


def main() -> int:
    started, path, about = time.monotonic(), Path(sys.argv[1]), measure.machine()
    stated = json.load(sys.stdin)
    cases = [Case(**{**values, "overrides": tuple(values["overrides"])}) for values in stated["cases"]]
    quiet_libraries()
    peak = measure.matmul_peak()
    print(f"bf16 product of 8192^3: {peak / 1e12:.0f} TFLOP/s", flush=True)
    for case in cases:
        begun, broken = time.monotonic(), False
        if begun - started > stated["seconds"]:
            return 0
        try:
            row = measured(case, peak, REPEATS)
        except Exception as error:  # whatever it is, it is this case's
            broken = not device.is_out_of_memory(error)
            row = {"note": f"{type(error).__name__}: {one_line(error)}"[:200] if broken else OUT_OF_MEMORY}
        seconds = time.monotonic() - begun
        write(path, filled(row | identity(case) | {"peak TFLOP/s": peak / 1e12, "seconds": round(seconds, 1)}, about))
        shown = row.get("note") or f"{row['ms/step']:.1f} ms a step, {row['tokens/s']:,.0f} tokens/s, {_gib(row)} GiB"
        print(f"{name_of(case)}: {shown}; took {seconds:.1f} s, {time.monotonic() - started:.0f} s in all", flush=True)
        if broken:
            return BROKEN
    return 0


def name_of(case: Case) -> str:
    parts = (case.model, case.variant, *case.overrides, case.engine, f"{case.runs} x ({case.rows} x {case.length})")
    return " ".join(parts)


def _gib(row: Row) -> str:
    return "-" if row["peak GiB"] is None else f"{row['peak GiB']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
