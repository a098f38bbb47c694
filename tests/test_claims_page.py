"""The claims page: every claim once, its card says what the results say, and the filters leave what they should."""

from __future__ import annotations

import copy
import json
import re
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup
from tools import pages
from tools.explorers import tab_to
from tools.sphinx_book import CLAIM, RESULTS, Book

import fpo_verdicts  # isort: skip  # beside the other extensions, which the lines above have put on the path

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))["claims"] for path in ROOT.glob("notebooks/results/*.json")
}
CLAIMS = {claim["id"]: claim | {"notebook": notebook} for notebook, found in COMMITTED.items() for claim in found}


# What the page says, against the results files


def plain(text):
    """A text with one kind of quotes and of blanks."""
    return " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


def spoken(text):
    """The words of a claim's text without its formulas, which a page may show in any way."""
    return [plain(part) for part in re.split(r"\$[^$]+\$", text) if part.strip()]


def in_order(parts, text):
    """Whether these pieces are found in a text one after the other."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def card_faults(soup, claims):
    """Where the cards of a page are not the claims of the results files."""
    cards = soup.select("li.claim")
    found = [f"{card['id']} is no claim" for card in cards if card["id"] not in claims]
    for name, claim in claims.items():
        own = [card for card in cards if card["id"] == name]
        if len(own) != 1:
            found.append(f"{name} is there {len(own)} times")
            continue
        (card,) = own
        text = plain(card.get_text()).replace("\N{MINUS SIGN}", "-")  # a word of the glossary is a link of its own
        for field in ("statement", "value", "rule", "source"):
            if not in_order(spoken(claim[field]), text):
                found.append(f"{name}: {field}")
        if card.select_one(".verdict").get_text().split(" ", 1)[1] != claim["verdict"]:
            found.append(f"{name}: verdict")
        group = "certain" if claim["certain"] else "ours" if claim["source"] == "this book" else "paper"
        classes = {f"verdict-is-{claim['verdict'].replace(' ', '-')}", f"source-is-{group}"}
        if not classes | {f"chapter-is-{claim['notebook']}"} <= set(card["class"]):
            found.append(f"{name}: facets")
        target = card.select(".claim-part")[-1].a["href"]
        if urlsplit(target).path != f"../notebooks/{claim['notebook']}.html" or not urlsplit(target).fragment:
            found.append(f"{name}: link")
        if claim["statement"].startswith("There,") != bool(card.select_one(".claim-context a")):
            found.append(f"{name}: context")
        squares = soup.select(f'.overview-row a.square[href="#{name}"]')
        told = [square.select_one(".visually-hidden").get_text() for square in squares]
        if len(squares) != 1 or not told[0].startswith(f"{claim['verdict']}: "):
            found.append(f"{name}: square")
    return found


@pytest.fixture(scope="module")
def soup(built_book):
    return BeautifulSoup((built_book / "book" / "claims.html").read_text(encoding="utf-8"), "html.parser")


def test_every_claim_of_every_results_file_is_on_the_page_once_and_as_it_is(soup):
    assert len(CLAIMS) == sum(map(len, COMMITTED.values())) > 60
    assert card_faults(soup, CLAIMS) == []


def at(selector, change):
    """A fault at the first place that a selector names."""
    return lambda soup: change(soup.select_one(selector))


FAULTS = {
    "a card is lost": (at("li.claim", lambda card: card.decompose()), "is there 0 times"),
    "a card comes twice": (at("li.claim", lambda card: card.insert_after(copy.copy(card))), "2 times"),
    "a claim of nobody": (at("li.claim", lambda card: card.attrs.update(id="no-claim")), "no-claim is no claim"),
    "another verdict": (at("li.claim .verdict", lambda badge: badge.string.replace_with("? open")), ": verdict"),
    "no finding": (at(".claim-part", lambda part: part.clear()), ": value"),
    "no rule": (at(".claim-part + .claim-part", lambda part: part.clear()), ": rule"),
    "a filter's mark is lost": (at("li.claim", lambda card: card.attrs.update({"class": ["claim"]})), ": facets"),
    "a link elsewhere": (at(".claim-part a", lambda link: link.attrs.update(href="../index.html#a")), ": link"),
    "no context": (at(".claim-context", lambda part: part.decompose()), ": context"),
    "a square is lost": (at(".overview-row a.square", lambda square: square.decompose()), ": square"),
}


@pytest.fixture(scope="module")
def few(soup):
    """The page with some of its claims, which is soon copied, and these claims."""
    kept = [
        soup.select_one("li.claim")["id"],
        next(name for name in CLAIMS if CLAIMS[name]["statement"].startswith("There,")),
    ]
    short = copy.copy(soup.article)
    for card in short.select("li.claim"):
        if card["id"] not in kept:
            card.decompose()
    return short, {name: CLAIMS[name] for name in kept}


def test_a_part_of_the_page_has_no_fault(few):
    assert card_faults(*few) == []


@pytest.mark.parametrize(("plant", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_page_is_found(few, plant, told):
    planted = copy.copy(few[0])
    plant(planted)
    found = card_faults(planted, few[1])
    assert found and any(told in fault for fault in found), found


def test_the_numbers_of_the_overview_are_the_counts(soup):
    total = 0
    for link in soup.select("table.verdict-counts a"):
        chosen = {key: value for key, (value,) in parse_qs(urlsplit(link["href"]).query).items()}
        cards = soup.select("li.claim" + "".join(f".{key}-is-{value}" for key, value in chosen.items()))
        assert set(chosen) == {"verdict", "source"} and len(cards) == int(link.get_text()) > 0
        total += len(cards)
    assert total == len(CLAIMS)
    for link in soup.select(".claims-filters li a:not(.facet-all)"):
        ((key, (value,)),) = parse_qs(urlsplit(link["href"]).query).items()
        assert len(soup.select(f"li.claim.{key}-is-{value}")) == int(link.select_one(".facet-count").get_text()) > 0


def test_the_same_as_data(built_book):
    data = json.loads((built_book / "book" / "claims.json").read_text(encoding="utf-8"))
    assert {record["id"]: record for record in data}.keys() == CLAIMS.keys() and len(data) == len(CLAIMS)
    ids = {path: pages.read_page(built_book, path).ids for path in {each["link"].partition("#")[0] for each in data}}
    for record in data:
        claim = CLAIMS[record["id"]]
        for key, field in {"found": "value", "chapter": "notebook"}.items():
            assert record[key] == claim[field]
        for field in ("statement", "source", "rule", "verdict", "certain"):
            assert record[field] == claim[field]
        assert record["address"] == f"book/claims.html#{record['id']}"
        path, _, fragment = record["link"].partition("#")
        assert path == f"notebooks/{claim['notebook']}.html" and fragment in ids[path]
        assert (record["context"] in CLAIMS) == record["statement"].startswith("There,")


def leaning(claims):
    """Claims whose rule cannot be read alone on its card: it points elsewhere, or names a margin without its size."""
    bare = re.compile(r"as (above|below|before)|^(?!.*delta is \d).*delta")
    return [claim["id"] for claim in claims if bare.search(claim["rule"])]


def test_a_rule_can_be_read_alone():
    rules = ["saved: as above", "the fall lies above delta", "it lies above -delta; the margin delta is 0.5"]
    assert leaning([{"id": i, "rule": rule} for i, rule in enumerate(rules)]) == [0, 1]
    assert leaning(CLAIMS.values()) == []


def place_faults(patterns, claims):
    """Claims that not one place shows, and places that show none."""
    found = [each for each in patterns if not any(fnmatchcase(name, each) for name in claims)]
    return found + [name for name in claims if sum(fnmatchcase(name, each) for each in patterns) != 1]


def test_every_claim_has_its_place_and_every_place_a_claim():
    """In the committed book; with other parameters a chapter may have fewer claims."""
    (content,) = re.findall(r"^```\{claims-cards\}\n(.*?)^```", (ROOT / "book" / "claims.md").read_text(), re.M | re.S)
    patterns = [line.partition(":")[0] for line in content.splitlines()]
    assert place_faults(patterns, CLAIMS) == []
    assert place_faults(patterns[1:], CLAIMS) == ["linear-collapse"]
    assert place_faults(["linear-no", *patterns, "linear-cost*"], CLAIMS) == ["linear-no", "linear-cost"]


# The directives, in a tiny book


class Site(Book):
    """A tiny book with a claims page."""

    def __init__(self, folder):
        super().__init__(folder)
        (self.source / "book").mkdir()
        (self.source / "_toc.yml").write_text(
            "format: jb-book\nroot: index\nchapters:\n- file: notebooks/tiny\n- file: book/claims\n"
        )
        self.chapter("# A tiny game: it grows", "(tiny-part)=\n## A part", "(claims-tiny)=\n## Claims", "Something.")

    def build_claims(self, shown="", page="Text."):
        text = f"# Claims\n\n```{{claims-overview}}\n```\n\n```{{claims-cards}}\n{shown}\n```\n\n## After\n\nText.\n"
        (self.source / "book" / "claims.md").write_text(text)
        extensions = ["myst_nb", "sphinx_external_toc", "fpo_book", "fpo_claims", "fpo_verdicts", "fpo_pages"]
        _, warnings = self.build(page, extensions=extensions, numfig=True)
        return self.page("book/claims"), warnings


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


PAPER = CLAIM | {"id": "tiny-theirs", "source": "paper"}
THEN = CLAIM | {"id": "tiny-then", "source": "this book", "verdict": "new", "statement": "There, it rests."}
SURE = CLAIM | {"id": "tiny-sure", "certain": True}


def test_a_card_has_its_address_its_rule_and_a_link_to_what_shows_it(site):
    site.results(RESULTS | {"claims": [PAPER, THEN, SURE]})
    page, warnings = site.build_claims("tiny-the*: tiny-part")
    assert warnings == ""
    assert [card["id"] for card in page.select("li.claim")] == ["tiny-theirs", "tiny-then", "tiny-sure"]
    first, then, sure = page.select("li.claim")
    assert first.select_one("a.claim-address")["href"] == "#tiny-theirs"
    assert [" ".join(part.get_text().split()) for part in first.select(".claim-part")] == [
        "Found 3 of 3",
        "Rule all",
        "Shown in A part",
    ]
    assert first.select(".claim-part a")[-1]["href"] == "../notebooks/tiny.html#tiny-part"
    assert sure.select(".claim-part a")[-1]["href"] == "../notebooks/tiny.html#claims-tiny"
    assert "certain" in sure.select_one(".claim-head").get_text()
    assert then.select_one(".claim-context a")["href"] == "#tiny-theirs" and not first.select(".claim-context")
    assert page.select_one("section#claims-of-tiny h2").get_text().startswith("A tiny game: it grows")
    assert [row.p.get_text() for row in page.select(".overview-row")] == ["A tiny game"]
    heads = [section.find(["h1", "h2"]).get_text().rstrip("#¶") for section in page.select("section")]
    assert heads == ["Claims", "A tiny game: it grows", "After"]
    records = json.loads((site.out / "book" / "claims.json").read_text())
    assert [(r["id"], r["context"], r["link"]) for r in records] == [
        ("tiny-theirs", None, "notebooks/tiny.html#tiny-part"),
        ("tiny-then", "tiny-theirs", "notebooks/tiny.html#tiny-part"),
        ("tiny-sure", None, "notebooks/tiny.html#claims-tiny"),
    ]


def test_the_script_goes_only_where_there_are_cards(site):
    page, _ = site.build_claims()
    assert page.select('script[src*="claims.js"]')
    assert not site.page("index").select('script[src*="claims.js"]')


def test_the_strip_leads_to_the_filtered_claims(site):
    more = [CLAIM | {"id": f"tiny-{i}", "source": "this book", "verdict": "not reproduced"} for i in range(3)]
    site.results(RESULTS | {"claims": [PAPER, *more]})
    _, warnings = site.build_claims(page="```{verdict-strip}\n```")
    strip = site.page("index").select_one(".verdict-strip")
    assert warnings == "" and [head.get_text() for head in strip.select(".strip-head")] == [
        "The paper’s claims 1",
        "This book’s claims 3",
    ]
    links = strip.select("a")
    assert [link.get_text() for link in links] == ["✓ 1 reproduced", "× 3 not reproduced"]
    assert links[1]["href"] == "book/claims.html?source=ours&verdict=not-reproduced#claims-list"
    assert site.page("book/claims").find(id="claims-list")


@pytest.mark.parametrize(
    ("claims", "shown", "message"),
    [
        ([], "", "no claim to show"),
        ([CLAIM, CLAIM], "", "claim 'tiny-grows' is in the book twice"),
        ([CLAIM | {"rule": r"$\href{a}{b}$"}], "", r"holds \href"),
        ([CLAIM], "tiny-grows", "'tiny-grows': expected id: name of a figure or section"),
        ([CLAIM], "tiny-grows: nowhere", "undefined label: 'nowhere'"),
    ],
)
def test_a_fault_of_the_claims_is_a_warning(site, claims, shown, message):
    site.results(RESULTS | {"claims": claims})
    assert message in site.build_claims(shown)[1]


def test_a_strip_without_a_claims_page_is_a_warning(tmp_path):
    extensions = ["myst_nb", "sphinx_external_toc", "fpo_book", "fpo_claims", "fpo_verdicts", "fpo_pages"]
    _, warnings = Book(tmp_path).build("```{verdict-strip}\n```", extensions=extensions)
    assert "the book has no page book/claims" in warnings


def test_html_in_a_claim_stays_text(site):
    text = "<script>alert(1)</script> <b>x</b> & \\"
    site.results(RESULTS | {"claims": [CLAIM | dict.fromkeys(("statement", "source", "value", "rule"), text)]})
    page, warnings = site.build_claims(page="```{verdict-strip}\n```")
    assert warnings == "" and text in page.select_one(".claim-statement").get_text()
    assert not page.select("li.claim script, li.claim b")


# The filters, in a browser


def shown(tab):
    return tab.locator("li.claim").evaluate_all(
        "cards => cards.filter(card => card.checkVisibility()).map(card => card.id)"
    )


def expected(**facets):
    return [
        name for notebook in READING for name in (claim["id"] for claim in COMMITTED[notebook])
        if all(facet_of(CLAIMS[name])[facet] == value for facet, value in facets.items())
    ]  # fmt: skip


def facet_of(claim):
    return {
        "source": fpo_verdicts.group(claim),
        "verdict": claim["verdict"].replace(" ", "-"),
        "chapter": claim["notebook"],
    }


READING = re.findall(r"notebooks/(\w+)", (ROOT / "_toc.yml").read_text())


@pytest.fixture
def opened(address, browser):
    """Opens the claims page, all in one session, with axe at hand."""
    with closing(browser._chromium.new_context(reduced_motion="reduce")) as session:
        session.add_init_script(pages.REMEMBER_THEME)
        session.add_init_script(browser._axe)
        tab = session.new_page()
        tab.told = []
        tab.on("console", lambda message: tab.told.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: tab.told.append(str(error)))

        def go(rest="", width=1280, base=address):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.goto(f"{base}book/claims.html{rest}")
            return tab

        yield go
        assert tab.told == []


def tab_to_filter(tab, name):
    """Press the tabulator until the filter with this text has the focus."""
    within = "document.activeElement.closest('.claims-filters') && document.activeElement.innerText.trim()"
    tab_to(tab, name, 400, within)


def test_the_keyboard_alone_filters_and_the_address_keeps_it(opened):
    tab = opened()
    everything = expected()
    assert shown(tab) == everything and tab.locator(".claims-status").inner_text() == f"{len(everything)} claims"
    count = len(expected(verdict="partly"))
    tab_to_filter(tab, f"partly {count}")
    tab.keyboard.press("Enter")
    assert shown(tab) == expected(verdict="partly") and tab.url.endswith("claims.html?verdict=partly")
    assert tab.locator(".claims-status").inner_text() == f"{count} of {len(everything)} claims"
    assert tab.locator(".claims-status").get_attribute("role") == "status"
    assert tab.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    both = expected(verdict="partly", chapter="neural")
    tab_to_filter(tab, f"The neural game {len(both)}")
    tab.keyboard.press("Enter")
    assert shown(tab) == both and 0 < len(both) < count
    address = tab.url
    tab.go_back()
    assert shown(tab) == expected(verdict="partly")
    tab.goto(address)
    assert shown(tab) == both
    squares = tab.locator(".overview-row a.square:not(.left-out)")
    assert squares.evaluate_all("all => all.map(one => one.hash.slice(1))") == both
    assert tab.locator("section:has(> ul.claims):visible").count() == 1


@pytest.mark.parametrize("fault", ["link.tabIndex = -1", "link.removeAttribute('href')"])
def test_a_filter_that_the_keyboard_does_not_reach_is_seen(opened, fault):
    tab = opened()
    name = f"partly {len(expected(verdict='partly'))}"
    link = tab.locator(".claims-filters a", has_text="partly")
    link.evaluate(f"link => {{ {fault}; }}")
    with pytest.raises(AssertionError, match=f"no way to {name!r}"):
        tab_to_filter(tab, name)


def test_every_filter_leaves_what_its_name_says(opened):
    tab = opened()
    tried = 0
    for facet in ("source", "verdict", "chapter"):
        links = tab.locator(f".by-{facet} a")
        for link in links.all()[1:]:
            value = link.evaluate("(link, facet) => new URLSearchParams(link.search).get(facet)", facet)
            link.click()
            assert shown(tab) == expected(**{facet: value}) != [], (facet, value)
            tried += 1
        links.first.click()
        assert shown(tab) == expected()
    assert tried == 3 + len({claim["verdict"] for claim in CLAIMS.values()}) + len(COMMITTED)


def test_a_card_in_the_wrong_place_is_seen(opened):
    """The check above finds a card whose mark is another one's."""
    tab = opened()
    tab.locator("li.claim").first.evaluate("card => { card.className = 'claim verdict-is-open'; }")
    tab.locator(".by-verdict a", has_text="partly").click()
    assert shown(tab) == expected(verdict="partly")
    tab.locator(".by-verdict a", has_text="open").click()
    assert shown(tab) != expected(verdict="open")


