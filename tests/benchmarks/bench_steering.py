"""One solve with the RM's Hessian: through the n x n Gram matrix against the p x p Hessian, and the cost of each route.

    python tests/benchmarks/bench_steering.py OUT.json

times the dense, Gram-matrix and conjugate-gradient routes over parameters p and samples n and stores the seconds with
their provenance; the chapter on penalties draws them from notebooks/runs/steering_cost.json.
"""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fpo import files, steering

pytestmark = pytest.mark.benchmark(group="steering")
RIDGE = 0.1
RIGHT_SIDES = 4

# The stored run.
PARAMETERS = (50, 150, 500, 1500, 5000, 15_000, 50_000, 100_000)
SAMPLES = (10, 30, 100, 300, 1000)
DENSE_UP_TO = 2000  # beyond, the other routes are cheaper at every number of samples here
ENOUGH = 5.0  # seconds for one solve: a route goes no further in p
REPEATS = 5


def rows(n, p, seed=0):
    """Gradients (n, p), curvatures (n,) and right-hand sides (RIGHT_SIDES, p) of a random regression."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(n, p, generator=generator, dtype=torch.float64)
    right = torch.randn(RIGHT_SIDES, p, generator=generator, dtype=torch.float64)
    return jacobian, torch.full((n,), 1 / n, dtype=torch.float64), right


def dense(jacobian, curvature, right):
    hessian = jacobian.T @ (curvature[:, None] * jacobian)
    hessian.diagonal().add_(RIDGE)
    return steering.dense_solver(hessian)(right)


def gram(jacobian, curvature, right):
    return steering.gram_solver(jacobian, curvature, RIDGE)(right)


def cg(jacobian, curvature, right):
    def product(v):
        return jacobian.T @ (curvature * (jacobian @ v)) + RIDGE * v

    return steering.cg_solver(product, tolerance=1e-10)(right)


ROUTES = {"dense": dense, "gram": gram, "cg": cg}


def test_fast(benchmark):
    benchmark.extra_info["units"] = 1
    benchmark.pedantic(gram, args=rows(50, 1500), rounds=10, warmup_rounds=1)


def test_slow(benchmark):
    benchmark.extra_info["units"] = 1
    benchmark.pedantic(dense, args=rows(50, 1500), rounds=3)


def scan():
    """Rows route, samples, parameters, seconds (the least of REPEATS), and the largest difference between routes."""
    found, worst = [], 0.0
    for n in SAMPLES:
        open_routes = set(ROUTES)
        for p in PARAMETERS:
            # Seconds of one right-hand side: the exact term needs a single solve, with the mean gradient.
            jacobian, curvature, right = rows(n, p)
            answers = []
            for name in [name for name in ROUTES if name in open_routes]:
                if name == "dense" and p > DENSE_UP_TO:
                    continue
                seconds = []
                for _ in range(REPEATS):
                    started = time.perf_counter()
                    answer = ROUTES[name](jacobian, curvature, right[:1])
                    seconds.append(time.perf_counter() - started)
                    if seconds[-1] > 1:
                        break
                answers.append(answer)
                found.append({"route": name, "samples": n, "parameters": p, "seconds": float(f"{min(seconds):.3g}")})
                if min(seconds) > ENOUGH:
                    open_routes.discard(name)
            for answer in answers[1:]:
                worst = max(worst, float((answer - answers[0]).norm() / answers[0].norm()))
    return found, worst


def main(out):
    torch.set_num_threads(1)
    started = time.perf_counter()
    found, worst = scan()
    content = {
        "made_by": "python tests/benchmarks/bench_steering.py notebooks/runs/steering_cost.json",
        "parameters": {
            "parameters": PARAMETERS,
            "samples": SAMPLES,
            "ridge": RIDGE,
            "right_sides": 1,
            "dense_up_to": DENSE_UP_TO,
            "enough_seconds": ENOUGH,
            "repeats": REPEATS,
            "precision": "float64",
            "cg_tolerance": 1e-10,
        },
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("fpo", "numpy", "scipy", "torch")},
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "wall_seconds": round(time.perf_counter() - started, 1),
        "largest_relative_difference": float(f"{worst:.1e}"),
        "rows": found,
    }
    files.save_json(Path(out), content)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
