"""Helps for readers: words, symbols and equations that show what they mean where they stand.

Before references are resolved, what needs an explanation is put into a `Helped`, and the explanation at the page's end
into a `HelpTexts`, which stays hidden. book/_static/helps.js shows it on hover, on focus and on tap. Explained are

- a term of the glossary, by its definition: where {term} names it, and where it first stands in a page's text;
- an equation that is referred to, by itself;
- a symbol where it first stands in a chapter, by its row in book/notation.md. The section of that page which speaks for
  a chapter carries the target (notation-CHAPTER)=.

Citations bring their text themselves. Columns of numbers and wide tables are marked here, too, and a chapter's card
gets a link to what to take away.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from docutils import nodes
from fpo_search import plain, tokens
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

GLOSSARY, NOTATION = "book/glossary", "book/notation"
# Pages that are lists of explanations themselves.
UNEXPLAINED = {GLOSSARY, NOTATION, "book/references", "CHANGELOG"}
# Terms that are ordinary words as well: only where {term} says that the term is meant.
ORDINARY = {"base", "buffer", "fold", "gate", "goal", "saved", "score"}
TAKE_AWAY = "What to take away"
WIDE = 6  # columns
ACCENTS = {"\\bar", "\\hat", "\\tilde"}
NUMBER = re.compile(r"[\s()\[\]%,.:/\d+\N{MINUS SIGN}\N{EN DASH}-]*\d[\s()\[\]%,.:/\d+\N{MINUS SIGN}\N{EN DASH}-]*")
BETWEEN_NUMBERS = re.compile(r"\b(to|of|s|e|x|not available)\b")


class Helped(nodes.inline):
    """Something with a text of its own to show; `help` is that text's id, `label` the name of what has no link."""


class HelpTexts(nodes.comment):
    """The texts of a page, hidden. It is a comment to whatever else walks over the page, such as a search index."""


def visit_helped(writer: Any, node: nodes.Element) -> None:
    attributes = {"data-help": node["help"]}
    if label := node.get("label"):
        attributes |= {"tabindex": "0", "role": "group", "aria-label": label, "aria-describedby": node["help"]}
    writer.body.append(writer.starttag(node, around(node), "", CLASS="helped", **attributes))


def depart_helped(writer: Any, node: nodes.Element) -> None:
    writer.body.append(f"</{around(node)}>")


def around(node: nodes.Element) -> str:
    """What stands around something in a line, and around a formula in lines of its own."""
    return "div" if isinstance(node.children[0], nodes.math_block) else "span"


def visit_texts(writer: Any, node: nodes.Element) -> None:
    writer.body.append('<div class="help-texts noprint" hidden="hidden">\n')


def depart_texts(writer: Any, node: nodes.Element) -> None:
    writer.body.append("</div>\n")