def test_what_the_address_asks_for_and_nobody_knows_is_left_aside(opened):
    assert shown(opened("?verdict=proved&source=ours&other=1")) == expected(source="ours")


def test_a_link_to_a_claim_shows_it_whatever_is_filtered(opened):
    (name,) = expected(verdict="open")[:1]
    tab = opened(f"?verdict=partly#{name}")
    assert shown(tab) == expected() and tab.url.endswith(f"claims.html#{name}")
    tab = opened("?verdict=partly")
    tab.locator(f'.overview-row a[href="#{name}"]').click()
    tab.wait_for_function("name => document.getElementById(name).checkVisibility()", arg=name)
    assert tab.locator(f"#{name}").evaluate("card => card.matches(':target')")


def test_a_number_of_the_overview_filters_and_goes_there(opened):
    tab = opened()
    link = tab.locator("table.verdict-counts a").first
    count = int(link.inner_text())
    link.click()
    assert len(shown(tab)) == count and "?source=paper&verdict=" in tab.url
    assert tab.locator(".claims-filters").evaluate("bar => bar.getBoundingClientRect().top") < 450


def test_from_a_file_without_a_server(opened, built_book):
    tab = opened("?source=certain", base=f"{built_book.as_uri()}/")
    assert shown(tab) == expected(source="certain")
    tab.locator(".by-source a", has_text="Paper").click()
    tab.told.clear()  # a browser lets no file load the fonts of icons
    assert shown(tab) == expected(source="paper") and tab.url.startswith("file:") and "source=paper" in tab.url


