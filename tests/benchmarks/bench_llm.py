"""The language-model loop on the default profile, against its slow twin: CPU seconds for a prompt.

    PYTHONPATH=tests python tests/benchmarks/bench_llm.py OUT.json

times both by phase, in float32 and in bfloat16, and stores the seconds with their provenance; the chapter on the
pipeline draws them from notebooks/runs/llm_cost.json. The references, which are made once and serve every run on the
same prompts, are counted apart (`reference_seconds`), and the ratio is also given with them (`ratio_with_references`).
"""

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import oracles
import pytest
import torch

from fpo import files, llm, results
from fpo.llm.loop import Clock, peak_gib

THREADS = os.cpu_count()
PROMPTS = 4  # one window
DTYPES = ("float32", "bfloat16")


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


def play_slowly(dtype):
    torch.set_num_threads(THREADS)
    return oracles.SlowLoop(chosen(dtype))


def fast(benchmark, dtype):
    made, seconds = pipeline(dtype)
    benchmark.extra_info |= {"units": PROMPTS, "reference_seconds": seconds * PROMPTS}
    benchmark.pedantic(made.train, rounds=3, warmup_rounds=1)


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
    """Relaxed FPO (the slower) over standard on one and the same window, both with every candidate's U measured."""

    def test_fast(self, benchmark):
        self.play(benchmark, "standard")

    def test_slow(self, benchmark):
        made = self.play(benchmark, "relaxed")
        clock = Clock()
        made.window(range(PROMPTS), clock=clock)
        benchmark.extra_info["share_of_choosing"] = clock.seconds["select"] / sum(clock.seconds.values())

    def play(self, benchmark, rule):
        made, _ = pipeline("float32")
        benchmark.extra_info["units"] = PROMPTS
        benchmark.pedantic(lambda: made.train(rule=rule), rounds=3, warmup_rounds=0)
        return made


# The stored run


def measured(play, prompts):
    started, wall = time.process_time(), time.perf_counter()
    play()
    return {
        "cpu_seconds": (time.process_time() - started) / prompts,
        "wall_seconds": (time.perf_counter() - wall) / prompts,
    }


def one(route, dtype, rule):
    """Seconds a prompt of one route in a process of its own, so that the peak of its memory is its own."""
    if route == "slow":
        twin = play_slowly(dtype)
        found = measured(lambda: [twin.step(position) for position in range(2)], 2)
    else:
        settings = chosen(dtype, rule, measure="winner" if route == "winner" else "candidates")
        made = llm.Pipeline(settings.replace(steps=32))
        references = measured(made.references, 32)
        made.train()
        trace = []
        found = measured(lambda: trace.extend(made.train()), 32)
        phases = {name: 0.0 for name in trace[0]["machine"]["seconds"]}
        for line in trace:
            for name, seconds in line["machine"]["seconds"].items():
                phases[name] += seconds / 32
        found |= {"phases": phases, "references": references}
    return found | {"route": route, "dtype": dtype, "rule": rule, "peak_gib": peak_gib()}


def main(out):
    started = time.perf_counter()
    cases = [(route, dtype, "relaxed") for dtype in DTYPES for route in ("slow", "fast")]
    cases += [("fast", "float32", "standard"), ("winner", "float32", "standard")]
    rows = []
    for case in cases:
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
    }
    files.save_json(Path(out), content)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
    else:
        sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
