"""Faults of a built book, found by reading its files and by opening every page in a headless browser.

`static_faults` needs nothing but the files. `Browser` drives an installed Chromium; it serves the folder on loopback
from a subfolder, as a project page is published, so a link to the server's root is caught too.

What fits depends on the letters of the machine. Every page is therefore laid out twice, in the letters that the
machine has and in much wider ones, at four widths. FPO_FONTS puts one of the families `sans`, `serif` and `mono` in the
place of the machine's own; unset or empty it changes nothing, and any other value is an error.
"""

from __future__ import annotations

import gc
import http.server
import importlib.resources
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from bs4 import BeautifulSoup

from tools import Fault, looks
from tools.serving import answering

sys.path.append(str(Path(__file__).resolve().parents[2] / "book"))
from chromium import ARGUMENTS, NO_BROWSER, find_browser  # noqa: E402, F401  those that ask for a browser find them here

EXTERNAL = "external request"
CONSOLE = "console error"
MATH = "unrendered math"
LINK = "broken link"
ANCHOR = "broken anchor"
MISSING = "missing file"
ALT = "no alt text"
CONTRAST = "contrast"
ACCESS = "accessibility"
OVERFLOW = "horizontal scroll"
ORPHAN = "orphan page"
ERROR = "error output"


# ---------------------------------------------------------------------------------------------------------------------
# What the files themselves say
# ---------------------------------------------------------------------------------------------------------------------

# Attributes that make a browser fetch something as the page loads (links are followed only by a reader).
FETCHED = {
    ("audio", "src"), ("embed", "src"), ("iframe", "src"), ("image", "href"), ("image", "xlink:href"), ("img", "src"),
    ("input", "src"), ("object", "data"), ("script", "src"), ("source", "src"), ("track", "src"), ("use", "href"),
    ("use", "xlink:href"), ("video", "poster"), ("video", "src"),
}  # fmt: skip
# Relations of <link> that cost a request or open a connection.
FETCHED_RELATIONS = {
    "apple-touch-icon", "dns-prefetch", "icon", "manifest", "modulepreload", "preconnect", "prefetch", "preload",
    "stylesheet",
}  # fmt: skip
# Pages that a theme offers through its own buttons and that the table of contents need not name.
UNLISTED = {"404.html", "genindex.html", "py-modindex.html", "search.html"}
VOID = set("area base br col embed hr img input link meta source track wbr".split())
A_FILE_NAME = re.compile(r"\S+\.(png|jpe?g|gif|svg|webp|pdf)", re.IGNORECASE)


@dataclass
class Page:
    """What one HTML file refers to, offers and shows."""

    path: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)  # a reader can follow them
    fetches: list[str] = field(default_factory=list)  # the browser does
    declared: list[str] = field(default_factory=list)  # <link rel="next"> and the like: neither, yet they must exist
    unnamed: list[str] = field(default_factory=list)  # pictures without alternative text
    errors: list[str] = field(default_factory=list)
    redirects: bool = False


