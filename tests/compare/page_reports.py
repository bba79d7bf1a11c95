"""Reports written by hand for the tests of the page: a small one and one of hostile names."""

from __future__ import annotations

from typing import Any

SCRIPT = "</script><script>window.pwned = 1</script><!--<script>"
IMAGE = "<img src=x onerror=alert(1)>"
LINK = '<b>bold</b> <a href="javascript:alert(1)">a</a> &lt; %{x} $y$'
HOSTILE = [
    SCRIPT,
    IMAGE,
    LINK,
    "=cmd()|'/c'!A0",
    "\\input{x} | $1 ${title}",
    "🧪 emoji",
    "\u202eright to left\u2066",
    "n" * 10_000,
    "__proto__",
]


def column(key: str, numeric: bool, group: str) -> dict[str, Any]:
    return {"key": key, "label": key, "help": f"what {key} is", "numeric": numeric, "group": group}


def arm(index: int, variant: str, r: int | None, loss: float, rates: int = 3, seeds: int = 2) -> dict[str, Any]:
    scored = [{"seed": seed, "value": loss + 0.01 * seed, "run_id": f"{index}-{seed}"} for seed in range(seeds)]
    tried = [
        {
            "lr": 10.0 ** (rate - 4), "chosen": rate == 1,
            "validation": loss + 0.2 * abs(rate - 1), "metric": loss + 0.2 * abs(rate - 1),
            "seeds": [
                {"seed": seed, "role": "tuning", "validation": loss, "metric": loss, "status": "ok"} for seed in range(seeds)
            ],
        }
        for rate in range(rates)
    ]  # fmt: skip
    curve = {
        "steps": [0, 50, 100],
        "mean": [5.0, loss + 0.1, loss],
        "low": [4.9, loss, loss - 0.1],
        "high": [5.1, loss + 0.2, loss + 0.1],
    }
    return {
        "id": index, "label": variant if r is None else f"{variant} r={r}", "variant": variant, "series": variant, "r": r,
        "trainable_parameters": 1000 * (r or 0), "memory_bytes": 2**30 + index, "seconds": 60.0, "mean": loss, "low": loss - 0.02,
        "high": loss + 0.02, "n": seeds, "seeds": scored, "pareto": ["parameters"], "rates": [] if r is None else tried,
        "curve": curve | {"validation_steps": [100], "validation": [loss + 0.1]},
    }  # fmt: skip


def row(drawn: dict[str, Any], flags: list[str]) -> dict[str, Any]:
    r, loss = drawn["r"], drawn["mean"]
    cells = {
        "variant": {"value": drawn["variant"], "text": drawn["variant"]},
        "r": {"value": r, "text": "" if r is None else str(r)},
        "loss": {"value": loss, "text": f"{loss:.4f}"},
    }
    return {
        "id": drawn["id"],
        "label": drawn["label"],
        "variant": drawn["variant"],
        "precision": "bf16",
        "r": r,
        "flags": flags,
        "cells": cells,
    }


def report(arms: list[dict[str, Any]], flagged: int = 0, **other: Any) -> dict[str, Any]:
    columns = [column("variant", False, "condition"), column("r", True, "condition"), column("loss", True, "quality")]
    rows = [row(drawn, ["edge"] if index < flagged else []) for index, drawn in enumerate(arms)]
    contrast = {"id": 0, "flags": [], "cells": {"variant": {"value": "a", "text": "a"}}}
    return {
        "title": "Which variant?", "subject": "tiny on names", "generated": "2026-11-22 10:00 UTC",
        "command": "python -m src.eval",
        "caption": "Each row is an arm.", "metric": {"name": "test/loss", "label": "test loss (nats)", "lower_is_better": True},
        "validation": {"label": "validation loss (nats)"}, "reference": "lora", "findings": ["dora is best at rank 4."],
        "progress": {"expected": 12, "finished": 10, "text": "2 runs are missing."},
        "audit": {"clean": False, "verdict": "Confounded", "summary": "1 field differs.", "lines": [
            {"field": "train.warmup", "text": "a note first", "severity": "note"},
            {"field": "train.batch_size", "text": "16 and 32", "severity": "confound"},
        ]},
        "flags": [{"flag": "edge", "explanation": "On the grid's edge.", "rows": [drawn["label"] for drawn in arms[:flagged]]}],
        "notes": ["A note."], "columns": columns, "rows": rows, "arms": arms,
        "views": [
            {"name": name, "explanation": "", "family": "", "columns": columns[:1], "rows": [contrast]}
            for name in ("same rank", "same size")
        ],
        "styles": {"lora": {"light": "#0072B2", "dark": "#56B4E9", "symbol": "circle"}},
    } | other  # fmt: skip


def small() -> dict[str, Any]:
    """Three variants at two ranks, and a control that is far above them all."""
    losses = [
        ("lora", 4, 1.90),
        ("lora", 64, 1.80),
        ("rslora", 4, 1.95),
        ("rslora", 64, 1.70),
        ("dora", 4, 1.85),
        ("dora", 64, 1.75),
    ]
    arms = [arm(index, *drawn) for index, drawn in enumerate(losses)]
    return report([*arms, arm(6, "frozen", None, 5.55)], flagged=2)


def hostile() -> dict[str, Any]:
    arms = [arm(index, name, 4, 1.5 + 0.1 * index) for index, name in enumerate(HOSTILE)]
    lines = [{"field": name, "text": name, "severity": name} for name in HOSTILE]
    audit = {"clean": False, "verdict": SCRIPT, "summary": SCRIPT, "lines": lines}
    flags = [{"flag": name, "explanation": name, "rows": HOSTILE} for name in HOSTILE]
    progress = {"expected": 1, "finished": 0, "text": IMAGE}
    texts = dict.fromkeys(("title", "subject", "generated", "command", "caption"), SCRIPT + IMAGE)
    styles = {SCRIPT: {"light": "red;background:url(http://x)", "dark": "</style>", "symbol": "constructor"}}
    made = report(arms, audit=audit, flags=flags, progress=progress, findings=HOSTILE, notes=HOSTILE, styles=styles, **texts)
    for held, name in zip(made["rows"], HOSTILE, strict=True):
        held["flags"] = [name]
    for held in made["columns"]:
        held["label"] = held["help"] = held["group"] = LINK
    made["metric"]["label"] = made["validation"]["label"] = LINK
    return made
