"""The language-model loop on the default profile, against its slow twin: CPU seconds for a prompt.

    PYTHONPATH=tests python tests/benchmarks/bench_llm.py OUT.json

times both by phase, in float32 and in bfloat16, and stores the seconds with their provenance; the chapter on the
pipeline draws them from notebooks/runs/llm_cost.json. The references, which are made once and serve every run on the
same prompts, are counted apart (`reference_seconds`), and the ratio is also given with them (`ratio_with_references`).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import oracles
import pytest
import torch

from fpo import files, llm, results
from fpo.llm.loop import peak_gib

THREADS = os.cpu_count()
PROMPTS = 4  # one window
DTYPES = ("float32", "bfloat16")
# No learning: every arm meets the same candidates and does the same work, so that their times can be compared.
STILL = {"policy_lr": 0.0, "head_lr": 0.0}
REPEATS = 7


def chosen(dtype, rule="relaxed", **changes):
    return llm.settings(dtype=dtype, rule=rule, steps=PROMPTS, threads=THREADS, **changes)


@cache
def pipeline(dtype):
    """The fast loop with its references made, and the CPU seconds that they took for a prompt."""
    made = llm.Pipeline(chosen(dtype))
    torch.set_num_threads(THREADS)
    many = llm.Pipeline(chosen(dtype).replace(steps=32))
    started = time.process_time()
    many.references()
    seconds = (time.process_time() - started) / 32
    made.references()
    return made, seconds


def play(made, **changes):
    """A run that writes every window itself, its first one too."""
    made._opening.clear()
    return made.train(**changes)


def play_slowly(dtype):
    torch.set_num_threads(THREADS)
    return oracles.SlowLoop(chosen(dtype))


def fast(benchmark, dtype):
    made, seconds = pipeline(dtype)
    benchmark.extra_info |= {"units": PROMPTS, "reference_seconds": seconds * PROMPTS}
    benchmark.pedantic(play, args=[made], rounds=3, warmup_rounds=1)


def slow(benchmark, dtype):
    benchmark.extra_info["units"] = 1
    benchmark.pedantic(play_slowly(dtype).step, args=[0], rounds=1)


def cpu(group):
    return pytest.mark.benchmark(group=group, timer=time.process_time)


@cpu("llm_float32")
class TestFloat32:
    def test_fast(self, benchmark):
        fast(benchmark, "float32")

    def test_slow(self, benchmark):
        slow(benchmark, "float32")


@cpu("llm_bf16")
class TestBfloat16:
    def test_fast(self, benchmark):
        fast(benchmark, "bfloat16")

    def test_slow(self, benchmark):
        slow(benchmark, "bfloat16")


@cpu("llm_fpo_overhead")
class TestOverhead:
    """Relaxed FPO (here the slower) over standard on the same candidates, every candidate's U measured for both."""

    def test_fast(self, benchmark):
        self.play(benchmark, "standard")

    def test_slow(self, benchmark):
        self.play(benchmark, "relaxed")

    def play(self, benchmark, rule):
        made, _ = pipeline("float32")
        benchmark.extra_info["units"] = PROMPTS
        benchmark.pedantic(play, args=[made], kwargs={"rule": rule, **STILL}, rounds=4)


# The stored run


def measured(play, prompts):
    started, wall = time.process_time(), time.perf_counter()
    play()
    return {
        "cpu_seconds": (time.process_time() - started) / prompts,
        "wall_seconds": (time.perf_counter() - wall) / prompts,
    }


def one(route, dtype):
    """Seconds a prompt of one route in a process of its own, so that the peak of its memory is its own."""
    if route == "slow":
        twin = play_slowly(dtype)
        found = measured(lambda: [twin.step(position) for position in range(2)], 2)
    else:
        made = llm.Pipeline(chosen(dtype).replace(steps=32))
        references = measured(made.references, 32)
        play(made, steps=PROMPTS)
        trace = []
        found = measured(lambda: trace.extend(play(made, steps=16)), 16)
        phases = {name: 0.0 for name in trace[0]["machine"]["seconds"]}
        for line in trace:
            for name, seconds in line["machine"]["seconds"].items():
                phases[name] += seconds / len(trace)
        found |= {"phases": phases, "references": references}
    return found | {"route": route, "dtype": dtype, "peak_gib": peak_gib()}


ARMS = {
    "relaxed": {"rule": "relaxed"},
    "standard": {"rule": "standard"},
    "standard, winner's U": {"rule": "standard", "measure": "winner"},
}


def arms():
    """CPU seconds a prompt of three ways to play the same candidates, in turns: the median of each."""
    made = llm.Pipeline(chosen("float32"))
    play(made)
    taken = {name: [] for name in ARMS}
    for _ in range(REPEATS):
        for name, changes in ARMS.items():
            taken[name].append(measured(lambda changes=changes: play(made, **changes, **STILL), PROMPTS)["cpu_seconds"])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main(out):
    started = time.perf_counter()
    rows = []
    for case in [(route, dtype) for dtype in DTYPES for route in ("slow", "fast")]:
        command = [sys.executable, __file__, "--one", *case]
        shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
        if shown.returncode:
            sys.exit(shown.stderr)
        rows.append(json.loads(shown.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    settings = chosen("float32")
    content = {
        "provenance": results.provenance(
            "PYTHONPATH=tests python tests/benchmarks/bench_llm.py notebooks/runs/llm_cost.json",
            time.perf_counter() - started,
            *("fpo", "torch", "transformers", "peft"),
        ),
        "parameters": {
            "profile": settings.profile,
            "threads": THREADS,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "candidates": settings.candidates,
            "max_new_tokens": settings.max_new_tokens,
        },
        "rows": results.plain(rows),
        "arms": results.plain(arms()),
    }
    files.save_json(Path(out), content)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
    else:
        sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