class _Reader(HTMLParser):
    """Fills a Page. HTMLParser does not balance tags, so the stack forgives unclosed ones."""

    def __init__(self, path: str):
        super().__init__(convert_charrefs=True)
        self.page = Page(path)
        self.base = ""
        self.stack: list[tuple[str, dict[str, str]]] = []
        self.svgs: list[dict] = []  # open <svg> elements, outermost first

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        page = self.page
        for name in ("id", "name") if tag == "a" else ("id",):
            if given.get(name):
                page.ids.add(given[name])
        if tag == "base":
            self.base = given.get("href", "")
        self._references(tag, given)
        self._pictures(tag, given)
        classes = set(given.get("class", "").split())
        if {"output", "traceback"} <= classes:
            page.errors.append("a cell shows a traceback")
        elif classes & {"system-message", "problematic"}:
            page.errors.append("a message of the renderer shows")
        if tag not in VOID:
            self.stack.append((tag, given))

    def handle_endtag(self, tag):
        if tag not in {name for name, _ in self.stack}:
            return
        while self.stack:
            name, _ = self.stack.pop()
            if name == "svg" and self.svgs:
                self._close_svg(self.svgs.pop())
            if name == tag:
                break

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] == "title" and self.svgs and data.strip():
            self.svgs[-1]["title"] = True

    def _references(self, tag, given):
        page, where = self.page, lambda url: urljoin(self.base, url.strip()) if self.base else url.strip()
        if tag in ("a", "area") and "href" in given:
            page.links.append(where(given["href"]))
        elif tag == "link" and given.get("href"):
            fetched = set(given.get("rel", "").lower().split()) & FETCHED_RELATIONS
            (page.fetches if fetched else page.declared).append(where(given["href"]))
        elif tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            target = re.search(r"url\s*=\s*['\"]?([^'\"]+)", given.get("content", ""), re.IGNORECASE)
            if target:
                page.redirects = True
                page.links.append(where(target[1]))
        page.fetches += [where(url) for name, url in given.items() if url and (tag, name) in FETCHED]
        if tag in ("img", "source") and not given.get("srcset", "").lstrip().startswith("data:"):
            page.fetches += [where(part.split()[0]) for part in given.get("srcset", "").split(",") if part.strip()]

    def _pictures(self, tag, given):
        above = [*self.stack, (tag, given)]
        hidden = any(attrs.get("aria-hidden") == "true" for _, attrs in above)
        if hidden or given.get("role") in ("none", "presentation"):
            if tag == "svg":
                self.svgs.append({"figure": False, "title": True})
            return
        named = (given.get("aria-label") or given.get("aria-labelledby") or given.get("alt", "")).strip()
        source = given.get("src") or given.get("data", "")
        if tag == "img":
            # Without an alt text the renderers write the file's name there, which tells a listener nothing.
            if not named or A_FILE_NAME.fullmatch(named):
                self.page.unnamed.append(f"<img src={source[:80]!r}>")
        elif tag == "object" and given.get("type", "").startswith("image/") and not named:
            self.page.unnamed.append(f"<object data={source[:80]!r}>")
        elif tag == "svg":
            figure = any(name == "figure" for name, _ in self.stack) or given.get("role") == "img"
            self.svgs.append({"figure": figure and not self.svgs, "title": bool(named), "id": given.get("id", "")})

    def _close_svg(self, svg):
        if svg["figure"] and not svg["title"]:
            self.page.unnamed.append(f"<svg id={svg['id']!r}>")


def read_page(folder: Path, path: str) -> Page:
    """Parse one page of the book."""
    reader = _Reader(path)
    reader.feed((folder / path).read_text(encoding="utf-8"))
    reader.close()
    return reader.page


@cache
def parsed(folder: Path, path: str) -> BeautifulSoup:
    """A page of a built book as a tree, which many tests read and none may change."""
    tree = BeautifulSoup((folder / path).read_text(encoding="utf-8"), "html.parser")
    gc.freeze()  # it stays, and has so many parts that whoever collects garbage would walk them for a second
    return tree


