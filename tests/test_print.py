"""The book on paper: one PDF of all pages, a page printed from the browser, an archive to read offline."""

from __future__ import annotations

import os
import zipfile
from contextlib import closing
from pathlib import Path

import chromium
import pypdfium2
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from sphinx_external_toc.parsing import parse_toc_yaml
from tools import pages, paper

import printing  # isort: skip  # beside book/build.py, which `pages` has put on the path

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def executable():
    """The browser that prints."""
    found = chromium.find_browser()
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(chromium.NO_BROWSER)
    return found


def report(faults):
    return "\n".join(["", *map(str, faults)])


# The whole book


@pytest.fixture(scope="module")
def printed(built_book, executable, tmp_path_factory):
    pdf = tmp_path_factory.mktemp("print") / "a book.pdf"
    printing.print_book(built_book, built_book.parent / "source", pdf)
    assert [path.name for path in pdf.parent.iterdir()] == [pdf.name]
    return pdf


def test_the_printed_book_is_whole(printed, built_book):
    paths = [f"{page}.html" for page in parse_toc_yaml(ROOT / "_toc.yml")]
    found = paper.faults(printed, built_book, paths)
    assert not found, report(found)


def test_the_print_opens_as_a_book_does(printed):
    title, *_ = printing.about(ROOT / "_config.yml")
    first, second = paper.read_sheets(printed, 2)
    assert paper.squeeze(title) in paper.squeeze(first.text)
    assert not first.text.startswith("1")  # a title page has no number
    assert second.text.split()[:2] == ["2", "Contents"]
    with closing(pypdfium2.PdfDocument(printed)) as document:
        assert {tuple(map(round, document.get_page_size(i))) for i in range(len(document))} == {(595, 842)}  # A4
        assert document.get_metadata_value("Title") == title
        assert len(list(document.get_toc())) >= len(list(parse_toc_yaml(ROOT / "_toc.yml")))


# A small site, sound or with faults


STYLE = "".join((ROOT / "book" / name).read_text(encoding="utf8") for name in ("_static/print.css", "bound.css"))
CODE = "x = " + " + ".join(f"number_{i}" for i in range(30))
HIDDEN = "hidden_name_of_a_folded_cell = another_name()"
FOLD = f"""<details class="hide above-input"><summary>Code</summary>
<div class="cell_input"><pre>{HIDDEN}</pre></div></details>"""
ARTICLES = {
    "first": f"""<section id="one"><h1>The first<a class="headerlink" href="#one">#</a></h1>
<p>To <a href="sub/second.html#part">a part</a>, <a href="missing.ipynb">a file</a> and
<a href="https://example.org">out</a>.</p><pre>{CODE}</pre>{FOLD}<button>Copy</button>
<svg width="9" height="9" aria-labelledby="t"><title id="t">T</title><defs><path id="p" d="M0 0h9v9z"/></defs>
<use href="#p" fill="url(#g)"/></svg></section>""",
    "sub/second": """<section id="one"><h1>The second</h1><p>Text. <img loading="lazy" src="dot.svg" alt="Dot"></p>
<section id="part"><h2>A part</h2><p>Back to <a href="../first.html">the first</a>.</p></section></section>""",
}
DRAWN = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9z"/></svg>'


@pytest.fixture
def small(tmp_path):
    """Writes a site of two pages with its sources; what is given takes the place of an article or of the style."""

    def write(style=STYLE, **articles):
        site, source = tmp_path / "a site", tmp_path / "source"
        (site / "sub").mkdir(parents=True)
        source.mkdir()
        (site / "style.css").write_text(style, encoding="utf8")
        (site / "sub" / "dot.svg").write_text(DRAWN)
        for name, article in (ARTICLES | {name.replace("_", "/"): each for name, each in articles.items()}).items():
            up = "../" * name.count("/")
            head = f'<meta charset="utf-8"><title>T</title><link rel="stylesheet" href="{up}style.css">'
            body = f'<article class="bd-article">{article}</article>'
            (site / f"{name}.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>", encoding="utf8")
        (source / "_toc.yml").write_text(
            "format: jb-book\nroot: first\nparts:\n- caption: Rest\n  chapters:\n  - file: sub/second\n"
        )
        (source / "_config.yml").write_text("title: A <b>\nauthor: We\ncopyright: ours\nrepository: {url: https://u}\n")
        return site, source

    return write


