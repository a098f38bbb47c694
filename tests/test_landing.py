"""The first page and the book in five minutes: they say what the results and the chapters say, and can be used."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from pybtex.database import parse_string
from tools import pages
from tools.sphinx_book import Book

from fpo.claims import VERDICTS

import fpo_landing  # isort: skip  # beside the other extensions, which the line above has put on the path

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = re.findall(r"notebooks/(\w+)", (ROOT / "_toc.yml").read_text())
WORDS_A_MINUTE = 240  # what adults read of such texts
EXTENSIONS = [
    *("myst_nb", "sphinx_external_toc", "sphinx_design", "fpo_book", "fpo_claims", "fpo_verdicts"),
    *("fpo_landing", "fpo_pages"),
]


def page(built_book, name):
    return pages.parsed(built_book, f"book/{name}.html")


def results(name):
    return json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


# What the pages of the book say


def test_the_first_page_answers_in_three_lines_with_the_results_numbers(built_book):
    words = page(built_book, "index").select_one(".landing-words")
    lines = words.select("ol > li")
    assert len(lines) == 3 and all(line.select(".result") for line in lines)
    linear, neural, study = (results(name)["results"] for name in ("linear", "neural", "llm_study"))
    assert all(len(line.get_text().split()) <= 45 for line in lines)
    shown = [[each.get_text() for each in line.select(":scope .result:not(strong *)")] for line in lines]
    assert shown[0][:2] == [str(linear["paired"]["fall"]["standard"]["wins"]), str(linear["seeds"])]
    gates = [study["gate"][name] for name in ("planted", "honest")]
    assert shown[0][2:6] == [str(gate[key]) for gate in gates for key in ("fallen", "seeds")]
    assert shown[1][:2] == [str(neural["summary"]["relaxed"]["saved"]), str(neural["study_seeds"])]


# What is claimed in bold, and what bears it.
LEADS = [
    [("It collapses:", "linear-collapse")],
    [("Relaxed FPO prevents it:", "linear-relaxed"), ("", "neural-relaxed")],
    [("Foresight aligns, whatever its goal:", "foresight-aligns-bradley-terry")],
]
VERDICT = re.compile(rf"\b({'|'.join(VERDICTS)}|hold|prove[sn]|work)\b")


def lead_faults(words, verdicts):
    """Bold words that a verdict of the results does not end, and verdicts that are typed."""
    found = []
    for line, leads in zip(words.select("ol > li"), LEADS, strict=True):
        told = [bold.get_text().rstrip(".") for bold in line.select("strong")]
        found += [told] if told != [f"{text} {verdicts[claim]}".strip() for text, claim in leads] else []
        typed = copy.copy(line)
        for result in typed.select(".result"):
            result.clear()
        found += VERDICT.findall(typed.get_text())
    return found


def test_what_the_first_page_says_in_bold_is_a_verdict_of_the_results(built_book):
    words = page(built_book, "index").select_one(".landing-words")
    verdicts = {claim["id"]: claim["verdict"] for chapter in CHAPTERS for claim in results(chapter)["claims"]}
    assert lead_faults(words, verdicts) == []
    assert lead_faults(words, verdicts | {"neural-relaxed": "partly"}) != []
    words.select_one("strong").string = "It collapses: reproduced"
    words.select_one("li p").append(" It is not reproduced.")
    assert lead_faults(words, verdicts) == ["reproduced", "not reproduced"]


def papers_models(runs):
    """Stored runs that name a model of the paper's language-model experiment."""
    return [path for path in runs.rglob("*.json") if "llama-3.2" in path.read_text(encoding="utf-8").lower()]


def test_the_papers_models_have_not_been_run_as_the_first_page_says(built_book, tmp_path):
    assert "Not run: the paper’s language-model" in page(built_book, "index").get_text()
    assert papers_models(ROOT / "notebooks" / "runs") == []
    (tmp_path / "run.json").write_text('{"policy": "meta-llama/Llama-3.2-1B"}')
    assert papers_models(tmp_path) == [tmp_path / "run.json"]