def page_paths(folder: Path) -> list[str]:
    """Every page of the book; the theme keeps templates of its own under _static, which nobody opens."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*.html")))
    return [path.as_posix() for path in paths if path.parts[0] != "_static"]


def is_external(url: str) -> bool:
    """Whether the address names a host (or starts with //), as opposed to a file of the book."""
    parts = urlsplit(url)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ws", "wss")


def static_faults(folder: str | Path, first: str = "index.html") -> list[Fault]:
    """Broken links, anchors and files, pictures without alternative text, error outputs and orphan pages."""
    folder = Path(folder).resolve()
    pages = {path: read_page(folder, path) for path in page_paths(folder)}
    if not pages:
        raise ValueError(f"no page in {folder}")
    found: set[Fault] = set()
    leads_to: dict[str, set[str]] = {path: set() for path in pages}

    def resolve(page: Page, url: str) -> str | None:
        """The path below the folder that a relative address names; None where it leaves the folder."""
        target = unquote(urlsplit(url).path)
        if target.startswith("/"):
            return None
        place = Path(os.path.normpath(folder / Path(page.path).parent / target)) if target else folder / page.path
        if place.is_dir():
            place /= "index.html"
        return place.relative_to(folder).as_posix() if place.is_relative_to(folder) else None

    for page in pages.values():
        found |= {Fault(page.path, ALT, what) for what in page.unnamed}
        found |= {Fault(page.path, ERROR, what) for what in page.errors}
        for url in page.fetches:
            if is_external(url):
                found.add(Fault(page.path, EXTERNAL, url))
            elif not urlsplit(url).scheme and urlsplit(url).path:
                target = resolve(page, url)
                if target is None or not (folder / target).is_file():
                    found.add(Fault(page.path, MISSING, target or url))
        for url in page.links + page.declared:
            if is_external(url) or urlsplit(url).scheme:
                continue
            target = resolve(page, url)
            if target is None or not (folder / target).is_file():
                found.add(Fault(page.path, LINK, url))
                continue
            leads_to[page.path] |= {target} if url in page.links else set()
            anchor = unquote(urlsplit(url).fragment)
            # The empty fragment and #top mean the top of any page.
            if anchor and anchor != "top" and target in pages and anchor not in pages[target].ids:
                found.add(Fault(page.path, ANCHOR, url))

    reached, ahead = set(), [first]
    while ahead:
        path = ahead.pop()
        if path not in reached:
            reached.add(path)
            ahead += leads_to.get(path, ())
    found |= {Fault(path, ORPHAN, f"no link leads here from {first}") for path in set(pages) - reached - UNLISTED}
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------------------
# What a browser sees
# ---------------------------------------------------------------------------------------------------------------------

PREFIX = "/book/"
WIDTHS = (1280, 768, 390, 320)  # pixels: a desktop, a tablet, a phone, and the least that WCAG asks for
DESKTOP, _, PHONE, _ = WIDTHS
HEIGHT = 900
# All rules of WCAG 2 to level AA of whatever was not yet seen at another width or in the other theme. Boxes that scroll
# are asked for apart, at the least width, and so is the contrast, of one text out of all that look alike.
AXE_ALL = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    "rules": {"scrollable-region-focusable": {"enabled": False}, "color-contrast": {"enabled": False}},
    "fresh": True,
}
AXE_SCROLLING = {"runOnly": {"type": "rule", "values": ["scrollable-region-focusable"]}}
# Rules whose verdict hangs on the colours, of every look that was not yet met.
COLOUR_RULES = {"color-contrast", "link-in-text-block"}
AXE_COLOURS = {"runOnly": {"type": "rule", "values": sorted(COLOUR_RULES)}, "alike": True}
ALT_RULES = {"image-alt", "input-image-alt", "object-alt", "role-img-alt", "svg-img-alt", "area-alt"}
FAMILIES = {"": "", "sans": "sans-serif", "serif": "serif", "mono": "monospace, monospace"}
LIMIT = 180  # seconds for a page to load or its math to be set: nobody waits for it but where something hangs
REPEATS = ("Failed to load resource", "WebSocket connection to")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the book below PREFIX and nothing elsewhere, quietly."""

    protocol_version = "HTTP/1.1"  # keeps connections open: many small files
    # Not what the machine's registry says, which may be text/plain.
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".css": "text/css", ".js": "text/javascript", ".json": "application/json", ".svg": "image/svg+xml",
    }  # fmt: skip

    def translate_path(self, path):
        if not path.startswith(PREFIX):
            return os.path.join(self.directory, "\0")
        return super().translate_path("/" + path[len(PREFIX) :])

    def do_GET(self):
        if self.path == "/favicon.ico":  # browsers ask for it unbidden
            self.send_response(204)
            self.end_headers()
        elif not self.path.startswith(PREFIX):
            self.send_error(404)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A browser that hangs up in mid-answer is no news."""


