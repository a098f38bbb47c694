"""Faults of a printed book, found by reading the PDF's text beside the pages that it was printed from."""

from __future__ import annotations

import ctypes
import re
import unicodedata
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pypdfium2
from bs4 import BeautifulSoup
from pypdfium2 import raw

from tools import Fault

ABSENT = "missing from the print"
BLANK = "blank page"
NUMBER = "wrong page number"
CLIPPED = "clipped text"
SHRUNK = "printed too small"
FOLDED = "folded code"
TEX = "unrendered math"
LINK = "link to a file"
DISTORTED = "distorted picture"
LONGEST = 40  # lines of code that are looked for, of each page
ROUNDING = 2  # points


@dataclass
class Source:
    """What a page of the site promises of the print."""

    path: str
    headings: list[str]  # the chapter's own first; without those that hold a formula
    shown: list[str]  # lines of code, longest first
    folded: list[str]


def squeeze(text: str) -> str:
    """Text without its blanks, which a PDF puts where it likes, ligatures taken apart."""
    return re.sub(r"[\s\u00ad\u200b]+", "", unicodedata.normalize("NFKC", re.sub("[\x02\ufffe]", "-", text)))


def read_source(site: Path, path: str) -> Source:
    """Headings and code of one page."""
    article = BeautifulSoup((site / path).read_text(encoding="utf-8"), "html.parser").select_one("article")
    for link in article.select("a.headerlink"):
        link.decompose()
    titles = [each for each in article.select("h1, h2") if not each.select(".math")]
    folded, shown = [], []
    for code in article.select("pre"):
        hidden = code.find_parent("details", class_="hide") and code.find_parent(class_="cell_input")
        (folded if hidden else shown).extend(line for line in code.get_text().splitlines() if line.strip())
    by_length = sorted(dict.fromkeys(shown), key=len, reverse=True)
    return Source(path, [each.get_text() for each in titles], by_length, folded)


def faults(pdf: Path, site: Path, paths: list[str]) -> list[Fault]:
    """What is wrong with the print of these pages of a site, given in reading order."""
    sheets = read_sheets(pdf)
    texts = [sheet.text for sheet in sheets]
    squeezed = [squeeze(text) for text in texts]
    bodies = [body(sheet, number) for number, sheet in enumerate(sheets, start=1)]
    whole = "".join(bodies)
    sources = [read_source(site, path) for path in paths]
    found: set[Fault] = set()

    # A browser shrinks every page where one thing is too wide; the number at the foot keeps its size.
    first, last = sheets[1].scales
    if last < 0.99 * first:
        found.add(Fault("the print", SHRUNK, f"to {last / first:.0%}, since something is wider than a page"))

    found |= sheet_faults(sheets)
    for number, (sheet, text) in enumerate(zip(sheets, bodies, strict=True), start=1):
        where = f"page {number}"
        found |= {Fault(where, TEX, tex) for tex in re.findall(r"(?<!\\)(?:\\\(|\\\[).{0,40}", text)}
        bad = [each for each in sheet.addresses if not re.match(r"https?:|mailto:", each)]
        found |= {Fault(where, LINK, address) for address in bad}

    shown = "\n".join({squeeze(line) for each in sources for line in each.shown})
    begins, contents, at = {}, "\n".join(unicodedata.normalize("NFKC", text) for text in texts), 0
    for source in sources:
        for heading in source.headings:
            # In their order: many chapters have a section of the same name.
            number, at = page_named(squeeze(heading), contents, at)
            if heading is source.headings[0]:
                begins[source.path] = number or 0
                if number is None:
                    found.add(Fault(source.path, ABSENT, f"no line of the contents: {heading}"))
            if number is None or not 1 <= number <= len(texts) or squeeze(heading) not in squeezed[number - 1]:
                found.add(Fault(source.path, NUMBER, f"{heading} is said to be on page {number}"))
        for line in source.shown[:LONGEST]:
            if squeeze(line) not in whole:
                found.add(Fault(source.path, ABSENT, line))
        for line in source.folded:
            if len(squeeze(line)) > 30 and squeeze(line) in whole and squeeze(line) not in shown:
                found.add(Fault(source.path, FOLDED, line))
    if list(begins.values()) != sorted(begins.values()):
        found.add(Fault("the print", ABSENT, f"the pages are not in reading order: {begins}"))
    return sorted(found, key=str)


