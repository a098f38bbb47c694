"""The neural game by torch.compile, against one run and one action at a time. Compiling is timed apart."""

import bench_neural
import pytest
import torch

from fpo import neural

pytestmark = [
    pytest.mark.benchmark(group="neural_compiled"),
    pytest.mark.skipif(" " in torch.__file__, reason="torch.compile does not link from a folder with a blank"),
]


def test_fast(benchmark):
    game = bench_neural.config("compiled")
    first = bench_neural.clock(neural.simulate, game.replace(outer_steps=1))
    benchmark.extra_info.update(units=len(bench_neural.ARMS) * bench_neural.SEEDS, compile_seconds=first)
    benchmark.pedantic(neural.simulate, args=[game], rounds=5)


def test_slow(benchmark):
    benchmark.extra_info["units"] = len(bench_neural.ARMS)
    benchmark.pedantic(bench_neural.play_slowly, rounds=3)