PATHS = ["first.html", "sub/second.html"]


def test_the_pages_are_joined_with_ids_of_their_own(small):
    site, source = small()
    book = BeautifulSoup(str(printing.join(site, source / "_toc.yml", ("A <b>", "We"))), "html.parser")
    ids = [each["id"] for each in book.select("[id]")]
    assert len(ids) == len(set(ids)) and {"first--one", "sub-second--one", "sub-second--part"} <= set(ids)
    links = {link.get_text(): link.get("href") for link in book.select("article a")}
    assert links == {"a part": "#sub-second--part", "out": "https://example.org", "the first": "#first"}
    assert all(link["href"][1:] in ids for link in book.select("a[href^='#']"))
    assert book.select_one("use")["href"] == "#first--p" and book.select_one("use")["fill"] == "url(#first--g)"
    assert book.select_one("svg")["aria-labelledby"] == "first--t"
    assert book.select_one("img")["src"] == (site / "sub" / "dot.svg").as_uri()
    assert not book.select("[loading], button, script, details.hide, a.headerlink")
    assert book.title.get_text() == book.select_one(".print-title-name").get_text() == "A <b>"
    contents = [line.get_text() for line in book.select(".print-contents > *")]
    assert contents == ["Contents", "The first", "Rest", "The second", "A part"]


def test_a_fold_that_printed_words_keeps_its_name_and_a_high_picture_leaves_its_card():
    fold = '<details class="hide"><summary><p>Code: {0}</p><p>Code: {0}</p></summary><pre>x</pre></details>'
    words, picture = '<div class="cell_output"><pre>1</pre></div>', '<div class="cell_output"><img src="a.png"></div>'
    cards = "".join(f'<p class="key-figure"><img src="{h}.png" width="90" height="{h}"></p>' for h in (60, 180))
    cells = "".join(
        f'<div class="cell">{fold.format(name)}{made}</div>' for name, made in (("a", words), ("b", picture))
    )
    article = BeautifulSoup(f"<article>{cells}{cards}</article>", "html.parser").article
    printing.clean(article)
    assert [each.get_text() for each in article.select(".print-folded")] == ["Code: a (not printed)"]
    assert article.select_one(".cell").contents[0] in article.select(".print-folded")
    assert [image["src"] for image in article.select(".key-figure img")] == ["60.png"]


def test_a_small_book_is_printed(small, executable, tmp_path):
    site, source = small()
    printing.print_book(site, source, tmp_path / "book.pdf")
    found = paper.faults(tmp_path / "book.pdf", site, PATHS)
    assert not found, report(found)
    assert len(paper.read_sheets(tmp_path / "book.pdf")) == 4
    assert printing.page_numbers(tmp_path / "book.pdf")["sub-second--part"] == 4


def test_faults_of_the_print_are_seen(small, executable, tmp_path, monkeypatch):
    """One print with a fault of every kind."""
    clean, page_numbers = printing.clean, printing.page_numbers

    def clean_too_much(article):
        clean(article)
        for lost in article.select(".lost"):
            lost.decompose()

    monkeypatch.setattr(printing, "SCREEN_ONLY", "button, script")  # not the folded code
    monkeypatch.setattr(printing, "clean", clean_too_much)
    monkeypatch.setattr(printing, "aim", lambda link, path, ids: link.attrs.update(href="file:///etc/hosts"))
    monkeypatch.setattr(
        printing, "page_numbers", lambda pdf: {name: page - 1 for name, page in page_numbers(pdf).items()}
    )
    more = r"""<pre class="lost">lost = "a line"</pre><p>\(x\)</p>
<img src="square.png" alt="A square" style="width: 90px; height: 30px; object-fit: fill">
<div style="break-before: page; height: 9px; width: 900px"></div>"""
    unwrapped = "@media print { pre { overflow: hidden !important; white-space: pre !important } }"
    site, source = small(STYLE.replace("details.hide", "details.none") + unwrapped, first=ARTICLES["first"] + more)
    Image.new("RGB", (9, 9)).save(site / "square.png")
    printing.print_book(site, source, tmp_path / "book.pdf")
    found = {fault.kind for fault in paper.faults(tmp_path / "book.pdf", site, PATHS)}
    kinds = (paper.ABSENT, paper.BLANK, paper.NUMBER, paper.CLIPPED, paper.SHRUNK, paper.FOLDED)
    kinds += (paper.TEX, paper.LINK, paper.DISTORTED)
    assert found == set(kinds)


