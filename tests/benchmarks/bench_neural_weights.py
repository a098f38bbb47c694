"""A grid of eight weights on 16 seeds of the neural game as one batch, against one weight after the other."""

import bench_neural
import pytest

from fpo import neural

pytestmark = pytest.mark.benchmark(group="neural_weights_at_once")
GRID = [0.001 * 2.2**k for k in range(8)]


def games():
    home = bench_neural.config("closed-form", seeds=range(16), arms=["practical"])
    return [home.replace(gamma_practical=weight) for weight in GRID]


def one_after_the_other():
    for game in games():
        neural.simulate(game)


def test_fast(benchmark):
    benchmark.extra_info["units"] = len(GRID)
    benchmark.pedantic(neural.simulate_each, args=[games()], rounds=5, warmup_rounds=1)


def test_slow(benchmark):
    benchmark.extra_info["units"] = len(GRID)
    benchmark.pedantic(one_after_the_other, rounds=3)
