"""Formulas drawn as the pages are made: what a reader sees and hears, and that a bad one stops the build."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing

import pytest
import yaml
from bs4 import BeautifulSoup
from tools import pages
from tools.sphinx_book import EXTENSIONS, Book

import fpo_math  # isort: skip  # beside the other extensions, which the line above has put on the path

CONFIG = yaml.safe_load((EXTENSIONS.parents[1] / "_config.yml").read_text(encoding="utf8"))["sphinx"]["config"]
SETTINGS = CONFIG["mathjax3_config"]["tex"]


@pytest.fixture(scope="module")
def drawer():
    with closing(fpo_math.Drawer(SETTINGS)) as drawer:
        yield drawer


def drawn(drawer, *formulas, display=False):
    marks = "".join(f"<p>{drawer.mark(tex, display)}</p>" for tex in formulas)
    return BeautifulSoup(drawer.put_into(f"<body class='a'>{marks}</body>"), "html.parser")


def test_a_formula_is_a_drawing_and_a_copy_that_is_read_aloud(drawer):
    page = drawn(drawer, "x < 1")
    formula = page.p.find("mjx-container")
    assert formula.svg["aria-hidden"] == "true" and len(formula.svg.find_all("use")) == 3
    assert [tag.string for tag in formula.math.find_all(["mi", "mo", "mn"])] == ["x", "<", "1"]
    assert formula["data-tex"] == "x < 1" and not formula.has_attr("display")
    assert drawn(drawer, "x", display=True).p.find("mjx-container")["display"] == "true"


def test_the_formulas_of_a_page_share_their_glyphs(drawer):
    page = drawn(drawer, "x + x", "x + y", "x + x")
    names = [path["id"] for path in page.select("svg.glyphs path")]
    assert len(names) == 3 == len(set(names))  # x, + and y
    assert {use["href"] for use in page.find_all("use")} == {f"#{name}" for name in names}
    assert page.body.find(True)["class"] == ["glyphs"]  # they are there before the first formula


def test_a_page_without_formulas_stays_as_it_is(drawer):
    assert drawer.put_into("<body><p>Text.</p></body>") == "<body><p>Text.</p></body>"


@pytest.mark.parametrize(
    ("tex", "message"),
    [
        (r"\unknown x", r"Undefined control sequence \\unknown"),
        (r"\frac{1}{", "Missing close brace"),
        (r"\require{html}", "Undefined control sequence"),
        (r"\begin{none}x\end{none}", "Unknown environment 'none'"),
    ],
)
def test_a_bad_formula_is_refused(drawer, tex, message):
    with pytest.raises(fpo_math.BadFormula, match=message):
        drawer.mark(tex, False)


def test_lines_and_parts_of_a_display_stand_below_each_other(drawer):
    assert fpo_math.aligned("a = b") == "a = b"
    assert fpo_math.aligned(r"a &= b \\ c &= d") == r"\begin{split}a &= b \\ c &= d\end{split}"
    assert fpo_math.aligned("a\n\nb") == r"\begin{align}\begin{aligned}a\\b\end{aligned}\end{align}"
    for tex in ("a", r"a &= b \\ c &= d", "a\n\nb"):
        drawer.mark(fpo_math.aligned(tex), True)


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def build(book, page):
    extensions = ["myst_nb", "sphinx_external_toc", "fpo_book", "fpo_claims", "fpo_pages", "fpo_math"]
    return book.build(page, extensions=extensions, mathjax3_config={"tex": SETTINGS}, html_math_renderer="drawn")


def test_a_page_with_drawn_formulas_needs_no_script(book):
    page, warnings = build(book, "Then $x > 0$.\n\n$$\na = b\n$$ (one)\n\nSee {eq}`one`.")
    assert warnings == ""
    inline, display = page.select("span.math mjx-container, div.math mjx-container")
    assert inline["data-tex"] == "x > 0" and display["data-tex"] == "a = b"
    assert display.parent.select_one(".eqno").get_text().startswith("(1)")
    assert page.select_one(f'a[href="#{display.parent["id"]}"]')
    assert not [script for script in page.select("script[src]") if "tex" in script["src"]]
    assert "data-formula" not in str(page)


def test_a_bad_formula_is_a_warning_at_its_line(book):
    _, warnings = build(book, r"Then $\unknown > 0$.")
    assert r"index.md:3: WARNING: formula '\\unknown > 0': Undefined control sequence \unknown" in warnings


@pytest.mark.parametrize(
    "tex",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\style{color: red}{x}",
        r"\class{mine}{x}",
        r"\require{html}\href{javascript:alert(1)}{x}",
        r"\bbox[border: 9px solid]{x}",
        r"<img src=x onerror=alert(1)>\unknown",
    ],
)
def test_no_formula_makes_a_link_or_html(book, tex):
    """With the book's own settings of MathJax, whoever wrote the formula."""
    page, warnings = build(book, f"${tex}$")
    assert "Undefined control sequence" in warnings
    assert page.select_one("span.math").find_all(True) == page.select("span.math > code")


def test_an_engine_that_is_left_open_does_not_hold_up_the_end():
    code = f"import sys; sys.path.append({str(EXTENSIONS)!r}); import fpo_math; left = fpo_math.Drawer({{}}); "
    subprocess.run([sys.executable, "-c", code + "left.mark('x', False)"], check=True, timeout=pages.LIMIT)


def test_every_formula_of_the_book_is_drawn(built_book):
    count = 0
    for path in pages.page_paths(built_book):
        text = (built_book / path).read_text(encoding="utf8")
        assert "data-formula" not in text and "tex-svg" not in text, path
        count += text.count("<mjx-container ")
        displays = pages.parsed(built_book, path).select("article div.math")
        assert all(box["tabindex"] == "0" and box["aria-label"] for box in displays), (
            path
        )  # without waiting for a script
        assert text.count("<mjx-container ") == text.count("<math") == text.count("</mjx-assistive-mml>"), path
        assert set(re.findall(r'href="#(MJX-[^"]*)"', text)) == set(re.findall(r'<path id="(MJX-[^"]*)"', text)), path
    assert count > 100
