"""What several test files share: the book as built from the committed outputs, the browser, chapters executed once."""

from __future__ import annotations

import fpo  # isort: skip  # before torch: it lets idle threads sleep, here and in every process that is started from here

import gc
import importlib.util
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock
from tools import chapters, explorers, pages
from tools.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
# These take longest and are begun first, so that two workers end at about the same time.
LONG = (
    *("test_documents", "test_neural_rules", "llm_pipeline", "test_pages", "test_llm", "test_llm_workbench"),
    *("test_llm_resume", "test_llm_weights", "neural"),
)
assert fpo  # imported for what it does

# A busy machine takes its time: how long a case takes says nothing about whether it is right.
hypothesis.settings.register_profile("fpo", deadline=None)
hypothesis.settings.load_profile("fpo")


def pytest_configure(config):
    config.stash[chapters.FOLDER] = folder = tempfile.TemporaryDirectory(prefix="results-")
    config.add_cleanup(folder.cleanup)
    config.option.nbval_kernel_startup_timeout = chapters.OUTPUT_SECONDS
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


def pytest_collection_modifyitems(items, config):
    chapters.extend(items, Path(config.stash[chapters.FOLDER].name))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish():
    # What was loaded stays: without this, each call of statsmodels that collects garbage walks all of it, for a second.
    gc.freeze()


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all page checks. Without one they are skipped on a reader's machine and fail in CI."""
    executable = pages.find_browser()
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(pages.NO_BROWSER)
    with pages.Browser(executable) as started:
        yield started


@pytest.fixture(scope="session")
def build():
    """book/build.py, a script that lies in no package and imports its neighbours."""
    sys.path.append(str(ROOT / "book"))
    spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built_book(build, tmp_path_factory):
    """The folder of the rendered book: committed outputs, every warning an error; one for all of pytest's workers."""
    import render  # beside book/build.py, which the fixture has put on the path

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "book.lock"):
        if not (folder / "book").exists():
            made = tmp_path_factory.mktemp("made")
            if render.render(render.stage(made / "source"), made / "html"):
                pytest.fail("the book does not render without warnings: see the captured messages, or run `make html`")
            made.rename(folder / "book")
    return folder / "book" / "html"


@pytest.fixture(scope="session")
def address(built_book):
    """Where the rendered book is served."""
    with pages.served(built_book) as where:
        yield where


@pytest.fixture
def explorer(browser, address):
    """Opens one of the book's explorers in a session of its own: see `tools.explorers.opened`."""
    return partial(explorers.opened, browser, address)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Settings of a run with models that take a blink."""
    from tools import llm as llm_tools  # loads PyTorch, which the process that hands out the tests does not need

    return llm_tools.make_tiny(tmp_path_factory.mktemp("tiny"))