@contextmanager
def served(folder: Path, handler: type[_Handler] = _Handler) -> Iterator[str]:
    """Serve a folder on a free loopback port; yields the address of the book."""

    def handle(*args):
        return handler(*args, directory=str(folder))

    server = _Server(("127.0.0.1", 0), handle)
    with answering(server):
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"


# The theme reads both keys before the first paint, and its button sets both attributes.
REMEMBER_THEME = "localStorage.setItem('mode', 'light'); localStorage.setItem('theme', 'light');"
SET_THEME = "theme => Object.assign(document.documentElement.dataset, {mode: theme, theme})"
# Colours are measured at once, so none may still be fading; the theme's page also scrolls smoothly. The wide letters
# are those of WCAG's text spacing (1.4.12) in the widest family that every machine has; formulas grow with them.
# The family is named twice since browsers shrink the letters of one that is `monospace` alone.
STYLE = """
*, *::before, *::after {{ transition: none !important; animation: none !important; }}
body *:not([class*="fa-"], svg *) {{ {letters} }}
[data-letters=wide] body *:not([class*="fa-"], svg *) {{ font-family: monospace, monospace !important;
  letter-spacing: 0.12em !important; word-spacing: 0.16em !important; line-height: 1.5 !important; }}
[data-letters=wide] mjx-container > svg {{ font-size: 130% !important; }}
"""
SET_LETTERS = "letters => { document.documentElement.dataset.letters = letters; }"

# What is folded away is read too, once a reader opens it.
UNFOLD = "() => document.querySelectorAll('main details').forEach(fold => fold.open = true)"

# axe weighs one by one the thousands of strokes that MathJax draws and the thousands of coloured words in program text.
# Neither is needed: the drawings keep their boxes, empty, and of the words that the same styles apply to only the first
# stays (the rest becomes plain text).
THIN_OUT = """
() => {
  for (const drawing of document.querySelectorAll("mjx-container > svg")) drawing.replaceChildren();
  const seen = new Set();
  for (const word of document.querySelectorAll(".highlight pre span:not([id]):not([style])")) {
    if (word.children.length) continue;
    let key = "";
    for (let node = word; node; node = node.parentElement) key += "/" + node.tagName + " " + node.className;
    if (seen.has(key)) word.replaceWith(word.textContent);
    seen.add(key);
  }
}
"""
# MathJax's copies for screen readers are clipped to a point, yet axe counts them as things that could be scrolled to.
REMOVE_COPIES = "() => document.querySelectorAll('mjx-assistive-mml').forEach(copy => copy.remove())"

AWAIT_MATH = """
async seconds => {
  const tooLong = new Promise(done => setTimeout(() => done("MathJax did not finish"), seconds * 1000));
  await document.fonts.ready;
  if (!window.MathJax || !window.MathJax.startup || !window.MathJax.startup.promise) return null;
  return await Promise.race([window.MathJax.startup.promise.then(() => null, error => String(error)), tooLong]);
}
"""

