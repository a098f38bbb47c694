"""Paired comparisons over seeds, with exact intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import binomtest, quantile_test


def paired(first: np.ndarray, second: np.ndarray, comparisons: int = 1) -> dict[str, Any]:
    """How often, and by how much, `first` exceeds `second` on the same seeds.

    Parameters
    ----------
    first, second : arrays (seeds,)
        One number a seed; NaN (a diverged run) loses against any number, and two NaN are a tie.
    comparisons : int
        How many comparisons share the error rate of 5 %: the interval has level 1 - 0.05 / comparisons (Bonferroni).

    Returns
    -------
    dict
        `wins`, `ties`, `pairs`; `low` and `high`, the Clopper-Pearson interval of the share of wins among all pairs (a
        tie is not a win); `median`, `least`, `most`: the difference first - second, over the pairs in which both are
        finite (NaN where there is none); `median_low`, `median_high`: the interval of its median of the same level, by
        order statistics (NaN where the pairs are too few for one).
    """
    a, b = (np.where(np.isnan(x), -np.inf, x) for x in (np.asarray(first, float), np.asarray(second, float)))
    wins, ties = int(np.sum(a > b)), int(np.sum(a == b))
    low, high = binomtest(wins, len(a)).proportion_ci(1 - 0.05 / comparisons, method="exact")
    finite = np.isfinite(a) & np.isfinite(b)
    difference = a[finite] - b[finite] if finite.any() else np.array([np.nan])
    order = quantile_test(difference, p=0.5).confidence_interval(1 - 0.05 / comparisons)
    return {
        "wins": wins,
        "ties": ties,
        "pairs": len(a),
        "low": float(low),
        "high": float(high),
        "median": float(np.median(difference)),
        "median_low": float(order.low),
        "median_high": float(order.high),
        "least": float(np.min(difference)),
        "most": float(np.max(difference)),
    }


def most(row: Mapping[str, Any], wins: bool = True) -> bool | None:
    """Whether most pairs of a `paired` comparison are wins (or are not): None where its interval leaves that open."""
    if row["low"] > 0.5:
        return wins
    return not wins if row["high"] < 0.5 else None


def spread(values: np.ndarray) -> dict[str, Any]:
    """Median and central 95 % of one number a seed; diverged runs (NaN) are counted apart.

    Where half of the runs or more diverged, what the others did says little, and all three are NaN.
    """
    finite = np.asarray(values)[np.isfinite(values)]
    few = 2 * len(finite) <= len(values)
    low, median, high = (np.nan, np.nan, np.nan) if few else np.percentile(finite, [2.5, 50, 97.5])
    return {"median": median, "low": low, "high": high, "diverged": int(len(values) - len(finite))}
