"""Light pages: one sheet of what pages use, with its fonts in it; scripts behind the text; figures that wait."""

from __future__ import annotations

import base64
import importlib.resources
import io
import re
import sys
from contextlib import closing
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from fontTools import ttLib
from PIL import Image
from tools import pages

sys.path.append(str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
import fpo_light  # noqa: E402
import fpo_styles  # noqa: E402

THEME = importlib.resources.files("pydata_sphinx_theme") / "theme" / "pydata_sphinx_theme" / "static"
ICONS = "vendor/fontawesome/6.5.2/webfonts/fa-solid-900.woff2"
SUN, MOON = "\uf185", "\uf186"


def combined(css, names="", characters="", files=(), media=None):
    """The sheet that is made of one, for pages with these names on them."""
    given = {"_static/styles/a.css": css.encode()} | dict(files)
    read = given.__getitem__
    sheet = fpo_styles.combine([("_static/styles/a.css", media)], set(names.split()), set(characters), read)
    assert sheet.startswith('@charset "utf-8";\n')
    return sheet.partition("\n")[2].strip()


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        ("p { color: red }", "p{color:red}"),
        (".used { color : red; }", ".used{color:red}"),
        ("#top:hover::before { top: 0 }", "#top:hover::before{top:0}"),
        (".used, .other { top: 0 }", ".used{top:0}"),
        ("p.used > .other { top: 0 }", ""),
        ("video { top: 0 }", ""),
        ("p:not(.other) { top: 0 }", "p:not(.other){top:0}"),
        ("[data-x=other] p { top: 0 }", "[data-x=other] p{top:0}"),
        (r".w-2\.5 { top: 0 }", r".w-2\.5{top:0}"),
        ("p { top: 0 !important; *zoom: 1; --Own: {a} }", "p{top:0!important;--Own:{a}}"),
        ("@media print { .used { top: 0 } .other { top: 0 } }", "@media print{.used{top:0}}"),
        ("@media (min-width: 9px) { @supports (top: 0) { .other { top: 0 } } }", ""),
        ("@keyframes turn { 0% { top: 0 } to { top: 1px } }", "@keyframes turn{0% { top: 0 } to { top: 1px }}"),
        ("@page { margin: 1cm }", "@page{margin:1cm}"),
        ("/* of no use */ p { top: 0 }", "p{top:0}"),
        ("/*! (c) A */ p { top: 0 }", "/*! (c) A */\np{top:0}"),
        ("p { background: url(../b.png) }", 'p{background:url("b.png")}'),
        ('p { background: url("data:image/png;base64,A==") }', 'p{background:url("data:image/png;base64,A==")}'),
        ("p { content: '\\f185' }", f'p{{content:"{SUN}"}}'),
    ],
)
def test_what_applies_is_kept_and_nothing_else(css, kept):
    assert combined(css, r"p used top w-2.5") == kept


def test_a_variable_that_nothing_reads_goes_with_what_only_it_reads():
    css = "p { --a: var(--b); --b: 1px; --c: var(--d); --d: ';}'; --e: 2px; top: var(--c, 0) }"
    assert combined(css, "p --e") == "p{--c:var(--d);--d:';}';--e:2px;top:var(--c, 0)}".replace("'", '"')


def test_a_sheet_for_paper_stays_one():
    assert combined("p { top: 0 }", "p", media="print") == "@media print{p{top:0}}"
    assert combined("p { top: 0 }", "p", media="all") == "p{top:0}"


def test_an_imported_sheet_is_in_the_one():
    files = {"_static/b.css": b"p { background: url(c.png) }"}
    assert combined('@import "../b.css"; p { top: 0 }', "p", files=files) == ('p{background:url("c.png")}\np{top:0}')


def font_in(sheet):
    data = re.search(r"url\(data:font/woff2;base64,(.*?)\)", sheet)[1]
    return ttLib.TTFont(io.BytesIO(base64.b64decode(data)))


def test_a_font_has_the_characters_that_are_shown():
    face = '@font-face { font-family: "Icons"; font-display: block; src: url(../f.woff2) format("woff2"), url(f.ttf) }'
    files = {"_static/f.woff2": (THEME / ICONS).read_bytes()}
    sheet = combined(face + ' i { font: 900 1em "Icons"; content: "\\f185" }', "i", MOON, files)
    assert sorted(font_in(sheet).getBestCmap()) == [ord(SUN), ord(MOON)]
    assert "f.ttf" not in sheet and "font-display" not in sheet and len(sheet) < 2000
    assert combined(face + " i { top: 0 }", "i", MOON, files) == "i{top:0}"  # nobody asks for the family


def site(folder, pages, **files):
    for name, text in files.items():
        path = folder / name.replace("__", ".").replace("_s_", "_static/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    for name, (head, body) in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<html><head>{head}</head><body>{body}</body></html>", encoding="utf8")
    fpo_light.lighten(folder)
    return {name: BeautifulSoup((folder / name).read_text(encoding="utf8"), "html.parser") for name in pages}


SHEETS = '<link rel="stylesheet" href="{0}_static/a.css?v=1"><link rel="stylesheet" href="{0}_static/b.css">'
CSS = {"_s_a__css": ".mine { top: 0 }", "_s_b__css": "p { top: 1px } .none { top: 0 }"}


