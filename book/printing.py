"""The rendered book as one PDF, and as an archive to read offline.

All pages are joined, in reading order, into one page that knows no others: ids are made unique, links between pages
lead to their place in it. Chromium prints that page by book/_static/print.css and book/bound.css. It is printed twice:
the first print says on which page each heading lands, and the second has these numbers in its contents.
"""

import ctypes
import os
import re
import zipfile
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import chromium
import pypdfium2
import yaml
from bs4 import BeautifulSoup, Tag
from chromium import Unprinted
from sphinx_external_toc.parsing import parse_toc_yaml

NAME = "alignment-collapse"
BOUND = Path(__file__).with_name("bound.css")
# What only works on a screen, and code that is folded away there. The theme's own pieces that never print come last.
SCREEN_ONLY = (
    "a.headerlink, button, form, script, style[data-emotion], details.hide, input, .toctree-wrapper,"
    " .noprint, .d-print-none, .visually-hidden[role=status]"
)
LISTS_OF_IDS = {"aria-controls", "aria-describedby", "aria-details", "aria-labelledby", "aria-owns", "for", "headers"}
FETCHED = {"data", "poster", "src"}
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
IN_CONTENTS = "h1, h2"


@dataclass
class Chapter:
    """A page of the site on its way into the book."""

    path: str  # relative to the site
    part: str | None  # the caption that stands above it in the contents
    article: Tag

    @property
    def key(self) -> str:
        """What every id of the page begins with."""
        return name_key(self.path)


def name_key(path: str) -> str:
    return path.removesuffix(".html").replace("/", "-")


def read_chapters(site: Path, toc: Path) -> tuple[list[Chapter], Tag]:
    """The site's pages in reading order; and the head of the first."""
    contents = parse_toc_yaml(toc)
    parts = {str(item): tree.caption for tree in contents.root.subtrees for item in tree.items}
    chapters, head, part = [], None, None
    for name in contents:
        path, part = f"{name}.html", parts.get(name, part)
        soup = BeautifulSoup((site / path).read_text(encoding="utf8"), "html.parser")
        article = soup.select_one("article.bd-article")
        if article is None:
            raise Unprinted(f"{path} holds no article")
        # Drawings that several places of a page share.
        for shared in reversed(soup.select("body svg:has(defs)")):
            if not shared.find_parent("article"):
                article.insert(0, shared.extract())
        head = head or soup.head
        chapters.append(Chapter(path, part, article))
    return chapters, head


def join(site: Path, toc: Path, about: tuple[str, ...]) -> BeautifulSoup:
    """One page of the whole site; `about` is the title page's title and lines below it."""
    chapters, head = read_chapters(site, toc)
    for chapter in chapters:
        clean(chapter.article)
    ids = {chapter.path: {each["id"] for each in chapter.article.select("[id]")} for chapter in chapters}
    for chapter in chapters:
        make_unique(chapter)
        for link in chapter.article.select("a[href]"):
            aim(link, chapter.path, ids)
        make_absolute(chapter.article, site / chapter.path)
    book = BeautifulSoup(
        '<!DOCTYPE html><html data-theme="light" data-mode="light"><body></body></html>', "html.parser"
    )
    book.html["lang"] = "en"
    book.html.insert(0, make_head(book, head, site / chapters[0].path, about[0]))
    # The theme's rules ask for these.
    inner = book.body
    for name, classes in (("main", "bd-main"), ("div", "bd-content"), ("div", "bd-article-container")):
        inner = add(inner, name, classes)
    inner.append(title_page(about))
    inner.append(contents_page(chapters))
    for chapter in chapters:
        chapter.article["class"] = [*chapter.article["class"], "print-chapter"]
        chapter.article["id"] = chapter.key
        inner.append(chapter.article)
    return book


