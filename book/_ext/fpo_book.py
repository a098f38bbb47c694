"""Numbers and environments of the notebooks' results files, for the book's pages.

A results file is notebooks/results/NAME.json, written by the execution that made the committed outputs. A page never
repeats what it holds, it refers to it, and what cannot be resolved is a Sphinx warning, which the strict build refuses.

    {result}`linear/summary.relaxed.final.median|.2f`      a number under "results", with a Python format
    {result}`linear/parameters:steps|d`                    one under "parameters"
    {result}`linear/claims:linear-collapse.verdict|s`      a field of the claim with this id
    {result}`neural/digits:final_utility|d`                decimals that repeat on other machines

    ```{environment-table} linear neural
    ```

fpo_claims.py beside this file shows claims as tables and squares.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from docutils import nodes
from markupsafe import escape
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

RESULTS = "notebooks/results"
CITATION = "CITATION.cff"
NOT_AVAILABLE = "not available"
# Macros of MathJax that make links or HTML, load more macros, or let a text through as it is.
ACTIVE = re.compile(r"\\(?:bbox|class|cssId|csname|data|href|html\w*|mmlToken|require|style|unicode|url)(?![A-Za-z])")
MINUS = re.compile(r"(?<![^\s(])-(?=[\w.])")  # of a number or a letter that stands for one: no hyphen

logger = logging.getLogger(__name__)


class Fault(Exception):
    """Something in a page or in a results file that the reader must not get to see as a number."""


def read_results(env: BuildEnvironment, notebook: str) -> dict[str, Any]:
    """The content of a notebook's results file; the page that asks for it is made to depend on it."""
    return _read_object(env, f"{RESULTS}/{notebook}.json", "results file")


def read_run(env: BuildEnvironment, name: str) -> dict[str, Any]:
    """A stored run, notebooks/runs/NAME.json; the page that asks for it is made to depend on it."""
    return _read_object(env, f"notebooks/runs/{name}.json", "stored run")


