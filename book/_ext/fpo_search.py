"""Search that lands at sections: their texts in one script, which book/_static/search.js looks through.

Sphinx's own search finds pages, and shows of each a piece of its markup. Here a section is what is found, and what is
shown of it is its prose: formulas as plain text where that is possible, neither TeX nor code.
"""

import json
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

FILE = "sections.js"
SPLIT = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
SIGNS = {
    "approx": "\N{ALMOST EQUAL TO}", "cdot": "\N{MIDDLE DOT}", "dots": "\N{HORIZONTAL ELLIPSIS}", "ell": "l",
    "ge": "\N{GREATER-THAN OR EQUAL TO}", "in": "\N{ELEMENT OF}", "infty": "\N{INFINITY}", "langle": "<",
    "ldots": "\N{HORIZONTAL ELLIPSIS}", "le": "\N{LESS-THAN OR EQUAL TO}", "lvert": "|", "mid": "|",
    "nabla": "\N{NABLA}", "rangle": ">", "rvert": "|", "sim": "~", "succ": "\N{SUCCEEDS}",
    "times": "\N{MULTIPLICATION SIGN}", "to": "\N{RIGHTWARDS ARROW}", "top": "T",
    "varepsilon": "\N{GREEK SMALL LETTER EPSILON}",
}  # fmt: skip
ACCENTS = {"bar": "\N{COMBINING MACRON}", "hat": "\N{COMBINING CIRCUMFLEX ACCENT}", "tilde": "\N{COMBINING TILDE}"}
WORDS = {"argmax", "cos", "det", "exp", "lim", "ln", "log", "max", "min", "sin", "tr"}
# They change letters, or the size of brackets, and say nothing.
SILENT = {"big", "bigl", "bigr", "displaystyle", "left", "mathbb", "mathcal", "mathrm", "operatorname", "right", "text"}
SPACES = {"\\,", "\\;", "\\:", "\\!", "\\ "}
POWERS = {"*": "*", "2": "\N{SUPERSCRIPT TWO}", "3": "\N{SUPERSCRIPT THREE}"}
# Of a verdict's square on a card: its mark, and what a screen reader is told.
UNREAD = {"square-mark", "visually-hidden"}
NO_FORMULA = "\N{HORIZONTAL ELLIPSIS}"


def tokens(tex: str) -> list[str]:
    """The signs of a formula, spaces left out."""
    return [token for token in SPLIT.findall(tex) if not token.isspace() and token not in SPACES]


def plain(tex: str) -> str | None:
    """A formula as plain text; None where a line of text cannot say it."""
    shown, accent, found = [], "", tokens(tex)
    for token, before in zip(found, ["", *found], strict=False):
        if token.startswith("\\"):
            name = token[1:]
            if name in ACCENTS:
                accent = ACCENTS[name]
                continue
            if name in SILENT:
                continue
            sign = SIGNS.get(name) or greek(name) or (f"{name} " if name in WORDS else None)
            if sign is None:
                return None
            shown.append(sign + accent)
        elif before == "^" and token in POWERS:
            shown[-1] = POWERS[token]
        elif token in "{}":
            continue  # an accent waits for its letter
        else:
            shown.append(f" {token} " if token in "=<>+-" else token + accent)
        accent = ""
    return re.sub(r"\s+", " ", re.sub(r"(^|\^) ([+-]) ", r"\1\2", "".join(shown))).strip()


def greek(name: str) -> str | None:
    """The letter of this name, small or capital; None if there is none."""
    case = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name.upper()}")
    except KeyError:
        return None


def prose(node: nodes.Node, skipped: Collection[nodes.Node] = ()) -> str:
    """The text of a node as a reader sees it, without code and without what is skipped."""
    if isinstance(node, nodes.Text):
        return str(node)
    if isinstance(node, nodes.math | nodes.math_block):
        return plain(node.astext()) or NO_FORMULA
    if isinstance(node, nodes.literal_block | nodes.raw | nodes.comment | nodes.image) or id(node) in skipped:
        return ""
    if UNREAD & set(node.get("classes", ())):
        return ""
    between = "" if isinstance(node, nodes.TextElement) else " "
    return between.join(prose(child, skipped) for child in node.children)


def sections(document: nodes.document) -> list[Any]:
    """(anchor, title, text) of each section, and of each word of a glossary."""
    found = []
    parts = list(document.findall(is_part))
    for part in parts:
        title = next(each for each in part.children if isinstance(each, nodes.title | nodes.term))
        ids = part["ids"] or title["ids"]
        inner = {id(each) for each in (title, *parts) if each is not part}
        text = re.sub(r"\s+([,.;:)])", r"\1", re.sub(r"\s+", " ", prose(part, inner))).strip()
        # The top of a page needs no anchor.
        found.append(("" if part.parent is document else ids[0], prose(title).strip(), text))
    return found


def is_part(node: nodes.Node) -> bool:
    """Whether it can be found by itself. A proof is a section without a title and belongs to what is around it."""
    if isinstance(node, nodes.definition_list_item):
        return any(isinstance(each, nodes.term) and each["ids"] for each in node.children)
    return isinstance(node, nodes.section) and any(isinstance(each, nodes.title) for each in node.children)


def collect(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Note the sections of a page that is about to be written."""
    if app.builder.name == "html":
        app.fpo_sections[docname] = sections(document)


def write(app: Sphinx, error: Exception | None) -> None:
    """Put all sections, in reading order, where the search page finds them."""
    if error is not None or app.builder.name != "html":
        return
    pages = []
    for docname in app.env.collect_relations():
        if parts := app.fpo_sections.get(docname):
            pages.append({"page": app.builder.get_target_uri(docname), "title": parts[0][1], "parts": parts})
    text = json.dumps(pages, ensure_ascii=False, separators=(",", ":"))
    Path(app.outdir, "_static", FILE).write_text(f"window.bookSections = {text};\n", encoding="utf8")


def begin(app: Sphinx) -> None:
    app.fpo_sections = {}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", begin)
    app.connect("doctree-resolved", collect)
    app.connect("build-finished", write)
    # What is collected as pages are written stays in one process.
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
