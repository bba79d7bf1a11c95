"""docs/reliability.md: what the long form of these tests found. Its numbers stand in docs/reliability.json, row by row.

A session that ran some of the tests replaces their figures and leaves the others.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.faults import kinds

DOCS = Path(__file__).resolve().parents[2] / "docs"

# fault: what is promised
ROWS = {
    "SIGKILL at a random moment, then the same command": "Finished runs are not repeated, others go on; adapters and metrics are"
    " bit-identical to those of the uninterrupted sweep, or within the solo tolerance where packs were regrouped.",
    "SIGINT, SIGTERM, SIGHUP, SIGUSR1": "Checkpoint, exit within 10 s with 128 + the signal's number, resumable.",
    "Death of a worker process": "Its runs are tried once more, then recorded as failed; the sweep goes on.",
    "A worker that says nothing": "It is stopped with its children after `pack.silence` seconds, and counts as dead.",
    "Disk full, read-only folder, permission lost": "One clear line; no half record; what was done stays intact;"
    " the same command goes on.",
    "Truncated or flipped bytes in a checkpoint": "Detected, set aside; work goes on from the checkpoint before.",
    "Truncated or flipped bytes in a record": "Detected; never read as good; the run is done again.",
    "Loss NaN or inf, gradient overflow": "That run is `diverged`, with step and last finite loss; its"
    " neighbours' bits do not change.",
    "Out of memory": "A smaller pack, then `out_of_memory` as the run's status; never the whole sweep.",
    "Two commands on one `runs/`": "Each run is trained once; no lock outlives its process.",
    "W&B unreachable, slow, or killed": "Training and records are the same; the offline files are complete.",
    "Clock, time zone, names and places": "It works, or ends in one clear line.",
    "Bad input: overrides": "Each case runs, or ends in one clear line and exit code 2, and nothing is written.",
    "Bad input: JSONL and YAML files": "Each case runs, or ends in one clear line and exit code 2, and nothing is written.",
    "Checkpoints": "They cost under 2 % of training time; a resumed run repeats at most one interval; old ones are removed.",
    "Attacks": "See SECURITY.md: code in config, pickles, remote code, paths, secrets, formulas, bombs.",
}

HEAD = """\
# Reliability

What lora-assay promises when something goes wrong, and what was measured when it was made to go wrong. The faults are real:
processes are killed, system calls fail, bytes are flipped. `make test-faults` runs all of it and writes this page;
`make test` runs a short form.

| fault | promise | measured |
|---|---|---|
"""


def known_figures() -> dict[str, dict[str, dict[str, str]]]:
    path = DOCS / "reliability.json"
    found: dict[str, dict[str, dict[str, str]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _conditions() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    day = datetime.now(UTC).date().isoformat()
    return f"{day}, commit {commit}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def write(found: dict[str, dict[str, str]]) -> None:
    """Add what this session found (row -> test -> figure) and write the page."""
    DOCS.mkdir(exist_ok=True)
    known, conditions = known_figures(), _conditions()
    for row, figures in found.items():
        for test, text in figures.items():
            known.setdefault(row, {})[test] = {"figure": text, "conditions": conditions}
    (DOCS / "reliability.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (DOCS / "reliability.md").write_text(page(known), encoding="utf-8")


def page(known: dict[str, dict[str, dict[str, str]]]) -> str:
    notes: list[str] = []
    lines = []
    for row, promise in ROWS.items():
        parts = []
        for entry in known.get(row, {}).values():
            if entry["conditions"] not in notes:
                notes.append(entry["conditions"])
            parts.append(f"{entry['figure']} [{notes.index(entry['conditions']) + 1}]")
        lines.append(f"| {row} | {promise} | {'; '.join(parts) or 'not measured yet'} |")
    where = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return f"{HEAD}{chr(10).join(lines)}\n\nMeasured on:\n\n{where}\n\n{kinds.section()}"
