"""Execute, render and print the book: `book`, `html`, `pdf`, `zip`, `refresh`, `edition`. The Makefile calls this file.

Every build works on a copy of the sources below _build/ and renders it strictly, from an empty output. Only `refresh`
writes to the sources, and only after every notebook has run.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chromium import Unprinted, require_browser
from edition import RECORD, BadInput, mark, read_folder, read_parameters, record, refuse_strangers
from execute import (
    BUILD,
    HEADLINE,
    ROOT,
    Failed,
    check_values,
    draw_headline,
    execute,
    execute_or_reuse,
    notebook_names,
    notebook_path,
    parameter_names,
)
from filelock import FileLock, Timeout
from printing import NAME, pack, print_book
from render import render_or_reuse, render_strictly, stage, tell

import fpo

assert fpo  # imported for what it does: idle threads of the notebooks' kernels sleep


@contextmanager
def alone() -> Iterator[None]:
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
def build_book() -> None:
    """Execute what has changed, render, say where the first page is."""
    source = stage(BUILD / "book" / "source")
    names = notebook_names()
    for count, name in enumerate(names, start=1):
        execute_or_reuse(name, source, {}, f"{count} of {len(names)}")
    draw_headline(source)
    render_or_reuse(source, BUILD / "book" / "html")
    tell(BUILD / "book" / "html")


def render_committed() -> tuple[Path, Path]:
    """Render the committed outputs: the sources and the site."""
    source, site = stage(BUILD / "html" / "source"), BUILD / "html" / "html"
    render_or_reuse(source, site)
    return source, site


@alone()
def build_html() -> None:
    """Render the committed outputs."""
    tell(render_committed()[1])


@alone()
def build_pdf() -> None:
    """Print the committed outputs as one PDF."""
    require_browser()  # before the work, not after it
    source, site = render_committed()
    print("printing the book", flush=True)
    print_book(site, source, BUILD / f"{NAME}.pdf")
    print(f"Open {(BUILD / f'{NAME}.pdf').as_uri()}")


@alone()
def build_zip() -> None:
    """Pack the rendered committed outputs for reading offline."""
    pack(render_committed()[1], BUILD / f"{NAME}.zip")
    print(f"Packed {BUILD / f'{NAME}.zip'}: unpack it and open index.html")


@alone()
def refresh() -> None:
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


def build_edition(parameters_file: str, folder: str) -> None:
    """The book with a reader's parameters in a folder of its own, complete or not at all."""
    out = read_folder(folder, ROOT)
    title, parameters = read_parameters(parameters_file, {name: parameter_names(name) for name in notebook_names()})
    check_values(parameters)
    write_edition(out, title, parameters)
    tell(out / "html")


@alone()
def write_edition(out: Path, title: str | None, parameters: dict[str, dict[str, Any]]) -> None:
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    simple = {"book": build_book, "html": build_html, "pdf": build_pdf, "zip": build_zip, "refresh": refresh}
    for name, command in simple.items():
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
    except (BadInput, Failed, Unprinted) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
