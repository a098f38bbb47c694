"""Claims of the notebooks' results files on the book's pages: as tables, and as squares on a chapter's summary card.

    ```{claims-table}            every claim, or those of the notebooks named
    ```

    :::{summary} linear          the card that a chapter begins with: its text, key figure and verdicts
    :figure: linear-trajectories

    **Question.** ...
    :::

Claims that are `certain` (theorems and checks of code) are shown apart from the empirical ones.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from fpo_book import RESULTS, Fault, ResultsDirective, logger, paragraph, prose, read_results, table
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx_external_toc.parsing import parse_toc_yaml

from fpo.claims import VERDICTS

MARKS: dict[str, str] = dict(
    zip(VERDICTS, ("\N{CHECK MARK}", "~", "\N{MULTIPLICATION SIGN}", "+", "\N{MINUS SIGN}", "?"), strict=True)
)
CERTAIN = "Certain: theorems and checks of code, which cannot come out otherwise"


def read_claims(env: BuildEnvironment, notebook: str) -> list[dict[str, Any]]:
    """The claims of a notebook's results file, each with the notebook's name."""
    claims = read_results(env, notebook).get("claims")
    if not isinstance(claims, list):
        raise Fault(f"{RESULTS}/{notebook}.json has no claims")
    for claim in claims:
        if missing := [key for key in ("id", "statement", "source", "value", "rule", "verdict") if key not in claim]:
            raise Fault(f"{RESULTS}/{notebook}.json: no {missing[0]!r} in its claims")
        if claim["verdict"] not in VERDICTS:
            raise Fault(f"claim {claim['id']!r}: verdict {claim['verdict']!r} is none of {', '.join(VERDICTS)}")
    return [claim | {"notebook": notebook} for claim in claims]


def chapters(env: BuildEnvironment) -> list[str]:
    """Names of the book's notebooks in reading order; the page that asks depends on the order too."""
    toc = Path(env.srcdir, env.config.external_toc_path)
    env.note_dependency(str(toc))
    pages = [Path(page) for page in parse_toc_yaml(toc)]
    return [page.stem for page in pages if page.parent.name == "notebooks"]


def read_notebook(env: BuildEnvironment, notebook: str) -> list[dict[str, Any]]:
    """The cells of a notebook; the page that asks for them is made to depend on it."""
    path = Path(env.srcdir, "notebooks", f"{notebook}.ipynb")
    env.note_dependency(str(path))
    if not path.is_file():
        raise Fault(f"notebooks/{notebook}.ipynb is missing")
    return _cells(path, path.stat().st_mtime_ns)


@cache
def _cells(path: Path, _: int) -> list[dict[str, Any]]:
    """The cells of a file as it was at a time: with their outputs they take megabytes, and every card asks for them."""
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    return [
        {"cell_type": cell["cell_type"], "metadata": cell["metadata"], "source": "".join(cell["source"])}
        for cell in cells
    ]


def title(env: BuildEnvironment, notebook: str) -> str:
    """The title of a chapter."""
    texts = (cell["source"] for cell in read_notebook(env, notebook) if cell["cell_type"] == "markdown")
    found = next((match for text in texts if (match := re.search("^# (.+)$", text, re.MULTILINE))), None)
    if found is None:
        raise Fault(f"notebooks/{notebook}.ipynb has no title")
    return found[1]


def reference(directive: Any, label: str, text: str | None = None, kind: str = "ref") -> nodes.Node:
    """A link to a label of the book, reading `text`, or as Sphinx names the place."""
    made = addnodes.pending_xref(
        "",
        nodes.inline(text or label, text or label),
        refdomain="std",
        reftype=kind,
        reftarget=label,
        refexplicit=text is not None,
        refwarn=True,
        refdoc=directive.env.docname,
    )
    made.source, made.line = directive.get_source_info()
    return made


def anchor(claim: dict[str, Any]) -> str:
    return f"claim-{claim['id']}"


def slug(verdict: str) -> str:
    """A verdict as a class and as a part of an address."""
    return verdict.replace(" ", "-")


def verdict_classes(kind: str, verdict: str) -> list[str]:
    return [kind, f"verdict-{slug(verdict)}"]


