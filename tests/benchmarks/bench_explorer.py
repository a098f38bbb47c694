"""The linear explorer at one turn of a slider: 64 seeds of all arms in a browser, against the same games in fpo.linear.

`fast` is the explorer's own code in Chromium, with three numbers a seed; `page_ms` is the median that the page itself
measures, `page_ms_least` the least, which should stay under 25 ms on any machine of today. `slow` is one batch of
arrays with 50 numbers an action.
"""

import statistics

import pytest
from tools import explorers

from fpo import linear

pytestmark = pytest.mark.benchmark(group="explorer")
SEEDS = len(explorers.stored("results/linear")["parameters"]["seeds"])
PLAY = """
arms => {
  const {play} = document.querySelector("#explorer-linear");
  const began = performance.now();
  for (const arm of arms) play(arm, {});
  return performance.now() - began;
}
"""


def test_fast(benchmark, explorer):
    took = []
    with explorer("linear") as tab:
        benchmark.pedantic(lambda: took.append(tab.evaluate(PLAY, list(linear.ARMS))), rounds=30, warmup_rounds=3)
    times = {"page_ms": statistics.median(took[3:]), "page_ms_least": min(took)}
    benchmark.extra_info |= {"units": SEEDS * len(linear.ARMS), **times}


def test_slow(benchmark):
    config = linear.Config(seeds=range(SEEDS))
    benchmark.extra_info["units"] = SEEDS * len(linear.ARMS)
    benchmark.pedantic(linear.simulate, args=[config], rounds=5, warmup_rounds=1)
