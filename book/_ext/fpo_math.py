"""Formulas are drawn as the pages are made, by MathJax in a JavaScript engine: no reader waits for its script.

A visitor of the document leaves a mark where a formula stands. When all else has written its pages each mark gives way
to the drawing and a copy as MathML, which screen readers read. A page defines the glyphs of its formulas once. A
formula that MathJax cannot read, an unknown macro among it, is a warning and so an error of the strict build.
"""

import atexit
import json
import re
from contextlib import closing
from functools import cached_property
from html import escape
from importlib.metadata import files
from pathlib import Path
from typing import Any

from docutils import nodes
from py_mini_racer import MiniRacer
from sphinx.application import Sphinx
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

MATHJAX = "sphinx-mathjax-offline"
SCRIPTS = ("startup", "core", "adaptors/liteDOM", "input/tex-full", "output/svg", "output/svg/fonts/tex")
CLASSES = "math notranslate nohighlight"
MARK = re.compile(r'<mjx-container data-formula="(\d+)"></mjx-container>')
GLYPH = re.compile(r'<path id="(\S+?)" d="([^"]*)">')
USED = re.compile(r'href="#(MJX-[^"]+)"')
BODY = re.compile(r"<body[^>]*>")

# The engine has no document, so MathJax gets the small one that it brings along, and is started by hand.
BEFORE = """
var console = {log() {}, warn() {}, error() {}};
var MathJax = {
  loader: {load: []},
  startup: {typeset: false, ready() {}},
  tex: Object.assign(%s, {formatError: (_, fault) => { throw fault; }}),
  svg: {fontCache: "global"},
};
"""
AFTER = """
MathJax.startup.getComponents();
MathJax.startup.makeMethods();
const draw = (tex, display) => {
  try {
    const {adaptor} = MathJax.startup;
    const svg = adaptor.tags(MathJax.tex2svg(tex, {display}), "svg")[0];
    return {svg: adaptor.outerHTML(svg), mathml: MathJax.tex2mml(tex, {display})};
  } catch (fault) {
    return {fault: fault.message};
  }
};
const glyphs = () => MathJax.startup.adaptor.outerHTML(MathJax.startup.document.outputJax.fontCache.getCache());
"""

logger = logging.getLogger(__name__)


class BadFormula(Exception):
    """MathJax cannot read it."""


class Drawer:
    """MathJax with the settings of a book; every formula is drawn once. To be closed."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.numbers: dict[tuple[str, bool], int] = {}  # of a formula: TeX, and whether it stands alone
        self.drawings: list[str] = []

    @cached_property
    def engine(self) -> Any:
        found = {file.as_posix().partition("/mathjax/")[2]: file.locate() for file in files(MATHJAX) or ()}
        engine = MiniRacer()
        atexit.register(engine.close)  # one that is still open as Python ends would wait for ever
        engine.eval(BEFORE % json.dumps(self.settings))
        for script in SCRIPTS:
            engine.eval(Path(found[f"{script}.js"]).read_text(encoding="utf8") + "\n;0")
        engine.eval(AFTER + ";0")
        return engine

    def close(self) -> None:
        if "engine" in self.__dict__:
            self.engine.close()
            atexit.unregister(self.engine.close)

    def mark(self, tex: str, display: bool) -> str:
        """What stands for a formula until the pages are written."""
        if (tex, display) not in self.numbers:
            self.drawings.append(self.draw(tex, display))
            self.numbers[tex, display] = len(self.drawings) - 1
        return f'<mjx-container data-formula="{self.numbers[tex, display]}"></mjx-container>'

    def draw(self, tex: str, display: bool) -> str:
        arguments = f"{json.dumps(tex)}, {json.dumps(display)}"
        drawn = json.loads(self.engine.eval(f"JSON.stringify(draw({arguments}))"))
        if "fault" in drawn:
            raise BadFormula(drawn["fault"])
        svg, mathml = drawn["svg"], drawn["mathml"]
        return container(shortened(svg), mathml, tex, display)

    def put_into(self, text: str) -> str:
        """A page's text with drawings in the place of marks, and their glyphs at its head."""
        used = set()

        def drawing(match: re.Match[str]) -> str:
            drawn = self.drawings[int(match[1])]
            used.update(USED.findall(drawn))
            return drawn

        text = MARK.sub(drawing, text)
        if not used:
            return text
        known = dict(GLYPH.findall(self.engine.eval("glyphs()")))
        paths = "".join(f'<path id="{name}" d="{known[name]}"/>' for name in sorted(used))
        head = f'<svg class="glyphs" width="0" height="0" aria-hidden="true"><defs>{paths}</defs></svg>'
        return BODY.sub(lambda body: body[0] + head, text, count=1)


def shortened(svg: str) -> str:
    """A drawing without what only MathJax's own scripts read."""
    svg = re.sub(r' (?:data-mml-node|data-c|data-mjx-texclass|role|focusable|xmlns(?::xlink)?)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace("></use>", "/>").replace("></rect>", "/>").replace("></line>", "/>")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def container(svg: str, mathml: str, tex: str, display: bool) -> str:
    mathml = re.sub(r">\s+<", "><", mathml).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    shape = ' display="true"' if display else ""
    return (
        f'<mjx-container class="MathJax" jax="SVG"{shape} data-tex="{escape(tex)}">{svg}'
        f"<mjx-assistive-mml>{mathml}</mjx-assistive-mml></mjx-container>"
    )


def mark(translator: Any, node: nodes.Element, tex: str, display: bool) -> str:
    try:
        return translator.builder.app.fpo_drawer.mark(tex.strip(), display)
    except BadFormula as fault:
        logger.warning("formula %r: %s", tex, fault, location=node, type="fpo", subtype="math")
        return f"<code>{escape(tex)}</code>"


def visit_math(self: Any, node: nodes.Element) -> None:
    formula = mark(self, node, node.astext(), display=False)
    self.body.append(f"{self.starttag(node, 'span', '', CLASS=CLASSES)}{formula}</span>")
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.Element) -> None:
    self.body.append(self.starttag(node, "div", CLASS=CLASSES))
    if node["number"] and not node["nowrap"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    tex = node.astext() if node["nowrap"] else aligned(node.astext())
    self.body.append(f"{mark(self, node, tex, display=True)}</div>\n")
    raise nodes.SkipNode


def aligned(text: str) -> str:
    """TeX of a display as Sphinx means it: parts between blank lines, and lines within a part, below each other."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    lines = [rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part else part for part in parts]
    if len(lines) < 2:
        return "".join(lines)
    return r"\begin{align}\begin{aligned}" + r"\\".join(lines) + r"\end{aligned}\end{align}"


def prepare(app: Sphinx) -> None:
    app.fpo_drawer = Drawer((app.config.mathjax3_config or {}).get("tex", {}))


def finish(app: Sphinx, error: Exception | None) -> None:
    with closing(app.fpo_drawer) as drawer:
        if error is None and app.builder.name == "html":
            draw_into(Path(app.outdir), drawer)


def draw_into(folder: Path, drawer: Drawer) -> None:
    """Put the drawings into all pages of a folder."""
    for page in folder.rglob("*.html"):
        if page.relative_to(folder).parts[0] != "_static":
            text = page.read_text(encoding="utf8")
            drawn = drawer.put_into(text)
            if drawn != text:
                page.write_text(drawn, encoding="utf8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("drawn", (visit_math, None), (visit_displaymath, None))
    app.connect("builder-inited", prepare)
    app.connect("build-finished", finish, priority=950)  # when all that parses pages is done
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
