"""What the first pages say of the chapters, taken from the chapters: one that comes later is there by itself.

    ```{chapters}                       every chapter with its question, how long it takes and what came out
    ```

    ```{brief}                          every chapter's question, how its answer begins, its verdicts; folded, the rest
                                        of the answer and what to take away
    ```

    {reading-time}`linear neural`       how long these chapters take to read together; `all` means every one

    ```{bibtex}                         how to cite the book and the paper, from CITATION.cff
    ```

    {offer}`alignment-collapse.pdf|PDF`     a link to a file beside the site's first page, asleep until it is there

A chapter's card (`{summary}`) holds its question and answer, and says "It takes N minutes to read"; the list under its
heading "What to take away" is the rest.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from fpo_book import CITATION, Fault, ResultsDirective, logger, paragraph, read_citation
from fpo_claims import MARKS, chapters, read_claims, read_notebook, reference, title
from fpo_verdicts import VERDICT, claims_page, counted, filtered
from markupsafe import escape
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole

MORE = "More, and takeaways"


def texts(env: BuildEnvironment, notebook: str) -> list[str]:
    """The text cells of a chapter."""
    return [cell["source"] for cell in read_notebook(env, notebook) if cell["cell_type"] == "markdown"]


def said(env: BuildEnvironment, notebook: str, name: str) -> str:
    """The paragraph of a chapter's card that begins with this name in bold."""
    card = texts(env, notebook)[0]
    found = re.search(rf"^\*\*{name}\.\*\* (.+?)(?:\n\n|\n:::)", card, re.DOTALL | re.MULTILINE)
    if found is None:
        raise Fault(f"the card of notebooks/{notebook}.ipynb has no {name.lower()}")
    return found[1]


def taken_away(env: BuildEnvironment, notebook: str) -> str:
    """The list under the heading "What to take away"."""
    for text in texts(env, notebook):
        if found := re.search(r"^## What to take away\n+((?:- .+\n?(?:  .+\n?)*)+)", text, re.MULTILINE):
            return found[1]
    raise Fault(f"notebooks/{notebook}.ipynb has no list under 'What to take away'")


def minutes(env: BuildEnvironment, notebook: str) -> int:
    """How long a chapter takes to read, as its card says."""
    found = re.search(r"(\d+) minutes to read", texts(env, notebook)[0])
    if found is None:
        raise Fault(f"the card of notebooks/{notebook}.ipynb does not say how many minutes it takes to read")
    return int(found[1])


def spelled(count: int) -> str:
    """Minutes as a reader says them."""
    hours, rest = divmod(count, 60)
    if not hours:
        return f"{rest} minutes"
    return f"{hours} h {rest} min" if rest else f"{hours} h"


SENTENCE = re.compile(r"(?:`[^`]*`|\$[^$]*\$|[^`$])+?[.?!](?=\s+[A-Z{*$\"(]|\s*$)", re.DOTALL)
BEGINNING = 10  # words, of one sentence or more


def begun(answer: str) -> tuple[str, str]:
    """The first sentences of an answer, one or as many as say something, and the others."""
    sentences, first = SENTENCE.findall(answer), ""
    while sentences and len(first.split()) < BEGINNING:
        first += sentences.pop(0)
    return first.strip(), "".join(sentences).strip()


class FromChapters(ResultsDirective):
    """A directive whose content is text of the chapters."""

    def parsed(self, text: str, notebook: str) -> list[nodes.Node]:
        """The nodes of a chapter's text, with its roles."""
        box = nodes.container()
        lines = StringList(text.splitlines(), source=f"notebooks/{notebook}.ipynb")
        self.state.nested_parse(lines, 0, box)
        return box.children

    def verdicts(self, notebook: str) -> nodes.paragraph:
        """How the claims of a chapter came out, each number a link to them."""
        page = claims_page(self.env)
        items = []
        for verdict, count in counted(read_claims(self.env, notebook), "verdict").items():
            address = f"{page}{filtered(chapter=notebook, verdict=verdict)}#claims-list"
            told = f"{MARKS[VERDICT[verdict]]} {count} {VERDICT[verdict]}"
            items += [nodes.reference("", told, refuri=address, classes=[f"verdict-{verdict}"]), nodes.Text(" ")]
        return paragraph(*items, classes=["chapter-verdicts"])