def clean(article: Tag) -> None:
    """Leave what belongs on paper, with everything else that is folded away open."""
    # Of code whose printed words stay, the name stays too: the text speaks of it.
    for fold in article.select("div.cell > details.hide"):
        if fold.parent.select_one(".cell_output pre"):
            name = fold.select_one("summary p").get_text(strip=True)
            fold.insert_before(told := add(article, "p", "print-folded"))
            told.string = f"{name} (not printed)"
    # A card's picture stands in full further down. A high one would be too small to read here.
    for image in article.select(".key-figure img[height]"):
        if int(image["height"]) > 1.15 * int(image["width"]):
            image.find_parent(class_="key-figure").decompose()
    for screen in article.select(SCREEN_ONLY):
        if not screen.decomposed:
            screen.decompose()
    for fold in article.select("details"):
        fold["open"] = ""
    for instead in article.select("noscript"):
        instead.unwrap()
    for image in article.select("[loading]"):
        del image["loading"]  # a lazy one would be fetched only once it is scrolled to
    # A section begins where the page before ends, its heading perhaps a page later: that is what links should find.
    for section in article.select("section[id]"):
        before = list(takewhile(lambda node: node.name not in HEADINGS, section.find_all(True, recursive=False)))
        heading = section.find(HEADINGS, recursive=False)
        if heading and not heading.get("id") and all(node.name == "span" for node in before):
            heading["id"] = section.attrs.pop("id")
            for target in reversed(before):
                heading.insert(0, target.extract())


def make_unique(chapter: Chapter) -> None:
    """Put the chapter's key in front of every id and of whatever names one."""

    def renamed(name: str) -> str:
        return f"{chapter.key}--{name}"

    for node in chapter.article.find_all(True):
        for name, value in node.attrs.items():
            if name == "id":
                node[name] = renamed(value)
            elif name in LISTS_OF_IDS:
                node[name] = " ".join(map(renamed, value if isinstance(value, list) else value.split()))
            elif name in ("href", "xlink:href") and value.startswith("#") and node.name != "a":
                node[name] = f"#{renamed(value[1:])}"
            elif isinstance(value, str) and "url(#" in value:
                node[name] = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{renamed(found[1])})", value)


def aim(link: Tag, path: str, ids: dict[str, set[str]]) -> None:
    """Turn a link to a page of the book into one to its place in the join; a file beside the pages has none."""
    parts = urlsplit(link["href"])
    if parts.scheme or parts.netloc:
        return
    target = os.path.normpath(Path(path).parent / unquote(parts.path)).replace(os.sep, "/") if parts.path else path
    if target not in ids:
        link.name = "span"
        del link["href"]
        return
    fragment = unquote(parts.fragment)
    # What stood only on the screen, say a folded cell, is looked for at the chapter's beginning.
    link["href"] = f"#{name_key(target)}" + (f"--{fragment}" if fragment in ids[target] else "")


def make_absolute(tree: Tag, page: Path) -> None:
    """Name every file with its whole address: the joined page lies elsewhere."""
    for node in tree.find_all(True):
        for name in FETCHED & node.attrs.keys():
            node[name] = urljoin(page.as_uri(), node[name])
        if node.name in ("image", "link", "use") and not node.get("href", "#").startswith("#"):
            node["href"] = urljoin(page.as_uri(), node["href"])
        if "srcset" in node.attrs:
            del node["srcset"]


def make_head(book: BeautifulSoup, head: Tag, page: Path, title: str) -> Tag:
    """The style sheets of the site, and that of the bound book."""
    made = book.new_tag("head")
    made.append(book.new_tag("meta", charset="utf-8"))
    add(made, "title").string = title
    made.extend(head.select("link[rel~=stylesheet], style"))
    make_absolute(made, page)
    add(made, "style").string = BOUND.read_text(encoding="utf8")
    return made


def add(parent: Tag, name: str, classes: str = "") -> Tag:
    """A new last child."""
    child = BeautifulSoup("", "html.parser").new_tag(name)
    if classes:
        child["class"] = classes.split()
    parent.append(child)
    return child


def title_page(about: tuple[str, ...]) -> Tag:
    page = BeautifulSoup('<header class="print-title"></header>', "html.parser").header
    title, *lines = about
    add(page, "p", "print-title-name").string = title
    for line in lines:
        add(page, "p").string = line
    return page.extract()


