"""Every set of parameters of the project: the games', the loop's, and what each notebook declares."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat

from fpo import linear, neural
from fpo.llm import Settings
from fpo.parameters import Parameters

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def declared(notebook: Path) -> type[Parameters]:
    """The class `Parameters` of a notebook: its imports and the validate cell up to where it reads the parameters."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    last = next(i for i, cell in enumerate(cells) if "validate" in cell.metadata.get("tags", []))
    imports = [node for node in ast.parse(cells[0].source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    declaring = ast.parse(cells[last].source).body
    end = next(i for i, node in enumerate(declaring) if isinstance(node, ast.ClassDef)) + 1
    namespace: dict = {"__name__": notebook.stem}
    exec(compile(ast.Module([*imports, *declaring[:end]], []), str(notebook), "exec", dont_inherit=True), namespace)
    return namespace["Parameters"]


CLASSES: dict[str, type[Parameters]] = {
    "linear.Config": linear.Config,
    "neural.Config": neural.Config,
    "llm.Settings": Settings,
    **{f"{path.stem}.ipynb": declared(path) for path in NOTEBOOKS},
}