FIND_RAW_MATH = r"""
() => {
  const faults = new Set();
  const short = text => text.replace(/\s+/g, " ").trim().slice(0, 120);
  for (const node of document.querySelectorAll("[data-mjx-error]"))
    faults.add(node.getAttribute("data-mjx-error"));
  // The assistive copy repeats each error; the picture alone is enough where both are there.
  if (!faults.size)
    for (const node of document.querySelectorAll("mjx-merror, merror, [data-mml-node=merror]"))
      faults.add(short(node.textContent) || "a formula with an error");
  // MathJax's noundefined package prints an unknown macro in red instead of failing.
  for (const node of document.querySelectorAll('mjx-container mtext[mathcolor="red"]'))
    faults.add("undefined macro " + short(node.textContent));
  for (const node of document.querySelectorAll("span.math, div.math"))
    if (!node.querySelector("mjx-container") && !node.closest("mjx-container, .output pre"))
      faults.add(short(node.textContent));
  const raw = /\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\\begin\{[a-z]+\*?\}|\$(?=\S)[^$]*\\[a-zA-Z]+[^$]*\$/s;
  const skipped = "script, style, noscript, textarea, template, pre, code, kbd, samp, mjx-container, .math, title";
  const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const found = walker.currentNode.data.match(raw);
    if (found && !walker.currentNode.parentElement.closest(skipped)) faults.add(short(found[0]));
  }
  return [...faults];
}
"""

# Wide things that scroll inside a box of their own are fine; the page itself must not move sideways.
FIND_OVERFLOW = """
() => {
  const root = document.scrollingElement, width = root.clientWidth;
  if (root.scrollWidth <= width) return null;
  const scrolls = node => node && node !== root && node !== document.body &&
    (getComputedStyle(node).overflowX !== "visible" || scrolls(node.parentElement));
  const wide = node => node.getBoundingClientRect().right > width + 1 && !scrolls(node.parentElement) &&
    getComputedStyle(node).visibility === "visible" && getComputedStyle(node).position !== "fixed";
  const innermost = [...document.body.querySelectorAll("*")].filter(
    node => wide(node) && ![...node.children].some(wide));
  const name = node => node.tagName.toLowerCase() + [...node.classList].map(value => "." + value).join("") +
    " " + JSON.stringify(node.textContent.replace(/\\s+/g, " ").trim().slice(0, 60));
  return `${root.scrollWidth} px wide at ${width} px: ${innermost.slice(0, 5).map(name).join(", ")}`;
}
"""

# Asked of every box that may scroll, whether or not it does with the letters of this machine.
FIND_UNREACHABLE = """
() => {
  const seen = node => node.checkVisibility({visibilityProperty: true});
  const faults = new Set();
  for (const box of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(box);
    if (!/auto|scroll/.test(style.overflowX + style.overflowY) || !seen(box)) continue;
    const shown = box.cloneNode().outerHTML.slice(0, 160);
    if (box.tabIndex < 0 && ![...box.querySelectorAll("*")].some(node => node.tabIndex >= 0 && seen(node)))
      faults.add("may scroll and takes no focus: " + shown);
    else if (box.hasAttribute("tabindex") && box.tabIndex >= 0 && !(box.role && (box.ariaLabel || box.title)))
      faults.add("takes the focus without a role and a name: " + shown);
  }
  return [...faults];
}
"""