@pytest.mark.parametrize("name", ["index", "brief"])
def test_the_strip_adds_up_to_all_claims(built_book, name):
    claims = [claim for chapter in CHAPTERS for claim in results(chapter)["claims"]]
    strip = page(built_book, name).select_one(".verdict-strip")
    assert sum(int(link.get_text().split()[1]) for link in strip.select("a")) == len(claims)
    certain = sum(claim["certain"] for claim in claims)
    paper = sum(claim["source"] == "paper" and not claim["certain"] for claim in claims)
    totals = [int(head.span.get_text()) for head in strip.select(".strip-head")]
    assert totals == [paper, len(claims) - paper - certain, certain]


def test_every_chapter_is_on_both_pages_in_reading_order(built_book):
    first, brief = page(built_book, "index"), page(built_book, "brief")
    links = [item.select_one(".chapter-title a")["href"] for item in first.select("ul.chapters > li")]
    assert links == [f"../notebooks/{name}.html#{name.replace('_', '-')}" for name in CHAPTERS]
    assert [part["id"] for part in brief.select("section[id^=brief-]")] == [f"brief-{name}" for name in CHAPTERS]
    for item in first.select("ul.chapters > li"):
        assert "?" in item.select("p")[1].get_text() and item.select(".chapter-verdicts a")
    for name in CHAPTERS:
        card = pages.parsed(built_book, f"notebooks/{name}.html")
        answer = next(p for p in card.select(".summary-card p") if p.get_text().startswith("Answer."))
        part = brief.select_one(f"#brief-{name}")
        question, *told = (paragraph.get_text() for paragraph in part.select("p:not(.chapter-verdicts, li p)"))
        assert question.endswith("?") and " ".join(told).split() == answer.get_text().removeprefix("Answer. ").split()
        assert part.select("ul > li"), f"{name} has nothing to take away"


def in_sight(part):
    """How many words of a part of a page are read before anything is unfolded or pointed at."""
    open_part = copy.copy(part)
    for away in open_part.select("details > :not(summary), .help-texts, .visually-hidden, .headerlink, mjx-container"):
        away.decompose()
    return len(re.findall(r"\S*\w\S*", open_part.get_text(" ")))


def test_the_book_in_five_minutes_takes_five_minutes(built_book):
    parts = page(built_book, "brief").select("section[id^=brief-]")
    assert sum(map(in_sight, parts)) <= 5 * WORDS_A_MINUTE
    for fold in (fold for part in parts for fold in part.select("details")):
        fold.unwrap()
    assert sum(map(in_sight, parts)) > 5 * WORDS_A_MINUTE


def test_the_bibtex_is_what_citation_says(built_book):
    first = page(built_book, "index")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = first.select_one("#how-to-cite pre").get_text()
    assert bibtex_faults(text, cited) == []
    assert bibtex_faults(text.replace("Explained", "Explored"), cited) == ["title"]
    assert bibtex_faults(text.replace("Bach, Francis and ", ""), cited) == ["author"]
    assert bibtex_faults(text.replace("2605.04266", "2605.04267", 1), cited) == ["eprint"]
    assert first.select('#how-to-cite a[href$="CITATION.cff"]')


def bibtex_faults(text, cited):
    """Fields of the two entries that differ from CITATION.cff."""
    (book, paper) = parse_string(text, "bibtex").entries.values()
    works = [(book, cited), (paper, cited["references"][0])]
    found = []
    for entry, work in works:
        named = [str(person).strip("{}") for person in entry.persons["author"]]
        wanted = [each.get("name") or f"{each['family-names']}, {each['given-names']}" for each in work["authors"]]
        found += ["author"] if named != wanted else []
        found += ["title"] if entry.fields["title"].strip("{}") != work["title"] else []
    found += ["year"] if book.fields["year"] != str(cited["date-released"])[:4] else []
    found += ["version"] if book.fields["version"] != cited["version"] else []
    found += ["url"] if book.fields["url"] != cited["repository-code"] else []
    numbers = [each["value"] for each in cited["references"][0]["identifiers"]]
    found += ["eprint"] if f"arXiv:{paper.fields['eprint']}" not in numbers else []
    return found


