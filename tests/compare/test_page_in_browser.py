"""A report's page in a real browser: from disk, without a network, with hostile names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from src.compare.page.render import page
from tests.compare.page_reports import IMAGE, SCRIPT, arm, hostile, report, small

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
READABLE = 4.5  # WCAG 2.2, 1.4.3: contrast of text, level AA

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome on the path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a report; afterwards nothing may have been asked of a network, logged as an error or raised."""
    contexts, complaints, requests = [], [], []

    def opened(made: dict[str, Any], width: int = 1280, **options: Any) -> Any:
        file = tmp_path / "report.html"
        file.write_text(page(made), encoding="utf-8")
        context = chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        return tab

    opened.complaints = complaints  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == [(tmp_path / "report.html").as_uri()] * len(contexts)


def labels(tab: Any) -> list[str]:
    """First column of the shown rows of the main table."""
    return [
        text.split("\n")[0].strip() for text in tab.locator("table[data-table=main] tbody tr:visible th bdi").all_inner_texts()
    ]


def drawn(tab: Any, name: str) -> Any:
    figure = tab.locator(f"[data-plot={name}]")
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()
    return figure


def hovered(tab: Any, figure: Any, trace: int) -> str:
    """The tooltip over the first point of a trace."""
    box = figure.locator(".scatterlayer .trace").nth(trace).locator(".points path").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2 - 30, box["y"])
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    tip = figure.locator(".hoverlayer .hovertext")
    tip.first.wait_for()
    return tip.first.text_content()


def test_a_click_on_a_header_sorts(show: Open) -> None:
    tab = show(small())
    header = tab.locator("table[data-table=main] th", has=tab.get_by_role("button", name="loss"))
    before = labels(tab)
    header.get_by_role("button").click()
    best_first = ["rslora r=64", "dora r=64", "lora r=64", "dora r=4", "lora r=4", "rslora r=4", "frozen"]
    assert (labels(tab), header.get_attribute("aria-sort")) == (best_first, "ascending")
    header.get_by_role("button").click()
    assert (labels(tab), header.get_attribute("aria-sort")) == (best_first[::-1], "descending")
    header.get_by_role("button").click()
    assert (labels(tab), header.get_attribute("aria-sort")) == (before, "none")


def test_the_keyboard_sorts_and_what_is_absent_comes_last(show: Open) -> None:
    tab = show(small())
    button = tab.locator("table[data-table=main] .heads").get_by_role("button", name="r", exact=True)
    for key in ("Enter", "Space"):
        button.focus()
        tab.keyboard.press(key)
        assert labels(tab)[-1] == "frozen"
    assert [label.split("=")[1] for label in labels(tab)[:-1]] == ["64", "64", "64", "4", "4", "4"]


def test_words_and_chips_filter_the_table_and_the_plots(show: Open) -> None:
    tab = show(small())
    values = drawn(tab, "quality_by_rank").locator("details")
    values.locator("summary").click()
    tab.get_by_label("Filter", exact=True).fill("64 LORA")
    assert labels(tab) == ["lora r=64", "rslora r=64"]
    assert tab.locator("#filters [role=status]").inner_text() == "2 of 7 rows"
    assert values.locator("tbody td:first-child").all_inner_texts() == ["lora r=64", "rslora r=64"]
    tab.locator("#filters").get_by_role("button", name="without flags").click()
    assert labels(tab) == ["rslora r=64"]
    tab.get_by_role("button", name="Show all").click()
    assert len(labels(tab)) == 7
    facet = tab.get_by_role("group", name="Variant")
    facet.get_by_role("button", name="dora").click()
    facet.get_by_role("button", name="frozen").click()
    assert labels(tab) == ["dora r=4", "dora r=64", "frozen"]
    tab.get_by_role("group", name="Rank").get_by_role("button", name="no rank").click()
    assert labels(tab) == ["frozen"]


def test_tabs_move_with_the_arrow_keys(show: Open) -> None:
    tab = show(small())
    tab.get_by_role("tab", name="same rank").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.get_by_role("tab", name="same size").get_attribute("aria-selected") == "true"
    assert tab.locator(".view:visible").count() == 1


def test_what_lies_far_is_named_and_does_not_stretch_the_plot(show: Open) -> None:
    tab = show(report([*small()["arms"], arm(7, "dora", 16, 9.0)]))
    figure = drawn(tab, "quality_by_rank")
    told = figure.locator(".infolayer").first.text_content()
    assert "frozen: 5.55, above the plot" in told and "dora r=16: 9, above the plot" in told
    low, high = figure.locator(".drawing").evaluate("drawing => drawing.layout.yaxis.range")
    assert low < 1.68 and 1.97 < high < 2.2  # intervals reach from 1.70 - 0.02 to 1.95 + 0.02


