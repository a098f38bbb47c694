"""The notebook checks find each fault that is planted, and the book's notebooks have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from tools import notebooks

TABLE = "claim-1  0.25  reproduced\n"
FIGURE = {"image": {"alt": "A line"}, "figure": {"caption": "A line.", "name": "a-line"}}
NAME = {"code_prompt_show": "Code: draw a line"}
PARAMETERS = """\
# What a reader can turn
seeds = list(range(64))  # one run each
arms = [  # the policies
    "standard",
    "relaxed",
]
shift = -1.5  # any number
results_path = ""  # where the numbers go; nowhere when empty"""


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def example():
    """A notebook without a fault; the cells' positions are used below."""
    picture = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell("(example)=\n# Title\n\n:::{summary} example\n:figure: a-line\n\nThe question.\n:::"),
        new_code_cell("ledger = claims.Ledger('a', main=1)"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_markdown_cell("Words may stand between."),
        new_code_cell("assert seeds", metadata={"tags": ["validate"]}),
        new_code_cell("draw()\n" * 30, metadata={"tags": ["hide-input"], "mystnb": FIGURE | NAME}, outputs=[picture]),
        new_markdown_cell("(claims-example)=\n## Claims"),
        new_code_cell(
            "print(table)", metadata={"tags": ["nbval-check-output", "remove-cell"]}, outputs=[printed(TABLE)]
        ),
        new_code_cell("\n" * 40 + "1", metadata={"tags": ["remove-cell"]}),
    ]
    notebook = new_notebook(cells=cells)
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = count = count + 1
    return notebook


RESULTS = {"notebook": "example", "parameters": {}, "environment": {}, "results": {}, "claims": []}


def write(folder, notebook, results=RESULTS):
    """Store the notebook and its results file (an object, a text, or None for no file); returns its path."""
    (folder / "results").mkdir()
    if results is not None:
        text = results if isinstance(results, str) else json.dumps(results)
        (folder / "results" / "example.json").write_text(text, encoding="utf-8")
    nbformat.write(notebook, folder / "example.ipynb")
    return folder / "example.ipynb"


def retag(place, *tags):
    return lambda notebook: notebook.cells[place].metadata.update(tags=list(tags))


def source(place, text):
    return lambda notebook: notebook.cells[place].update(source=text)


def add_source(place, text):
    return lambda notebook: notebook.cells[place].update(source=f"{notebook.cells[place].source}\n{text}")


def parameter(line):
    return source(2, PARAMETERS + "\n" + line)


def add_output(place, output):
    return lambda notebook: notebook.cells[place].outputs.append(output)


def data(kind, text):
    return new_output("display_data", {kind: text})


def figure_without(group, key):
    given = {name: {**values} for name, values in FIGURE.items()}
    del given[group][key]
    return lambda notebook: notebook.cells[5].metadata.update(mystnb=given | NAME)


def named(prompt):
    return lambda notebook: notebook.cells[5].metadata.mystnb.update(code_prompt_show=prompt)


def first_cell(old, new):
    return lambda notebook: notebook.cells[0].update(source=notebook.cells[0].source.replace(old, new))


def lines_behind_the_claims(count):
    """Code behind the heading, of a notebook that has 100 lines of code in all."""

    def plant(notebook):
        notebook.cells[8].source = "\n\n# said\n".join(["1"] * (count - 1))  # and one that prints the table
        notebook.cells[5].source = ""
        lines = 100 - notebooks.code_lines(notebook.cells)
        notebook.cells[5].source = "draw()\n" * lines

    return plant


