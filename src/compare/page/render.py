"""Write a comparison as one HTML page that works from disk, with no network and nothing beside it.

The templates write every sentence and table, so the page can be read without JavaScript; page.js makes the tables sortable
and draws the plots from the same data. The names in a report may be hostile: Jinja escapes every text for HTML, and
``embedded_json`` for JSON inside HTML. A policy (CSP) names our scripts by their hashes and lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import plotly.offline
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...files.text import clean

HERE = Path(__file__).parent
SCRIPTS = ("tables.js", "filters.js", "panels.js", "axes.js", "figures.js", "page.js")  # one scope, in this order
# What the scripts read; the sentences are in the page already.
DATA = ("metric", "validation", "reference", "columns", "rows", "views", "arms", "styles")
# What could end the script element that carries the JSON, or a line of it.
UNSAFE_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def page(report: dict[str, Any]) -> str:
    """Write the whole HTML text of a report.

    Args:
        report: what JSON can hold, with the keys that the tests of this module list. Numbers that are not finite count as
            absent. Control characters and marks that turn the direction of writing are taken out of every text.

    Raises:
        KeyError, jinja2.UndefinedError: a key is missing.
    """
    report = _cleaned(report)
    script = _script()
    bundle = plotly.offline.get_plotlyjs().replace("\r\n", "\n")
    return PAGES.get_template("page.html").render(
        report=report,
        policy=_policy(script, bundle),
        css=_read("page.css"),
        data=embedded_json({key: report[key] for key in DATA}),
        script=script,
        plotly=bundle,
    )


def _column_groups(columns: list[dict[str, Any]], flagged: bool) -> list[tuple[str, int]]:
    """Count the neighbors among the columns that are of one group: (group, columns). A column of flags is of ``state``."""
    names = [column["group"] for column in columns] + (["state"] if flagged else [])
    return [(name, len(list(members))) for name, members in groupby(names)]


def _group_starts(groups: list[tuple[str, int]]) -> set[int]:
    """Number the columns that begin a group, other than the first."""
    return set(accumulate(span for _, span in groups[:-1]))


# Jinja escapes what is put into a template unless it is marked as safe there; a name that is missing raises.
PAGES = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
PAGES.globals |= {"column_groups": _column_groups, "group_starts": _group_starts}


def embedded_json(value: Any) -> str:
    """Write JSON that stays inside its ``<script>`` element whatever the texts in it say.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(UNSAFE_IN_SCRIPT)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(entry) for entry in value]
    return value


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _script() -> str:
    return '(() => {\n"use strict";\n' + "\n".join(_read(name) for name in SCRIPTS) + "})();"


def _policy(*scripts: str) -> str:
    """Write a Content-Security-Policy (level 2): these scripts and no others, inline styles (Plotly sets them), no fetching."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
