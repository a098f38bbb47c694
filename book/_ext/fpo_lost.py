"""404.html, which a host shows in the place of a page that is not there, at whatever address that would be."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def give_contents(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Tell the page all others in reading order; its links are relative to the site's root."""
    if pagename == "404":
        titles = app.env.titles
        context["book_pages"] = [
            (app.builder.get_target_uri(name), titles[name].astext()) for name in app.env.collect_relations()
        ]


def add_page(app: Sphinx, config: Config) -> None:
    config.html_additional_pages["404"] = "404.html"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", add_page)
    app.connect("html-page-context", give_contents)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
