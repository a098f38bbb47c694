"""The linear game: every seed and arm as one batch, against one plain forward-difference loop after the other."""

import pytest
import slow.linear

from fpo import linear

pytestmark = pytest.mark.benchmark(group="linear")
SEEDS = 256


def test_fast(benchmark):
    config = linear.Config(seeds=range(SEEDS))
    benchmark.extra_info["units"] = SEEDS * len(linear.ARMS)
    benchmark.pedantic(linear.simulate, args=[config], rounds=5, warmup_rounds=1)


def test_slow(benchmark):
    config = linear.Config(seeds=[0], gradient="forward-difference")
    benchmark.extra_info["units"] = len(linear.ARMS)
    benchmark.pedantic(lambda: [slow.linear.run(0, arm, config) for arm in linear.ARMS], rounds=3)
