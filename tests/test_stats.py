"""Paired comparisons against direct counting and the definition of the exact interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fpo import stats

NUMBERS = st.one_of(st.just(float("nan")), st.integers(-3, 3).map(float))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40), st.integers(1, 10))
def test_paired_counts_and_bounds(pairs, comparisons):
    first, second = np.array(pairs).T
    found = stats.paired(first, second, comparisons)
    wins = sum(1 for a, b in pairs if a > b or (np.isnan(b) and not np.isnan(a)))
    ties = sum(1 for a, b in pairs if a == b or (np.isnan(a) and np.isnan(b)))
    assert (found["wins"], found["ties"], found["pairs"]) == (wins, ties, len(pairs))
    tail = 0.025 / comparisons
    if wins > 0:
        assert binom.sf(wins - 1, len(pairs), found["low"]) == pytest.approx(tail, rel=1e-6)
    else:
        assert found["low"] == 0
    if wins < len(pairs):
        assert binom.cdf(wins, len(pairs), found["high"]) == pytest.approx(tail, rel=1e-6)
    else:
        assert found["high"] == 1


def test_paired_difference():
    skewed = stats.paired(np.array([1.0, 2.0, 9.0]), np.zeros(3))
    assert (skewed["median"], skewed["least"], skewed["most"]) == (2.0, 1.0, 9.0)
    found = stats.paired(np.array([1.0, 5.0, np.nan]), np.array([0.0, 2.0, 7.0]))
    assert (found["median"], found["least"], found["most"]) == (2.0, 1.0, 3.0)
    assert np.isnan(stats.paired(np.array([np.nan]), np.array([1.0]))["median"])


@pytest.mark.parametrize("n, comparisons", [(6, 1), (20, 1), (64, 1), (64, 30), (65, 7)])
def test_interval_of_the_median_difference_is_the_sign_tests(n, comparisons):
    """Between the k-th smallest and the k-th largest difference, for the largest k that keeps the level."""
    values = np.random.default_rng(n).normal(size=n)
    found = stats.paired(values, np.zeros(n), comparisons)
    allowed = [k for k in range(1, n // 2 + 1) if binom.cdf(k - 1, n, 0.5) <= 0.025 / comparisons]
    ordered = np.sort(values)
    assert (found["median_low"], found["median_high"]) == (ordered[allowed[-1] - 1], ordered[-allowed[-1]])


def test_few_pairs_have_no_interval_of_the_median():
    found = stats.paired(np.arange(4.0), np.zeros(4))
    assert np.isnan(found["median_low"]) and np.isnan(found["median_high"])


def test_most():
    rows = [{"low": 0.6, "high": 1.0}, {"low": 0.0, "high": 0.4}, {"low": 0.5, "high": 0.5}]
    assert [stats.most(row) for row in rows] == [True, False, None]
    assert [stats.most(row, wins=False) for row in rows] == [False, True, None]


def test_spread_leaves_diverged_runs_out_and_counts_them():
    found = stats.spread(np.array([1.0, 2.0, 3.0, np.nan]))
    assert found["median"] == 2.0 and found["diverged"] == 1 and found["low"] < 2 < found["high"]
    hundred = stats.spread(np.array([*range(101), np.nan, np.nan]))
    assert hundred == {"median": 50, "low": 2.5, "high": 97.5, "diverged": 2}


def test_spread_of_survivors_is_no_number():
    for values in ([np.nan], [1.0, np.nan], [1.0, np.nan, np.nan]):
        assert np.isnan(stats.spread(np.array(values))["median"])