class Chapters(FromChapters):
    """{chapters}: the book's chapters as questions."""

    def build(self, _: list[str]) -> list[nodes.Node]:
        items = []
        for notebook in chapters(self.env):
            name = paragraph(reference(self, notebook, title(self.env, notebook)), classes=["chapter-title"])
            name += nodes.inline("", f" {spelled(minutes(self.env, notebook))}", classes=["chapter-time"])
            question = self.parsed(said(self.env, notebook, "Question"), notebook)
            items.append(nodes.list_item("", name, *question, self.verdicts(notebook)))
        return [nodes.bullet_list("", *items, classes=["chapters"])]


class Brief(FromChapters):
    """{brief}: a section for each chapter, to be read in half a minute; a fold holds what it leaves out."""

    def build(self, _: list[str]) -> list[nodes.Node]:
        sections = []
        for notebook in chapters(self.env):
            name = title(self.env, notebook)
            section = nodes.section("", nodes.title("", name), ids=[f"brief-{notebook}"], names=[])
            (question,) = self.parsed(said(self.env, notebook, "Question"), notebook)
            question["classes"].append("brief-question")
            first, rest = begun(said(self.env, notebook, "Answer"))
            section += [question, *self.parsed(first, notebook), self.verdicts(notebook)]
            section[-1] += reference(self, notebook, "The chapter")
            section += nodes.raw("", f"<details class='brief-more'><summary>{MORE}</summary>", format="html")
            section += [*self.parsed(rest, notebook), *self.parsed(taken_away(self.env, notebook), notebook)]
            section += nodes.raw("", "</details>", format="html")
            sections.append(section)
        return sections


class ReadingTime(SphinxRole):
    """{reading-time}`names`: the minutes of these chapters together, as text."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        names = chapters(self.env) if self.text == "all" else self.text.split()
        try:
            text = spelled(sum(minutes(self.env, name) for name in names))
        except Fault as fault:
            place = self.get_location()
            logger.warning("{reading-time}`%s`: %s", self.text, fault, location=place, type="fpo", subtype="landing")
            return [], []
        return [nodes.inline(text, text, classes=["reading-time"])], []


def entry(kind: str, key: str, work: dict[str, Any], **more: str) -> str:
    """A BibTeX entry of a work of CITATION.cff."""
    authors = [
        f"{{{each['name']}}}" if "name" in each else f"{each['family-names']}, {each['given-names']}"
        for each in work["authors"]
    ]
    fields = {"title": f"{{{work['title']}}}", "author": " and ".join(authors), **more}
    return "\n".join([f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])


class Bibtex(ResultsDirective):
    """{bibtex}: entries for the book and for the paper."""

    def build(self, _: list[str]) -> list[nodes.Node]:
        self.env.note_dependency(str(Path(self.env.srcdir, CITATION)))
        book = read_citation(self.env)
        if book is None:
            raise Fault(f"there is no {CITATION}")
        year = str(book["date-released"])[:4]
        key = re.sub(r"\W", "", book["title"].partition(",")[0]).lower() + year
        made = [entry("misc", key, book, year=year, version=book["version"], url=book["repository-code"])]
        for paper in book["references"]:
            (number,) = [each["value"].partition(":")[2] for each in paper["identifiers"]]
            more = {"year": paper["year"], "eprint": number, "archivePrefix": "arXiv", "url": paper["url"]}
            made.append(entry("misc", f"{paper['authors'][0]['family-names'].lower()}{paper['year']}", paper, **more))
        text = "\n\n".join(made)
        return [nodes.literal_block(text, text, language="bibtex")]


class Offer(SphinxRole):
    """{offer}`FILE|text`: a link, after a dot, that sleeps in a comment until `book/offer.py` finds the file."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, text = self.text.partition("|")
        address = "../" * self.env.docname.count("/") + name
        link = f' \N{MIDDLE DOT} <a href="{escape(address)}">{escape(text)}</a>'
        return [nodes.raw("", f"<!--offer {escape(name)}:{link}-->", format="html")], []


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("chapters", Chapters)
    app.add_directive("brief", Brief)
    app.add_directive("bibtex", Bibtex)
    app.add_role("reading-time", ReadingTime())
    app.add_role("offer", Offer())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
