"""A busy machine: the same work beside two processes that keep the cores busy.

Four steps of the language-model loop: `fast` is the project's default, idle threads that sleep (OMP_WAIT_POLICY=PASSIVE
and GOMP_SPINCOUNT=1000, which fpo sets before torch is loaded); `slow` is OpenMP's own default, idle threads that spin,
as it is where torch is imported first.

Each chapter, executed as `make book` does: `fast` is with nothing beside it, `slow` on the busy machine.
"""

import os
import subprocess
import sys
import time

import nbformat
import pytest
from tools import portable

sys.path.append(str(portable.ROOT / "book"))
import execute  # a script's neighbor, in no package

STEPS = 4
RUN = "import sys; from fpo.llm.__main__ import main; sys.exit(main(sys.argv[1:]))"
FIRST = {"sleeping": "", "spinning": "import torch; "}


def seconds(kind: str, folder, busy: int) -> float:
    """Wall seconds of a run in a process of its own, beside `busy` others."""
    chosen = [f"--set=steps={STEPS}", "--set=candidates=3", "--set=max_new_tokens=12", "--set=threads=2"]
    command = [sys.executable, "-c", FIRST[kind] + RUN, str(folder), *chosen]
    surroundings = {
        k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    }
    with portable.spinning(busy):
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=portable.ROOT, env=surroundings, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def measure(benchmark, kind: str, tmp_path, busy: int = 2) -> None:
    benchmark.extra_info["units"] = STEPS
    benchmark.extra_info[f"{kind}_idle_seconds"] = seconds(kind, tmp_path / "idle", 0)
    benchmark.pedantic(seconds, args=(kind, tmp_path / "busy", busy), rounds=1)


@pytest.mark.benchmark(group="busy")
def test_fast(benchmark, tmp_path):
    measure(benchmark, "sleeping", tmp_path)


@pytest.mark.benchmark(group="busy")
def test_slow(benchmark, tmp_path):
    measure(benchmark, "spinning", tmp_path)


def chapter_seconds(name: str, busy: int) -> float:
    """Wall seconds of a chapter's execution, with the kernel's start."""
    path = execute.notebook_path(name)
    notebook = nbformat.read(path, as_version=4)
    with portable.spinning(busy):
        started = time.perf_counter()
        execute.run(name, notebook, {}, path.parent, progress=False)
        return time.perf_counter() - started


def measure_chapter(benchmark, monkeypatch, name: str, busy: int) -> None:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # the other benchmarks' one thread
        monkeypatch.delenv(variable, raising=False)
    benchmark.group = f"busy_{name}"
    benchmark.extra_info["units"] = 1
    benchmark.pedantic(chapter_seconds, args=(name, busy), rounds=1)


@pytest.mark.parametrize("name", execute.notebook_names())
class TestChapter:
    def test_fast(self, benchmark, monkeypatch, name):
        measure_chapter(benchmark, monkeypatch, name, 0)

    def test_slow(self, benchmark, monkeypatch, name):
        measure_chapter(benchmark, monkeypatch, name, 2)
