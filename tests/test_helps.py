"""Helps for readers: explanations beside words, search, tables, titles, the way through the book, a lost address."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from sphinx_external_toc.parsing import parse_toc_yaml
from tools import pages, sphinx_book

import fpo_helps  # isort: skip  # on the path since sphinx_book
import fpo_search  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS = ["myst_nb", "sphinx_external_toc", "fpo_book", "fpo_claims", "fpo_pages", "fpo_helps", "fpo_search"]


def reading_order():
    """Addresses of the book's pages."""
    return [f"{page}.html" for page in parse_toc_yaml(ROOT / "_toc.yml")]


@pytest.fixture(scope="module")
def site(built_book):
    """All pages, parsed once."""
    return {path: pages.parsed(built_book, path) for path in reading_order()}


# A tiny book


GLOSSARY = """# Glossary

```{glossary}
oracle
  Whatever answers with $U$, as in {eq}`far`.

base
  The model that the policy starts from.

true utility
  What people want.
```
"""
NOTATION = """# Notation

(notation-index)=
## Here

As elsewhere: $d$.

| Symbol | Meaning | Code |
| --- | --- | --- |
| $y$, $\\kappa$ | action; sharpness | `y` |
| $U(y)$ | utility, {eq}`far` | `U` |
| $U_{\\max}$ | its height | `top` |

(notation-other)=
## Elsewhere

| Symbol | Meaning | Code |
| --- | --- | --- |
| $d$ | length | `d` |
| $e$ | not of this page | `e` |

$$
x = 1
$$ (far)
"""


@pytest.fixture
def book(tmp_path):
    made = sphinx_book.Book(tmp_path)
    (made.source / "book").mkdir()
    (made.source / "book" / "glossary.md").write_text(GLOSSARY, encoding="utf8")
    (made.source / "book" / "notation.md").write_text(NOTATION, encoding="utf8")
    chapters = "".join(f"- file: {name}\n" for name in ("notebooks/tiny", "book/glossary", "book/notation"))
    (made.source / "_toc.yml").write_text(f"format: jb-book\nroot: index\nchapters:\n{chapters}")
    return made


def explained(page):
    """What is explained, with the text that explains it."""
    found = []
    for place in page.select(".helped"):
        text = page.find(id=place["data-help"])
        found.append((place.get_text(strip=True), text.get_text(" ", strip=True)))
    return found


def test_a_term_is_explained_where_it_first_stands_and_where_it_is_meant(book):
    text = (
        "The True\nutility is what an oracle, `oracle` or oracles know, a base and the {term}`base`.\n\n## An oracle\n"
    )
    page, warnings = book.build(text, extensions=EXTENSIONS)
    assert not warnings
    words = explained(page)
    assert [re.sub(r"\s+", " ", word) for word, _ in words] == ["True utility", "oracle", "base"]
    assert [text for _, text in words][0] == "What people want."
    assert words[1][1].startswith("Whatever answers with") and "as in" in words[1][1]
    for link in page.select(".helped > a"):
        assert link["href"].startswith("book/glossary.html#term-")
    assert page.select_one(".help-texts").has_attr("hidden")
    assert not book.page("book/glossary").select(".helped a[href^='#term-']"), "the glossary does not explain itself"


def test_an_equation_shows_itself_from_another_page(book):
    page, warnings = book.build("See {eq}`far` and {eq}`near`.\n\n$$\nz = 2\n$$ (near)\n", extensions=EXTENSIONS)
    assert not warnings
    (_, far), (_, near) = explained(page)
    assert "x = 1" in far and "z = 2" in near
    assert page.select_one(".help-text .eqno") is None
    assert [place["data-help"] for place in page.select(".helped")] == ["help-equation-far", "equation-near"]


def test_a_symbol_is_explained_where_it_first_stands(book):
    page, warnings = book.build(
        "$a_y$, $U(y) = U_{\\max} e$, then $y$, $y$ and $d$.\n\n| $\\kappa$ |\n| --- |\n| $\\kappa$ |\n\n[$\\kappa$](https://example.org)\n",
        extensions=EXTENSIONS,
    )
    assert not warnings
    places = page.select(".helped.symbol")
    assert [place["aria-label"] for place in places] == ["Meaning of U(y), U_max", "Meaning of y", "Meaning of d"]
    texts = [page.find(id=place["data-help"]).get_text(" ", strip=True) for place in places]
    assert "utility" in texts[0] and "its height" in texts[0]
    assert "action; sharpness" in texts[1] and texts[2].endswith("length")
    for place in places:
        assert place["tabindex"] == "0" and place["role"] == "group" and page.find(id=place["aria-describedby"])


