"""The page checks find each fault that is planted, and none where none is."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import chromium
import pytest
from bs4 import BeautifulSoup
from tools import looks, pages

sys.path.append(str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
import fpo_pages  # noqa: E402

# As the theme does it: the stored theme is set before the first paint.
HEAD = """<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>A page</title>
<script>document.documentElement.dataset.theme = localStorage.getItem("theme") || "light";</script>
<style>body { color: #222; background: #fff } html[data-theme=dark] body { color: #ddd; background: #111 }
html[data-theme=dark] a { color: #9cf }</style>"""
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
MATH = """<script>window.MathJax = {{tex: {{packages: {packages}}}, startup: {{typeset: true}}}};</script>
<script defer src="tex-svg-full.js"></script>"""
# As wide as the formula is with the letters of this machine, whatever they are.
FITTED = """<script>
const fit = () => {
  const box = document.querySelector(".math");
  box.style.width = box.querySelector("svg").getBoundingClientRect().width + 4 + "px";
};
const pageReady = () => MathJax.startup.defaultPageReady().then(fit);
window.MathJax = {options: {enableMenu: false}, startup: {pageReady}};
</script><script defer src="tex-svg-full.js"></script>"""
STRICT = MATH.format(packages="{'[-]': ['noundefined']}")


def page(body: str = "", head: str = "") -> str:
    main = f"<main><h1>A page</h1>{body}</main>"
    return f"<!DOCTYPE html><html lang='en'><head>{HEAD}{head}</head><body>{main}</body></html>"


def write_site(folder, **files):
    """A site of two pages, without a fault but for what `files` (index, other, or a whole name) put there."""
    (folder / "dot.png").write_bytes(base64.b64decode(DOT))
    built = {
        "index": page('<p>To <a href="other.html#part">the other</a>.</p><img src="dot.png" alt="A dot">'),
        "other": page('<h2 id="part">Part</h2><p>Back to <a href="index.html">the first</a>.</p>'),
    }
    for name, text in (built | files).items():
        (folder / (name if "." in name else f"{name}.html")).write_text(text, encoding="utf-8")
    if any("tex-svg-full.js" in text for text in files.values()):
        shutil.copy(mathjax(), folder)
    return folder


def mathjax():
    """The MathJax that the book itself uses."""
    files = importlib.metadata.files("sphinx-mathjax-offline")
    return next(file.locate() for file in files if file.name == "tex-svg-full.js")


def other(body: str = "", head: str = "") -> dict[str, str]:
    """A second page with more on it."""
    return {"other": page('<h2 id="part">Part</h2><p>Text.</p>' + body, head)}


STATIC = {
    "broken link": (other('<a href="nowhere.html">text</a>'), pages.LINK),
    "link to a missing download": (other('<a href="_sources/nowhere.ipynb" download>text</a>'), pages.LINK),
    "link to the server's root": (other('<a href="/index.html">text</a>'), pages.LINK),
    "link out of the folder": (other('<a href="../index.html">text</a>'), pages.LINK),
    "forward to nowhere": (other(head='<meta http-equiv="refresh" content="0; url=nowhere.html">'), pages.LINK),
    "next page is missing": (other(head='<link rel="next" href="nowhere.html">'), pages.LINK),
    "broken anchor": (other('<a href="index.html#nothing">text</a>'), pages.ANCHOR),
    "broken anchor on the page": (other('<a href="#nothing">text</a>'), pages.ANCHOR),
    "missing image": (other('<img src="nowhere.png" alt="Nothing">'), pages.MISSING),
    "missing source set": (other('<img src="dot.png" srcset="dot.png 1x, big.png 2x" alt="Dot">'), pages.MISSING),
    "missing style": (other(head='<link rel="stylesheet" href="nowhere.css">'), pages.MISSING),
    "no alt text": (other('<img src="dot.png">'), pages.ALT),
    "empty alt text": (other('<figure><img src="dot.png" alt=" "></figure>'), pages.ALT),
    "a file name as alt text": (other('<img src="dot.png" alt="_images/dot.png">'), pages.ALT),
    "drawing without a name": (other("<figure><svg><title></title><g></g></svg></figure>"), pages.ALT),
    "drawing as an object": (other('<object type="image/png" data="dot.png"></object>'), pages.ALT),
    "external script": (other(head='<script src="https://cdn.example.org/a.js"></script>'), pages.EXTERNAL),
    "external image": (other('<img src="//cdn.example.org/a.png" alt="A" loading="lazy">'), pages.EXTERNAL),
    "external connection": (other(head='<link rel="preconnect" href="https://fonts.example.org">'), pages.EXTERNAL),
    "orphan page": ({"alone.html": page('<a href="index.html">text</a>')}, pages.ORPHAN),
    "error output": (other('<div class="output traceback highlight"><pre>ZeroDivisionError</pre></div>'), pages.ERROR),
    "message of the renderer": (other('<aside class="system-message"><p>WARNING</p></aside>'), pages.ERROR),
}

FONT = "@font-face { font-family: Far; src: url(https://fonts.example.org/far.woff2) } p { font-family: Far }"
# A line that fits the narrowest screen, and with wide letters does not. A monospace letter is 0.6 em wide on every
# machine: that makes 295 pixels with the page's margin, and then 351.
LONG = f'<code style="font: 16px monospace; white-space: nowrap">{"x" * 29}</code>'
BOX = """<div style="overflow-x: auto; white-space: nowrap; width: max-content"><code>x = 1; y = 2; z = 3</code></div>
<script>const box = document.querySelector("div"); box.style.width = box.offsetWidth + "px"</script>"""
WIDE = '<div style="width: 700px">wide</div>'
CODE = """<div class="highlight"><div class="scrolling" tabindex="0" role="group" aria-label="Code"
style="overflow-x: auto"><pre style="width: max-content">{}</pre></div></div>"""
BUTTON = '<button class="late"></button>'


def when(condition, rule, hidden=False):
    """A style that holds at some widths only."""
    return f"<style>{'.late { display: none }' if hidden else ''} @media ({condition}) {{ {rule} }}</style>"


SEEN = {
    "external script": (page(head='<script src="https://cdn.example.org/a.js"></script>'), pages.EXTERNAL),
    "external font": (page("<p>Text.</p>", '<link rel="stylesheet" href="far.css">'), pages.EXTERNAL),
    "external data": (page('<script>fetch("http://127.0.0.2:9/a").catch(() => 0)</script>'), pages.EXTERNAL),
    "external socket": (
        page('<script>new WebSocket("wss://example.org/a").onerror = () => 0</script>'),
        pages.EXTERNAL,
    ),
    "file missing on demand": (page('<script>fetch("nowhere.json")</script>'), pages.MISSING),
    "console error": (page("<script>console.error('a fault')</script>"), pages.CONSOLE),
    "script error": (page("<script>nothing.at.all</script>"), pages.CONSOLE),
    "unknown macro": (page(r"<p>\(\unknown x\)</p>", STRICT), pages.MATH),
    "unknown macro, in red": (page(r"<p>\(\unknown x\)</p>", MATH.format(packages="{}")), pages.MATH),
    "bad TeX": (page(r"<p>\[\frac{1}{\]</p>", STRICT), pages.MATH),
    "no MathJax": (page(r'<p><span class="math notranslate">x + y</span></p>'), pages.MATH),
    "raw TeX": (page(r"<p>Then $\alpha + 1$ is raw.</p>"), pages.MATH),
    "raw display": (page(r"<p>Then \[ x \] is raw.</p>"), pages.MATH),
    "no alt text": (page('<img src="dot.png">'), pages.ALT),
    "drawing without a name": (page('<svg role="img" width="20" height="20"><path d="M0 0h9v9z"/></svg>'), pages.ALT),
    "contrast": (page('<p style="color: #ccc; background: #fff">pale</p>'), pages.CONTRAST),
    "contrast in the dark": (
        page("<p class=dim>dim</p>", "<style>html[data-theme=dark] .dim { color: #333 }</style>"),
        pages.CONTRAST,
    ),
    "contrast of the system's dark": (
        page("<p class=dim>dim</p>", "<style>@media (prefers-color-scheme: dark) {.dim {color: #333}}</style>"),
        pages.CONTRAST,
    ),
    "contrast of one word of a program": (
        page(
            "<div class=highlight><pre><b>a</b> <span class=k>for</span> <span class=k>if</span></pre></div>"
            "<div class=output><div class=highlight><pre><span class=k>while</span></pre></div></div>",
            "<style>html[data-theme=dark] .output .k { color: #333 }</style>",
        ),
        pages.CONTRAST,
    ),
    "contrast on a phone": (
        page("<p class=late>pale</p>", when("width: 390px", ".late { color: #ccc }")),
        pages.CONTRAST,
    ),
    "contrast in the dark on a phone": (
        page("<p class=late>dim</p>", when("width: 390px", "html[data-theme=dark] .late { color: #333 }")),
        pages.CONTRAST,
    ),
    "contrast in the dark on a desktop": (
        page("<p class=late>dim</p>", when("width: 1280px", "html[data-theme=dark] .late { color: #333 }")),
        pages.CONTRAST,
    ),
    "contrast of a caption": (
        page('<figure><figcaption style="color: #999; font-weight: 400">pale</figcaption></figure>'),
        pages.CONTRAST,
    ),
    "caption in hairlines": (
        page('<figure><figcaption style="font-weight: 300">A <b>caption</b></figcaption></figure>'),
        looks.CAPTION,
    ),
    "title of a table in hairlines": (
        page('<table><caption><span style="font-weight: 200">A title</span></caption><tr><td>1</td></tr></table>'),
        looks.CAPTION,
    ),
    "clipped code": (page(CODE.format("long " * 100)), looks.CLIPPED),
    "clipped print": (
        page(f'<div class="cell_output">{CODE.format("long " * 100)}</div>'),
        looks.CLIPPED,
    ),
    "clipped code once it is unfolded": (
        page(f"<details><summary>code</summary>{CODE.format('long ' * 100)}</details>"),
        looks.CLIPPED,
    ),
    "image wider than its column": (
        page('<div style="width: 200px"><a href="#"><img src="dot.png" alt="A dot" width="260" height="9"></a></div>'),
        looks.IMAGE,
    ),
    "drawing wider than its column's column": (
        page(
            '<div style="padding: 0 99px; width: 9px"><div style="width: 90px">'
            '<svg role="img" aria-label="A drawing" width="80" height="9"></svg></div></div>'
        ),
        looks.IMAGE,
    ),
    "image wider than its column on a phone": (
        page('<div style="width: 50vw"><img src="dot.png" alt="A dot" width="240" height="9"></div>'),
        looks.IMAGE,
    ),
    "formula out of reach": (
        page(r'<div class="math" style="overflow: hidden; width: 60px">\[a + b + c + d + e\]</div>', STRICT),
        looks.FORMULA,
    ),
    "target too small for a finger": (
        page('<article><button style="height: 44px">A</button> <button style="height: 40px">B</button></article>'),
        looks.TARGET,
    ),
    "box too small for a finger": (
        page('<article><label style="display: block; height: 40px"><input type="checkbox"> Small</label></article>'),
        looks.TARGET,
    ),
    "link without a name": (page('<a href="index.html"></a>'), pages.ACCESS),
    "button without a name": (page("<button></button>"), pages.ACCESS),
    "button without a name on a phone": (
        page(BUTTON, when("width: 390px", ".late { display: inline }", hidden=True)),
        pages.ACCESS,
    ),
    "button without a name in the dark": (
        page(BUTTON, "<style>html:not([data-theme=dark]) .late { display: none }</style>"),
        pages.ACCESS,
    ),
    "field without a label": (page('<input type="text">'), pages.ACCESS),
    "page without a language": (page().replace("<html lang='en'>", "<html>"), pages.ACCESS),
    "bad aria": (page('<div role="button" aria-pressed="perhaps" tabindex="0">text</div>'), pages.ACCESS),
    "scrolls for a mouse only": (
        page('<pre style="overflow-x: auto; width: 200px">' + "long " * 100 + "</pre>"),
        pages.ACCESS,
    ),
    "scrolls once it is unfolded": (
        page("<details><summary>code</summary><pre style='overflow: auto'>" + "long " * 100 + "</pre></details>"),
        pages.ACCESS,
    ),
    "scrolls with wide letters only": (page(BOX), pages.ACCESS),
    "formula in a proposition that scrolls with wide letters only": (
        page(
            r'<div class="proof"><section><div class="math" style="overflow: auto hidden">\[a + b + c + d + e\]</div>',
            FITTED,
        ),
        pages.ACCESS,
    ),
    "takes the focus without a name": (
        page('<div style="overflow: auto" tabindex="0" role="group">text</div>'),
        pages.ACCESS,
    ),
    "takes the focus without a role": (
        page('<div style="overflow: auto" tabindex="0" title="Text">text</div>'),
        pages.ACCESS,
    ),
    "too wide for a phone": (page(WIDE), pages.OVERFLOW),
    "too wide at 390 px": (
        page('<div class="late">wide</div>', when("width: 390px", ".late { width: 400px }")),
        pages.OVERFLOW,
    ),
    "too wide in the dark at 390 px": (
        page('<div class="late">wide</div>', when("width: 390px", "html[data-theme=dark] .late { width: 400px }")),
        pages.OVERFLOW,
    ),
    "too wide with wide letters only": (page(LONG), pages.OVERFLOW),
}


@pytest.mark.parametrize(("files", "kind"), STATIC.values(), ids=STATIC)
def test_planted_in_the_files(tmp_path, files, kind):
    found = pages.static_faults(write_site(tmp_path, **files))
    assert {fault.kind for fault in found} == {kind}, found
    assert {fault.where for fault in found} == {"alone.html" if kind == pages.ORPHAN else "other.html"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory, browser):
    """What the browser finds on one site with a page for each fault: much quicker than a site for each."""
    folder = write_site(tmp_path_factory.mktemp("seen"))
    shutil.copy(mathjax(), folder)
    (folder / "far.css").write_text(FONT)
    for number, (text, _) in enumerate(SEEN.values()):
        (folder / f"{number}.html").write_text(text, encoding="utf-8")
    return browser.faults(folder)


@pytest.mark.parametrize(("number", "kind"), list(enumerate(kind for _, kind in SEEN.values())), ids=SEEN)
def test_planted_in_the_browser(seen, number, kind):
    found = [fault for fault in seen if fault.where == f"{number}.html"]
    assert {fault.kind for fault in found} == {kind}, found


@pytest.mark.parametrize("name", [name for name in SEEN if name.endswith("with wide letters only")])
def test_wide_letters_are_wide(seen, name):
    """What fits in the letters of this machine is found by being laid out, not only by being able to scroll."""
    found = " ".join(fault.detail for fault in seen if fault.where == f"{list(SEEN).index(name)}.html")
    assert "scrollable-region-focusable" in found or "with wide letters" in found
    assert "with given letters" not in found


def test_not_planted_in_the_browser(seen):
    assert not [fault for fault in seen if fault.where in ("index.html", "other.html")]


def test_nothing_planted_nothing_found(tmp_path, browser):
    """Everything here resembles a fault and is none."""
    body = (
        r"""
    <p><a href="https://example.org/">A link out</a>, <a href="mailto:a@example.org">a letter</a>,
    <a href="#">the top</a>,
    <a href="index.html?q=1#top">the first page</a>, <a href="a%20b.html#%C3%A9">a name with a blank</a>, $5 and $6,
    <code>\(x\)</code>.</p>
    <p>\(\frac{1}{2}\) and <span class="math notranslate">\(x^2\)</span></p><div class="math notranslate">\[y\]</div>
    <figure><svg role="img" aria-label="A drawing" width="9" height="9"><path d="M0 0h9v9z"/></svg></figure>
    <figure><svg role="img" width="9" height="9"><title>A drawing</title><path d="M0 0h9v9z"/></svg></figure>
    <span aria-hidden="true"><img src="dot.png" alt=""></span><svg width="9" height="9"><path d="M0 0h9v9z"/></svg>
    <img src="data:image/png;base64,DOT" alt="A dot">
    CODE <div class="cell_output">OUTPUT</div>
    <div style="width: 90px"><figure style="margin: 0"><img src="dot.png" alt="A dot" width="90" height="9">
    <figcaption>A caption</figcaption></figure></div>
    <div style="overflow-x: auto; width: 90px" tabindex="0" role="group" aria-label="Wide picture">
    <img src="dot.png" alt="A dot" width="900" height="9"></div>
    <div class="math" style="overflow: auto hidden; width: 60px" tabindex="0" role="group" aria-label="Equation">
    \[a + b + c + d + e\]</div>
    <pre tabindex="0" role="group" aria-label="Code" style="overflow-x: auto">LONG</pre>
    <div style="overflow-x: auto" tabindex="0" role="group" aria-label="Table">
    <table style="width: 900px"><tr><td>wide</td></tr></table></div>
    <script>console.log("no error"); console.warn("none either")</script>""".replace("DOT", DOT)
        .replace("LONG", "long " * 100)
        .replace("CODE", CODE.format("x" * 76))
        .replace("OUTPUT", CODE.format("y" * 76))
    )
    head = STRICT + '<link rel="canonical" href="https://example.org/other.html">'
    write_site(tmp_path, **other(body, head), **{"a b.html": page('<p id="é">text</p>'), "genindex": page()})
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "macros.html").write_text('{% macro a() %}<img src="{{ b }}">{% endmacro %}')
    assert pages.static_faults(tmp_path) == []
    assert browser.faults(tmp_path) == []


def test_every_page_is_opened(tmp_path, browser):
    """Faults on different pages, one in a subfolder, are all reported, each with its page."""
    broken = page("<script>console.error('a fault')</script>")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.html").write_text(broken)
    write_site(tmp_path, index=broken)
    found = browser.faults(tmp_path)
    assert [(fault.where, fault.kind) for fault in found] == [
        ("index.html", pages.CONSOLE),
        ("sub/deep.html", pages.CONSOLE),
    ]


def test_fonts_of_another_machine(tmp_path, browser, monkeypatch):
    """FPO_FONTS puts other letters in the place of the given ones: an i in the one family is half as wide."""
    write_site(tmp_path, index=page('<p style="font: 16px serif; white-space: nowrap">' + "i" * 40 + "</p>"))
    (tmp_path / "other.html").unlink()
    monkeypatch.setenv("FPO_FONTS", "mono")
    assert "with given letters" in " ".join(fault.detail for fault in browser.faults(tmp_path))
    monkeypatch.setenv("FPO_FONTS", "")
    assert "with given letters" not in " ".join(fault.detail for fault in browser.faults(tmp_path))
    monkeypatch.setenv("FPO_FONTS", "comic")
    with pytest.raises(ValueError, match="FPO_FONTS = 'comic': must be one of sans, serif, mono"):
        browser.faults(tmp_path)


def test_mended_boxes_take_the_focus():
    """Whatever the theme lets scroll stands in a box with a role and a name, wherever it is."""
    soup = BeautifulSoup(
        r"""<article><h2>Part</h2><div class="proof"><section><div class="math">\[x\]<span class="eqno">(1.2)#</span>
        </div></section></div><details><div class="highlight"><pre>code</pre></div></details>
        <div class="cell_output"><div class="output"><pre>text</pre><table><tr><td><pre>cell</pre></td></tr></table>
        </div></div></article>""",
        "html.parser",
    )
    fpo_pages.mend(soup)
    boxes = soup.select("[tabindex='0']")
    assert [box["aria-label"] for box in boxes] == ["Equation (1.2)", "Code", "Output", "Table: Part"]
    assert {box["role"] for box in boxes} == {"group"}
    assert all(text.find_parent(class_="scrolling") for text in soup.select("pre, table"))


def test_an_empty_folder_is_no_book(tmp_path):
    with pytest.raises(ValueError, match="no page"):
        pages.static_faults(tmp_path)


def test_find_browser(monkeypatch, tmp_path):
    """CHROMIUM decides alone; a wrong path there is no browser, not another one."""
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    assert pages.find_browser() is None
    ending = ".exe" if os.name == "nt" else ""
    chosen = tmp_path / f"mine{ending}"
    chosen.write_text("#!/bin/sh\n")
    chosen.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(chosen))
    assert pages.find_browser() == str(chosen)
    monkeypatch.delenv("CHROMIUM")
    chosen = chosen.rename(tmp_path / f"google-chrome-stable{ending}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pages.find_browser() == str(chosen)


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        ("Applications", "Google Chrome.app/Contents/MacOS/Google Chrome"),
        ("Program Files", "Google/Chrome/Application/chrome.exe"),
        ("Program Files (x86)", "Microsoft/Edge/Application/msedge.exe"),
    ],
)
def test_find_browser_where_none_is_on_the_path(monkeypatch, tmp_path, folder, place):
    """macOS and Windows keep applications in folders of their own, all with blanks in their names."""
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(chromium, "FOLDERS", chromium.FOLDERS[1:])  # not /Applications of this machine
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PROGRAMFILES", str(tmp_path / "Program Files"))
    monkeypatch.setenv("PROGRAMFILES(X86)", str(tmp_path / "Program Files (x86)"))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    browser = tmp_path / folder / place
    browser.parent.mkdir(parents=True)
    browser.touch()
    assert Path(pages.find_browser()) == browser
