"""A busy machine: four steps of the language-model loop beside two processes that keep the cores busy.

`fast` is the project's default, idle threads that sleep (OMP_WAIT_POLICY=PASSIVE, which fpo sets before torch is
loaded); `slow` is OpenMP's own default, idle threads that spin, as it is where torch is imported first.
"""

import os
import subprocess
import sys
import time

import pytest
from tools import portable

STEPS = 4
RUN = "import sys; from fpo.llm.__main__ import main; sys.exit(main(sys.argv[1:]))"
FIRST = {"sleeping": "", "spinning": "import torch; "}


def seconds(kind: str, folder, busy: int) -> float:
    """Wall seconds of a run in a process of its own, beside `busy` others."""
    chosen = [f"--set=steps={STEPS}", "--set=candidates=3", "--set=max_new_tokens=12", "--set=threads=2"]
    command = [sys.executable, "-c", FIRST[kind] + RUN, str(folder), *chosen]
    surroundings = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
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