def test_a_formula_in_lines_of_its_own_explains_the_symbols_that_stand_there_first(book):
    text = "$y$ is $d$ long.\n\n$$\nU(y) = U_{\\max} d\n$$ (here)\n\nThen $U_{\\max}$, $\\kappa$ and {eq}`here`.\n"
    page, warnings = book.build(text, extensions=EXTENSIONS)
    assert not warnings
    places = page.select(".helped.symbol")
    names = ["Meaning of y", "Meaning of d", "Meaning of U(y), U_max", "Meaning of kappa"]
    assert [place["aria-label"].replace("κ", "kappa") for place in places] == names
    assert [place.name for place in places] == ["span", "span", "div", "span"]
    assert places[2].select_one("div.math") and page.select_one("a[href='#equation-here']")
    ids = [each["id"] for each in page.select("[id]")]
    assert len(ids) == len(set(ids)) and not places[2].get("id")
    assert "its height" in page.find(id=places[2]["data-help"]).get_text()


def test_columns_of_numbers_and_wide_tables_are_marked(book):
    page, _ = book.build(
        "| arm | end | share |\n| --- | --- | --- |\n| a | 1.2 (−3 to 4) | 5 % |\n| b | not available | many |\n\n"
        "|a|b|c|d|e|f|\n|---|---|---|---|---|---|\n|a|b|c|d|e|f|\n",
        extensions=EXTENSIONS,
    )
    first, second = page.select("table")
    assert [cell.get_text(strip=True) for cell in first.select(".number")] == ["end", "1.2 (−3 to 4)", "not available"]
    assert "wide" not in first["class"] and "wide" in second["class"]


@pytest.mark.parametrize(("end", "links"), [("What to take away", 1), ("The end", 0)])
def test_a_card_leads_to_what_to_take_away_where_there_is_something(book, end, links):
    text = f":::{{container}} summary-card\nA question.\n:::\n\n## {end}\n\nText.\n"
    page, _ = book.build(text, extensions=EXTENSIONS)
    assert len(page.select(".summary-card .take-away a[href='#what-to-take-away']")) == links


# The book itself


def test_every_chapter_explains_its_terms_symbols_and_equations(site):
    chapters = [path for path in site if path.startswith("notebooks/")]
    for path in chapters:
        page = site[path]
        assert page.select(".helped a[href*='glossary.html#term-']"), path
        assert page.select(".helped.symbol"), f"{path}: book/notation.md has no section for it"
        texts = {each["id"]: each for each in page.select("[id]")}
        for place in page.select(".helped"):
            assert texts[place["data-help"]].get_text(strip=True), (path, str(place)[:200])
        links = page.select("article a[href*='#equation-']:not(.headerlink)")
        assert all(link.find_parent(class_="helped") for link in links if not link.find_parent(class_="help-texts")), (
            path
        )


def test_a_card_leads_to_what_to_take_away(site):
    for path, page in site.items():
        links = page.select(".summary-card .take-away a")
        assert len(links) == path.startswith("notebooks/"), path
        for link in links:
            head = page.find(id=link["href"][1:]).find("h2")
            assert head.get_text().rstrip("#").endswith(fpo_helps.TAKE_AWAY) and head.find_next_sibling("ul"), path


def chain(site, first):
    """Pages in the order in which `next` leads through them, and back by `previous`."""
    forward, path = [], first
    while path and path not in forward:
        forward.append(path)
        path = step(site, path, "a.right-next")
    back, path = [], forward[-1]
    while path and path not in back:
        back.append(path)
        path = step(site, path, "a.left-prev")
    return forward, back


def step(site, path, kind):
    link = site[path].select_one(kind)
    if link is None:
        return None
    return (Path(path).parent / link["href"]).as_posix() if "/" not in link["href"] else normal(path, link["href"])


def normal(path, link):
    parts = [*Path(path).parent.parts]
    for part in link.split("/"):
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def test_previous_and_next_follow_the_reading_order(site):
    order = reading_order()
    assert chain(site, order[0]) == (order, order[::-1])


def test_a_break_in_the_way_is_seen(site):
    order = reading_order()
    broken = dict(site)
    broken[order[1]] = BeautifulSoup("<a class='right-next' href='../book/index.html'></a>", "html.parser")
    forward, back = chain(broken, order[0])
    assert forward == order[:2] and back == order[1:2]


# Search


def read_sections(folder):
    text = (folder / "_static" / fpo_search.FILE).read_text(encoding="utf8")
    return json.loads(text.removeprefix("window.bookSections = ").removesuffix(";\n"))


