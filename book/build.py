"""Execute and render the book: `book`, `html`, `refresh`, `edition`. The Makefile's targets call this file.

Every build works on a copy of the sources below _build/ and renders it strictly, from an empty output. Only `refresh`
writes to the sources, and only after every notebook has run.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from copy import deepcopy
from itertools import groupby
from pathlib import Path

import nbformat
import papermill
from edition import (
    RECORD,
    BadInput,
    contents,
    digest,
    mark,
    packages,
    read_folder,
    read_parameters,
    record,
    refuse_strangers,
)
from filelock import FileLock, Timeout
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.translators import translate_parameters
from sphinx_external_toc.parsing import parse_toc_yaml

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of the notebooks' kernels sleep: see fpo/__init__.py

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
SOURCES = ("_config.yml", "_toc.yml", "CHANGELOG.md", "book", "notebooks")
# What an executed notebook depends on beyond its own cells.
INGREDIENTS = ("fpo/**/*.py", "notebooks/runs/**/*", "notebooks/parameters/**/*", "constraints.txt")
TIME_LIMIT = 3600
HEADLINE = "book/_static/headline.svg"


class Failed(Exception):
    """A notebook, the headline figure or the rendering failed."""


# Notebooks


def notebook_names():
    """Names of the book's notebooks in reading order."""
    pages = [Path(page) for page in parse_toc_yaml(ROOT / "_toc.yml")]
    return [page.stem for page in pages if page.parent.name == "notebooks"]


def notebook_path(name, root=ROOT):
    return root / "notebooks" / f"{name}.ipynb"


def tagged(notebook, tag):
    """Position of the one cell with this tag."""
    found = [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]
    if len(found) != 1:
        raise Failed(f"the contract asks for one cell tagged {tag!r}, found {len(found)}")
    return found[0]


def run(name, notebook, parameters, folder, progress):
    """A notebook executed by papermill in a folder, as papermill leaves it."""
    deadline = time.monotonic() + TIME_LIMIT
    try:
        return papermill.execute_notebook(
            notebook,
            None,
            parameters,
            cwd=folder,
            progress_bar=progress,
            timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        )
    except (CellTimeoutError, DeadKernelError) as error:
        reason = str(error).splitlines()[0]
        raise Failed(f"notebook {name} failed (its limit is {TIME_LIMIT} s)\n    {reason}") from None


def execute(name, source, parameters, position):
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


def tidy(original, executed, parameters):
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


def merge_streams(outputs):
    """Outputs with neighbouring pieces of print as one, stdout first: how they come in pieces depends on the load."""
    merged = []
    for printed, group in groupby(outputs, key=lambda output: output.output_type == "stream"):
        pieces = list(group)
        if printed:
            texts = {name: "".join(p.text for p in pieces if p.name == name) for name in ("stdout", "stderr")}
            pieces = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts.items() if text]
        merged += pieces
    return merged


def parameter_names(name):
    """What a reader may set in a notebook: all but where the results go."""
    inspected = papermill.inspect_notebook(nbformat.read(notebook_path(name), as_version=4))
    return [parameter for parameter in inspected if parameter != "results_path"]


def check_values(parameters):
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


def reuse_key(name):
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


def execute_or_reuse(name, source, parameters, position):
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


