"""Explorers: figures that a reader turns, on the pages that ask for one.

    :::{explorer} linear
    :figure: linear-trajectories     a figure of the page, which stands there without JavaScript and on paper

    What it shows, for who reads it there; without the option this text holds an image of its own.
    :::

What an explorer shows comes from committed results and stored runs when the page is made. Its form is in the page's
HTML, so that nothing moves when the script fills it; scripts lie in book/_static/explorers/ and are loaded only by
pages with an explorer. fpo_explorer_games.py and fpo_explorer_texts.py beside this file make the forms and the numbers.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from fpo_book import Fault, ResultsDirective
from fpo_claims import KeyFigure
from fpo_explorer_games import linear, neural
from fpo_explorer_parts import dumps
from fpo_explorer_texts import plane, step
from markupsafe import Markup
from sphinx.application import Sphinx

# Name -> what it makes of the committed results: a title, the form as HTML, what the script reads, and other scripts by
# name that it fetches on demand; or nothing, where there is nothing to show yet.
EXPLORERS = {"linear": linear, "neural": neural, "step": step, "plane": plane}
# A page of which only the first script runs, shows the still.
FALL_BACK = "document.querySelectorAll('.explorer.live').forEach(each => each.classList.remove('live'))"
# Before anything of the explorer is painted: a reader with JavaScript never sees the still.
COME_ALIVE = "document.currentScript.parentElement.classList.add('live')"


class Explorer(ResultsDirective):
    """{explorer} NAME: one of `EXPLORERS`, with a still in its place where no script runs."""

    required_arguments = 1
    has_content = True
    option_spec = {"figure": directives.unchanged_required}

    def build(self, names: list[str]) -> list[nodes.Node]:
        (name,) = names
        if name not in EXPLORERS:
            raise Fault(f"there is no explorer {name!r}, only {', '.join(EXPLORERS)}")
        still = nodes.container(classes=["explorer-still"])
        self.state.nested_parse(self.content, self.content_offset, still)
        if "figure" in self.options:
            still.insert(0, KeyFigure.asked_for(self))
        elif still.next_node(nodes.image) is None:
            raise Fault("nothing stands for the explorer without JavaScript: name a figure, or put an image into it")
        made = EXPLORERS[name](self.env)
        if made is None:
            return [still]
        title, form, data, *files = made
        opening = Markup('<div class="explorer" id="explorer-{0}" data-explorer="{0}" role="group" aria-label="{1}">')
        start = self.raw(opening.format(name, title) + Markup(f"<script>{COME_ALIVE}</script>"))
        start["explorer"], start["files"] = name, files[0] if files else {}
        end = f'<form autocomplete="off">{form}</form><script type="application/json">{dumps(data)}</script></div>'
        return [start, still, self.raw(end)]

    def raw(self, text: Any) -> nodes.raw:
        return nodes.raw("", str(text), format="html")


def load_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The scripts of a page's explorers, and of no other's."""
    found = [node for node in doctree.findall(nodes.raw) if "explorer" in node] if doctree else []
    for name in dict.fromkeys(["explorer", *(node["explorer"] for node in found)] if found else []):
        app.add_js_file(f"explorers/{name}.js", loading_method="defer", onerror=FALL_BACK)
    folder = Path(app.outdir, "_static", "explorers")
    for node in found:
        for name, text in node["files"].items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", load_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