class GiveHelp(SphinxPostTransform):
    """Give each page its explanations; before references are resolved, so that theirs are, too."""

    default_priority = 5
    formats = ("html",)

    def run(self) -> None:
        self.docname = self.env.docname
        self.texts: dict[str, Any] = {}
        if self.docname not in UNEXPLAINED:
            self.link_terms()
        self.explain_terms()
        self.explain_equations()
        self.explain_symbols()
        if self.texts:
            self.document += HelpTexts("", "", *self.texts.values())

    def doctree(self, docname: str) -> nodes.document:
        """Another page as it was read."""
        kept = self.app.fpo_doctrees
        if docname not in kept:
            kept[docname] = self.env.get_doctree(docname)
        return kept[docname]

    def add_text(self, key: str, *children: nodes.Node) -> str:
        """A text of this page, once; its id."""
        name = nodes.make_id(f"help-{key}")
        if name not in self.texts:
            self.texts[name] = nodes.container("", *map(self.copy, children), ids=[name], classes=["help-text"])
        return name

    def copy(self, node: nodes.Element) -> nodes.Element:
        """A copy that leads to the same places from this page, and carries no id."""
        copied = node.deepcopy()
        for each in copied.findall(nodes.Element):
            each["ids"], each["names"] = [], []
            if isinstance(each, addnodes.pending_xref):
                each["refdoc"] = self.docname
            if isinstance(each, nodes.math_block):
                each["number"] = each["label"] = None
        if any(copied.findall(lambda each: isinstance(each, nodes.math | nodes.math_block))):
            # Sphinx brings the means to draw formulas only to pages that have some.
            self.env.get_domain("math").data["has_equations"][self.docname] = True
        return copied

    # Terms

    def definitions(self) -> dict[str, Any]:
        """Definition of each term, by the id that links lead to."""
        found: dict[str, Any] = {}
        if GLOSSARY in self.env.found_docs:
            for item in self.doctree(GLOSSARY).findall(nodes.definition_list_item):
                found |= {
                    each: item.next_node(nodes.definition) for term in item.findall(nodes.term) for each in term["ids"]
                }
        return found

    def terms(self) -> dict[str, Any]:
        """Where each term of the glossary is defined."""
        objects = self.env.get_domain("std").objects
        return {name: place for (kind, name), place in objects.items() if kind == "term" and place[0] == GLOSSARY}

    def link_terms(self) -> None:
        """Turn each term where it first stands in running text into a reference to it."""
        left = {name.lower(): name for name in self.terms() if name.lower() not in ORDINARY}
        for paragraph in self.document.findall(nodes.paragraph):
            join_texts(paragraph)
        for text in list(self.document.findall(nodes.Text)):
            if not left:
                return
            if is_running_text(text):
                pieces = self.split_at_terms(str(text), left)
                if len(pieces) > 1:
                    text.parent.replace(text, pieces)

    def split_at_terms(self, text: str, left: dict[str, Any]) -> list[nodes.Node]:
        """The text with references in it; terms that were found are no longer left."""
        pieces = []
        while left:
            # The longest first: a policy of a leader is no leader.
            names = sorted(left, key=len, reverse=True)
            pattern = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in names)
            match = re.search(rf"(?<![\w-])({pattern})s?(?![\w-])", text, re.IGNORECASE)
            if match is None:
                break
            name = left.pop(re.sub(r"\s+", " ", match[1]).lower())
            pieces += [nodes.Text(text[: match.start()]), self.reference(name, match[0])]
            text = text[match.end() :]
        return [*pieces, nodes.Text(text)]

    def reference(self, name: str, shown: str) -> addnodes.pending_xref:
        inner = nodes.inline(shown, shown, classes=["xref", "std", "std-term"])
        where = {"refdomain": "std", "reftype": "term", "reftarget": name, "refdoc": self.docname}
        return addnodes.pending_xref("", inner, refexplicit=True, refwarn=True, **where)

    def explain_terms(self) -> None:
        places, definitions = {name.lower(): place for name, place in self.terms().items()}, self.definitions()
        for link in self.links("std", "term"):
            _, anchor = places.get(re.sub(r"\s+", " ", link["reftarget"]).lower(), (None, None))
            if anchor in definitions:
                self.wrap(link, self.add_text(anchor, *definitions[anchor].children))

    # Equations

    def explain_equations(self) -> None:
        equations = self.env.get_domain("math").equations
        for link in self.links("math", "eq"):
            label = link["reftarget"]
            docname, _ = equations.get(label, (None, None))
            if docname == self.docname:
                self.wrap(link, nodes.make_id(f"equation-{label}"))
            elif docname:
                blocks = self.doctree(docname).findall(nodes.math_block)
                block = next((each for each in blocks if each.get("label") == label), None)
                if block is not None:
                    self.wrap(link, self.add_text(f"equation-{label}", block))

    # Symbols

    def explain_symbols(self) -> None:
        left = self.symbols()
        for math in list(self.document.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))):
            if not left:
                return
            if not is_running_text(math):
                continue
            found = find_symbols(tokens(math.astext()), left)
            if found:
                rows = list(dict.fromkeys(left[symbol] for symbol in found))
                names = [plain(" ".join(symbol)) for symbol in found]
                label = f"Meaning of {', '.join(filter(None, names)) or 'this formula'}"
                text = self.add_text(f"symbols-{len(self.texts)}", *map(explanation, rows))
                left = {symbol: row for symbol, row in left.items() if symbol not in found}
                self.wrap(math, text, label=label, classes=["symbol"])

    def symbols(self) -> dict[tuple[str, ...], Any]:
        """Rows of the notation page that hold for this chapter, by the symbol's signs."""
        if NOTATION not in self.env.found_docs:
            return {}
        target = nodes.make_id("notation-" + self.docname.rpartition("/")[2])
        sections = list(self.doctree(NOTATION).findall(nodes.section))
        mine = next((each for each in sections if target in each["ids"]), None)
        if mine is None:
            return {}
        found = rows_of(mine)
        # What the section says before its table is as in another one.
        before = [each for each in mine.children if isinstance(each, nodes.paragraph)]
        named = {signs(math) for each in before for math in each.findall(nodes.math)}
        for other in sections:
            if other is not mine:
                found |= {name: row for name, row in rows_of(other).items() if name in named and name not in found}
        return found

    def links(self, domain: str, kind: str) -> Iterator[Any]:
        """References of this kind that have no explanation yet."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            if (link.get("refdomain"), link.get("reftype")) == (domain, kind) and not isinstance(link.parent, Helped):
                yield link

    @staticmethod
    def wrap(node: nodes.Element, text: str, **attributes: Any) -> None:
        helped = Helped("", help=text, **attributes)
        node.parent.replace(node, helped)  # replace_self would hand the node's ids over
        helped += node


def join_texts(paragraph: nodes.Element) -> None:
    """Make one text of those that only the end of a line divides."""
    for place in range(len(paragraph) - 1, 0, -1):
        before, after = paragraph[place - 1 : place + 1]
        if isinstance(before, nodes.Text) and isinstance(after, nodes.Text):
            paragraph[place - 1] = nodes.Text(f"{before}{after}")
            del paragraph[place]


def is_running_text(node: nodes.Node) -> bool:
    """Whether it is in a paragraph or a display, and neither in a link nor in a table, a title or a caption."""
    inside = isinstance(node, nodes.math_block)
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.paragraph):
            inside = True
        if isinstance(node, nodes.reference | addnodes.pending_xref | nodes.table | nodes.title | nodes.caption):
            return False
        if isinstance(node, nodes.literal | nodes.literal_block | nodes.rubric | Helped | HelpTexts):
            return False
    return inside


def signs(math: nodes.Element) -> tuple[str, ...]:
    """The signs of a symbol as the table has it; one sign needs no braces."""
    return unbraced(tokens(math.astext()))


def unbraced(found: Iterable[str]) -> tuple[str, ...]:
    """Without the braces around a single sign: x_{i} is x_i."""
    kept = []
    for token in found:
        kept.append(token)
        if len(kept) > 3 and token == "}" and kept[-3] == "{" and kept[-4] in "_^":
            kept[-3:] = [kept[-2]]
    return tuple(kept)


def rows_of(section: nodes.Element) -> dict[tuple[str, ...], Any]:
    """Rows of a section's table by the signs of each symbol, and by its name without arguments."""
    rows: dict[tuple[str, ...], Any] = {}
    short: dict[tuple[str, ...], Any] = {}
    for body in section.findall(nodes.tbody):
        for row in body.children:
            for math in row.children[0].findall(nodes.math):
                symbol = signs(math)
                rows.setdefault(symbol, row)
                if symbol[-1] == ")" and "(" in symbol and symbol[0] != "(":
                    short.setdefault(symbol[: symbol.index("(")], row)
    return {name: row for name, row in short.items() if name not in rows} | rows


