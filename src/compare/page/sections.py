"""The parts of the page as HTML: every text from data is escaped here, and long ones are shortened with a title."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import Any

LONG_NAME = 60  # characters shown of a name; the rest is in its title
LONG_SENTENCE = 600
NAMED_ROWS = 8  # so many rows are named beside a flag, the others are counted
FLAGS_HELP = "What is to be known before this row is believed; explained above the table."
ABSENT = "\u2013"  # an en dash


def short(text: str, limit: int = LONG_NAME) -> str:
    """``text`` as HTML: at most ``limit`` characters of it, and all of it in a title."""
    if len(text) <= limit:
        return f"<bdi>{escape(text)}</bdi>"
    return f'<bdi title="{escape(text)}">{escape(text[: limit - 1])}…</bdi>'


def sentence(text: str) -> str:
    return short(text, LONG_SENTENCE)


def header(report: dict[str, Any]) -> str:
    return (
        f"<h1>{short(report['title'], 160)}</h1>\n"
        f'<p class="subject">{short(report["subject"], 200)}</p>\n'
        f'<dl class="made"><div><dt>Command</dt><dd><code>{short(report["command"], 300)}</code></dd></div>'
        f"<div><dt>Generated</dt><dd><time>{short(report['generated'])}</time></dd></div></dl>"
    )


def progress(state: dict[str, Any] | None) -> str:
    """A bar and a sentence while the sweep still runs, nothing afterwards."""
    if state is None:
        return ""
    finished, expected = int(state["finished"]), int(state["expected"])
    return (
        '<section class="progress" aria-label="Progress">'
        f"<p><strong>{finished:,} of {expected:,} runs finished.</strong> {sentence(state['text'])}</p>"
        f'<progress max="{max(expected, 1)}" value="{finished}">{finished} of {expected}</progress></section>'
    )


def findings(found: list[str]) -> str:
    if not found:
        return '<p class="none">Nothing is claimed from these runs.</p>'
    return "<ul>" + "".join(f"<li>{sentence(text)}</li>" for text in found) + "</ul>"


def audit(state: dict[str, Any]) -> str:
    """The verdict first, then what differs between rows; confounds before notes."""
    look = "clean" if state["clean"] else "found"
    lines = sorted(state["lines"], key=lambda line: line["severity"] != "confound")
    items = "".join(
        f'<li><span class="tag {escape(line["severity"])}">{short(line["severity"])}</span> '
        f"<code>{short(line['field'])}</code>: <span>{sentence(line['text'])}</span></li>"
        for line in lines
    )
    verdict, summary = escape(state["verdict"]), sentence(state["summary"])
    return f'<p class="verdict {look}"><strong>{verdict}</strong> <span>{summary}</span></p>' + (
        f'<ul class="lines">{items}</ul>' if items else ""
    )


def flags(raised: list[dict[str, Any]]) -> str:
    if not raised:
        return '<p class="none">No row carries a flag.</p>'
    return '<dl class="raised">' + "".join(_flag(flag) for flag in raised) + "</dl>"


def _flag(flag: dict[str, Any]) -> str:
    rows = flag["rows"]
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    named = ", ".join(short(row) for row in rows[:NAMED_ROWS])
    return (
        f'<dt><span class="flag">{short(flag["flag"])}</span> <span class="count">{len(rows)} '
        f"{'row' if len(rows) == 1 else 'rows'}</span></dt>"
        f'<dd>{sentence(flag["explanation"])}<span class="rows">{named}{more}</span></dd>'
    )


def table(name: str, label: str, columns: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """One table. The first column names the row and stays in sight; a last one holds the flags, if any row has one."""
    if not rows:
        return '<p class="none">No row to show.</p>'
    flagged = any(row["flags"] for row in rows)
    groups = [(group, len(list(members))) for group, members in groupby(column["group"] for column in columns)]
    if flagged and groups and groups[-1][0] == "state":
        groups[-1] = ("state", groups[-1][1] + 1)
    elif flagged:
        groups.append(("state", 1))
    begins = {sum(span for _, span in groups[:at]) for at in range(1, len(groups))}
    heads = [(column["label"], column["help"], column["numeric"]) for column in columns]
    if flagged:
        heads.append(("flags", FLAGS_HELP, False))
    body = "\n".join(_row(columns, row, flagged, begins) for row in rows)
    return (
        f'<div class="frame"><div class="scroll" role="region" tabindex="0" aria-label="Table: {escape(label[:LONG_NAME])}">'
        f'<table data-table="{escape(name)}"><thead><tr class="groups">'
        + "".join(f'<th scope="colgroup" colspan="{span}">{short(group)}</th>' for group, span in groups)
        + f'</tr><tr class="heads">{"".join(_head(*head, at in begins) for at, head in enumerate(heads))}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div></div>\n" + _meanings(columns)
    )


def _kind(**kinds: bool) -> str:
    names = " ".join(name for name, holds in kinds.items() if holds)
    return f' class="{names}"' if names else ""


def _head(label: str, meaning: str, numeric: bool, begins: bool) -> str:
    kind = _kind(numeric=numeric, begins=begins)
    return f'<th scope="col"{kind} aria-sort="none" title="{escape(meaning)}">{short(label)}</th>'


def _row(columns: list[dict[str, Any]], row: dict[str, Any], flagged: bool, begins: set[int]) -> str:
    first, *others = columns
    mark = f'<span class="mark" title="{escape("; ".join(row["flags"]))}">!</span>' if row["flags"] else ""
    cells = [f'<th scope="row">{short(row.get("label", row["cells"][first["key"]]["text"]))}{mark}</th>']
    cells += [_cell(column, row["cells"][column["key"]], at in begins) for at, column in enumerate(others, 1)]
    if flagged:
        words = "".join(f'<span class="flag">{short(flag)}</span>' for flag in row["flags"])
        cells.append(f"<td{_kind(flags=True, begins=len(columns) in begins)}>{words}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _cell(column: dict[str, Any], cell: dict[str, Any], begins: bool) -> str:
    kind = _kind(numeric=column["numeric"], absent=cell["value"] is None, begins=begins)
    return f"<td{kind}>{short(cell['text'] or ABSENT)}</td>"


def _meanings(columns: Iterable[dict[str, Any]]) -> str:
    entries = "".join(
        f"<div><dt>{short(column['label'])}</dt><dd>{sentence(column['help'])}</dd></div>" for column in columns if column["help"]
    )
    return f'<details class="meanings"><summary>What the columns mean</summary><dl>{entries}</dl></details>' if entries else ""


def views(shown: list[dict[str, Any]]) -> str:
    if not shown:
        return '<p class="none">No contrast was computed.</p>'
    return "\n".join(
        f'<section class="view" aria-label="{escape(view["name"][:LONG_NAME])}"><h3>{short(view["name"])}</h3>'
        f"<p>{sentence(view['explanation'])}"
        + (f' <span class="family">{sentence(view["family"])}</span>' if view["family"] else "")
        + f"</p>{table(str(at), view['name'], view['columns'], view['rows'])}</section>"
        for at, view in enumerate(shown)
    )


def notes(written: list[str]) -> str:
    if not written:
        return '<p class="none">None.</p>'
    return "<ul>" + "".join(f"<li>{sentence(note)}</li>" for note in written) + "</ul>"
