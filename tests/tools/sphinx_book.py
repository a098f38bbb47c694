"""A book of one page and one notebook with the book's own extensions, built by Sphinx itself."""

import gc
import io
import json
import sys
import weakref
from pathlib import Path
from unittest import mock

import nbformat
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

EXTENSIONS = Path(__file__).resolve().parents[2] / "book" / "_ext"
sys.path.insert(0, str(EXTENSIONS))

CLAIM = {
    "id": "tiny-grows",
    "statement": "It grows: $x > 0$",
    "source": "paper, Section 5",
    "value": "3 of 3",
    "verdict": "reproduced",
    "rule": "all",
}
RESULTS = {
    "notebook": "tiny",
    "parameters": {"steps": 300},
    "environment": {"python": "3.11", "packages": {"numpy": "2.4", "scipy": "1.17"}, "host": None},
    "results": {"gap": -1.236, "share": 0.351, "seeds": [4, 5], "none": None, "flag": True, "name": "relaxed"},
    "claims": [CLAIM],
}


class Book:
    """The sources, in a folder, and what is built from them."""

    def __init__(self, folder):
        self.source, self.out = folder / "source", folder / "out"
        (self.source / "notebooks" / "results").mkdir(parents=True)
        (self.source / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: notebooks/tiny\n")
        self.chapter("# A tiny game", "(claims-tiny)=\n## Claims", "Something.")
        self.results(RESULTS)

    def chapter(self, *cells):
        """Make the notebook of these cells, each a text or a code cell."""
        made = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
        metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        notebook = nbformat.v4.new_notebook(cells=made, metadata=metadata)
        nbformat.write(notebook, self.source / "notebooks" / "tiny.ipynb")

    def results(self, content):
        text = content if isinstance(content, str) else json.dumps(content)
        (self.source / "notebooks" / "results" / "tiny.json").write_text(text)

    def build(self, page=None, **settings):
        """The page and the warnings."""
        if page is not None:
            (self.source / "index.md").write_text(f"# Page\n\n{page}\n", encoding="utf8")
        config = {
            "extensions": ["myst_nb", "sphinx_external_toc", "fpo_book", "fpo_claims", "fpo_pages"],
            "external_toc_path": "_toc.yml",
            "nb_execution_mode": "off",
            "myst_enable_extensions": ["colon_fence", "dollarmath"],
            "mathjax_path": "tex-svg-full.js",
            **settings,
        }
        warnings = io.StringIO()
        # An extension asks every object for its class, which a proxy of one that is gone cannot tell.
        there = [each for each in gc.get_objects() if type(each) not in weakref.ProxyTypes]
        with patch_docutils(None), docutils_namespace(), mock.patch("gc.get_objects", return_value=there):
            folders = (self.source, None, self.out, self.out / ".doctrees")
            app = Sphinx(*folders, "html", config, status=None, warning=warnings)
            app.build()
        return self.page("index"), warnings.getvalue()

    def page(self, name):
        return BeautifulSoup((self.out / f"{name}.html").read_text(encoding="utf8"), "html.parser")
