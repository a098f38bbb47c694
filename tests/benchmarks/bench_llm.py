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
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import slow.llm
import torch

from fpo import files, llm, results, rules
from fpo.llm.head import comparison_solver
from fpo.llm.team import peak_gib

THREADS = os.cpu_count()
PROMPTS = 4  # one window
DTYPES = ("float32", "bfloat16")
# No learning: every arm meets the same candidates and does the same work, so that their times can be compared.
STILL = {"policy_lr": 0.0, "head_lr": 0.0}
REPEATS = 5


def chosen(dtype, rule="relaxed", **changes):
    return llm.settings(dtype=dtype, rule=rule, steps=PROMPTS, threads=THREADS, **changes)


@cache
def workbench(dtype):
    """A workbench with its references made, and the CPU seconds that they took for a prompt."""
    made = llm.Workbench(chosen(dtype))
    writer = llm.Writer(made, made.settings)
    seconds = measured(lambda: writer.make_references(range(32)), 32)["cpu_seconds"]
    llm.Writer(made, made.settings).make_references(range(PROMPTS))
    return made, seconds


def play(made, **changes):
    """A run that writes every window itself, its first one too."""
    made.first_written.clear()
    return llm.train(made.settings.replace(**changes), bench=made)


def play_slowly(dtype):
    torch.set_num_threads(THREADS)
    return slow.llm.SlowLoop(chosen(dtype))


def fast(benchmark, dtype):
    made, seconds = workbench(dtype)
    benchmark.extra_info |= {"units": PROMPTS, "reference_seconds": seconds * PROMPTS}
    benchmark.pedantic(play, args=[made], rounds=3, warmup_rounds=1)


def slow_window(benchmark, dtype):
    benchmark.extra_info["units"] = 1
    benchmark.pedantic(play_slowly(dtype).step, args=[0], rounds=1)


def cpu(group):
    return pytest.mark.benchmark(group=group, timer=time.process_time)


@cpu("llm_float32")
class TestFloat32:
    def test_fast(self, benchmark):
        fast(benchmark, "float32")

    def test_slow(self, benchmark):
        slow_window(benchmark, "float32")


@cpu("llm_bf16")
class TestBfloat16:
    def test_fast(self, benchmark):
        fast(benchmark, "bfloat16")

    def test_slow(self, benchmark):
        slow_window(benchmark, "bfloat16")


@cpu("llm_fpo_overhead")
class TestOverhead:
    """Relaxed FPO (here the slower) over standard on the same candidates, every candidate's U measured for both."""

    def test_fast(self, benchmark):
        self.play(benchmark, "standard")

    def test_slow(self, benchmark):
        self.play(benchmark, "relaxed")

    def play(self, benchmark, rule):
        made, _ = workbench("float32")
        benchmark.extra_info["units"] = PROMPTS
        benchmark.pedantic(play, args=[made], kwargs={"rule": rule, **STILL}, rounds=4)


# The stored run


def measured(work, prompts=PROMPTS):
    """CPU and wall seconds a prompt of some work, by default on one window."""
    started, wall = time.process_time(), time.perf_counter()
    work()
    return {
        "cpu_seconds": (time.process_time() - started) / prompts,
        "wall_seconds": (time.perf_counter() - wall) / prompts,
    }


def middle(rows):
    """Median, least and most of each entry over several rows."""
    sizes = {"": statistics.median, "_least": min, "_most": max}
    return {f"{key}{end}": size([row[key] for row in rows]) for key in rows[0] for end, size in sizes.items()}


def one(route, dtype):
    """Seconds a prompt of one route, in a process of its own, so that the peak of its memory is its own.

    Both play the first window, its update included. The slow one makes its references on the way.
    """
    if route == "slow":
        twin = play_slowly(dtype)
        found = measured(lambda: [twin.step(position) for position in range(PROMPTS)])
    else:
        made = llm.Workbench(chosen(dtype))
        writer = llm.Writer(made, made.settings)
        found = {"references": measured(lambda: writer.make_references(range(32)), 32)}
        play(made, steps=PROMPTS)
        rows, phases = [], []
        for _ in range(REPEATS):
            rows.append(measured(lambda: phases.append(play(made, steps=PROMPTS)[0]["machine"]["seconds"])))
        found |= middle(rows) | {"phases": {key: value for key, value in middle(phases).items() if "_" not in key}}
    return found | {"route": route, "dtype": dtype, "peak_gib": peak_gib()}


ARMS = {
    "relaxed": {"rule": "relaxed"},
    "standard": {"rule": "standard"},
    "standard, winner's U": {"rule": "standard", "measure": "winner"},
}


def arms():
    """CPU seconds a prompt of three ways to play the same candidates, in turns and in changing order."""
    made = llm.Workbench(chosen("float32"))
    play(made)
    taken = {name: [] for name in ARMS}
    for turn in range(2 * REPEATS):
        for name in [*ARMS][:: 1 if turn % 2 else -1]:
            taken[name].append(measured(lambda name=name: play(made, **ARMS[name], **STILL)))
    return {name: middle(rows) for name, rows in taken.items()}


def choosing():
    """Wall seconds a prompt that scoring and choosing take under each rule, H and its factorization included."""
    made = llm.Workbench(chosen("float32"))
    writer = llm.Writer(made, made.settings)
    writer.make_references(range(PROMPTS))
    scored = writer.window(range(PROMPTS), also=rules.RULES).scored
    head, ridge = made.reward_model.head, made.settings.head_ridge
    found = {}
    for rule in ("standard", "relaxed", "practical", "exact", "leverage"):

        def choose(rule=rule):
            seen = scored
            if "solve" in rules.RULES[rule].reads:
                seen = replace(
                    scored, solve=comparison_solver(writer.first_comparisons.differences, head.weight[0], ridge)
                )
            rules.choose(rule, seen, 1.0)

        choose()
        found[rule] = middle([measured(choose) for _ in range(REPEATS)])["wall_seconds"]
    return found


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
            "turns": 2 * REPEATS,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "candidates": settings.candidates,
            "max_new_tokens": settings.max_new_tokens,
        },
        "rows": results.plain(rows),
        "arms": results.plain(arms()),
        "choosing": results.plain(choosing()),
    }
    files.save_json(Path(out), content)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
    else:
        sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
