"""The claims of the whole book as a page to use: an overview, filters, cards, and the same as data.

    ```{verdict-strip}              every verdict, the paper's claims and ours apart, as links into the claims page
    ```

    ```{claims-overview}            counts, one square a claim, and the filters
    ```

    ```{claims-cards}               a card for each claim, chapter by chapter
    linear-cost: linear-cost        where claims are shown: the name of a figure or a section; an id may end in *
    ```

A claim's id is the address of its card. All cards are in the page; book/_static/claims.js hides those that a filter
leaves out, and the filter stands in the page's address: `?verdict=partly&source=paper&chapter=linear`. The cards are
written as data beside the page: claims.json.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from docutils import nodes
from fpo_book import Fault, ResultsDirective, paragraph, prose, table
from fpo_claims import MARKS, chapters, read_claims, read_notebook, reference, slug, squares, title, verdict_classes
from markupsafe import escape
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from fpo.claims import VERDICTS

PAGE = "book/claims"
DATA = "claims.json"  # beside the page
OURS = "this book"
GROUPS = {"paper": "Paper", "ours": "This book", "certain": "Certain"}
HEADS = {
    "paper": "The paper\N{RIGHT SINGLE QUOTATION MARK}s claims",
    "ours": "This book\N{RIGHT SINGLE QUOTATION MARK}s claims",
    "certain": "Certain",
}
# A claim that begins so leans on the one before it.
LEANS = "There, "


def group(claim: dict[str, Any]) -> str:
    """Where a claim stands: with what is certain, or with those who make it."""
    return "certain" if claim.get("certain") else "ours" if claim["source"] == OURS else "paper"


def facets(claim: dict[str, Any]) -> dict[str, str]:
    """What the filters ask of a claim."""
    return {"source": group(claim), "verdict": slug(claim["verdict"]), "chapter": claim["notebook"]}


def short(name: str) -> str:
    """A chapter's title without what follows its colon."""
    return name.partition(":")[0]


def collect(env: BuildEnvironment) -> list[dict[str, Any]]:
    """Every claim of the book in reading order, with its chapter."""
    found, seen = [], set()
    for notebook in chapters(env):
        for claim in read_claims(env, notebook):
            if claim["id"] in seen:
                raise Fault(f"claim {claim['id']!r} is in the book twice")
            seen.add(claim["id"])
            found.append(claim)
    if not found:
        raise Fault("no claim to show")
    return found


def counted(claims: Iterable[dict[str, Any]], facet: str) -> dict[str, int]:
    """How many claims a facet's values have, those that occur, in their order."""
    order = {"source": GROUPS, "verdict": map(slug, VERDICTS), "chapter": dict.fromkeys(c["notebook"] for c in claims)}
    values = [facets(claim)[facet] for claim in claims]
    return {value: values.count(value) for value in order[facet] if value in values}


def filtered(**chosen: str) -> str:
    """The address of the claims that have these facets, from the claims page itself."""
    return "?" + urlencode(chosen)


def claims_page(env: BuildEnvironment) -> str:
    """The address of the claims page from the page that is read."""
    if PAGE not in env.found_docs:
        raise Fault(f"the book has no page {PAGE}")
    return env.app.builder.get_relative_uri(env.docname, PAGE)


VERDICT: dict[str, str] = {slug(verdict): verdict for verdict in VERDICTS}


class VerdictStrip(ResultsDirective):
    """{verdict-strip}: a bar for each group of claims, a link for each of its verdicts, as wide as it is frequent."""

    def build(self, _: list[str]) -> list[nodes.Node]:
        claims, page = collect(self.env), claims_page(self.env)
        bars = []
        for source in counted(claims, "source"):
            those = [claim for claim in claims if group(claim) == source]
            links = "".join(self.link(page, source, *count) for count in counted(those, "verdict").items())
            head = f'<p class="strip-head">{escape(HEADS[source])} <span>{len(those)}</span></p>'
            bars.append(f'<div class="strip-group">{head}<ul class="strip-bar">{links}</ul></div>')
        given = [VERDICT[verdict] for verdict in counted(claims, "verdict")]
        legend = ", ".join(f"<span>{MARKS[verdict]} {verdict}</span>" for verdict in given)
        bars.append(f'<p class="strip-legend" aria-hidden="true">{legend}</p>')
        return [nodes.raw("", f'<div class="verdict-strip">{"".join(bars)}</div>', format="html")]

    @staticmethod
    def link(page: str, source: str, verdict: str, count: int) -> str:
        address = escape(f"{page}{filtered(source=source, verdict=verdict)}#claims-list")
        mark = f'<span aria-hidden="true">{MARKS[VERDICT[verdict]]}</span>'
        word = f' <span class="strip-word">{VERDICT[verdict]}</span>'
        link = f'<a class="square verdict-{verdict}" href="{address}">{mark} {count}{word}</a>'
        return f'<li style="--claims: {count}">{link}</li>'