def contents_page(chapters: list[Chapter]) -> Tag:
    """Parts, chapters and sections, each with room for its page's number."""
    page = BeautifulSoup('<nav class="print-contents" aria-label="Contents"></nav>', "html.parser").nav
    add(page, "p", "print-contents-name").string = "Contents"
    part = None
    for chapter in chapters:
        if chapter.part != part:
            part = chapter.part
            add(page, "p", "print-part").string = part
        for heading in chapter.article.select(IN_CONTENTS):
            if not heading.get("id"):
                raise Unprinted(f"{chapter.path}: the heading {heading.get_text()!r} cannot be linked to")
            line = add(page, "a", f"print-line print-{heading.name}")
            line["href"] = f"#{heading['id']}"
            words = add(line, "span", "print-words")
            words.extend(BeautifulSoup(heading.decode_contents(), "html.parser").contents)
            for each in words.select("[id], a"):
                each.attrs.pop("id", None)
                if each.name == "a":
                    each.unwrap()
            add(line, "span", "print-number")
    return page.extract()


def check_math(soup: BeautifulSoup) -> None:
    """Refuse a page on which a formula is still TeX."""
    for formula in soup.select("span.math, div.math"):
        if not formula.find(["svg", "math", "mjx-container"]):
            raise Unprinted(f"a formula was not drawn: {formula.get_text(' ', strip=True)[:80]}")


def page_numbers(pdf: Path) -> dict[str, int]:
    """The page on which each linked place stands, from 1."""
    found = {}
    with closing(pypdfium2.PdfDocument(pdf)) as document:
        for i in range(pypdfium2.raw.FPDF_CountNamedDests(document)):
            size = ctypes.c_long()
            pypdfium2.raw.FPDF_GetNamedDest(document, i, None, size)
            name = ctypes.create_string_buffer(size.value)
            place = pypdfium2.raw.FPDF_GetNamedDest(document, i, name, size)
            key = name.raw[: size.value].decode("utf-16-le").rstrip("\0")
            found[key] = pypdfium2.raw.FPDFDest_GetDestPageIndex(document, place) + 1
    return found


def fill_in(book: BeautifulSoup, numbers: dict[str, int]) -> None:
    """Write page numbers into the contents."""
    for line in book.select(".print-contents a.print-line"):
        place = line["href"][1:]
        if place not in numbers:
            raise Unprinted(f"the print has no place {place!r}, which the contents name")
        line.select_one(".print-number").string = str(numbers[place])


def about(config: Path) -> tuple[str, ...]:
    """What the title page says, from the book's settings."""
    settings = yaml.safe_load(config.read_text(encoding="utf8"))
    return settings["title"], settings["author"], settings["copyright"], settings["repository"]["url"]


def print_book(site: Path, source: Path, pdf: Path) -> None:
    """Print the site that was rendered from `source` as one PDF."""
    browser = chromium.require_browser()
    pdf.parent.mkdir(parents=True, exist_ok=True)
    joined, draft = pdf.with_suffix(".html"), pdf.with_suffix(".new")
    try:
        book = join(site, source / "_toc.yml", about(source / "_config.yml"))
        check_math(book)
        numbers = None
        # Numbers stand in a column of fixed width, so the second print is the last.
        for _ in range(3):
            joined.write_text(str(book), encoding="utf8")
            chromium.print_page(browser, joined, draft, final=numbers is not None)
            if (found := page_numbers(draft)) == numbers:
                break
            numbers = found
            fill_in(book, numbers)
        else:
            raise Unprinted("the contents do not come to rest: each print has other page numbers")
        draft.replace(pdf)
    finally:
        draft.unlink(missing_ok=True)
        joined.unlink(missing_ok=True)


def pack(site: Path, archive: Path) -> None:
    """The site as an archive: the same bytes from the same files."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_suffix(".new")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(path for path in site.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{NAME}/{path.relative_to(site).as_posix()}")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, path.read_bytes())
    draft.replace(archive)