def test_a_formula_that_was_not_drawn_ends_the_print(small, executable, tmp_path):
    site, source = small(first=ARTICLES["first"] + r'<p><span class="math">\(x\)</span></p>')
    with pytest.raises(chromium.Unprinted, match=r"a formula was not drawn: \\\(x\\\)"):
        printing.print_book(site, source, tmp_path / "book.pdf")
    assert not list(tmp_path.glob("book*"))


# The commands


def test_a_missing_browser_is_one_message_before_any_work(build, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "render_committed", lambda: pytest.fail("it went to work"))
    assert build.main(["pdf"]) == 1
    assert capsys.readouterr().err == f"pdf: {chromium.NO_BROWSER}\n"


def test_a_browser_that_fails_is_one_message(small, tmp_path):
    site, source = small()
    with pytest.raises(chromium.Unprinted, match="does not start"):
        chromium.print_page(str(tmp_path / "none"), site / "first.html", tmp_path / "book.pdf")


def test_the_archive_is_the_site_and_the_same_each_time(small, tmp_path):
    site, _ = small()
    for name in ("one.zip", "two.zip"):
        printing.pack(site, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        packed = {name.removeprefix(f"{printing.NAME}/"): archive.read(name) for name in archive.namelist()}
    files = [path for path in site.rglob("*") if path.is_file()]
    assert packed == {path.relative_to(site).as_posix(): path.read_bytes() for path in files}


# A page printed from the browser


PAPER = {"width": 642, "height": 900}  # about what A4 leaves between its margins
SEEN = "nodes => nodes.filter(node => node.checkVisibility()).length"
WIDER = """() => [...document.querySelectorAll("article *")].filter(node =>
  node.checkVisibility() && !node.closest("svg, mjx-assistive-mml") &&
  node.getBoundingClientRect().right > innerWidth + 1)
  .map(node => node.outerHTML.slice(0, 100))"""


def test_a_page_from_the_browser_is_printed_as_in_the_book(address, browser):
    with closing(browser._chromium.new_context(viewport=PAPER)) as session:
        session.add_init_script("localStorage.setItem('mode', 'dark'); localStorage.setItem('theme', 'dark')")
        tab = session.new_page()
        for path in ("notebooks/linear.html", "book/claims.html"):
            tab.goto(address + path)
            tab.evaluate(pages.AWAIT_MATH, pages.LIMIT)
            assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
            tab.emulate_media(media="print")
            tab.wait_for_function("document.documentElement.dataset.theme === 'light'")
            assert tab.locator("article h1").is_visible()
            for hidden in (
                "details.hide pre",
                "article button",
                "a.headerlink",
                ".bd-sidebar-primary",
                ".prev-next-area",
            ):
                assert tab.locator(hidden).evaluate_all(SEEN) == 0, hidden
            assert tab.evaluate(WIDER) == []
            tab.emulate_media(media="screen")
            tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")


BROKEN = f'<pre>{CODE}</pre><div style="break-before: page; height: 9px"></div>'


def printed_alone(tab, pdf):
    """Faults of a page's print from the browser, and what is on it."""
    tab.pdf(path=pdf, prefer_css_page_size=True)
    sheets = paper.read_sheets(pdf)
    return {fault.kind for fault in paper.sheet_faults(sheets)}, paper.squeeze("".join(sheet.text for sheet in sheets))


def test_a_print_from_the_browser_has_no_blank_page_and_no_clipped_text(address, browser, tmp_path):
    with closing(browser._chromium.new_context()) as session:
        tab = session.new_page()
        for path in ("notebooks/judgements.html", "book/claims.html", "book/index.html"):
            tab.goto(address + path)
            faults, text = printed_alone(tab, tmp_path / "page.pdf")
            assert not faults, path
            assert paper.squeeze(tab.locator("article h1").inner_text().rstrip("#")) in text
            assert paper.squeeze(tab.locator("article h2").last.inner_text().rstrip("#")) in text
        tab.add_style_tag(content="@media print { pre { overflow: hidden !important; white-space: pre !important } }")
        tab.locator("article").evaluate("(page, more) => page.insertAdjacentHTML('beforeend', more)", BROKEN)
        assert printed_alone(tab, tmp_path / "page.pdf")[0] == {paper.BLANK, paper.CLIPPED}
