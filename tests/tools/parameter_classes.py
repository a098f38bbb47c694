"""Every set of parameters of the project: the games', the loop's, and what each notebook declares."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat

from fpo import linear, neural
from fpo.llm import Settings
from fpo.parameters import Parameters

NOTEBOOKS = {path.stem: path for path in Path(__file__).resolve().parents[2].glob("notebooks/*.ipynb")}


def validated(notebook: str, **values: Any) -> dict[str, Any]:
    """A notebook's namespace after its imports, its parameters with some replaced, and the cell that validates them."""
    cells = [cell for cell in nbformat.read(NOTEBOOKS[notebook], as_version=4).cells if cell.cell_type == "code"]
    (defaults,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    (check,) = (cell.source for cell in cells if "validate" in cell.metadata.get("tags", []))
    # The first cell also sets the look of figures and the precision of torch: those are not wanted here.
    imports = [node for node in ast.parse(cells[0].source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    injected = "# Parameters\n" + "".join(f"{name} = None\n" for name in values)
    namespace: dict[str, Any] = {"__name__": notebook, "In": [defaults, injected]}
    for code in (ast.Module(imports, []), defaults):
        exec(compile(code, notebook, "exec", dont_inherit=True), namespace)
    namespace |= values
    exec(compile(check, notebook, "exec", dont_inherit=True), namespace)
    return namespace


def defined(notebook: str, *marks: str, space: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """A namespace, a `validated` one or `space`, after the cells of a notebook that hold these marks, in turn."""
    found = validated(notebook, **values) if space is None else space
    sources = [cell.source for cell in nbformat.read(NOTEBOOKS[notebook], as_version=4).cells]
    for mark in marks:
        exec(compile(next(source for source in sources if mark in source), mark, "exec", dont_inherit=True), found)
    return found


CLASSES: dict[str, type[Parameters]] = {
    "linear.Config": linear.Config,
    "neural.Config": neural.Config,
    "llm.Settings": Settings,
    **{f"{name}.ipynb": validated(name)["Parameters"] for name in sorted(NOTEBOOKS)},
}
