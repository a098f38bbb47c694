"""The book's pages as built from the committed outputs: no fault, one switch for all code, figures that can be read."""

from __future__ import annotations

import base64
import io
from contextlib import closing

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from tools import pages

from fpo import figures


def report(faults) -> str:
    return "\n".join(["", *map(str, faults)])


def test_the_files_of_the_book(built_book):
    found = pages.static_faults(built_book)
    assert not found, report(found)


def test_the_book_in_a_browser(built_book, browser):
    found = browser.faults(built_book)
    assert not found, report(found)


@pytest.fixture
def opened(address, browser):
    """Opens pages of the book, all in one session."""
    with closing(browser._chromium.new_context()) as session:
        tab = session.new_page()

        def go(path="notebooks/linear.html", width=1280):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.goto(address + path)
            return tab

        yield go


FOLDED, OPEN = "details.hide .cell_input", "div.cell > div.cell_input"


def seen_sources(tab):
    """How many cells' sources are seen, of the folded cells and of the open ones."""
    seen = "cells => cells.filter(cell => cell.checkVisibility()).length"
    return [tab.locator(kind).evaluate_all(seen) for kind in (FOLDED, OPEN)]


def test_one_switch_shows_or_hides_all_code_and_the_session_remembers(opened):
    tab = opened()
    switch, status = tab.locator(".code-switch"), tab.locator("span[role=status]")
    folded, ideas = tab.locator(FOLDED).count(), tab.locator(OPEN).count()
    assert folded and ideas and seen_sources(tab) == [0, ideas] and switch.inner_text() == "Show all code"
    for key, name, told, seen in (
        ("Enter", "Hide all code", "All code is shown", [folded, ideas]),
        ("Space", "Show all code", "All code is hidden", [0, 0]),
    ):
        switch.focus()
        tab.keyboard.press(key)
        assert (switch.inner_text(), status.inner_text(), seen_sources(tab)) == (name, told, seen)
        opened("book/claims.html")
        assert switch.count() == 0  # a page without code has no switch
        opened()
        assert (switch.inner_text(), seen_sources(tab)) == (name, seen)
    tab.locator("details.hide summary").first.click()
    assert seen_sources(tab) == [1, 0]


def test_the_switch_has_its_name_on_a_phone_too(opened):
    tab = opened(width=320)
    assert tab.get_by_role("button", name="Show all code", exact=True).is_visible()


def replace_figure(tab, figure):
    """Put a figure of ours in the place of a chapter's first one, whatever that is."""
    data, shown = figures.png(figure)
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    image = tab.locator("div.cell_output figure img").first
    put = """(image, [src, width]) => {
      image.loading = "eager";  // what waits to be scrolled to is never decoded
      image.src = src;
      image.style.width = width;
    }"""
    image.evaluate(put, [source, f"{shown['width']}px"])
    image.evaluate("image => image.decode()")
    return image


def test_letters_in_figures_are_readable_on_a_phone_and_no_larger_than_the_text(opened):
    for width in (375, 1280):
        tab = opened(width=width)
        text = tab.evaluate("parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)")
        image = replace_figure(tab, plt.figure(figsize=(figures.WIDTH, 1)))
        pixels = figures.LETTERS * image.bounding_box()["width"] / (72 * figures.WIDTH)  # CSS pixels a letter's size
        assert 12 <= pixels <= text, width
        assert tab.evaluate("document.scrollingElement.scrollWidth") == width


def contrast(one, other):
    """WCAG 2's contrast of two colors of 0 to 255."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in np.array([one, other]) / 255]
    low, high = sorted(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return (high + 0.05) / (low + 0.05)


def test_figures_are_transparent_and_their_colors_are_told_from_a_dark_page(opened):
    tab = opened()
    colors = list(dict.fromkeys(map(figures.color, figures.LOOKS)))  # relatives share one
    for theme in ("light", "dark"):
        tab.evaluate(pages.SET_THEME, theme)
        with plt.rc_context():
            figures.style()
            drawn = plt.figure(figsize=(figures.WIDTH, 1), layout="none")
        for i, color in enumerate(colors):
            drawn.add_axes((i / len(colors), 0.3, 1 / len(colors), 0.4), facecolor=color, xticks=[], yticks=[])
        image = replace_figure(tab, drawn)
        seen = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB"))
        page = tab.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
        assert list(seen[2, 2]) == [int(part) for part in page]
        middles = ((np.arange(len(colors)) + 0.5) / len(colors) * seen.shape[1]).astype(int)
        shown = seen[seen.shape[0] // 2, middles]
        assert len(np.unique(shown, axis=0)) == len(colors)
        if theme == "dark":
            assert min(contrast(color, seen[2, 2]) for color in shown) >= 3
            assert list(shown[colors.index(figures.color("exact"))]) == [255] * 3  # black: so are axes and letters
    plt.close("all")


def test_a_table_among_the_outputs_has_the_dark_page_s_colors(opened):
    tab = opened("notebooks/llm_study.html")
    tab.evaluate(pages.SET_THEME, "dark")
    look = "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).color]"
    (background, color), (_, text) = (
        tab.locator(kind).first.evaluate(look) for kind in ("div.cell_output .text_html", "article p")
    )
    assert background == "rgba(0, 0, 0, 0)" and color == text
