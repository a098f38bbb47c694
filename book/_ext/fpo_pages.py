"""What the built pages need beyond the theme: mended markup.

Every change of markup answers a fault which a screen reader or axe-core reports and for which the theme has no option;
colours are mended in book/_static/book.css.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, NavigableString, Tag
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

# It stands there from the start, so that nothing moves; book/_static/code.js makes it work.
CODE_SWITCH = (
    '<button class="btn btn-sm code-switch needs-script" type="button"><span class="what">Show all code</span></button>'
)
HEADS = ("h1", "h2", "h3", "h4")
A_SENTENCE = 40  # letters that no narrow column holds well
CLOSING = re.compile(r"[.,;:!?)\]\u2019\u201d]+")

logger = logging.getLogger(__name__)


def warn_of_missing_alt(app: Sphinx, doctree: nodes.document) -> None:
    """A figure that a screen reader cannot tell is a warning, and so an error of the strict build."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            where = image if image.line else app.env.docname
            logger.warning("image without alt text: %s", image["uri"], location=where, type="fpo", subtype="alt")


def name_folds(app: Sphinx, doctree: nodes.document) -> None:
    """A folded cell with a name of its own keeps it while it is open."""
    for cell in doctree.findall(nodes.container):
        if cell.get("prompt_show", "").startswith("Code: "):
            cell["prompt_hide"] = cell["prompt_show"]


def finish(app: Sphinx, error: Exception | None) -> None:
    """Mend the pages of the site; where `fpo_light` is, it does so, since it reads and writes each of them anyway."""
    if error is not None or app.builder.name != "html" or "fpo_light" in app.extensions:
        return
    for page in Path(app.outdir).rglob("*.html"):
        if "_static" in page.relative_to(app.outdir).parts:
            continue
        soup = BeautifulSoup(page.read_text(encoding="utf8"), "html.parser")
        mend(soup)
        page.write_text(str(soup), encoding="utf8")


def mend(soup: BeautifulSoup) -> None:
    """Mend the markup of one page in place."""
    # One walk for all that follows: a CSS selector each would take as long as all the rest.
    tags = defaultdict(list)
    for tag in soup.find_all(True):
        tags[tag.name].append(tag)

    def marked(name: str, part: str) -> list[Tag]:
        return [tag for tag in tags[name] if part in tag.get("class", ())]

    def of_article(those: list[Tag]) -> list[Tag]:
        return [tag for tag in those if tag.find_parent("article")]

    for toggle in tags["summary"]:
        if "hide" in toggle.parent.get("class", ()):
            del toggle["aria-label"]  # it would hide the fold's own name
    for card in marked("div", "summary-card"):
        card.attrs |= {"role": "region", "aria-label": "Summary"}
    header = soup.find(class_="article-header-buttons")
    if header and of_article(marked("div", "cell_input")) and not header.find(class_="code-switch"):
        header.insert(0, BeautifulSoup(CODE_SWITCH, "html.parser"))
    for toggle in tags["summary"]:
        if not toggle.get_text(strip=True) and not toggle.get("aria-label"):
            part = toggle.find_parent("li")
            link = part.find("a") if part else None
            toggle["aria-label"] = f"Chapters of {link.get_text(strip=True)}" if link else "Show or hide"
    for field in tags["input"]:
        if field.get("type") == "search":
            field["aria-label"] = "Search this book"
    for button in tags["button"] + marked("a", "btn"):
        if not button.get_text(strip=True) and not button.get("aria-label"):
            button["aria-label"] = button.get("title") or button.get("data-bs-original-title") or "Show or hide"
    for icon in tags["i"] + tags["span"]:
        if any("fa-" in part for part in icon.get("class", ())):
            icon["aria-hidden"] = "true"
    for box in of_article(tags["input"]):
        if box.get("type") == "checkbox" and not box.has_attr("aria-label"):
            box["aria-label"] = box.parent.get_text(" ", strip=True)
    for entry in (tag for those in tags.values() for tag in those if tag.get("role") == "doc-biblioentry"):
        entry["role"] = "listitem"
    for sidebar in marked("div", "bd-sidebar-primary"):
        sidebar.attrs |= {"role": "region", "aria-label": "Book"}
    for row in of_article(tags["thead"]):
        if not row.get_text(strip=True):  # Markdown has no table without a head
            row.decompose()
    for content in of_article(tags["table"]):
        if "claims" not in content.get("class", ()):  # cards already
            stack(content)
        head = content.find_previous(lambda tag: tag.name in HEADS or "rubric" in tag.get("class", ()))
        caption = content.find("caption") or head
        box = content.find_parent(class_="pst-scrollable-table-container") or content.wrap(soup.new_tag("div"))
        box["class"] = "scrolling"
        make_scrollable(box, f"Table: {caption.get_text(' ', strip=True).rstrip(' #')}")
    for equation in of_article(marked("div", "math")):
        number = equation.find(class_="eqno")
        make_scrollable(equation, f"Equation {number.get_text(strip=True).rstrip('#')}" if number else "Equation")
    # A browser may break a line behind a drawing: what closes the sentence would begin the next one.
    for formula in of_article(marked("span", "math")):
        after = formula.next_sibling
        if isinstance(after, NavigableString) and (mark := CLOSING.match(after)):
            after.replace_with(after[mark.end() :])
            formula.wrap(soup.new_tag("span", attrs={"class": "unbroken"})).append(mark[0])
    # The theme's script gives the focus to a <pre> that is too wide as the page loads. One in a closed cell is not.
    for text in of_article(tags["pre"]):
        if not text.find_parent(class_="scrolling"):
            box = text.wrap(soup.new_tag("div", attrs={"class": "scrolling"}))
            make_scrollable(box, "Output" if text.find_parent(class_="cell_output") else "Code")


def stack(content: Tag) -> None:
    """Let a table with sentences in three columns stand as cards on a phone: each cell knows its column's name."""
    names = [
        None if head.select_one(".math") else head.get_text(" ", strip=True) for head in content.select("thead th")
    ]
    rows = [row.find_all("td") for row in content.select("tbody tr")]
    longest = max((len(cell.get_text()) for row in rows for cell in row), default=0)
    if len(names) < 3 or longest < A_SENTENCE or any(len(row) != len(names) for row in rows):
        return
    content["class"] = [*content.get("class", ()), "stacks"]
    for row in rows:
        for name, cell in zip(names, row, strict=True):
            if name:  # a formula is no text
                cell["data-head"] = name


def make_scrollable(box: Tag, label: str) -> None:
    """What scrolls must be reachable by keyboard, and what takes the focus must have a name."""
    box.attrs |= {"tabindex": "0", "role": "group", "aria-label": label}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", warn_of_missing_alt)
    app.connect("doctree-read", name_folds)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