def test_the_best_row_is_drawn_however_far_ahead_it_is(show: Open) -> None:
    tab = show(report([*small()["arms"], arm(7, "dora", 16, 0.5)]))
    for name in ("quality_by_rank", "quality_by_cost"):
        figure = drawn(tab, name)
        assert "dora r=16: 0.5" not in figure.locator(".infolayer").first.text_content()
        low, high = figure.locator(".drawing").evaluate("drawing => drawing.layout.yaxis.range")
        assert low < 0.5 - 0.02 and 1.97 < high < 5.55  # with its interval, and without the control


def test_a_rate_chosen_on_the_edge_of_the_grid_is_seen(show: Open) -> None:
    lowest, middle = arm(0, "lora", 4, 1.9), arm(1, "dora", 4, 1.8)
    for rate, chosen in zip(lowest["rates"], (True, False, False), strict=True):
        rate["chosen"] = chosen
    figure = drawn(show(report([lowest, middle])), "learning_rates")
    assert "1 choice on the edge of the grid" in figure.locator("figcaption").inner_text()
    assert [text for text in figure.locator(".textpoint").all_text_contents() if text] == ["edge"]


def test_the_word_on_edges_that_lie_close_is_there_once(show: Open) -> None:
    """Two choices at one rate, 0.001 apart, and one half a nat above them: two words, three rings."""
    arms = [arm(0, "lora", 4, 1.9), arm(1, "dora", 4, 1.901), arm(2, "qlora", 4, 2.4), arm(3, "rslora", 4, 1.8)]
    for held in arms[:3]:
        for rate, chosen in zip(held["rates"], (True, False, False), strict=True):
            rate["chosen"] = chosen
    figure = drawn(show(report(arms)), "learning_rates")
    assert "3 choices on the edge of the grid" in figure.locator("figcaption").inner_text()
    words = figure.locator(".textpoint text").filter(has_text="edge")
    boxes = sorted((words.nth(index).bounding_box() for index in range(words.count())), key=lambda box: box["y"])
    assert len(boxes) == 2 and boxes[0]["y"] + boxes[0]["height"] < boxes[1]["y"]


def test_what_is_printed_has_all_plots_on_white(show: Open) -> None:
    """Before anything was scrolled to, from a dark window that is wider than the paper."""
    tab = show(small(), width=900, color_scheme="dark")
    tab.evaluate("""() => {
        addEventListener("beforeprint", () => {
            window.printed = [...document.querySelectorAll(".panel")].map(panel => [
                panel.querySelectorAll(".scatterlayer .trace").length > 0,
                panel.querySelector(".main-svg")?.getBoundingClientRect().width ?? Infinity,
                getComputedStyle(panel.querySelector(".ytick text, .xtick text")).fill,
            ]);
        });
    }""")
    assert tab.locator(".panel:not(:has(.main-svg))").count() > 0
    tab.pdf()
    printed = tab.evaluate("window.printed")
    assert len(printed) == 4
    for has_traces, width, ink in printed:
        assert has_traces and width <= 640 and luminance(channels(ink)) < 0.2
    figure = drawn(tab, "learning_rates")  # and afterwards the screen has its own again
    wide = figure.locator(".drawing").evaluate("drawing => [drawing.clientWidth, drawing._fullLayout.width]")
    assert wide[0] == wide[1] > 640
    assert tab.evaluate("document.documentElement.style.colorScheme") == "dark"


def test_a_switch_and_the_legend_change_what_is_drawn(show: Open) -> None:
    tab = show(small())
    figure = drawn(tab, "learning_rates")
    figure.locator("summary").click()
    arms = figure.locator("tbody td:first-child")
    arms.first.wait_for()
    assert set(arms.all_inner_texts()) == {"lora r=4", "rslora r=4", "dora r=4"}
    figure.get_by_role("radio", name="64").check()
    tab.locator("#legend").get_by_role("button", name="dora").click()
    assert set(arms.all_inner_texts()) == {"lora r=64", "rslora r=64"}
    assert "validation loss" in figure.locator(".infolayer").first.text_content()
    figure.get_by_role("radio", name="test").check()
    assert "test loss (nats)" in figure.locator(".infolayer").first.text_content()


def test_every_plot_has_a_tooltip(show: Open) -> None:
    tab = show(small())
    # Traces come in groups of an arm or a series: its seeds before its means, the front of the last plot before all points.
    for name, trace, told in (
        ("quality_by_rank", 1, "lora r=4mean 1.9, n = 2"), ("learning_rates", 1, "lora r=4learning rate 0.0001"),
        ("training_loss", 3, "lora r=4validation at step 100: 2"), ("quality_by_cost", 1, "lora r=4mean 1.9"),
    ):  # fmt: skip
        assert told in hovered(tab, drawn(tab, name), trace)