def find_symbols(written: Iterable[str], symbols: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Which symbols a formula holds, in its order; of two that begin together the longer one."""
    formula, found, place, depth = unbraced(written), [], 0, []
    by_length = sorted(symbols, key=len, reverse=True)
    while place < len(formula):
        token, before = formula[place], formula[place - 1] if place else ""
        if token == "{":
            depth.append(before == "_")
        elif token == "}" and depth:
            depth.pop()
        below = before == "_" or any(depth)  # an index is a name's part
        accented = before in ACCENTS or (before == "{" and place > 1 and formula[place - 2] in ACCENTS)
        symbol = next((each for each in by_length if formula[place : place + len(each)] == each), None)
        if symbol and not below and not accented and ends(formula[place + len(symbol) :]):
            found.append(symbol)
            place += len(symbol)
        else:
            place += 1
    return list(dict.fromkeys(found))


def ends(after: Sequence[str]) -> bool:
    """Whether a name ends here, rather than go on with an index, a prime or a star."""
    return not after or (after[0] not in ("_", "'") and after[:2] != ("^", "*"))


def explanation(row: nodes.Element) -> nodes.Element:
    """A row of the notation page as one line."""
    symbol, meaning = row.children[:2]
    names = [each.deepcopy() for each in symbol.findall(nodes.math)]
    line = nodes.paragraph()
    for name in names:
        line += [nodes.Text(", ")] if line.children else []
        line += name
    line += nodes.Text(": ")
    for each in meaning.findall(nodes.paragraph):
        line += [child.deepcopy() for child in each.children]
    return line


# What needs no other page


def mark_tables(app: Sphinx, document: nodes.document) -> None:
    """Name the columns of numbers, and the tables that want more room than a line of text."""
    for table in document.findall(nodes.table):
        group = table.next_node(nodes.tgroup)
        rows = [row.children for part in (nodes.thead, nodes.tbody) for each in group.findall(part) for row in each]
        if int(group["cols"]) >= WIDE:
            table["classes"] += ["wide", "full-width"]  # the second is the theme's
        body = [row.children for each in group.findall(nodes.tbody) for row in each]
        for column in range(int(group["cols"])):
            cells = [row[column].astext() for row in body if column < len(row)]
            if cells and all(map(is_number, cells)):
                for row in rows:
                    if column < len(row):
                        row[column]["classes"].append("number")


def is_number(text: str) -> bool:
    """Whether a cell holds numbers and nothing else; what is not there may be said."""
    return text == "not available" or bool(NUMBER.fullmatch(BETWEEN_NUMBERS.sub("", text)))


def link_take_away(app: Sphinx, document: nodes.document) -> None:
    """Lead from a chapter's card to its last section, where it has one."""
    card = next((each for each in document.findall(nodes.container) if "summary-card" in each["classes"]), None)
    for section in document.findall(nodes.section) if card else ():
        # A proof is a section without a title.
        if isinstance(section.children[0], nodes.title) and section.children[0].astext() == TAKE_AWAY:
            link = nodes.reference("", TAKE_AWAY, refid=section["ids"][0], internal=True)
            card += nodes.paragraph("", "", link, classes=["take-away"])
            return


def begin(app: Sphinx) -> None:
    app.fpo_doctrees = {}


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(Helped, html=(visit_helped, depart_helped))
    app.add_node(HelpTexts, html=(visit_texts, depart_texts))
    app.add_post_transform(GiveHelp)
    app.connect("builder-inited", begin)
    app.connect("doctree-read", mark_tables)
    app.connect("doctree-read", link_take_away)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
