"""What `make test` shows: for each file, when it is begun, and when it is done, how far the whole run is."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest


def about(file: str) -> str:
    """What a file of tests is about, in a few words."""
    path = Path(file)
    if path.suffix == ".ipynb":
        return "the chapter is executed and compared with its committed numbers"
    if not path.name.startswith("test_"):
        return "examples in docstrings"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


class Progress:
    """Instead of a dot a test, a line a file. With -v or -q pytest shows what it always does."""

    def __init__(self, config: pytest.Config):
        self._config, self._started = config, time.monotonic()
        self._done, self._begun = 0, set()
        self._quiet = config.get_verbosity() == 0
        self._session = None

    def pytest_sessionstart(self, session):
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        if self._quiet and report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            return "passed", "", ""

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        total = self._session.testscollected if self._session else 0
        share = f"{100 * self._done // total:3d} %" if total else "     "
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        reporter.ensure_newline()
        reporter.write_line(f"{minutes:3d} min {seconds:02d} s {share}  {text}")

    def pytest_runtest_logstart(self, nodeid):
        file = nodeid.partition("::")[0]
        if self._quiet and file not in self._begun:
            self._begun.add(file)
            self._say(f"{file}: {about(file)}")

    def pytest_runtest_logfinish(self):
        self._done += 1
