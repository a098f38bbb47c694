"""Run the book's notebooks: execute them with papermill, tidy what it leaves, reuse what has not changed."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
import papermill
from edition import BadInput
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.translators import translate_parameters
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
# What an executed notebook depends on beyond its own cells.
INGREDIENTS = ("fpo/**/*.py", "notebooks/runs/**/*", "notebooks/parameters/**/*", "constraints.txt")
TIME_LIMIT = 3600
START_LIMIT = 600  # seconds: on a busy machine a kernel takes more than papermill's minute
HEADLINE = "book/_static/headline.svg"


class Failed(Exception):
    """A notebook, the headline figure or the rendering failed."""


def notebook_names() -> list[str]:
    """Names of the book's notebooks in reading order."""
    pages = [Path(page) for page in parse_toc_yaml(ROOT / "_toc.yml")]
    return [page.stem for page in pages if page.parent.name == "notebooks"]


def notebook_path(name: str, root: Path = ROOT) -> Path:
    return root / "notebooks" / f"{name}.ipynb"


def tagged(notebook: Any, tag: str) -> int:
    """Position of the one cell with this tag."""
    found = [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]
    if len(found) != 1:
        raise Failed(f"the contract asks for one cell tagged {tag!r}, found {len(found)}")
    return found[0]


def run(name: str, notebook: Any, parameters: dict[str, Any], folder: Path, progress: bool | dict[str, Any]) -> Any:
    """A notebook executed by papermill in a folder, as papermill leaves it."""
    deadline = time.monotonic() + TIME_LIMIT
    try:
        return papermill.execute_notebook(
            notebook,
            None,
            parameters,
            cwd=folder,
            progress_bar=progress,
            start_timeout=START_LIMIT,
            timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        )
    except (CellTimeoutError, DeadKernelError) as error:
        reason = str(error).splitlines()[0]
        raise Failed(f"notebook {name} failed (its limit is {TIME_LIMIT} s)\n    {reason}") from None


def execute(name: str, source: Path, parameters: dict[str, Any], position: str) -> None:
    """Execute a notebook of a stage with these parameters: replaces it there and writes its results file."""
    path = notebook_path(name, source)
    original = nbformat.read(path, as_version=4)
    results = source / "notebooks" / "results" / f"{name}.json"
    results.unlink(missing_ok=True)
    results.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    print(f"notebook {position}: {name}", flush=True)
    try:
        # An explicit False, or the bar would obey the TQDM_DISABLE that is meant for the kernels.
        progress = {"desc": name, "disable": False}
        executed = run(name, original, {**parameters, "results_path": str(results)}, path.parent, progress)
    except papermill.PapermillExecutionError as error:
        raise Failed(f"notebook {name} failed\n    {error.ename}: {error.evalue}") from None
    if not results.is_file():
        raise Failed(f"notebook {name} wrote no results to its results_path")
    nbformat.write(tidy(original, executed, parameters), path)
    print(f"{name}: executed in {time.monotonic() - started:.0f} s", flush=True)


def tidy(original: Any, executed: Any, parameters: dict[str, Any]) -> Any:
    """The original with the outputs of its execution and nothing of the machinery's: no times, paths or metadata.

    A reader's parameters stay as a visible cell, tagged as papermill tags it.
    """
    notebook = deepcopy(original)
    cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.tags]
    for cell, done in zip(notebook.cells, cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = merge_streams(done.outputs)
    if parameters:
        kernel = notebook.metadata.kernelspec
        source = translate_parameters(kernel.name, kernel.get("language", "python"), parameters, "Parameters").strip()
        cell = nbformat.v4.new_code_cell(source, id="injected-parameters", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(tagged(notebook, "parameters") + 1, cell)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    notebook.metadata.pop("papermill", None)
    notebook.metadata.language_info = executed.metadata.language_info
    notebook.metadata.language_info.pop("version", None)
    return notebook


def merge_streams(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of print as one, stdout first: how they come in pieces depends on the load."""
    merged = []
    for printed, group in groupby(outputs, key=lambda output: output.output_type == "stream"):
        pieces = list(group)
        if printed:
            texts = {name: "".join(p.text for p in pieces if p.name == name) for name in ("stdout", "stderr")}
            pieces = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts.items() if text]
        merged += pieces
    return merged


def parameter_names(name: str) -> list[str]:
    """What a reader may set in a notebook: all but where the results go."""
    inspected = papermill.inspect_notebook(nbformat.read(notebook_path(name), as_version=4))
    return [parameter for parameter in inspected if parameter != "results_path"]


def check_values(parameters: dict[str, dict[str, Any]]) -> None:
    """Let each notebook judge its parameters by its own validation cell, before anything is executed in full."""
    for name, values in parameters.items():
        if not values:
            continue
        notebook = nbformat.read(notebook_path(name), as_version=4)
        notebook.cells = notebook.cells[: tagged(notebook, "validate") + 1]
        try:
            run(name, notebook, values, ROOT / "notebooks", progress=False)
        except papermill.PapermillExecutionError as error:
            raise BadInput(f"{name}: {error.evalue}") from None


def reuse_key(name: str) -> str:
    """Names everything that an execution with the defaults depends on: cells, module, stored runs, pins, Python."""
    notebook = nbformat.read(notebook_path(name), as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        cell.pop("execution_count", None)
    digest = hashlib.sha256(json.dumps([notebook, sys.version], sort_keys=True).encode())
    for pattern in INGREDIENTS:
        for file in sorted(ROOT.glob(pattern)):
            if file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
                digest.update(f"{file.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def execute_or_reuse(name: str, source: Path, parameters: dict[str, Any], position: str) -> None:
    """Like `execute`, but an earlier execution of the same things with the defaults is taken as it is."""
    if parameters:
        execute(name, source, parameters, position)
        return
    stored = BUILD / "executed" / name / reuse_key(name)
    files = {stored / "notebook.ipynb": notebook_path(name, source)}
    files[stored / "results.json"] = source / "notebooks" / "results" / f"{name}.json"
    if stored.is_dir():
        for kept, file in files.items():
            file.parent.mkdir(exist_ok=True)
            shutil.copyfile(kept, file)
        print(f"notebook {position}: {name}: unchanged, reused", flush=True)
        return
    execute(name, source, parameters, position)
    shutil.rmtree(stored.parent, ignore_errors=True)
    stored.parent.mkdir(parents=True)
    partial = Path(tempfile.mkdtemp(dir=stored.parent))
    for kept, file in files.items():
        shutil.copyfile(file, partial / kept.name)
    partial.rename(stored)


def draw_headline(source: Path) -> None:
    """Redraw the headline figure of a stage from its results files."""
    results, figure = source / "notebooks" / "results", source / HEADLINE
    command = [sys.executable, str(ROOT / "book" / "headline.py"), str(results), str(figure)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise Failed("book/headline.py failed")
