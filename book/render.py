"""Render the book's pages, strictly and from an empty output, out of a copy of the sources."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edition import contents, digest, packages
from execute import ROOT, Failed

SOURCES = ("_config.yml", "_toc.yml", "CHANGELOG.md", "CITATION.cff", "book", "notebooks")


def stage(folder: Path) -> Path:
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


def render(source: Path, out: Path) -> int:
    """Render a stage into an empty folder, every warning an error; returns the exit status."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".render-") as work:
        # The console script would not start from a path with blanks. Trees of pages hold no garbage worth the walks
        # through all of them, which took a fourth of the time.
        program = "import gc; gc.set_threshold(100_000, 50, 100); from jupyter_book.cli.main import main; main()"
        options = ["-q", "-W", "-n", "--keep-going", "--path-output", work]
        command = [sys.executable, "-c", program, "build", str(source), *options]
        status = subprocess.run(command, cwd=source, stdout=subprocess.DEVNULL).returncode
        if status == 0:
            Path(work, "_build", "html").rename(out)
    return status


def render_strictly(source: Path, out: Path) -> None:
    """Render, or fail."""
    print("rendering the pages", flush=True)
    if render(source, out):
        raise Failed("the pages did not render: see the warnings above, each of which counts as an error")


def render_or_reuse(source: Path, out: Path) -> None:
    """Like `render_strictly`, but pages that were rendered from the same things before are taken as they are.

    All of the stage counts, the extensions and this file with it, and so do pins, installed packages and Python.
    """
    kept = out.parent / "rendered"
    made_from = [contents(source), digest(ROOT / "constraints.txt"), packages(), sys.version]

    def key() -> str:
        return hashlib.sha256(json.dumps([*made_from, contents(out)], sort_keys=True).encode()).hexdigest()

    if kept.is_file() and kept.read_text(encoding="utf8") == key():
        print("pages: unchanged, reused", flush=True)
        return
    render_strictly(source, out)
    kept.write_text(key(), encoding="utf8")


def tell(out: Path) -> None:
    """Say where the book can be read."""
    print(f"Open {(out / 'index.html').as_uri()}")
