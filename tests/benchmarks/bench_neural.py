"""The neural game: all seeds and arms as one batch, against one run and one action at a time.

    PYTHONPATH=tests python tests/benchmarks/bench_neural.py OUT.json

times an iteration for 1 to 1024 runs by each route and number of threads and stores the seconds with their provenance;
the chapter on the neural game names two of them, from notebooks/runs/neural_cost.json.
"""

import sys
import time
from pathlib import Path

import pytest
import slow.neural
from tqdm import tqdm

from fpo import files, neural, results

ARMS = ("standard", "relaxed", "practical")
SEEDS = 64
ITERATIONS = 200

# The stored run.
RUNS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
THREADS = (1, 2)
EAGER = ("autograd", "closed-form")
COMPILED = (4, 32, 256, 1024)  # runs, on one thread: every size is compiled anew
TIMED = 40  # iterations
REPEATS = 3


def config(gradient, **changes):
    settings = {"seeds": range(SEEDS), "arms": ARMS, "outer_steps": ITERATIONS, "gradient": gradient}
    return neural.Config(**settings | changes)


def play_slowly():
    for arm in ARMS:
        slow.neural.run(0, arm, config("autograd"))


@pytest.mark.benchmark(group="neural")
def test_fast(benchmark):
    # At this size a second thread pays, but not for the slow route or the compiled one.
    game = config("autograd", threads=2)
    benchmark.extra_info["units"] = len(ARMS) * SEEDS
    benchmark.pedantic(neural.simulate, args=[game], rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="neural")
def test_slow(benchmark):
    benchmark.extra_info["units"] = len(ARMS)
    benchmark.pedantic(play_slowly, rounds=3)


def clock(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def iteration(gradient, runs, threads):
    """Seconds of one iteration of that many runs: the least of a few, the time to set up taken off."""
    game = config(gradient, seeds=range(runs), arms=["relaxed"], threads=threads, outer_steps=TIMED)
    longer = game.replace(outer_steps=2 * TIMED)
    neural.simulate(game.replace(outer_steps=1))
    return min(clock(neural.simulate, longer) - clock(neural.simulate, game) for _ in range(REPEATS)) / TIMED


def main(out):
    started, found = time.perf_counter(), []
    cases = [(gradient, threads, runs) for gradient in EAGER for threads in THREADS for runs in RUNS]
    for gradient, threads, runs in tqdm([*cases, *(("compiled", 1, runs) for runs in COMPILED)]):
        seconds = float(f"{iteration(gradient, runs, threads):.3g}")
        found.append({"gradient": gradient, "threads": threads, "runs": runs, "seconds": seconds})
    game = config("autograd", outer_steps=TIMED)
    slow = min(clock(slow.neural.run, 0, "relaxed", game) for _ in range(REPEATS)) / TIMED
    content = {
        "provenance": results.provenance(
            "PYTHONPATH=tests python tests/benchmarks/bench_neural.py notebooks/runs/neural_cost.json",
            time.perf_counter() - started,
            *("fpo", "numpy", "torch"),
        ),
        "parameters": {"arm": "relaxed", "iterations": TIMED, "repeats": REPEATS, "precision": "float32"},
        "seconds_one_at_a_time": float(f"{slow:.3g}"),
        "rows": found,
    }
    files.save_json(Path(out), content)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