class ClaimsOverview(ResultsDirective):
    """{claims-overview}: what came out at a glance, and the filters of the cards below."""

    def build(self, _: list[str]) -> list[nodes.Node]:
        claims = collect(self.env)
        data = paragraph(
            nodes.Text("The same as data: "), nodes.reference("", DATA, refuri=DATA), classes=["claims-data"]
        )
        return [self.table(claims), *self.rows(claims), data, self.filters(claims)]

    def table(self, claims: list[dict[str, Any]]) -> nodes.table:
        """How often each verdict was given, by who makes the claim; each number leads to its claims."""
        sources, rows = counted(claims, "source"), []
        for verdict in counted(claims, "verdict"):
            rows.append([[paragraph(badge(VERDICT[verdict]))]])
            for source in sources:
                count = sum(facets(c)["verdict"] == verdict and group(c) == source for c in claims)
                rows[-1].append(
                    [paragraph(link(str(count), source=source, verdict=verdict) if count else nodes.Text("0"))]
                )
        heads = ["Verdict", *(GROUPS[source] for source in sources)]
        return table(heads, rows, [1] * len(heads), ["verdict-counts"])

    def rows(self, claims: list[dict[str, Any]]) -> Iterator[nodes.Node]:
        """One square a claim, chapter by chapter."""
        for notebook in counted(claims, "chapter"):
            row = nodes.container(classes=["overview-row"])
            row += paragraph(nodes.reference("", short(title(self.env, notebook)), refid=section_id(notebook)))
            groups = nodes.container(classes=["overview-groups"])
            for source, head in GROUPS.items():
                if those := [c for c in claims if c["notebook"] == notebook and group(c) == source]:
                    groups += nodes.container(
                        "",
                        paragraph(nodes.Text(head)),
                        squares(those, lambda c: c["id"]),
                        classes=["overview-group", f"from-{source}"],
                    )
            row += groups
            yield row

    def filters(self, claims: list[dict[str, Any]]) -> nodes.Node:
        """Links that leave some cards, each with how many."""
        names: dict[str, dict[str, str]] = {
            "source": GROUPS,
            "verdict": VERDICT,
            "chapter": {n: short(title(self.env, n)) for n in counted(claims, "chapter")},
        }
        bar = nodes.container(classes=["claims-filters"], ids=["claims-list"])
        for facet, named in names.items():
            items = [nodes.reference("", "all", refuri="?", classes=["facet-all"])]
            for value, count in counted(claims, facet).items():
                items.append(link(f"{named[value]} ", **{facet: value}))
                items[-1] += nodes.inline("", str(count), classes=["facet-count"])
            listed = [nodes.list_item("", paragraph(item)) for item in items]
            bar += [
                paragraph(nodes.Text(facet.capitalize())),
                nodes.bullet_list("", *listed, classes=["facet", f"by-{facet}"]),
            ]
        bar += paragraph(nodes.Text(f"{len(claims)} claims"), classes=["claims-status"])
        return bar


