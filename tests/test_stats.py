"""Comparisons against direct counting, the definitions of tests and intervals, and slower routes."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.stats import binom, norm, ttest_1samp

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


@pytest.mark.parametrize("n, comparisons", [(2, 1), (7, 1), (10, 9), (64, 40)])
def test_the_interval_of_a_mean_holds_what_students_test_does_not_reject(n, comparisons):
    values = np.random.default_rng(n).normal(0.3, 2.0, n)
    low, high = stats.mean_interval(values, comparisons)
    for mark in (low, high):
        assert np.isclose(ttest_1samp(values, mark).pvalue, 0.05 / comparisons, rtol=1e-6)
    assert ttest_1samp(values, (low + high) / 2).pvalue > 0.05 / comparisons
    assert stats.mean_interval(values[:1]) == stats.mean_interval([]) == (-np.inf, np.inf)


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


def tail(wins, decided):
    """P(at least so many wins) of a fair coin, in whole numbers."""
    return Fraction(sum(comb(decided, k) for k in range(wins, decided + 1)), 2**decided)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
def test_binomial_is_the_sum_of_the_tail(wins, losses, ties):
    found = stats.binomial(wins, losses, ties)
    assert (found["wins"], found["losses"], found["ties"]) == (wins, losses, ties)
    assert found["one_sided"] == pytest.approx(float(tail(wins, wins + losses)))
    both = min(Fraction(1), 2 * tail(max(wins, losses), wins + losses))  # a fair coin's tails are alike
    assert found["two_sided"] == pytest.approx(float(both))
    if wins and losses:
        assert binom.sf(wins - 1, wins + losses, found["low"]) == pytest.approx(0.025, rel=1e-6)
        assert binom.cdf(wins, wins + losses, found["high"]) == pytest.approx(0.025, rel=1e-6)
    assert np.isnan(found["share"]) if wins + losses == 0 else found["low"] <= found["share"] <= found["high"]


def test_binomial_of_the_released_counts():
    """What was found by hand: 0.018, 0.81 and 0.109 in place of 0.014, 0.41 and 0.076."""
    found = [stats.binomial(*counts) for counts in ((188, 144), (140, 135), (167, 138))]
    assert [round(row["two_sided"], 3) for row in found] == [0.018, 0.809, 0.109]
    assert [round(row["one_sided"], 4) for row in found] == [0.0091, 0.4047, 0.0544]


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=30))
def test_sign_counts(pairs):
    first, second = np.array(pairs, float).T
    wins, losses = (sum(1 for a, b in pairs if sign * (a - b) > 0) for sign in (1, -1))
    assert stats.sign(first, second) == pytest.approx(
        stats.binomial(wins, losses, len(pairs) - wins - losses), nan_ok=True
    )


@pytest.mark.parametrize("wins, trials, level", [(3, 20, 0.95), (17, 20, 0.9), (409, 817, 0.99)])
def test_wilson_is_where_the_score_test_turns(wins, trials, level):
    z = norm.ppf(0.5 + level / 2)

    def score(p):
        return (wins / trials - p) ** 2 - z**2 * p * (1 - p) / trials

    wanted = brentq(score, 1e-9, wins / trials), brentq(score, wins / trials, 1 - 1e-9)
    assert stats.wilson(wins, trials, level) == pytest.approx(wanted)


@pytest.mark.parametrize("case", range(30))
def test_holm_by_its_definition(case):
    """Step down: p is rejected at a level just where all smaller ones are, each at level / how many are left."""
    rng = np.random.default_rng(case)
    p_values = rng.choice([0.0, 1e-5, 0.01, 0.02, *rng.random(6)], 1 + case % 8).tolist()
    found = stats.holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        assert found[i] == pytest.approx(largest)


RELEASED = {
    ("standard", "practical"): (135, 140, 542),
    ("standard", "relaxed"): (144, 188, 485),
    ("practical", "relaxed"): (138, 167, 512),
}


def test_bradley_terry_by_minimizing_its_likelihood():
    found = stats.bradley_terry(RELEASED)
    place = {"standard": 0, "practical": 1, "relaxed": 2}

    def loss(at):
        s, total = np.exp([0.0, at[0], at[1]]), 0.0
        for (i, j), counts in RELEASED.items():
            a, b = s[place[i]], s[place[j]]
            parts = np.array([a, b, np.exp(at[2]) * np.sqrt(a * b)])
            total -= np.log(parts / parts.sum()) @ np.array(counts)
        return total

    fit = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-5})
    strengths = found["strengths"]
    assert [strengths["practical"]["strength"], strengths["relaxed"]["strength"]] == pytest.approx(fit.x[:2], abs=1e-4)
    assert found["tie"] == pytest.approx(np.exp(fit.x[2]), rel=1e-4)
    # The interval is that of the likelihood's curvature.
    h = 1e-3
    steps = np.eye(3) * h
    curvature = np.array(
        [
            [
                (loss(fit.x + a + b) - loss(fit.x + a - b) - loss(fit.x - a + b) + loss(fit.x - a - b)) / (4 * h * h)
                for a in steps
            ]
            for b in steps
        ]
    )
    error = np.sqrt(np.diag(np.linalg.inv(curvature)))
    assert strengths["relaxed"]["high"] - strengths["relaxed"]["strength"] == pytest.approx(
        1.95996 * error[1], rel=1e-3
    )


@pytest.mark.filterwarnings("ignore:::statsmodels")  # one pair has as many counts as unknowns
def test_two_arms_have_the_odds_of_their_wins_for_strength():
    found = stats.bradley_terry({("a", "b"): (20, 30, 50)})
    assert found["strengths"]["b"]["strength"] == pytest.approx(np.log(30 / 20))
    assert found["tie"] == pytest.approx(50 / np.sqrt(20 * 30))


@pytest.mark.parametrize("counts, reason", [((0, 3, 1), "a wins 0"), ((3, 3, 0), "no tie")])
def test_bradley_terry_names_what_has_no_estimate(counts, reason):
    with pytest.raises(ValueError, match=reason):
        stats.bradley_terry({("a", "b"): counts})


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1.1, 10)), min_size=2, max_size=9),
    st.floats(0.5, 1),
    st.floats(0.1, 5),
)
def test_shares_turn_where_their_line_over_log_places_first_crosses_one_half(steps, first, begin):
    """A dense look for the first crossing, then bisection of the broken line."""
    shares, places = np.array([first, *(share for share, _ in steps)]), begin * np.cumprod([1, *(f for _, f in steps)])
    found = stats.turning(shares, places.tolist())
    if shares.min() >= 0.5:
        assert np.isnan(found)
        return

    def line(at):
        return np.interp(at, np.log(places), shares) - 0.5

    k = next(i for i, share in enumerate(shares) if share < 0.5)
    wanted = brentq(line, *np.log(places[[k - 1, k]])) if line(np.log(places[k - 1])) > 0 else np.log(places[k - 1])
    assert np.isclose(np.log(found), wanted, atol=1e-6)
    dense = np.linspace(np.log(places[0]), np.log(found) - 1e-6, 500)
    assert (line(dense[dense >= np.log(places[0])]) > -1e-9).all()


def test_shares_that_begin_under_one_half_or_stay_above_turn_nowhere():
    assert np.isnan(stats.turning(np.array([0.4, 0.2]), [1, 2])) and np.isnan(stats.turning(np.array([0.9]), [1]))
    assert stats.turning(np.array([0.75, 0.25]), [1, 4]) == 2.0
    assert stats.turning(np.array([0.75, 0.25, 0.9, 0.1]), [1, 4, 5, 6]) == 2.0  # the first time


def test_bootstrap_draws_questions_and_keeps_pairs_together():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 60)  # a question is hard for both arms
    a, b = hard + rng.normal(0.5, 1, 60), hard + rng.normal(0, 1, 60)
    low, high = stats.bootstrap(lambda x, y: np.mean(x - y), a, b, resamples=999, seed=1)
    rows = np.random.default_rng(2).integers(0, 60, (999, 60))
    slow = np.percentile([np.mean(a[row]) - np.mean(b[row]) for row in rows], [2.5, 97.5])
    assert [low, high] == pytest.approx(slow, abs=0.06)
    assert high - low < 1.0 < 2 * 1.96 * np.hypot(a.std(), b.std()) / np.sqrt(60)
    assert (low, high) == stats.bootstrap(lambda x, y: np.mean(x - y), a, b, resamples=999, seed=1)


@pytest.mark.parametrize("share, decided", [(0.5, 20), (0.7, 33), (0.3, 40), (0.9, 6), (0.9, 3)])
def test_power_is_the_chance_of_the_outcomes_that_the_test_rejects(share, decided):
    rejected = [k for k in range(decided + 1) if stats.binomial(k, decided - k)["two_sided"] <= 0.05]
    assert stats.power(share, decided) == pytest.approx(sum(binom.pmf(k, decided, share) for k in rejected))


def test_needed_is_where_the_saw_last_crosses():
    enough = stats.needed(0.6)
    assert stats.power(0.6, np.arange(enough, enough + 300)).min() >= 0.8 > stats.power(0.6, enough - 1)
    assert stats.needed(0.4) == enough
    assert enough == pytest.approx(((norm.ppf(0.975) + norm.ppf(0.8)) / 0.2) ** 2, rel=0.1)
    with pytest.raises(ValueError, match="share = 0.5"):
        stats.needed(0.5)


def test_kappa_by_its_definition():
    rng = np.random.default_rng(5)
    first = rng.choice(["a", "b", "tie"], 400, p=[0.5, 0.2, 0.3])
    second = np.where(rng.random(400) < 0.6, first, rng.choice(["a", "b", "tie"], 400))
    found = stats.kappa(first, second)
    chance = sum(np.mean(first == label) * np.mean(second == label) for label in ("a", "b", "tie"))
    assert found["kappa"] == pytest.approx((np.mean(first == second) - chance) / (1 - chance))
    low, high = stats.bootstrap(lambda i: stats.kappa(first[i], second[i])["kappa"], np.arange(400), resamples=200)
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.03)


def test_kappa_of_chance_is_zero_and_of_one_label_no_number():
    assert stats.kappa(["a", "a", "b", "b"], ["a", "b", "a", "b"])["kappa"] == pytest.approx(0)
    alone = stats.kappa(["a"] * 4, ["a"] * 4)
    assert alone["agreement"] == 1 and np.isnan(alone["kappa"])