def unclean(sections, folder):
    """Sections that lead nowhere, and texts with TeX, roles or markup in them."""
    found = []
    leftovers = re.compile(r"\\[A-Za-z]+|\$|\{[a-z:-]+\}`|`|<[a-z/]+[ >]|\]\(|\*\*|#\s*$")
    for each in sections:
        page = pages.parsed(folder, each["page"])
        ids = {node["id"] for node in page.select("[id]")}
        samples = sorted((code.get_text() for code in page.select("code.literal")), key=len, reverse=True)
        for anchor, title, text in each["parts"]:
            if anchor and anchor not in ids:
                found.append(f"{each['page']}#{anchor}")
            for part in (title, text):
                for sample in samples:  # a name in the text may look like anything
                    part = part.replace(sample, "")
                found += [f"{each['page']}: {left[0]}" for left in leftovers.finditer(part)]
    return found


def test_every_section_can_be_found_and_its_text_is_clean(built_book):
    sections = read_sections(built_book)
    assert [each["page"] for each in sections] == reading_order()
    assert unclean(sections, built_book) == []


@pytest.mark.parametrize("text", ["$x$", "\\gamma", "{doc}`/a`", "`code`", "<b>bold</b>", "[a](b)", "**bold**"])
def test_a_leftover_in_a_snippet_is_seen(tmp_path, text):
    (tmp_path / "a.html").write_text("<h2 id='b'>B</h2>")
    sections = [{"page": "a.html", "title": "A", "parts": [["b", "B", text]]}]
    assert unclean(sections, tmp_path)
    assert not unclean([{"page": "a.html", "title": "A", "parts": [["b", "B", "plain"]]}], tmp_path)
    assert unclean([{"page": "a.html", "title": "A", "parts": [["c", "B", "plain"]]}], tmp_path) == ["a.html#c"]


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\gamma", "γ"), (r"U_{\max}", "U_max"), (r"\hat w_0", "ŵ_0"), (r"-A\,\nabla U", "-A∇U"), (r"|y|^2", "|y|²"),
        (r"y \in \mathbb{R}^d", "y∈R^d"), (r"H^{-1} g", "H^-1g"), (r"\frac{1}{2}", None),
        (r"\begin{cases}\end{cases}", None),
    ],
)  # fmt: skip
def test_a_formula_as_text(tex, text):
    assert fpo_search.plain(tex) == (text if text is None else fpo_search.unicodedata.normalize("NFD", text))


# In a browser


@pytest.fixture
def opened(address, browser):
    """Opens pages of the book in sessions of a given kind."""
    sessions = []

    def go(path, **kind):
        session = browser._chromium.new_context(reduced_motion="reduce", **kind)
        sessions.append(session)
        session.add_init_script(WATCH_SHIFTS)
        tab = session.new_page()
        tab.faults = []
        tab.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.goto(address + path)
        tab.evaluate(pages.AWAIT_MATH, pages.LIMIT)
        return tab

    yield go
    for session in sessions:
        session.close()


WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver(list => window.shifts.push(...list.getEntries().map(entry => entry.value)))
  .observe({type: "layout-shift", buffered: true});