class ClaimsCards(ResultsDirective):
    """{claims-cards}: a card for each claim, in a section for each chapter."""

    has_content = True

    def build(self, _: list[str]) -> list[nodes.Node]:
        claims, shown = collect(self.env), self.shown()
        sections = []
        for notebook in counted(claims, "chapter"):
            those = [claim for claim in claims if claim["notebook"] == notebook]
            name = title(self.env, notebook)
            figures = figure_names(read_notebook(self.env, notebook))
            leader, cards = None, []
            for claim in those:
                leans = claim["statement"].startswith(LEANS)
                leader = leader if leans else claim
                cards.append(self.card(claim, name, leader if leans else None, shown, figures))
            head = nodes.title("", name)
            section = nodes.section(
                "", head, nodes.bullet_list("", *cards, classes=["claims"]), ids=[section_id(notebook)], names=[]
            )
            sections.append(section)
        return sections

    def shown(self) -> dict[str, str]:
        """Patterns of ids with the names of what shows these claims."""
        pairs = [line.partition(":") for line in self.content if line.strip()]
        if faults := [start for start, colon, name in pairs if not colon or not name.strip()]:
            raise Fault(f"{faults[0]!r}: expected id: name of a figure or section")
        return {start.strip(): name.strip() for start, _, name in pairs}

    def card(self, claim: dict[str, Any], chapter: Any, leader: Any, shown: Any, figures: Any) -> nodes.Node:
        section = f"claims-{claim['notebook']}"
        place = next((name for pattern, name in shown.items() if fnmatchcase(claim["id"], pattern)), None)
        # A figure goes by its number, a section by its name; where neither is recorded, the chapter's own table.
        target = reference(self, place or section, kind="numref" if place in figures else "ref")
        head = paragraph(
            badge(claim["verdict"]),
            nodes.Text(" "),
            nodes.inline(
                "",
                "",
                *prose(claim["source"]),
                *([nodes.Text(", certain")] if claim.get("certain") else []),
                classes=["claim-source"],
            ),
            nodes.Text(" \N{MIDDLE DOT} "),
            reference(self, section, short(chapter)),
            nodes.Text(" "),
            nodes.reference("", f"#{claim['id']}", refid=claim["id"], classes=["claim-address"]),
            classes=["claim-head"],
        )
        parts = [head, paragraph(*prose(claim["statement"]), classes=["claim-statement"])]
        if leader:
            words = [nodes.reference("", "", *prose(leader["statement"]), refid=leader["id"])]
            parts.append(
                paragraph(
                    nodes.Text("\N{LEFT DOUBLE QUOTATION MARK}There\N{RIGHT DOUBLE QUOTATION MARK} is where: "),
                    *words,
                    classes=["claim-context"],
                )
            )
        for name, content in (("Found", prose(claim["value"])), ("Rule", prose(claim["rule"])), ("Shown in", [target])):
            parts.append(paragraph(nodes.strong("", name), nodes.Text(" "), *content, classes=["claim-part"]))
        classes = ["claim", *(f"{facet}-is-{value}" for facet, value in facets(claim).items())]
        card = nodes.list_item("", *parts, ids=[claim["id"]], classes=classes)
        card["claim"] = claim | {"context": leader and leader["id"]}
        return card


def badge(verdict: str) -> nodes.inline:
    return nodes.inline("", f"{MARKS[verdict]} {verdict}", classes=verdict_classes("verdict", verdict))


def link(text: str, **chosen: str) -> nodes.reference:
    return nodes.reference("", text, refuri=filtered(**chosen))


def section_id(notebook: str) -> str:
    return f"claims-of-{notebook}"


def figure_names(cells: Iterable[dict[str, Any]]) -> set[str]:
    """Names of a chapter's figures, as its prose refers to them."""
    figures = (cell["metadata"].get("mystnb", {}).get("figure", {}) for cell in cells)
    return {figure["name"] for figure in figures if "name" in figure}


def write_data(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Write the cards of a page as data beside it, with the links as the page has them."""
    records, address = [], app.builder.get_target_uri(docname)
    for card in doctree.findall(nodes.list_item):
        if "claim" not in card:
            continue
        claim = card["claim"]
        target = next(iter(card.children[-1].findall(nodes.reference)), None)
        if target is None:  # no such place: a warning has said so
            continue
        records.append(
            {
                "id": claim["id"],
                "chapter": claim["notebook"],
                "source": claim["source"],
                "certain": bool(claim.get("certain")),
                "verdict": claim["verdict"],
                "statement": claim["statement"],
                "context": claim["context"],
                "found": claim["value"],
                "rule": claim["rule"],
                "address": f"{address}#{claim['id']}",
                "link": posixpath.normpath(posixpath.join(posixpath.dirname(address), target["refuri"])),
            }
        )
    if records and app.builder.name == "html":
        out = Path(app.outdir, docname).with_name(DATA)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def add_files(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The script goes only to pages that use it."""
    if doctree and any("claim" in item for item in doctree.findall(nodes.list_item)):
        app.add_js_file("claims.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("verdict-strip", VerdictStrip)
    app.add_directive("claims-overview", ClaimsOverview)
    app.add_directive("claims-cards", ClaimsCards)
    app.connect("doctree-resolved", write_data)
    app.connect("html-page-context", add_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