def _read_object(env: BuildEnvironment, file: str, what: str) -> dict[str, Any]:
    path = Path(env.srcdir, file)
    env.note_dependency(str(path))
    try:
        content = json.loads(path.read_text(encoding="utf8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise Fault(f"there is no {what} {file}") from None
    except ValueError as error:
        raise Fault(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise Fault(f"{file} does not hold an object")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def read_citation(env: BuildEnvironment) -> dict[str, Any] | None:
    """What CITATION.cff says, or nothing where there is none."""
    path = Path(env.srcdir, CITATION)
    return yaml.safe_load(path.read_text(encoding="utf8")) if path.is_file() else None


def look_up(content: dict[str, Any], reference: str) -> Any:
    """The value that `[section:]dotted.path` names in the content of a results file."""
    section, colon, path = reference.rpartition(":")
    section = section if colon else "results"
    if section not in ("results", "parameters", "claims", "digits"):
        raise Fault(f"unknown section {section!r}, expected 'results', 'parameters', 'claims' or 'digits'")
    if section not in content:
        raise Fault(f"the results file has no {section!r}")
    value = content[section]
    if section == "claims":
        value = {claim["id"]: claim for claim in value}
    walked = section
    for key in path.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise Fault(f"{walked} has no {key!r}, {_what_is_there(value)}")
        walked += f".{key}"
    return value


def _what_is_there(value: Any) -> str:
    if isinstance(value, dict):
        return "only " + ", ".join(sorted(value))
    return f"only {len(value)} entries" if isinstance(value, list) else f"it is {value!r}"


def show(value: Any, spec: str) -> str:
    """A value as the text of the page: formatted, with a true minus sign, or "not available" for null."""
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Fault(f"a {type(value).__name__} is neither a number nor a text")
    try:
        text = format(value, spec)
    except ValueError as error:
        raise Fault(f"{value!r} cannot be shown as {spec!r}: {error}") from None
    return text if isinstance(value, str) else text.replace("-", "\N{MINUS SIGN}")


class ResultRole(SphinxRole):
    """{result}`notebook/path|format`: one value of a results file as text."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        address, _, spec = self.text.partition("|")
        notebook, slash, reference = address.strip().partition("/")
        try:
            if not slash:
                raise Fault("expected notebook/path|format")
            text = show(look_up(read_results(self.env, notebook), reference), spec.strip() or "g")
        except Fault as fault:
            logger.warning(
                "{result}`%s`: %s", self.text, fault, location=self.get_location(), type="fpo", subtype="result"
            )
            return [], []
        return [nodes.inline(text, text, classes=["result"])], []


def prose(text: str) -> list[nodes.Node]:
    """Inline nodes of a text that may hold $math$, in which no macro may do more than typeset."""
    if active := ACTIVE.search(text):
        raise Fault(f"{text!r} holds {active[0]}, which a claim may not: it makes links or HTML")
    parts = re.split(r"\$([^$]+)\$", text)
    parts[::2] = [MINUS.sub("\N{MINUS SIGN}", part) for part in parts[::2]]
    return [nodes.math(part, part) if odd % 2 else nodes.Text(part) for odd, part in enumerate(parts) if part]


def table(heads: Sequence[str], rows: Iterable[Any], widths: Sequence[int], classes: list[str]) -> nodes.table:
    """A docutils table; a cell is a list of paragraphs."""

    def row(cells: Iterable[Any]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", *cell) for cell in cells))

    group = nodes.tgroup(
        "",
        *(nodes.colspec(colwidth=width) for width in widths),
        nodes.thead("", row([paragraph(nodes.Text(head))] for head in heads)),
        nodes.tbody("", *(row(cells) for cells in rows)),
        cols=len(heads),
    )
    return nodes.table("", group, classes=classes)


def paragraph(*children: nodes.Node, classes: Iterable[str] = ()) -> nodes.paragraph:
    return nodes.paragraph("", "", *children, classes=list(classes))


class ResultsDirective(SphinxDirective):
    """A directive made from results files, whose faults are warnings at its place in the page."""

    def run(self) -> list[nodes.Node]:
        try:
            return self.build(self.arguments[0].split() if self.arguments else [])
        except Fault as fault:
            logger.warning("%s: %s", self.name, fault, location=self.get_location(), type="fpo", subtype="results")
            return []


class EnvironmentTable(ResultsDirective):
    """{environment-table} NAMES: where and with what these notebooks' committed results were made."""

    required_arguments = 1
    final_argument_whitespace = True

    def build(self, notebooks: list[str]) -> list[nodes.Node]:
        used: dict[tuple[str, str], list[str]] = {}  # notebooks by what they used and its version
        digests = []
        for notebook in notebooks:
            environment = read_results(self.env, notebook).get("environment")
            if not isinstance(environment, dict) or not environment:
                raise Fault(f"{RESULTS}/{notebook}.json has no environment")
            for name, value in environment.items():
                used.setdefault((name, self.text(value)), []).append(notebook)
            content = Path(self.env.srcdir, RESULTS, f"{notebook}.json").read_bytes()
            digests.append(("sha256 of its results", hashlib.sha256(content).hexdigest()[:12], notebook))
        rows = [(*what, "all" if len(users) == len(notebooks) else ", ".join(users)) for what, users in used.items()]
        rows.sort(key=lambda row: row[0])
        cells = [[[paragraph(nodes.Text(text))] for text in row] for row in (*rows, *digests)]
        return [table(("What", "Value", "Notebooks"), cells, (25, 25, 50), ["environment"])]

    def text(self, value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {self.text(item)}" for name, item in value.items())
        return NOT_AVAILABLE if value is None else str(value)


def escape_title(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The theme prints the book's title as it is: hand it over as HTML, which templates that escape leave alone."""
    context["docstitle"] = escape(context["docstitle"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", escape_title)
    app.add_role("result", ResultRole())
    app.add_directive("environment-table", EnvironmentTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