# What a reader sees first


IN_SIGHT = """
() => Object.fromEntries(
["h1", ".landing-words ol", ".verdict-strip", ".ways-in", ".paper-line", ".landing-explorer .chart"].map(name => {
  const box = document.querySelector(name).getBoundingClientRect();
  return [name, [box.left, box.right, box.top, box.bottom]];
}))
"""


@pytest.fixture
def opened(address, browser):
    with closing(browser._chromium.new_context()) as session:
        tab = session.new_page()

        def go(width, height):
            tab.set_viewport_size({"width": width, "height": height})
            tab.goto(f"{address}book/index.html")
            return tab

        yield go


def out_of_sight(boxes, height, whole, begun):
    """Of the parts that should be in the first screen, whole or by 60 pixels, those that are not."""
    found = [name for name in whole if boxes[name][3] > height]
    return found + [name for name in begun if boxes[name][2] > height - 60]


def test_a_wide_first_screen_holds_answer_figure_verdicts_ways_in_and_the_paper(opened):
    tab = opened(1280, 900)
    parts = (list(tab.evaluate(IN_SIGHT)), [])
    boxes = tab.evaluate(IN_SIGHT)
    assert out_of_sight(boxes, 900, *parts) == []
    assert boxes[".landing-explorer .chart"][0] >= boxes[".landing-words ol"][1], "the figure stands beside the answer"
    tab.locator("article h1").evaluate("title => { title.style.height = '800px'; }")
    assert out_of_sight(tab.evaluate(IN_SIGHT), 900, *parts) != []


def test_a_phones_first_screen_holds_all_words_and_the_curves_begin_in_it(opened):
    tab = opened(390, 844)
    *words, curves = tab.evaluate(IN_SIGHT)
    parts = (words, [curves])
    # As in a published book, which offers both.
    tab.locator(".paper-line p").evaluate("line => line.append(' · ', 'PDF', ' · ', 'Offline')")
    assert out_of_sight(tab.evaluate(IN_SIGHT), 844, *parts) == []
    assert tab.evaluate(pages.FIND_OVERFLOW) is None
    tab.locator("article h1").evaluate("title => { title.style.height = '800px'; }")
    assert out_of_sight(tab.evaluate(IN_SIGHT), 844, *parts) != []


def test_the_ways_in_lead_somewhere(opened):
    tab = opened(1280, 900)
    names = tab.locator(".ways-in strong").all_inner_texts()
    assert names == ["5 minutes", "An hour", "Everything", "Re-run", "Use"]
    for i in range(len(names)):
        link = tab.locator(".ways-in a").nth(i)
        assert link.evaluate("one => one.checkVisibility()")
        link.click()
        tab.wait_for_load_state("domcontentloaded")
        fragment = tab.evaluate("location.hash.slice(1)")
        assert not fragment or tab.evaluate("id => !!document.getElementById(id)", fragment)
        opened(1280, 900)


def test_a_part_of_the_strip_leads_to_its_claims(opened):
    tab = opened(1280, 900)
    part = tab.locator(".verdict-strip a").first
    count = int(part.inner_text().split()[1])
    part.click()
    tab.wait_for_url("**/claims.html?*")
    assert tab.locator("li.claim:visible").count() == count


# The directives, in a tiny book


CARD = """(tiny)=
# A tiny game

:::{admonition} tiny

**Question.** Does it grow by $x$?

**Answer.** By {result}`tiny/share|.0%`,
and no more.

**You need** nothing. **It takes** 15 minutes to read.
:::
"""
TAKE = "## What to take away\n\n- It grows:\n  by {result}`tiny/gap|.1f`.\n- Wait.\n\nMore text."


