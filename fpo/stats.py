"""Paired comparisons over seeds or questions: exact tests and intervals, and what they could have seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # which loads its parts as they are asked for: scipy.stats takes a second


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
    low, high = scipy.stats.binomtest(wins, len(a)).proportion_ci(1 - 0.05 / comparisons, method="exact")
    finite = np.isfinite(a) & np.isfinite(b)
    difference = a[finite] - b[finite] if finite.any() else np.array([np.nan])
    order = scipy.stats.quantile_test(difference, p=0.5).confidence_interval(1 - 0.05 / comparisons)
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
    """Whether most pairs of a `paired` comparison are wins (or are not): None where its interval leaves that open.

    In a row that has both ends (`losses_low`, see `claims.Ledger.compare`) most are not wins only where the other side
    wins most: ties speak for neither.
    """
    if row["low"] > 0.5:
        return wins
    lost = row["losses_low"] > 0.5 if "losses_low" in row else row["high"] < 0.5
    return not wins if lost else None


def mean_interval(values: np.ndarray, comparisons: int = 1) -> tuple[float, float]:
    """Student's interval of a mean: mean -+ t s / sqrt(n), with the standard deviation s of divisor n - 1.

    Parameters
    ----------
    values : array (n,)
        Finite numbers, such as paired differences. Fewer than two say nothing: -inf to inf.
    comparisons : int
        How many share the error rate of 5 %: the level is 1 - 0.05 / comparisons (Bonferroni), t its two-sided quantile
        with n - 1 degrees of freedom.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    half = scipy.stats.t.ppf(1 - 0.05 / comparisons / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def spread(values: np.ndarray) -> dict[str, Any]:
    """Median and central 95 % of one number a seed; diverged runs (NaN) are counted apart.

    Where half of the runs or more diverged, what the others did says little, and all three are NaN.
    """
    finite = np.asarray(values)[np.isfinite(values)]
    few = 2 * len(finite) <= len(values)
    low, median, high = (np.nan, np.nan, np.nan) if few else np.percentile(finite, [2.5, 50, 97.5])
    return {"median": median, "low": low, "high": high, "diverged": int(len(values) - len(finite))}


def binomial(wins: int, losses: int, ties: int = 0, level: float = 0.95) -> dict[str, Any]:
    """The exact binomial test of decided pairs against one half; ties stand apart.

    Returns
    -------
    dict
        `wins`, `losses`, `ties`; `share` = wins / (wins + losses) with `low` and `high`, its Clopper-Pearson interval;
        `two_sided` and `one_sided` (more wins than losses), the p-values. Without a decided pair, the share is NaN and
        the p-values are 1.
    """
    decided = wins + losses
    counts = {"wins": wins, "losses": losses, "ties": ties}
    if decided == 0:
        return counts | {"share": np.nan, "low": 0.0, "high": 1.0, "two_sided": 1.0, "one_sided": 1.0}
    test = scipy.stats.binomtest(wins, decided)
    low, high = test.proportion_ci(level, method="exact")
    return counts | {
        "share": wins / decided,
        "low": float(low),
        "high": float(high),
        "two_sided": float(test.pvalue),
        "one_sided": float(scipy.stats.binomtest(wins, decided, alternative="greater").pvalue),
    }


def sign(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """The sign test: `binomial` of how often `first` lies above `second`, and below; equal values are ties."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    return binomial(int(np.sum(difference > 0)), int(np.sum(difference < 0)), int(np.sum(difference == 0)), level)


def wilson(wins: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share: all p with |share - p| <= z sqrt(p (1 - p) / trials); 0 to 1 without a trial."""
    if trials == 0:
        return 0.0, 1.0
    low, high = scipy.stats.binomtest(wins, trials).proportion_ci(level, method="wilson")
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the i-th smallest of m times m + 1 - i, none below one before it, at most 1."""
    from statsmodels.stats.multitest import multipletests  # here and below: what needs none of it loads none of it

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def bradley_terry(pairs: Mapping[tuple[str, str], tuple[int, int, int]], level: float = 0.95) -> dict[str, Any]:
    """Davidson's Bradley-Terry model with ties, by maximum likelihood.

    P(i beats j) : P(j beats i) : P(tie) = s_i : s_j : nu sqrt(s_i s_j) (Davidson 1970). That is log-linear, so that a
    Poisson regression of the counts, with a constant for each pair, gives estimates and standard errors.

    Parameters
    ----------
    pairs : mapping
        By (i, j): wins of i, wins of j, ties. Pairs and questions count as independent.
    level : float
        Of the Wald intervals.

    Returns
    -------
    dict
        `strengths`: by name, log s_i - log s of the first name, with `low`, `high` and the two-sided `p`; `tie`: nu.

    Raises
    ------
    ValueError
        If a name never wins or never loses: its strength has no bound then; or if there is no tie.
    """
    import statsmodels.api as sm

    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    won, lost = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    counts, design = [], []
    for place, ((i, j), (first, second, ties)) in enumerate(pairs.items()):
        won[i], lost[j], won[j], lost[i] = won[i] + first, lost[j] + first, won[j] + second, lost[i] + second
        for count, shares, tie in ((first, {i: 1.0}, 0), (second, {j: 1.0}, 0), (ties, {i: 0.5, j: 0.5}, 1)):
            counts.append(count)
            constant = [float(place == other) for other in range(len(pairs))]
            design.append([*(shares.get(name, 0.0) for name in names[1:]), tie, *constant])
    for name in names:
        if not won[name] or not lost[name]:
            raise ValueError(f"{name} wins {won[name]} and loses {lost[name]} pairs: it has no finite strength")
    if not sum(ties for *_, ties in pairs.values()):
        raise ValueError("there is no tie: nu is 0")
    fit = sm.GLM(np.array(counts), np.array(design), family=sm.families.Poisson()).fit(tol=1e-12)
    bounds = fit.conf_int(1 - level)
    rows = {names[0]: {"strength": 0.0, "low": 0.0, "high": 0.0, "p": np.nan}}
    for place, name in enumerate(names[1:]):
        low, high = (float(bound) for bound in bounds[place])
        rows[name] = {"strength": float(fit.params[place]), "low": low, "high": high, "p": float(fit.pvalues[place])}
    return {"strengths": rows, "tie": float(np.exp(fit.params[len(names) - 1]))}


def turning(shares: np.ndarray, places: Sequence[float]) -> float:
    """Where shares over rising positive places first go under one half, by interpolation in the places' logarithm.

    From a, the last place with a share p of at least one half, to b, the next, with share q, it is
    a (b / a)^((p - 1/2) / (p - q)).
    NaN where no share is under one half, or the first one is.
    """
    under = np.asarray(shares) < 0.5
    if not under.any() or under[0]:
        return np.nan
    k = int(under.argmax())
    part = (shares[k - 1] - 0.5) / (shares[k - 1] - shares[k])
    return places[k - 1] * (places[k] / places[k - 1]) ** part


def bootstrap(
    statistic: Callable[..., Any], *columns: np.ndarray, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of `statistic(*columns)` when rows, such as questions, are drawn anew, columns together.

    Parameters
    ----------
    statistic : callable
        Of as many arrays (n,) as there are columns; gives a number.
    columns : arrays (n,)
        Paired: row i of each belongs to the same question.
    level, resamples, seed
        Of the interval; the draws are the seed's.
    """
    found = scipy.stats.bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def power(share: float, decided: int | np.ndarray, error: float = 0.05) -> Any:
    """The chance that the exact two-sided binomial test rejects one half, if each decided pair is won with `share`.

    `decided`, a number or an array, is how many pairs there are; the result has its shape.
    """
    decided = np.asarray(decided)
    # The test rejects up to the largest count whose lower tail is at most half the error, and from its mirror image on.
    below = scipy.stats.binom.ppf(error / 2, decided, 0.5)
    below = np.where(scipy.stats.binom.cdf(below, decided, 0.5) <= error / 2, below, below - 1)
    found = scipy.stats.binom.cdf(below, decided, share) + scipy.stats.binom.sf(decided - below - 1, decided, share)
    return float(found) if found.ndim == 0 else found


def needed(share: float, chance: float = 0.8, error: float = 0.05) -> int:
    """The fewest decided pairs from which on `power` is at least `chance`, for that number and all larger ones.

    Raises
    ------
    ValueError
        If `share` is within 0.001 of one half, or no share.
    """
    if not 0.001 <= abs(share - 0.5) <= 0.5:
        raise ValueError(f"share = {share}: must be from 0 to 1 and at least 0.001 away from one half")
    z = scipy.stats.norm.ppf([1 - error / 2, chance]).sum()
    numbers = np.arange(1, 200 + int(2 * (z / (2 * (share - 0.5))) ** 2))
    return int(numbers[power(share, numbers, error) < chance].max(initial=0)) + 1


def kappa(first: Sequence[Any], second: Sequence[Any]) -> dict[str, float]:
    """Cohen's kappa of two judges' labels: (agreement - chance) / (1 - chance), with its large-sample interval of 95 %.

    Returns
    -------
    dict
        `agreement`, the share of equal labels; `kappa`, `low`, `high`, NaN where both always give the same label.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    labels = list(dict.fromkeys([*first, *second]))
    agreement = float(np.mean([a == b for a, b in zip(first, second, strict=True)]))
    if len(labels) < 2:
        return {"agreement": agreement, "kappa": np.nan, "low": np.nan, "high": np.nan}
    table = np.zeros((len(labels), len(labels)))
    for a, b in zip(first, second, strict=True):
        table[labels.index(a), labels.index(b)] += 1
    found = cohens_kappa(table)
    return {
        "agreement": agreement,
        "kappa": float(found.kappa),
        "low": float(found.kappa_low),
        "high": float(found.kappa_upp),
    }