PLANTED = {
    "no parameters": (retag(2), "parameters", -1),
    "two parameters cells": (retag(1, "parameters"), "parameters", -1),
    "parameter without a comment": (parameter("gamma = 0.1"), "parameters", 2),
    "parameter with the comment above": (parameter("# weight\ngamma = 0.1"), "parameters", 2),
    "parameter that is computed": (parameter("gamma = 1 / 3  # weight"), "parameters", 2),
    "parameter that is an object": (parameter("gamma = {'a': 1}  # weight"), "parameters", 2),
    "a statement among parameters": (parameter("print(seeds)  # shown"), "parameters", 2),
    "an import among parameters": (parameter("import os  # paths"), "parameters", 2),
    "broken parameters": (parameter("gamma ="), "parameters", 2),
    "no results_path": (source(2, "seeds = [1]  # one run each"), "results_path", 2),
    "results_path set": (source(2, 'results_path = "a.json"  # where to'), "results_path", 2),
    "no validation": (retag(4), "validate", 2),
    "late validation": (lambda notebook: notebook.cells.insert(4, code(3)), "validate", 2),
    "no claims": (retag(7), "claims", -1),
    "two claims cells": (retag(8, "remove-cell", "nbval-check-output"), "claims", -1),
    "claims not printed": (lambda notebook: notebook.cells[7].outputs.clear(), "claims", 7),
    "claims without verdicts": (lambda notebook: notebook.cells[7].outputs[0].update(text="none\n"), "claims", 7),
    "no target": (source(6, "## Claims"), "target", -1),
    "another's target": (source(6, "(claims-other)=\n## Claims"), "target", -1),
    "not executed": (lambda notebook: notebook.cells[5].update(execution_count=None), "not executed", 5),
    "out of order": (lambda notebook: notebook.cells[5].update(execution_count=9), "order", 5),
    "error": (add_output(1, new_output("error", ename="E", evalue="e", traceback=["/home/a/b.py"])), "error output", 1),
    "stderr": (add_output(1, printed("a warning", "stderr")), "stderr output", 1),
    "path of Linux": (add_output(1, printed("in /home/someone/book")), "path in an output", 1),
    "path of a Mac": (add_output(1, printed("in '/Users/someone/book'")), "path in an output", 1),
    "path of Windows": (add_output(1, printed("in C:\\Users\\someone")), "path in an output", 1),
    "path in HTML": (add_output(1, data("text/html", "<a href='/tmp/a'>a</a>")), "path in an output", 1),
    "path in a table": (add_output(1, data("application/json", {"a": "/home/a"})), "path in an output", 1),
    "path of this copy": (add_output(1, printed(f"in {notebooks.ROOT}")), "path in an output", 1),
    "figure without alt text": (figure_without("image", "alt"), "figure", 5),
    "figure without a caption": (figure_without("figure", "caption"), "figure", 5),
    "figure without a name": (figure_without("figure", "name"), "figure", 5),
    "figure without anything": (lambda notebook: notebook.cells[5].metadata.update(mystnb=dict(NAME)), "figure", 5),
    "execution times": (lambda notebook: notebook.cells[1].metadata.update(execution={}), "metadata", 1),
    "papermill's cell": (lambda notebook: notebook.cells[1].metadata.update(papermill={}), "metadata", 1),
    "papermill's notebook": (lambda notebook: notebook.metadata.update(papermill={}), "metadata", -1),
    "injected cell": (retag(1, "injected-parameters"), "metadata", 1),
    "no title": (first_cell("# Title", "Only words."), "title", 0),
    "bad escape": (add_source(1, 'print("$\\gamma$")'), "warning", 1),
    "torch before fpo": (add_source(1, "import torch\nfrom fpo import linear"), "import order", -1),
    "no card": (first_cell(":::", ""), "card", 0),
    "another's card": (first_cell("{summary} example", "{summary} other"), "card", 0),
    "two kinds at once": (retag(5, "hide-input", "remove-cell"), "kind", 5),
    "a kind of its own": (retag(5, "hide-cell"), "kind", 5),
    "an output removed": (retag(4, "validate", "remove_output"), "kind", 4),
    "method without a name": (lambda notebook: notebook.cells[5].metadata.update(mystnb=FIGURE), "name", 5),
    "method with another name": (named("Show the code"), "name", 5),
    "method with an empty name": (named("Code: "), "name", 5),
    "long idea": (add_source(1, "1\n" * 12), "long idea", 1),
    "wide line": (add_source(8, f"{'x' * 77}"), "wide line", 8),
    "wide comment": (add_source(8, f"# {'x' * 75}"), "wide line", 8),
    "hand-counted comparisons": (add_source(1, "COMPARISONS = 3"), "ledger", 1),
    "comparisons handed on": (add_source(1, "stats.paired(a, b, COMPARISONS)"), "ledger", 1),
    "a function claim": (add_source(8, "def claim(id):\n    pass"), "ledger", 8),
    "a function number": (add_source(8, "def f():\n    def number(x):\n        pass"), "ledger", 8),
    "no ledger": (source(1, "import math"), "ledger", -1),
    "late code": (lines_behind_the_claims(13), "late code", -1),
}