"""
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 900}}
A_TERM, A_SYMBOL, A_FORMULA = ".helped > a[href*='#term-']", "span.helped.symbol", "div.helped.symbol"
AN_EQUATION, A_CITATION = ".helped > a[href*='#equation-']", "a[href*='references.html#']"


def test_hover_and_focus_show_a_text_and_escape_closes_it(opened):
    tab = opened("notebooks/linear.html", **DESK)
    box = tab.locator("#help-box")
    height = tab.evaluate("document.documentElement.scrollHeight")
    for kind in (A_TERM, A_SYMBOL, A_FORMULA, AN_EQUATION, A_CITATION):
        place = tab.locator(f"article section {kind}").first
        assert box.is_hidden()
        place.scroll_into_view_if_needed()
        before = tab.evaluate("window.shifts.length")
        (place.locator("mjx-container").first if kind == A_FORMULA else place).hover()
        box.wait_for(state="visible")
        assert box.inner_text().strip() or box.locator("svg").count(), kind
        tab.keyboard.press("Escape")
        box.wait_for(state="hidden")
        tab.mouse.move(0, 0)
        place.focus()
        box.wait_for(state="visible")
        described = tab.evaluate("document.activeElement.getAttribute('aria-describedby')")
        assert tab.evaluate("id => document.getElementById(id).textContent.trim().length", described), kind
        tab.keyboard.press("Escape")
        box.wait_for(state="hidden")
        place.blur()
        assert tab.evaluate("window.shifts.length") == before, kind
    assert tab.evaluate("document.documentElement.scrollHeight") == height
    assert tab.faults == []


def test_the_pointer_may_go_into_the_text(opened):
    tab = opened("notebooks/linear.html", **DESK)
    tab.locator(A_TERM).first.hover()
    box = tab.locator("#help-box")
    box.hover()
    tab.evaluate("new Promise(done => setTimeout(done, 300))")  # the box would be gone by now
    assert box.is_visible()
    tab.mouse.move(0, 0)
    box.wait_for(state="hidden")


def test_the_first_tap_asks_and_the_second_follows(opened):
    tab = opened("notebooks/linear.html", **PHONE)
    box, place = tab.locator("#help-box"), tab.locator(A_TERM).first
    address = tab.url
    place.tap()
    box.wait_for(state="visible")
    assert tab.url == address
    tab.locator("article h1").tap()
    box.wait_for(state="hidden")
    place.tap()
    box.wait_for(state="visible")
    place.tap()
    tab.wait_for_url("**/book/glossary.html#term-*")
    assert tab.faults == []


INSIDE = """
() => [...document.querySelectorAll("article section .helped")].flatMap(place => {
  const asked = place.querySelector("a") ?? place, box = document.getElementById("help-box");
  if (!asked.checkVisibility()) return [];
  asked.focus();
  const {left, right, width} = box.getBoundingClientRect();
  const fits = !box.hidden && width && left >= 0 && right <= document.documentElement.clientWidth;
  return fits && box.scrollWidth <= box.clientWidth + 1 ? [] : [`${place.outerHTML.slice(0, 80)}: ${left} to ${right}`];
})
"""


@pytest.mark.parametrize("path", ["notebooks/linear.html", "notebooks/penalties.html"])
def test_every_text_fits_a_phone(opened, path):
    tab = opened(path, **PHONE)
    assert tab.evaluate(INSIDE) == []
    tab.add_style_tag(content="#help-box { width: 500px !important; max-width: none !important }")
    assert tab.evaluate(INSIDE) != []


def test_search_lands_at_sections(opened):
    tab = opened("search.html?q=action+cost", **DESK)
    results = tab.locator("#search-results li")
    assert "sections with “action cost”" in tab.locator("#search-results [role=status]").inner_text()
    links = results.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert any("linear.html#" in link for link in links) and any(
        "glossary.html#term-action-cost" in link for link in links
    )
    for text in results.locator(".search-piece").all_inner_texts():
        assert not re.search(r"\\[a-z]|\$|\{[a-z]", text)
    results.locator("a").first.click()
    tab.wait_for_url("**/*.html#*")
    place = tab.evaluate("location.hash && document.getElementById(location.hash.slice(1)) !== null")
    assert place and tab.faults == []


def test_search_says_when_nothing_is_found(opened):
    tab = opened("search.html?q=%3Cimg%20src%3Dx%20onerror%3Dfault()%3E+xyzzy", **DESK)
    assert tab.locator("#search-results [role=status]").inner_text().startswith("No sections with")
    assert tab.locator("#search-results img").count() == 0 and tab.faults == []


def test_a_lost_reader_finds_the_book_at_any_depth(built_book, browser, address):
    lost = (built_book / "404.html").read_text(encoding="utf8")
    with closing(browser._chromium.new_context()) as session:
        tab = session.new_page()
        for path in ("nowhere.html", "notebooks/nowhere.html", "a/b/c/nowhere"):
            tab.route(f"**/{path}", lambda route: route.fulfill(status=404, body=lost, content_type="text/html"))
            tab.goto(address + path)
            link = tab.locator("a[href$='notebooks/linear.html']")
            tab.wait_for_function("() => document.querySelector('a').href.includes('/book/book/')")
            assert link.evaluate("link => link.href") == f"{address}notebooks/linear.html"
            assert tab.locator("form").evaluate("form => form.action") == f"{address}search.html"
    listed = [link["href"] for link in BeautifulSoup(lost, "html.parser").select("main a")]
    assert listed == reading_order()


def test_titles_fit_a_phone_and_captions_and_numbers_look_as_text_does(opened):
    tab = opened("notebooks/linear.html", **PHONE)
    style = "(node, name) => getComputedStyle(node)[name]"
    title = tab.locator("article h1")
    text = float(tab.locator("article p").first.evaluate(style, "fontSize").removesuffix("px"))
    assert text < float(title.evaluate(style, "fontSize").removesuffix("px")) <= 2 * text
    assert title.evaluate("node => node.scrollWidth <= node.clientWidth")
    for caption in tab.locator("figcaption, figcaption p, figcaption .caption-text").all():
        assert caption.evaluate(style, "fontWeight") == "400"
    numbers = tab.locator("article td.number")
    assert numbers.count()
    for cell in numbers.all():
        assert cell.evaluate("node => getComputedStyle(node.querySelector('p') ?? node).textAlign") == "right"


def test_a_line_shows_how_far_one_has_read(opened):
    tab = opened("notebooks/linear.html", **DESK)
    shown = "() => document.querySelector('.reading-progress').getBoundingClientRect().width"
    assert tab.evaluate(shown) < 20
    tab.evaluate("() => scrollTo({top: document.documentElement.scrollHeight, behavior: 'instant'})")
    tab.wait_for_function("() => document.querySelector('.reading-progress').getBoundingClientRect().width > 1200")
