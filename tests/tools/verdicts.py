"""A chapter's verdicts with other parameters: read from a results file, or from its cells played in this process."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import torch

from tools.parameter_classes import NOTEBOOKS, validated


def read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The verdicts of a results file, by the claims' ids without their chapter, and its whole content."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {claim["id"].partition("-")[2]: claim["verdict"] for claim in content["claims"]}, content


def play(notebook: str, path: Path, figures: bool = True, **values: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Run a chapter's cells below its parameters in this process, with its results written to `path`: see `read`.

    Without `figures` the cells that draw are left out. Threads and precision of torch are put back, figures closed.
    """
    cells = [cell for cell in nbformat.read(NOTEBOOKS[notebook], as_version=4).cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(cells) if "validate" in cell.metadata.get("tags", [])) + 1
    namespace = validated(notebook, **values, results_path=str(path))
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        with chdir(NOTEBOOKS[notebook].parent), plt.rc_context(), mock.patch.object(plt, "show"):
            # The first cell too: `validated` takes its imports alone, and some chapters set torch's precision there.
            for cell in (cells[0], *cells[first:]):
                if figures or "figure" not in cell.metadata.get("mystnb", {}):
                    exec(compile(cell.source, cell.id, "exec", dont_inherit=True), namespace)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        plt.close("all")
    return read(path)
