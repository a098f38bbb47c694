"""What other sites read of a page: one address, a picture, authors, and no text that gets out of its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urljoin
from xml.etree import ElementTree

import pytest
import yaml
from bs4 import BeautifulSoup, SoupStrainer
from PIL import Image
from tools import pages
from tools.sphinx_book import Book

import fpo_share  # isort: skip  # beside the other extensions, which the line above has put on the path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
BASE = CONFIG["html"]["baseurl"]
CHAPTERS = [f"notebooks/{name}.html" for name in re.findall(r"notebooks/(\w+)", (ROOT / "_toc.yml").read_text())]


def read(folder, path):
    text = (folder / path).read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser", parse_only=SoupStrainer(["head", "h1"]))


def tag(soup, name):
    """The content of the one tag with this name."""
    found = soup.select(f'meta[property="{name}"], meta[name="{name}"]')
    return found[0]["content"] if len(found) == 1 else None


def share_faults(soup, path, folder):
    """What is missing or wrong in the head of a page of the book."""
    found = []
    address = urljoin(BASE, path)
    if [link["href"] for link in soup.select('link[rel="canonical"]')] != [address]:
        found.append("canonical")
    if tag(soup, "og:url") != address:
        found.append("og:url")
    image = (tag(soup, "og:image") or "").removeprefix(BASE)
    if not (folder / image).is_file() or Image.open(folder / image).size != fpo_share.SIZE:
        found.append("og:image")
    elif path in CHAPTERS and image != f"share/{Path(path).stem}.png":
        found.append("og:image")
    if not (tag(soup, "og:image:alt") or "").strip() or pages.A_FILE_NAME.fullmatch(tag(soup, "og:image:alt")):
        found.append("og:image:alt")
    parts = re.split(" \N{EM DASH} ", soup.title.get_text())
    if len(set(parts)) != len(parts) or parts[-1] != CONFIG["title"]:
        found.append("title")
    if path in [*CHAPTERS, "book/index.html"]:
        found += cited_faults(soup, path, address)
    return found


def cited_faults(soup, path, address):
    """What a catalogue would get wrong of the book or of a chapter."""
    found = []
    heading = soup.h1.get_text().rstrip("#\N{PILCROW SIGN}").strip()
    if tag(soup, "citation_title") != heading:
        found.append("citation_title")
    names = [each["content"] for each in soup.select('meta[name="citation_author"]')]
    if names != [each["name"] for each in CITED["authors"]]:
        found.append("citation_author")
    if tag(soup, "citation_publication_date") != CITED["date-released"].replace("-", "/"):
        found.append("citation_publication_date")
    scripts = soup.select('script[type="application/ld+json"]')
    record = json.loads(scripts[0].string) if len(scripts) == 1 else {}
    kind = "Chapter" if path in CHAPTERS else "Book"
    if (record.get("@type"), record.get("name"), record.get("url")) != (kind, heading, address):
        found.append("json-ld")
    return found


@pytest.fixture(scope="module")
def paths(built_book):
    """Pages of the book itself, not those that forward or search."""
    found = [path for path in pages.page_paths(built_book) if path not in pages.UNLISTED]
    return [path for path in found if not pages.read_page(built_book, path).redirects]


def test_every_page_can_be_shared_and_cited(built_book, paths):
    assert set(CHAPTERS) < set(paths)
    assert {path: share_faults(read(built_book, path), path, built_book) for path in paths} == dict.fromkeys(paths, [])


PLANTED = {
    "canonical": ('link[rel="canonical"]', {"href": "https://example.org/"}),
    "og:url": ('meta[property="og:url"]', {"content": "notebooks/linear.html"}),
    "og:image": ('meta[property="og:image"]', {"content": f"{BASE}share/neural.png"}),
    "og:image:alt": ('meta[property="og:image:alt"]', {"content": "linear.png"}),
    "citation_title": ('meta[name="citation_title"]', {"content": "A title"}),
    "citation_author": ('meta[name="citation_author"]', {"name": "author"}),
    "citation_publication_date": ('meta[name="citation_publication_date"]', {"content": "2025/01/01"}),
    "json-ld": ('script[type="application/ld+json"]', {"type": "application/json"}),
}


@pytest.mark.parametrize("fault", [*PLANTED, "title"])
def test_a_fault_of_the_head_is_found(built_book, fault):
    soup = read(built_book, CHAPTERS[0])
    if fault == "title":
        soup.title.string = f"{CONFIG['title']} \N{EM DASH} {CONFIG['title']}"
    else:
        selector, change = PLANTED[fault]
        soup.select_one(selector).attrs.update(change)
    assert share_faults(soup, CHAPTERS[0], built_book) == [fault]


def test_the_map_of_the_site_names_every_page_once(built_book, paths):
    tree = ElementTree.parse(built_book / "sitemap.xml")
    named = [place.text for place in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")]
    assert sorted(named) == sorted(urljoin(BASE, path) for path in paths)


def test_the_book_is_published_where_its_repository_says():
    owner, name = CONFIG["repository"]["url"].rsplit("/", 2)[1:]
    assert BASE == f"https://{owner}.github.io/{name}/"


# In a tiny book


TITLE = """A </script><script>alert(1)</script> "game" & <b>more</b> $x<y$"""
EXTENSIONS = [
    "myst_nb",
    "sphinx_external_toc",
    "sphinxext.opengraph",
    "fpo_book",
    "fpo_claims",
    "fpo_share",
    "fpo_pages",
]


@pytest.fixture
def site(tmp_path):
    made = Book(tmp_path)
    (made.source / "CITATION.cff").write_text((ROOT / "CITATION.cff").read_text(encoding="utf-8"), encoding="utf-8")
    return made


def test_no_text_gets_out_of_its_place(site):
    text = site.source / "CITATION.cff"
    cited = yaml.safe_load(text.read_text()) | {"title": TITLE, "authors": [{"name": TITLE}]}
    text.write_text(yaml.safe_dump(cited))
    site.source.joinpath("index.md").write_text(f"# {TITLE.replace('<', chr(92) + '<')}\n\nText.\n")
    _, warnings = site.build(
        extensions=EXTENSIONS, ogp_social_cards={"enable": False}, html_baseurl="https://example.org/a/"
    )
    page = site.page("index")
    assert warnings == "" and "alert(1)" in page.title.get_text()
    scripts = [each for each in page.find_all("script") if "alert(1)" in each.get_text()]
    assert [each["type"] for each in scripts] == ["application/ld+json"]
    record = json.loads(scripts[0].string)
    assert record["name"] == TITLE and record["author"][0]["name"] == TITLE
    assert tag(page, "citation_title") == tag(page, "citation_author") == TITLE
    assert not page.select("head b") and page.head.find_next_sibling().name == "body"


def test_a_book_that_is_published_nowhere_claims_no_address(site):
    page, warnings = site.build("Text.", extensions=EXTENSIONS, ogp_social_cards={"enable": False})
    assert warnings == ""
    assert not page.select('link[rel="canonical"], meta[property="og:url"], meta[property="og:image"]')
    assert not page.select('meta[name^="citation_"], script[type="application/ld+json"]')
    assert not (site.out / "sitemap.xml").exists()


def test_a_title_that_is_the_books_is_said_once(site):
    page, _ = site.build("Text.", extensions=EXTENSIONS, ogp_social_cards={"enable": False}, html_title="Page")
    assert page.title.get_text() == "Page"
    page, _ = site.build("Text.", extensions=EXTENSIONS, ogp_social_cards={"enable": False}, html_title="Pages")
    assert page.title.get_text() == "Page \N{EM DASH} Pages"


def test_a_picture_is_white_where_the_figure_is_clear(tmp_path):
    Image.new("RGBA", (300, 100), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    fpo_share.draw(tmp_path / "clear.png", tmp_path / "share" / "a.png")
    with Image.open(tmp_path / "share" / "a.png") as drawn:
        assert drawn.size == fpo_share.SIZE
        assert drawn.convert("RGB").getextrema() == ((255, 255),) * 3