def draw_headline(source):
    """Redraw the headline figure of a stage from its results files."""
    results, figure = source / "notebooks" / "results", source / HEADLINE
    command = [sys.executable, str(ROOT / "book" / "headline.py"), str(results), str(figure)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise Failed("book/headline.py failed")


# Pages


def stage(folder):
    """A fresh copy of the book's sources."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        elif (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def render(source, out):
    """Render a stage into an empty folder, every warning an error; returns the exit status."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".render-") as work:
        # The console script would not start from a path with blanks.
        program = "from jupyter_book.cli.main import main; main()"
        options = ["-q", "-W", "-n", "--keep-going", "--path-output", work]
        command = [sys.executable, "-c", program, "build", str(source), *options]
        status = subprocess.run(command, cwd=source, stdout=subprocess.DEVNULL).returncode
        if status == 0:
            Path(work, "_build", "html").rename(out)
    return status


def render_strictly(source, out):
    """Render, or fail."""
    print("rendering the pages", flush=True)
    if render(source, out):
        raise Failed("the pages did not render: see the warnings above, each of which counts as an error")


def render_or_reuse(source, out):
    """Like `render_strictly`, but pages that were rendered from the same things before are taken as they are.

    All of the stage counts, the extensions and this file with it, and so do pins, installed packages and Python.
    """
    kept = out.parent / "rendered"
    made_from = [contents(source), digest(ROOT / "constraints.txt"), packages(), sys.version]

    def key():
        return hashlib.sha256(json.dumps([*made_from, contents(out)], sort_keys=True).encode()).hexdigest()

    if kept.is_file() and kept.read_text(encoding="utf8") == key():
        print("pages: unchanged, reused", flush=True)
        return
    render_strictly(source, out)
    kept.write_text(key(), encoding="utf8")


def tell(out):
    """Say where the book can be read."""
    print(f"Open {(out / 'index.html').as_uri()}")


# Commands


@contextmanager
def alone():
    """Wait, with one line, while another build runs in this checkout: it would lose its files to this one.

    The lock is the system's own: it ends with its process, however that ends.
    """
    BUILD.mkdir(exist_ok=True)
    lock = FileLock(BUILD / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another build is running in {ROOT}: waiting for it to end (Ctrl-C gives up)", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@alone()
def build_book():
    """Execute what has changed, render, say where the first page is."""
    source = stage(BUILD / "book" / "source")
    names = notebook_names()
    for count, name in enumerate(names, start=1):
        execute_or_reuse(name, source, {}, f"{count} of {len(names)}")
    draw_headline(source)
    render_or_reuse(source, BUILD / "book" / "html")
    tell(BUILD / "book" / "html")


@alone()
def build_html():
    """Render the committed outputs."""
    render_or_reuse(stage(BUILD / "html" / "source"), BUILD / "html" / "html")
    tell(BUILD / "html" / "html")


@alone()
def refresh():
    """Execute every notebook; when all are done, update the committed notebooks, results and headline figure."""
    source = stage(BUILD / "refresh" / "source")
    names = notebook_names()
    for count, name in enumerate(names, start=1):
        execute(name, source, {}, f"{count} of {len(names)}")
    draw_headline(source)
    files = [f"notebooks/{name}.ipynb" for name in names] + [f"notebooks/results/{name}.json" for name in names]
    for file in (*files, HEADLINE):
        if str(ROOT) in (source / file).read_text(encoding="utf8"):
            raise Failed(f"{file} would carry a path of this machine, {ROOT}")
    (ROOT / "notebooks" / "results").mkdir(exist_ok=True)
    for file in (*files, HEADLINE):
        new = (ROOT / file).with_suffix(".new")
        shutil.copyfile(source / file, new)
        new.replace(ROOT / file)
    print("updated the committed notebooks, their results and the headline figure")


def build_edition(parameters_file, folder):
    """The book with a reader's parameters in a folder of its own, complete or not at all."""
    out = read_folder(folder, ROOT)
    title, parameters = read_parameters(parameters_file, {name: parameter_names(name) for name in notebook_names()})
    check_values(parameters)
    write_edition(out, title, parameters)
    tell(out / "html")


@alone()
def write_edition(out, title, parameters):
    """Execute and render an edition beside its folder, then put it there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".edition-", ignore_cleanup_errors=True) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        source = stage(new / "source")
        for count, (name, values) in enumerate(parameters.items(), start=1):
            execute_or_reuse(name, source, values, f"{count} of {len(parameters)}")
        draw_headline(source)
        mark(source / "_config.yml", title, parameters)
        render_strictly(source, new / "html")
        originals = [notebook_path(name) for name in parameters] + sorted((ROOT / "fpo").rglob("*.py"))
        record(new / RECORD, title, parameters, originals, ROOT)
        # Once more: the reader may have put something there since.
        refuse_strangers(out)
        if out.exists():
            out.rename(old)
        new.rename(out)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in {"book": build_book, "html": build_html, "refresh": refresh}.items():
        commands.add_parser(name, help=command.__doc__).set_defaults(call=lambda args, command=command: command())
    edition = commands.add_parser("edition", help=build_edition.__doc__)
    edition.add_argument("--parameters", required=True, metavar="FILE", help="YAML: notebook: {parameter: value}")
    edition.add_argument("--out", required=True, metavar="FOLDER", help="a new or empty folder, or an earlier edition")
    edition.set_defaults(call=lambda args: build_edition(args.parameters, args.out))
    args = parser.parse_args(arguments)
    # Kernels import the module beside this file, and progress bars of their own would end up in the outputs.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["TQDM_DISABLE"] = "1"
    try:
        args.call(args)
    except (BadInput, Failed) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