def apart(claims: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The empirical claims, and those that are certain."""
    return [claim for claim in claims if not claim.get("certain")], [claim for claim in claims if claim.get("certain")]


def squares(claims: Iterable[dict[str, Any]], address: Callable[[dict[str, Any]], str]) -> nodes.bullet_list:
    """A list of links to claims, each after the words that tell what it shows; `address` gives the id to go to."""

    def square(claim: dict[str, Any]) -> nodes.reference:
        statement = "".join(node.astext() for node in prose(claim["statement"]))
        told = f"{claim['verdict']}: {statement}"
        mark = nodes.inline(MARKS[claim["verdict"]], MARKS[claim["verdict"]], classes=["square-mark"])
        words = nodes.inline(told, told, classes=["visually-hidden"])
        classes = verdict_classes("square", claim["verdict"])
        return nodes.reference("", "", mark, words, refid=address(claim), reftitle=told, classes=classes)

    items = [nodes.list_item("", paragraph(square(claim))) for claim in claims]
    return nodes.bullet_list("", *items, classes=["squares"])


class ClaimsTable(ResultsDirective):
    """{claims-table}: every claim of the named notebooks (of all, in reading order) with its verdict."""

    optional_arguments = 1
    final_argument_whitespace = True

    def build(self, notebooks: list[str]) -> list[nodes.Node]:
        found = [claim for notebook in notebooks or chapters(self.env) for claim in read_claims(self.env, notebook)]
        if not found:
            raise Fault("no claim to show")
        # In the chapter itself a link to the chapter says nothing.
        shown = 3 if [self.env.docname] == [f"notebooks/{notebook}" for notebook in notebooks] else 4
        empirical, certain = apart(found)
        parts = [self.table(empirical, shown)] if empirical else []
        if certain:
            parts += [nodes.rubric(CERTAIN, CERTAIN), self.table(certain, shown, "certain")]
        return parts

    def table(self, claims: list[dict[str, Any]], shown: int, *classes: str) -> nodes.table:
        heads, widths = ("Claim", "Verdict", "What we got", "Chapter"), (40, 14, 30, 16)
        rows = [self.row(claim)[:shown] for claim in claims]
        made = table(heads[:shown], rows, widths[:shown], ["claims", *classes])
        for row, claim in zip(made.next_node(nodes.tbody), claims, strict=True):
            row["ids"] = [anchor(claim)]
        return made

    def row(self, claim: dict[str, Any]) -> tuple[list[nodes.Node], ...]:
        badge = nodes.inline(claim["verdict"], claim["verdict"], classes=verdict_classes("verdict", claim["verdict"]))
        return (
            [paragraph(*prose(claim["statement"])), paragraph(*prose(claim["source"]), classes=["claim-source"])],
            [paragraph(badge)],
            [
                paragraph(*prose(claim["value"])),
                paragraph(nodes.Text("Rule: "), *prose(claim["rule"]), classes=["claim-rule"]),
            ],
            [paragraph(reference(self, f"claims-{claim['notebook']}", title(self.env, claim["notebook"])))],
        )


class KeyFigure(nodes.Element):
    """The place of a figure on a card, before the figure itself has been read; `name` as in the cell's metadata."""

    @classmethod
    def asked_for(cls, directive: Any) -> Any:
        """The place of the figure that a directive's option names."""
        made = cls(name=directive.options["figure"])
        made.source, made.line = directive.get_source_info()
        return made


class Summary(ResultsDirective):
    """{summary} NOTEBOOK: the card at the head of a chapter."""

    required_arguments = 1
    has_content = True
    option_spec = {"figure": directives.unchanged_required}

    def build(self, notebooks: list[str]) -> list[nodes.Node]:
        (notebook,) = notebooks
        if "figure" not in self.options:
            raise Fault("the option figure is missing: the name of the chapter's key figure")
        claims = read_claims(self.env, notebook)
        if not claims:
            raise Fault(f"{RESULTS}/{notebook}.json has no claims")
        card = nodes.container(classes=["summary-card"])
        self.state.nested_parse(self.content, self.content_offset, card)
        card += [KeyFigure.asked_for(self), *self.squares(claims)]
        return [card]

    def squares(self, claims: list[dict[str, Any]]) -> list[nodes.Node]:
        """Lists of links to the claims in the chapter's table, each after the words that tell what it shows."""
        parts = []
        for head, group in zip(("Verdicts", "Certain"), apart(claims), strict=True):
            if not group:
                continue
            counts = {verdict: sum(claim["verdict"] == verdict for claim in group) for verdict in VERDICTS}
            told = ", ".join(f"{MARKS[verdict]} {count} {verdict}" for verdict, count in counts.items() if count)
            name = nodes.strong(head, head)
            parts.append(paragraph(name, nodes.Text(f": {told}"), classes=["squares-head"]))
            parts.append(squares(group, anchor))
        return parts


class CompleteCards(SphinxTransform):
    """Put the figures where the cards want them, once the whole page has been read; before Sphinx collects images."""

    default_priority = 880

    def apply(self) -> None:
        ids = {each for node in self.document.findall(nodes.Element) for each in node.get("ids", ())}
        for place in list(self.document.findall(KeyFigure)):
            for square in place.parent.findall(nodes.reference):
                if "square" in square["classes"] and square["refid"] not in ids:
                    self.warn(place, f"no claims table of this page has a row {square['refid']!r}")
            name = nodes.fully_normalize_name(place["name"])
            figure = next((each for each in self.document.findall(nodes.figure) if name in each["names"]), None)
            image = figure.next_node(nodes.image) if figure else None
            if figure is None or image is None:
                self.warn(place, f"no figure of this page is named {name!r}")
                place.parent.remove(place)
            else:
                link = nodes.reference("", "", image.deepcopy(), refid=figure["ids"][0], internal=True)
                place.replace_self(paragraph(link, classes=["key-figure"]))

    def warn(self, node: nodes.Node, text: str) -> None:
        logger.warning("summary: %s", text, location=node, type="fpo", subtype="summary")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("summary", Summary)
    app.add_transform(CompleteCards)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