RUN_AXE = """
async ([only, passed]) => {
  const known = window.axeKnown ??= {nodes: new WeakSet(), looks: new Set()};
  const seen = node => node.checkVisibility({visibilityProperty: true});
  // What a width or a theme shows that none showed before; of the first the whole page, with what it says as a whole.
  const fresh = () => {
    const first = !known.nodes.has(document.body);
    const nodes = new Set([document.body, ...document.body.querySelectorAll("*")].filter(
      node => !known.nodes.has(node) && seen(node)));
    nodes.forEach(node => known.nodes.add(node));
    return first ? document : {include: [...nodes].filter(node => !nodes.has(node.parentElement))};
  };
  // Of the texts whose own and whose ancestors' looks are the same the first stands for all, on later pages too where
  // it passed. Of a text's size and weight all that counts is whether it is large.
  const looks = new Map(), chosen = new Map(), before = new Set(passed);
  const look = node => {
    if (!node) return "";
    if (!looks.has(node)) {
      const style = getComputedStyle(node);
      looks.set(node, digest([look(node.parentElement), style.color, style.backgroundColor, style.backgroundImage,
        style.opacity, style.textShadow, style.textDecorationLine].join()));
    }
    return looks.get(node);
  };
  const digest = text => {
    let [a, b] = [1, 2];
    for (let i = 0; i < text.length; i++) {
      a = Math.imul(a ^ text.charCodeAt(i), 2654435761);
      b = Math.imul(b ^ text.charCodeAt(i), 1597334677);
    }
    return `${a}/${b}`;
  };
  const alike = () => {
    for (const node of document.body.querySelectorAll("*")) {
      if (![...node.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim())) continue;
      const alone = node.textContent.trim() === node.parentElement.textContent.trim();  // a link in no text
      const {fontSize, fontWeight} = getComputedStyle(node);
      const large = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
      const key = [look(node), large, node.tagName === "A" && alone].join();
      if (known.looks.has(key) || before.has(key) || !seen(node)) continue;
      known.looks.add(key);
      chosen.set(node, key);
    }
    return {include: [...chosen.keys()]};
  };
  const context = only.alike ? alike() : only.fresh ? fresh() : document;
  if (context.include && !context.include.length) return [[], []];
  // Preloading would fetch every style sheet once more, for rules that are not asked for.
  const results = await axe.run(context, {runOnly: only.runOnly, rules: only.rules || {}, preload: false,
    elementRef: true, resultTypes: ["violations", "incomplete"]});
  for (const rule of [...results.violations, ...results.incomplete])
    for (const node of rule.nodes) chosen.delete(node.element);
  return [[...chosen.values()], results.violations.flatMap(rule => rule.nodes.map(node => ({
    rule: rule.id, target: node.target.flat().join(" "), html: node.html.slice(0, 160),
    why: node.any.concat(node.all, node.none).map(check => check.message).join("; ").slice(0, 240)})))];
}
"""