def test_all_pages_share_one_sheet_and_keep_their_own(tmp_path):
    head = SHEETS.format("../") + '<link rel="stylesheet" href="../_static/own.css">'
    text = '<p class="mine">Text.</p>'
    made = site(
        tmp_path, {"index.html": (SHEETS.format(""), text), "sub/b.html": (head, text)},
        **CSS, _s_own__css="p { top: 2px }",
    )  # fmt: skip
    links = {name: [link["href"] for link in soup.select("link")] for name, soup in made.items()}
    version = links["index.html"][0].partition("?")[2]
    assert links == {
        "index.html": [f"_static/site.css?{version}"],
        "sub/b.html": [f"../_static/site.css?{version}", "../_static/own.css"],
    }
    rules = (tmp_path / "_static" / "site.css").read_text(encoding="utf8").splitlines()
    assert rules == ['@charset "utf-8";', ".mine{top:0}", "p{top:1px}"]
    assert sorted(path.name for path in (tmp_path / "_static").iterdir()) == ["own.css", "site.css"]


def test_a_name_that_a_script_makes_counts(tmp_path):
    script = ('<script src="_static/a.js"></script>', "<p>Text.</p>")
    site(
        tmp_path, {"index.html": (SHEETS.format("") + script[0], script[1])},
        _s_a__css=".made-later { top: 0 } .never { top: 0 }", _s_b__css="p { top: 0 }",
        _s_a__js='node.className = "made-later";',
    )  # fmt: skip
    assert (tmp_path / "_static" / "site.css").read_text(encoding="utf8").splitlines()[1:] == [
        ".made-later{top:0}",
        "p{top:0}",
    ]


def test_scripts_stand_behind_the_text_in_their_order(tmp_path):
    head = """<script data-cfasync="false">early()</script><script src="_static/a.js"></script>
    <script>DOCUMENTATION_OPTIONS.pagename = "index";</script><script src="_static/b.js"></script>
    <script src="_static/vendor/all.min.js"></script><script defer src="_static/own.js"></script>
    <script type="application/ld+json">{}</script><link rel="preload" as="script" href="_static/a.js">"""
    script = {f"_s_{name}__js": "" for name in "abc"}
    made = site(tmp_path, {"index.html": (head, "<p>Text.</p><script src='_static/c.js'></script>")}, **script)
    soup = made["index.html"]

    def shown(part):
        return [tag.get("src") or tag.string or tag.get("href") for tag in part.find_all(["script", "link"])]

    assert shown(soup.body) == [
        "_static/a.js", 'DOCUMENTATION_OPTIONS.pagename = "index";', "_static/b.js", "_static/c.js",
    ]  # fmt: skip
    assert [text.split("\n")[0] for text in shown(soup.head)] == ["early()", "_static/own.js", "{}"]


def test_what_a_script_writes_in_its_place_stands_there(tmp_path):
    script = "<script>\ndocument.write(`\n<button class='theme'><i>A</i></button>`);\n</script>"
    body = f"<p>{script}<script>document.write(`${{1}}`)</script></p>"
    made = site(tmp_path, {"index.html": ("", body)})["index.html"]
    assert made.button["class"] == ["theme", "needs-script"] and made.button.i.string == "A"
    assert [tag.string for tag in made.find_all("script")] == ["document.write(`${1}`)"]  # not a plain text


def test_figures_keep_their_place_and_all_but_the_first_wait(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "dot.png")
    (tmp_path / "drawn.svg").write_text('<svg viewBox="0 0 40.4 10" xmlns="http://www.w3.org/2000/svg"/>')
    image = '<img src="dot.png" alt="A"><img src="drawn.svg" alt="B"><img src="dot.png" width="3" alt="C">'
    made = site(tmp_path, {"index.html": ("", f"<header>{image}</header><article>{image}</article>")})
    first, second, third = made["index.html"].select("article img")
    assert (first["width"], first["height"], first.get("loading"), first["decoding"]) == ("30", "20", None, "async")
    assert (second["width"], second["height"], second["loading"]) == ("40", "10", "lazy")
    assert (third["width"], third.get("height"), third["loading"]) == ("3", None, "lazy")
    assert not any(tag.has_attr("loading") for tag in made["index.html"].select("header img"))


def test_light_pages_stay_as_they_are(tmp_path):
    """A build that renders some pages only meets the others as an earlier one left them."""
    body = '<article><p class="mine">Text.</p></article><script src="_static/a.js"></script>'
    page = {"index.html": (SHEETS.format(""), body)}
    site(tmp_path, page, **CSS, _s_a__js="")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fpo_light.lighten(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_book_is_light(built_book):
    for path in pages.page_paths(built_book):
        page = pages.read_page(built_book, path)
        if page.redirects or path == "404.html":  # that one, at whatever address, has its style within
            continue
        sheets = [url for url in page.fetches if ".css" in url]
        assert "_static/site.css" in sheets[0], path
        assert not [url for url in page.fetches if "fontawesome" in url], path
    sheet = (built_book / "_static" / "site.css").read_text(encoding="utf8")
    assert "/*!" in sheet and "Font Awesome" in sheet  # the licenses
    for address in re.findall(r"url\(\"(?!data:)([^\"]*)", sheet):
        assert (built_book / "_static" / address).is_file(), address


def test_each_icon_of_the_book_is_in_the_sheet(address, browser):
    """Every icon draws a glyph of the icon font: none is an empty box or a letter of another font."""
    seen = set()
    with closing(browser._chromium.new_context()) as session:
        tab = session.new_page()
        tab.goto(address + "notebooks/linear.html")
        tab.evaluate("document.fonts.ready")
        for icon in tab.locator("i[class*=fa-]").all():
            glyph, family = icon.evaluate(
                "i => { const style = getComputedStyle(i, '::before'); return [style.content, style.fontFamily]; }"
            )
            seen.add((glyph, family))
        families = tab.evaluate("[...document.fonts].map(face => [face.family, face.status])")
    assert len(seen) > 5 and all("Awesome" in family and len(glyph) == 3 for glyph, family in seen), seen
    assert ["Font Awesome 6 Free", "loaded"] in [[family.strip('"'), status] for family, status in families]