def code(count):
    return new_code_cell("1", execution_count=count)


def test_nothing_planted_nothing_found(tmp_path):
    notebook = example()
    # These resemble paths and are none.
    notebook.cells[1].outputs = [
        printed("https://example.org/home/a and results/tmp/a, D:\\ alone"),
        data("text/html", "<img src='data:image/png;base64,/home/AAAA/tmp/==' alt='A line'>"),
        data("text/markdown", r"$\alpha:\\beta$"),
    ]
    assert notebooks.faults(write(tmp_path, notebook)) == []


@pytest.mark.parametrize(("plant", "kind", "cell"), PLANTED.values(), ids=PLANTED)
def test_planted(tmp_path, plant, kind, cell):
    notebook = example()
    plant(notebook)
    if kind not in ("not executed", "order"):
        counts = iter(range(1, 99))
        for each in notebook.cells:
            if each.cell_type == "code":
                each.execution_count = next(counts)
    found = notebooks.faults(write(tmp_path, notebook))
    assert {(fault.kind, fault.where) for fault in found} == {(kind, cell)}, found


def test_twelve_lines_of_a_hundred_may_stand_behind_the_claims(tmp_path):
    notebook = example()
    lines_behind_the_claims(12)(notebook)
    assert notebooks.code_lines(notebook.cells) == 100
    assert notebooks.faults(write(tmp_path, notebook)) == []


@pytest.mark.parametrize(
    "results",
    [
        None,
        "{",
        "[]",
        '{"notebook": NaN}',
        {key: value for key, value in RESULTS.items() if key != "claims"},
        {**RESULTS, "notebook": "other"},
        {**RESULTS, "results": {"file": "/home/someone/a"}},
    ],
    ids=["absent", "cut off", "a list", "NaN", "a key missing", "another's", "a path"],
)
def test_planted_in_the_results(tmp_path, results):
    found = notebooks.faults(write(tmp_path, example(), results))
    assert [fault.kind for fault in found] == ["results"], found


def test_three_faults_are_three(tmp_path):
    notebook = example()
    first_cell("# Title", "Only words.")(notebook)
    figure_without("image", "alt")(notebook)
    assert len(notebooks.faults(write(tmp_path, notebook, None))) == 3


def nbval(folder, *cells):
    """nbval's verdict on a notebook of these cells, run as `make test` runs it."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=list(cells), metadata=kernel), folder / "tiny.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider", "tiny.ipynb"]
    # The variables of the surrounding pytest are not the inner one's business.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=600)


def claims(output, text="print('claim-1', 0.25, 'reproduced')"):
    return new_code_cell(text, metadata={"tags": ["nbval-check-output"]}, outputs=[printed(output)], execution_count=1)


def test_nbval_accepts_what_is_current(tmp_path):
    loose = new_code_cell("print(1)", outputs=[printed("2\n")], execution_count=2)
    result = nbval(tmp_path, claims("claim-1 0.25 reproduced\n"), loose)
    assert result.returncode == 0, result.stdout


def test_nbval_refuses_a_stale_claim(tmp_path):
    """One digit of a committed claims table differs from what the code computes."""
    result = nbval(tmp_path, claims("claim-1 0.26 reproduced\n"))
    assert result.returncode == 1, result.stdout
    assert "0.26" in result.stdout and "0.25" in result.stdout


def test_nbval_refuses_an_error(tmp_path):
    """Untagged cells are compared with nothing, but they have to run."""
    result = nbval(tmp_path, new_code_cell("1 / 0", execution_count=1))
    assert result.returncode == 1, result.stdout
    assert "ZeroDivisionError" in result.stdout


@pytest.mark.parametrize("path", sorted((notebooks.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_of_the_book(path):
    found = notebooks.faults(path)
    assert not found, "\n".join(["", *map(str, found)])