def test_without_a_script_every_claim_is_there(built_book, browser):
    with closing(browser._chromium.new_context(java_script_enabled=False)) as session:
        tab = session.new_page()
        tab.goto(f"{(built_book / 'book' / 'claims.html').as_uri()}?verdict=partly")
        assert tab.locator("li.claim:visible").count() == len(CLAIMS)
        assert not tab.locator(".claims-filters").is_visible()


def page_faults(tab):
    """What axe finds, and what is too wide, in both themes."""
    found = [tab.evaluate(pages.FIND_OVERFLOW)]
    for theme, rules in (("light", pages.AXE_ALL), ("light", pages.AXE_COLOURS), ("dark", pages.AXE_COLOURS)):
        tab.evaluate(pages.SET_THEME, theme)
        found += [f"{each['rule']}: {each['target']}" for each in tab.evaluate(pages.RUN_AXE, [rules, []])[1]]
    return [each for each in found if each]


@pytest.mark.parametrize("width", [1280, 390])
def test_filtered_claims_have_no_fault(opened, width):
    tab = opened("?source=paper&verdict=partly", width=width)
    tab.add_style_tag(content=pages.STYLE.format(letters=""))
    assert page_faults(tab) == []


def test_faults_of_filtered_claims_are_found(opened):
    tab = opened("?source=paper&verdict=partly", width=390)
    tab.add_style_tag(content=pages.STYLE.format(letters="") + "p.claim-part { color: #ddd !important }")
    tab.locator(".overview-row a.square").first.evaluate("square => { square.title = ''; square.replaceChildren(); }")
    found = " ".join(page_faults(tab))
    assert "color-contrast" in found and "link-name" in found
    # Apart from the others: axe looks for no contrast in what a page that is too wide puts out of sight.
    tab.add_style_tag(content=".claims-filters { min-width: 40rem }")
    assert "px wide at 390 px" in page_faults(tab)[0]
