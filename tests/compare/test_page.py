"""The HTML of a report's page, as another parser reads it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from src.compare.page.render import HERE, PAGES, embedded_json, page
from tests.compare.page_reports import HOSTILE, SCRIPT, arm, hostile, report, small


class Document(HTMLParser):
    """The elements of a text and what its scripts hold, as an independent parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


def test_nothing_is_loaded_from_elsewhere() -> None:
    document = Document(page(small()))
    loading = ("src", "href", "action", "data", "poster", "srcset", "background", "xlink:href")
    addresses = [value for _, attributes in document.elements for name, value in attributes.items() if name in loading]
    assert addresses and all(address and address.startswith(("#", "data:")) for address in addresses)
    [style] = re.findall(r"<style>(.*?)</style>", page(small()), re.S)
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("text", [*HOSTILE, "\u2028\u2029", '"', "\\u003c/script>"])
def test_embedded_json_stays_in_its_element_and_comes_back(text: str) -> None:
    embedded = embedded_json({text: [text]})
    assert json.loads(embedded) == {text: [text]}
    assert not re.search("[<>&\u2028\u2029]", embedded)


def test_hostile_names_add_no_element() -> None:
    document = Document(page(hostile()))
    assert len(document.scripts) == 3
    assert json.loads(document.scripts[0])["rows"][0]["label"] == f"{SCRIPT} r=4"
    assert not {tag for tag, _ in document.elements} & {"img", "b", "iframe", "object"}
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    assert "\u202e" not in page(hostile())


def test_numbers_that_are_not_finite_are_absent() -> None:
    drawn = arm(0, "lora", 4, 1.9) | {"low": float("nan"), "high": float("inf")}
    data = json.loads(Document(page(report([drawn]))).scripts[0])
    assert (data["arms"][0]["low"], data["arms"][0]["high"]) == (None, None)


def test_every_text_is_escaped_by_the_template_engine() -> None:
    """Only parts that Python made for the page are marked as safe, each of them once."""
    assert PAGES.autoescape is True
    templates = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("*.html")}
    safe = [name for text in templates.values() for name in re.findall(r"{{\s*([^}]*?)\s*\|\s*safe", text)]
    assert sorted(safe) == ["css", "data", "plotly", "policy", "script"]
    assert not [text for text in templates.values() if re.search(r"autoescape|Markup|forceescape", text)]


@pytest.mark.parametrize("key", ["findings", "rows", "audit", "title"])
def test_a_key_that_is_missing_is_no_empty_page(key: str) -> None:
    made = small()
    del made[key]
    with pytest.raises((KeyError, UndefinedError)):
        page(made)


def test_a_confound_stands_before_a_note() -> None:
    text = page(small())
    assert text.index("train.batch_size") < text.index("train.warmup")