def test_hostile_names_stay_text(show: Open) -> None:
    tab = show(hostile())
    assert labels(tab)[1].startswith(IMAGE)
    figure = drawn(tab, "quality_by_rank")
    assert SCRIPT[:30] in hovered(tab, figure, 1)
    assert "<b>bold</b> <a href=" in hovered(tab, figure, 5)
    assert "<b>bold</b>" in figure.locator(".infolayer").first.text_content()
    for name in ("learning_rates", "training_loss", "quality_by_cost"):
        drawn(tab, name)
    assert tab.evaluate("window.pwned") is None
    assert tab.locator("main img, main b, main iframe, svg a").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == 1280


def test_the_csv_of_a_plot_runs_nothing_in_a_spreadsheet(show: Open) -> None:
    tab = show(hostile())
    figure = drawn(tab, "quality_by_rank")
    with tab.expect_download() as download:
        figure.get_by_role("button", name="Download CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert "'=cmd()" in text and "\n=cmd()" not in text


def test_a_script_of_no_known_hash_is_refused(show: Open) -> None:
    tab = show(small())
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.pwned = 1'}))")
    assert tab.evaluate("window.pwned") is None
    [refusal] = show.complaints  # type: ignore[attr-defined]
    assert "Content Security Policy" in refusal
    show.complaints.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("made", [small, hostile])
def test_a_telephone_scrolls_no_page_sideways(show: Open, made: Callable[[], dict[str, Any]]) -> None:
    tab = show(made(), width=360)
    for name in ("quality_by_rank", "learning_rates", "training_loss", "quality_by_cost"):
        drawn(tab, name)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    first = tab.locator("table[data-table=main] tbody th").first
    tab.locator(".scroll").first.evaluate("box => box.scrollLeft = 500")
    assert 0 <= first.bounding_box()["x"] < 40  # the row's name stays while the columns move


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show: Open, scheme: str) -> None:
    tab = show(small(), color_scheme=scheme)
    drawn(tab, "quality_by_rank")
    poor = [(text, contrast) for text, ink, paper in tab.evaluate(TEXTS) if (contrast := ratio(ink, paper)) < READABLE]
    assert poor == []


def test_the_theme_follows_the_system_and_can_be_switched(show: Open) -> None:
    tab = show(small(), color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    figure = drawn(tab, "quality_by_rank")
    ink = figure.locator(".xtick text").first
    dark, drawn_dark = tab.evaluate(background), ink.evaluate("text => getComputedStyle(text).fill")
    tab.get_by_role("button", name="light theme").click()
    light, drawn_light = tab.evaluate(background), ink.evaluate("text => getComputedStyle(text).fill")
    assert luminance(channels(dark)) < 0.05 and luminance(channels(light)) > 0.9
    assert luminance(channels(drawn_dark)) > 0.5 > luminance(channels(drawn_light))


def test_without_javascript_the_sentences_and_tables_are_there(show: Open) -> None:
    tab = show(small(), java_script_enabled=False)
    text = tab.locator("body").inner_text()
    for part in ("dora is best at rank 4.", "16 and 32", "On the grid's edge.", "need JavaScript", "rslora r=64"):
        assert part in text


def test_four_thousand_runs(show: Open) -> None:
    arms = [
        arm(index, f"variant_{index // 5}", 4 ** (index % 5 + 1), 1.9 - 0.001 * index, rates=5, seeds=8) for index in range(100)
    ]
    assert sum(len(rate["seeds"]) for held in arms for rate in held["rates"]) == 4000
    tab = show(report(arms))
    assert len(labels(tab)) == 100
    assert drawn(tab, "quality_by_rank").locator(".scatterlayer .trace").count() == 40  # seeds and means of 20 variants
    drawn(tab, "learning_rates")


# Every element that has text of its own: the text, its color, and the color of what lies behind it.
TEXTS = """[...document.querySelectorAll("body *:not(script, noscript, style, svg *)")]
  .filter(element => element.checkVisibility() && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(element => {
    let behind = element;
    while (behind.parentElement && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    return [element.textContent.slice(0, 40), getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  })"""


def channels(color: str) -> list[int]:
    return [int(value) for value in re.findall(r"\d+", color)[:3]]


def luminance(rgb: list[int]) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ratio(ink: str, paper: str) -> float:
    lighter, darker = sorted((luminance(channels(ink)), luminance(channels(paper))), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
