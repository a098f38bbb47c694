"""Claims and the ledger: how a verdict follows from evidence, and that no comparison escapes the count."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fpo import claims, stats
from fpo.claims import VERDICTS, Claim, Evidence, Ledger, judge

ROOT = Path(__file__).parents[1]
CLAIM = {"id": "a-b", "statement": "s", "source": "t", "value": "v", "rule": "r", "verdict": "new"}


@pytest.mark.parametrize("fault", [{"id": "no spaces here"}, {"verdict": "proved"}, {"value": ""}, {"more": 1}])
def test_a_bad_claim_is_refused(fault):
    assert not Claim(**CLAIM).certain
    with pytest.raises(ValidationError):
        Claim(**CLAIM | fault)


@pytest.mark.parametrize(
    "evidence, expected",
    [
        ([True, True], "reproduced"),
        ([True, None], "partly"),
        ([True, False], "partly"),
        ([None, None], "open"),
        ([], "open"),
        # The open part decides between `partly` and `not reproduced`.
        ([None, False], "open"),
        ([False, None, False], "open"),
        ([True, None, False], "partly"),
        ([False], "not reproduced"),
        ([False, False], "not reproduced"),
    ],
)
def test_judge(evidence, expected):
    assert judge(*evidence) == expected
    ours = {"reproduced": "new", "not reproduced": "does not hold"}
    assert judge(*evidence, ours=True) == ours.get(expected, expected)


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=5))
def test_a_verdict_is_one_that_deciding_the_open_parts_can_leave(evidence):
    """`partly` and `open` apart, what a verdict says cannot be undone by deciding what is open."""
    decided = [
        judge(*case)
        for case in itertools.product(*([part] if part is not None else [True, False] for part in evidence))
    ]
    verdict = judge(*evidence)
    if verdict in ("reproduced", "not reproduced"):
        assert set(decided) == {verdict}
    elif verdict == "open":
        assert None in evidence and "not reproduced" in decided
    else:
        assert "not reproduced" not in decided


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4))
def test_parts_that_stand_or_fall_together_are_what_deciding_them_can_leave(parts):
    decided = {
        all(case) for case in itertools.product(*([part] if part is not None else [True, False] for part in parts))
    }
    assert claims.jointly(*(Evidence("", part) for part in parts)).holds == (
        decided.pop() if len(decided) == 1 else None
    )


ROWS = [stats.paired(np.arange(n) < k, np.full(n, 0.5), 3) for n in (1, 5, 20) for k in range(n + 1)]


@pytest.mark.parametrize("row", ROWS)
def test_evidence_says_what_the_interval_says(row):
    share = row["wins"] / row["pairs"]
    held = claims.most(row, "{wins} of {pairs} seeds")
    assert held.found == f"{row['wins']} of {row['pairs']} seeds"
    assert held.holds == claims.beyond(row, 0.5).holds == stats.most(row)
    lost = claims.most(row, wins=False).holds
    assert lost is (None if held.holds is None else not held.holds)
    for mark in (0.2, 0.5, 0.9):
        holds = claims.beyond(row, mark).holds
        assert claims.beyond(row, mark, above=False).holds is (None if holds is None else not holds)
        assert holds in (None, share > mark) and (holds is None) == (row["low"] <= mark <= row["high"])


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 2))
def test_limits_on_numbers(value, wanted, width):
    assert claims.under(value, width).holds == (abs(value) < width)
    once, half = claims.close(value, wanted, width, "it is {value:.2f}")
    assert once.found == f"it is {value:.2f}" and half.found == ""
    assert (once.holds, half.holds) == (abs(value - wanted) < width, abs(value - wanted) < width / 2)


@given(st.integers(-24, 24), st.integers(0, 16), st.integers(-24, 24), st.integers(1, 16))
def test_intervals_near_a_number(low, length, wanted, width):
    high = low + length
    holds = claims.within(low, high, wanted, width).holds
    far = [abs(end - wanted) for end in (low, high)]
    if holds is None:
        assert min(far) <= width <= max(far) or low <= wanted - width <= wanted + width <= high
    else:
        assert holds == (max(far) < width) and (holds or min(far) > width)
    assert claims.within(np.nan, np.nan, wanted, width, "open").holds is None


def test_what_is_no_number_decides_nothing():
    assert claims.under(np.nan, 1.0).holds is None and claims.under(np.inf, 1.0).holds is None
    assert [part.holds for part in claims.close(np.nan, 0, 1)] == [None, None]
    assert claims.number(np.nan) == claims.number(-np.inf) == "no number" and claims.number(2.0, ".1f") == "2.0"


def test_a_ledger_gives_each_comparison_of_a_family_its_share_of_the_error():
    ledger = Ledger("game", main=3, tuning=5)
    first, second = np.arange(12.0), np.zeros(12)
    assert ledger.compare(first, second) == stats.paired(first, second, 3)
    assert ledger.compare(first, second, "tuning") == stats.paired(first, second, 5)
    hits = [True] * 9 + [False] * 3
    assert ledger.share(hits) == stats.paired(np.array(hits, float), np.full(12, 0.5), 3)
    assert ledger.compare((x for x in first), second.tolist()) == stats.paired(first, second, 3)


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=30))
def test_a_comparison_has_two_ends_and_a_tie_is_a_win_of_neither(signs):
    first, second = np.array(signs, float), np.zeros(len(signs))
    ledger = Ledger("game", main=4)
    row, plain = ledger.compare(first, second, ends=True), ledger.compare(first, second)
    other = ledger.compare(second, first, ends=True)
    assert plain == {name: value for name, value in row.items() if not name.startswith("losses")}
    assert (row["losses"], row["losses_low"], row["losses_high"]) == (other["wins"], other["low"], other["high"])
    assert row["wins"] + row["ties"] + row["losses"] == len(signs)
    found = claims.most(row, "{wins} to {losses}")
    assert found.found == f"{row['wins']} to {row['losses']}"
    turned = claims.most(other).holds
    assert found.holds is (None if turned is None else not turned)
    assert found.holds in (None, 2 * row["wins"] > len(signs))
    # Without ties the two ends are one; with them it is not enough that the first's wins are few.
    one_end = claims.most(plain).holds
    assert found.holds is one_end or (row["ties"] and one_end is False and found.holds is None)


def test_a_ledger_counts_means_and_corrects_p_values_as_a_whole_family():
    ledger = Ledger("game", main=3, tests=2, other=2)
    gains = np.array([0.5, 1.0, 2.5])
    low, high = stats.mean_interval(gains, 3)
    assert ledger.mean(gains.tolist()) == {"mean": gains.mean(), "low": low, "high": high, "pairs": 3}
    nobody = ledger.mean([])
    assert (nobody["low"], nobody["high"], nobody["pairs"]) == (-np.inf, np.inf, 0) and np.isnan(nobody["mean"])
    ledger.mean(gains)
    with pytest.raises(ValueError, match="main: 3 comparisons were announced, and this is one more"):
        ledger.mean(gains)
    for wrong in ({"a": 0.01}, dict.fromkeys("abc", 0.01), {}):
        with pytest.raises(ValueError, match=f"tests: 2 comparisons were announced, and these are {len(wrong)}"):
            ledger.holm(wrong, "tests")
    with pytest.raises(ValueError, match="tests: 0 of 2; other: 0 of 2 comparisons were made"):
        ledger.close()
    assert ledger.holm({"a": 0.04, "b": 0.01}, "tests") == {"a": 0.04, "b": 0.02}
    with pytest.raises(ValueError, match="tests: 2 comparisons were announced, and these are 4"):
        ledger.holm({"a": 0.04, "b": 0.01}, "tests")
    with pytest.raises(ValueError, match="tests: 2 comparisons were announced, and this is one more"):
        ledger.mean(gains, "tests")
    ledger.mean(gains, "other")
    with pytest.raises(ValueError, match="other: 2 comparisons were announced, and these are 3"):
        ledger.holm({"a": 0.04, "b": 0.01}, "other")


def test_a_ledger_refuses_a_surplus_and_a_lack():
    ledger = Ledger("game", main=2, tuning=1)
    for _ in range(2):
        ledger.compare([1.0], [0.0])
    with pytest.raises(ValueError, match="main: 2 comparisons were announced, and this is one more"):
        ledger.share([True])
    with pytest.raises(ValueError, match="tuned: 0 comparisons were announced"):
        ledger.compare([1.0], [0.0], "tuned")
    with pytest.raises(ValueError, match="tuning: 0 of 1 comparisons were made"):
        ledger.close()
    ledger.share([True], "tuning")
    ledger.close()


def test_a_ledger_without_families_makes_no_comparison():
    ledger = Ledger("game")
    ledger.close()
    with pytest.raises(ValueError, match="main: 0 comparisons were announced"):
        ledger.share([True])


@pytest.mark.parametrize("comparisons", [1, 4, 22, 48])
def test_the_fewest_pairs_that_can_decide(comparisons):
    ledger = Ledger("game", main=comparisons)
    fewest = ledger.fewest()
    assert stats.paired(np.ones(fewest), np.zeros(fewest), comparisons)["low"] > 0.5
    assert stats.paired(np.ones(fewest - 1), np.zeros(fewest - 1), comparisons)["low"] <= 0.5


def test_a_claim_says_what_its_evidence_found_and_follows_from_it(capsys):
    ledger = Ledger("game")
    parts = Evidence("3 of 4", True), Evidence("", True), Evidence("3 of 4", True), Evidence("up to 0.2", True)
    ledger.claim("ours", "It is so.", *parts, rule="all of it")
    ledger.claim("theirs", "So too.", *parts, Evidence("not that", False), rule="all", source="paper", certain=True)
    ours, theirs = ledger.claims
    assert (ours.id, ours.value, ours.verdict, ours.source) == ("game-ours", "3 of 4; up to 0.2", "new", "this book")
    assert (theirs.value, theirs.verdict, theirs.certain) == ("3 of 4; up to 0.2; not that", "partly", True)
    ledger.show()
    told = capsys.readouterr().out
    assert "game-ours: new\n    It is so.\n    found: 3 of 4; up to 0.2\n    rule: all of it\n" in told
    assert "game-theirs: partly, certain\n" in told
    with pytest.raises(ValueError, match="game-ours: there is a claim with this id"):
        ledger.claim("ours", "Again.", *parts, rule="all of it")


def test_verdicts_are_told_apart_once():
    """The page, the contract of notebooks and the module ask one list."""
    spelled = [
        path.name
        for path in (*ROOT.glob("fpo/**/*.py"), *ROOT.glob("book/**/*.py"), *ROOT.glob("tests/tools/*.py"))
        if '"not reproduced"' in path.read_text(encoding="utf-8")
    ]
    assert spelled == ["claims.py"] and set(VERDICTS) >= {
        judge(True),
        judge(False),
        judge(None),
        judge(True, ours=True),
        judge(False, ours=True),
    }


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/results/*.json")), ids=lambda path: path.stem)
def test_committed_claims_hold_if_they_are_certain(path):
    """A theorem or a check of code that comes out otherwise is a fault of the code."""
    for each in json.loads(path.read_text(encoding="utf-8"))["claims"]:
        assert not each.get("certain") or each["verdict"] in ("reproduced", "new"), each["id"]