def body(sheet: Sheet, number: int) -> str:
    """What a page says, without the number at its foot, which comes first in its text."""
    return squeeze(sheet.text).removeprefix(str(number))


def sheet_faults(sheets: list[Sheet]) -> set[Fault]:
    """Blank pages, distorted pictures, and text out of the margin: the right one is as wide as the left one."""
    found: set[Fault] = set()
    left = min((left for sheet in sheets for left, _ in sheet.edges), default=0)
    for number, sheet in enumerate(sheets, start=1):
        where = f"page {number}"
        odd = [ratio for ratio in sheet.stretched if abs(ratio - 1) > 0.02]
        found |= {Fault(where, DISTORTED, f"{ratio:.0%} as wide for its height as it was") for ratio in odd}
        if not body(sheet, number) and not sheet.pictures:
            found.add(Fault(where, BLANK, "neither a word nor a picture"))
        edge = sheet.width - left + ROUNDING
        found |= {Fault(where, CLIPPED, f"text ends at {right:.0f} pt") for _, right in sheet.edges if right > edge}
    return found


def page_named(title: str, contents: str, start: int) -> tuple[int | None, int]:
    """The page that the contents give for a heading, looked for from `start` on; and where its line ends."""
    pattern = r"\s*".join(map(re.escape, title)) + r"\s*(\d+)\s*$"
    match = re.compile(pattern, re.MULTILINE).search(contents, start)
    return (int(match[1]), match.end()) if match else (None, start)


@dataclass
class Sheet:
    """What one page of the print holds."""

    text: str
    edges: list[tuple[float, float]]  # left and right of each line of text, in points
    scales: list[float]  # of the first and the last letter
    pictures: int
    stretched: list[float]  # how much wider than high each bitmap is than it was
    addresses: list[str]  # that links lead to outside of the book
    width: float


def read_sheets(pdf: Path, count: int | None = None) -> list[Sheet]:
    """Read every page, or the first ones."""
    with closing(pypdfium2.PdfDocument(pdf)) as document:
        return [read_sheet(document, document[i]) for i in range(len(document) if count is None else count)]


def read_sheet(document, page) -> Sheet:
    """Read one page."""
    letters = page.get_textpage()
    text = letters.get_text_range()
    rectangles = [letters.get_rect(i) for i in range(letters.count_rects())]
    matrices = [raw.FS_MATRIX() for _ in range(2)]
    for place, matrix in zip((0, letters.count_chars() - 1), matrices, strict=True):
        raw.FPDFText_GetMatrix(letters, max(place, 0), matrix)
    pictures = list(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH]))
    return Sheet(
        text.replace("\r", ""),
        [(left, right) for left, _, right, _ in rectangles],
        [matrix.a for matrix in matrices],
        len(pictures),
        [stretch(each) for each in pictures if each.type == raw.FPDF_PAGEOBJ_IMAGE],
        list(addresses(document, page)),
        page.get_width(),
    )


def stretch(image) -> float:
    """The ratio of width to height on paper over that of its pixels."""
    (width, height), (left, low, right, high) = image.get_px_size(), image.get_bounds()
    return (right - left) / (high - low) * height / width


def addresses(document, page):
    """Where the links of a page lead to outside of the book."""
    start, link = ctypes.c_int(0), raw.FPDF_LINK()
    while raw.FPDFLink_Enumerate(page, start, link):
        action = raw.FPDFLink_GetAction(link)
        size = raw.FPDFAction_GetURIPath(document, action, None, 0) if action else 0
        if size:
            address = ctypes.create_string_buffer(size)
            raw.FPDFAction_GetURIPath(document, action, address, size)
            yield address.value.decode()