class Browser:
    """One Chromium for any number of books. Use it as a context manager."""

    def __init__(self, executable: str):
        self.executable = executable
        self.idle: dict[str, list] = {}  # tabs that can be used again, by kind

    def __enter__(self) -> Browser:
        from playwright.sync_api import sync_playwright

        self._axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
        self._driver = sync_playwright().start()
        try:
            self._chromium = self._driver.chromium.launch(
                executable_path=self.executable, args=ARGUMENTS, timeout=LIMIT * 1000
            )
        except BaseException:
            self._driver.stop()
            raise
        return self

    def __exit__(self, *_):
        self._chromium.close()
        self._driver.stop()

    def faults(self, folder: str | Path) -> list[Fault]:
        """Open every page of a folder in the light and in the dark theme and list what is wrong."""
        fonts = os.environ.get("FPO_FONTS", "")
        if fonts not in FAMILIES:
            raise ValueError(f"FPO_FONTS = {fonts!r}: must be one of {', '.join(filter(None, FAMILIES))}")
        letters = f"font-family: {FAMILIES[fonts]} !important;" if fonts else ""
        folder = Path(folder).resolve()
        # A page that only forwards leaves before anything can be asked of it; its target is checked as a link.
        paths = [path for path in page_paths(folder) if not read_page(folder, path).redirects]
        found: set[Fault] = set()
        self._passed: set[str] = set()  # looks of texts that have contrast enough
        with served(folder) as address:
            context = self._chromium.new_context(reduced_motion="reduce", service_workers="block")
            context.set_default_timeout(LIMIT * 1000)
            context.add_init_script(REMEMBER_THEME)
            context.add_init_script(self._axe)  # before the page loads, so that frames have it too
            tab = context.new_page()  # one for all: each is a process of its own, which takes half a second to start
            for path in paths:
                found |= self._page_faults(tab, address, path, STYLE.format(letters=letters))
            context.close()
        return sorted(found)

    def _page_faults(self, page, address: str, path: str, style: str) -> set[Fault]:
        found: set[Fault] = set()
        under_way = set()

        def fault(kind: str, detail: str) -> None:
            found.add(Fault(path, kind, detail))

        def ours(url: str) -> bool:
            return url.startswith(address.removesuffix(PREFIX) + "/")

        def on_request(request):
            under_way.add(request)
            if is_external(request.url) and not ours(request.url):
                fault(EXTERNAL, request.url)

        def on_response(response):
            if ours(response.url) and response.status >= 400:
                fault(MISSING, unquote(urlsplit(response.url).path).removeprefix(PREFIX))

        def on_console(message):
            # A request that failed is told by its own fault; the console only repeats it.
            if message.type == "error" and not message.text.startswith(REPEATS):
                fault(CONSOLE, message.text[:300])

        heard = {
            "request": on_request,
            "requestfinished": lambda request: under_way.discard(request),
            "requestfailed": lambda request: under_way.discard(request),
            "response": on_response,
            "console": on_console,
            "pageerror": lambda error: fault(CONSOLE, str(error)[:300]),
            "websocket": lambda socket: fault(EXTERNAL, socket.url),  # ours has none
        }
        for event, handler in heard.items():
            page.on(event, handler)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
        page.goto(address + path, wait_until="load")
        page.add_style_tag(content=style)
        unfinished = page.evaluate(AWAIT_MATH, LIMIT)
        for detail in [unfinished] if unfinished else page.evaluate(FIND_RAW_MATH):
            fault(MATH, detail)
        page.evaluate(UNFOLD)
        page.evaluate(THIN_OUT)
        for width in WIDTHS:
            self._layout_faults(page, width, "given", fault)
            if width in (DESKTOP, PHONE):
                for kind, detail in page.evaluate(looks.FIND, [width == DESKTOP, *looks.KINDS]):
                    fault(kind, detail)
            for detail in page.evaluate(FIND_UNREACHABLE):
                fault(ACCESS, detail)
        for width in reversed(WIDTHS):
            self._layout_faults(page, width, "wide", fault)
        page.evaluate(REMOVE_COPIES)
        # Each step changes either the width or the theme, so that one visit serves all four.
        for theme, width in (("light", DESKTOP), ("light", PHONE), ("dark", PHONE), ("dark", DESKTOP)):
            # Switching in place is what the theme's own button does, and saves loading everything again.
            page.emulate_media(color_scheme=theme)
            page.evaluate(SET_THEME, theme)
            self._layout_faults(page, width, "given", fault)
            for rules in (AXE_ALL, AXE_COLOURS):
                self._axe_faults(page, theme, rules, fault)
        for letters in ("given", "wide"):
            self._layout_faults(page, WIDTHS[-1], letters, fault)
            self._axe_faults(page, "dark", AXE_SCROLLING, fault)
        deadline = time.monotonic() + LIMIT
        while under_way and time.monotonic() < deadline:
            page.wait_for_timeout(10)  # lets the events of what the page asked for come in
        for event, handler in heard.items():
            page.remove_listener(event, handler)
        page.goto("about:blank")  # what it still does is not told of the next one
        return found

    @staticmethod
    def _layout_faults(page, width: int, letters: str, fault) -> None:
        if page.viewport_size["width"] != width:
            page.set_viewport_size({"width": width, "height": HEIGHT})
        page.evaluate(SET_LETTERS, letters)
        if overflow := page.evaluate(FIND_OVERFLOW):
            fault(OVERFLOW, f"with {letters} letters {overflow}")

    def _axe_faults(self, page, theme: str, only: dict, fault) -> None:
        passed, violations = page.evaluate(RUN_AXE, [only, sorted(self._passed)])
        self._passed.update(passed)
        for violation in violations:
            rule = violation["rule"]
            kind = ALT if rule in ALT_RULES else CONTRAST if rule in COLOUR_RULES else ACCESS
            shown = f" in the {theme} theme at {page.viewport_size['width']} px" if only is not AXE_SCROLLING else ""
            fault(kind, f"{rule}{shown}: {violation['target']} {violation['html']} ({violation['why']})")