class Site(Book):
    def __init__(self, folder):
        super().__init__(folder)
        (self.source / "book").mkdir()
        (self.source / "book" / "claims.md").write_text(
            "# Claims\n\n```{claims-overview}\n```\n\n```{claims-cards}\n```\n"
        )
        (self.source / "_toc.yml").write_text(
            "format: jb-book\nroot: index\nchapters:\n- file: notebooks/tiny\n- file: book/claims\n"
        )
        self.chapter(CARD, TAKE, "(claims-tiny)=\n## Claims", "Something.")

    def make(self, page, **settings):
        return self.build(page, extensions=EXTENSIONS, **settings)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_the_brief_is_the_chapters_own_words(site):
    made, warnings = site.make("```{brief}\n```")
    assert warnings == ""
    part = made.select_one("section#brief-tiny")
    question, answer = (paragraph.get_text().split() for paragraph in part.select("p")[:2])
    assert part.h2.get_text().startswith("A tiny game") and question[:2] == ["Does", "it"]
    assert answer == "By 35%, and no more.".split()
    assert [" ".join(item.get_text().split()) for item in part.select("details li")] == ["It grows: by −1.2.", "Wait."]
    assert part.select_one(".chapter-verdicts a")["href"] == (
        "book/claims.html?chapter=tiny&verdict=reproduced#claims-list"
    )
    assert part.select(".chapter-verdicts a")[-1]["href"] == "notebooks/tiny.html#tiny"


def test_how_an_answer_begins():
    long = "{result}`a/claims:b.value|s` of what $x. Y$ holds, and more of it holds as well."
    assert fpo_landing.begun(f"Partly. {long} {{doc}}`So` it is.\nAnd (at 0.5 %) more.") == (
        f"Partly. {long}",
        "{doc}`So` it is.\nAnd (at 0.5 %) more.",
    )
    assert fpo_landing.begun("Not known.") == ("Not known.", "")


def test_a_chapter_with_nothing_to_take_away_is_a_warning(site):
    site.chapter(CARD, "(claims-tiny)=\n## Claims", "Something.")
    assert "notebooks/tiny.ipynb has no list under 'What to take away'" in site.make("```{brief}\n```")[1]


def test_chapters_are_questions(site):
    made, warnings = site.make("```{chapters}\n```\n\nIn all {reading-time}`all`.")
    assert warnings == ""
    (item,) = made.select("ul.chapters > li")
    assert [p.get_text() for p in item.select("p")] == [
        "A tiny game 15 minutes",
        r"Does it grow by \(x\)?",
        "✓ 1 reproduced ",
    ]
    assert "In all 15 minutes." in made.get_text()


def test_minutes_as_a_reader_says_them():
    assert [fpo_landing.spelled(count) for count in (5, 60, 105)] == ["5 minutes", "1 h", "1 h 45 min"]


@pytest.mark.parametrize(
    ("card", "page", "message"),
    [
        (CARD.replace("**Answer.**", "Answer:"), "```{brief}\n```", "the card of notebooks/tiny.ipynb has no answer"),
        (CARD.replace("**Question.**", ""), "```{chapters}\n```", "notebooks/tiny.ipynb has no question"),
        (CARD.replace("15 minutes", "long"), "{reading-time}`all`", "does not say how many minutes"),
        (CARD, "{reading-time}`other`", "notebooks/other.ipynb is missing"),
        (CARD, "```{bibtex}\n```", "there is no CITATION.cff"),
    ],
)
def test_a_fault_of_a_card_is_a_warning(site, card, page, message):
    site.chapter(card, TAKE, "(claims-tiny)=\n## Claims", "Something.")
    assert message in site.make(page)[1]


def test_an_offered_file_has_a_link_once_it_is_there(site):
    made, warnings = site.make("Read {offer}`a book.pdf|the <PDF>`")
    assert warnings == "" and not made.select('a[href*="pdf"]')
    command = [sys.executable, str(ROOT / "book" / "offer.py"), str(site.out)]
    before = (site.out / "index.html").read_bytes()
    assert subprocess.run(command).returncode == 0
    assert (site.out / "index.html").read_bytes() == before
    shutil.copyfile(site.out / "index.html", site.out / "a book.pdf")
    assert subprocess.run(command).returncode == 0
    (link,) = site.page("index").select('a[href="a book.pdf"]')
    assert link.get_text() == "the <PDF>"
