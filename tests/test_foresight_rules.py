"""The foresight chapter with other parameters: its verdict rules can fail and can stay open, and no cell falls over."""

import copy
from unittest import mock

import pytest
from tools.verdicts import play

from fpo import results

CASES = {
    "too few games": (
        {"games": 20, "steps": 60},
        {
            "two-goals": "new",
            "aligns-ridge": "does not hold",
            "steers-ridge-reward": "does not hold",
            "matched": "open",
        },
    ),
    # After one step every leader has done a little of what it wants, and utility has hardly had time to fall.
    "one step": (
        {"games": 40, "steps": 1},
        {
            "two-goals": "new",
            "matched": "new",
            "steers-ridge-reward": "does not hold",
            "steers-ridge-margin": "open",
        },
    ),
    "a ridge that holds the RM still": (
        {"games": 200, "steps": 200, "ridge": 100.0},
        {
            "two-goals": "new",
            "aligns-ridge": "new",
            "aligns-bradley-terry": "new",
            "steers-bradley-terry-reward": "does not hold",
            "matched": "new",
            "open": "does not hold",
        },
    ),
}
CONTROLS = ("labels to the RM", "labels to the policy", "placebo")
# Where stored leaders are made to end, and what follows. Without an entry they are as they were.
LEADERS = {
    "too few games": (
        {"0": 9, "1": 8, "3": 7, "10": 6, "30": 5, "exact": 4} | dict.fromkeys(CONTROLS, 10),
        {"credit": "does not hold", "first-steps": "does not hold", "values": "does not hold"},
    ),
    "one step": (
        {"0": 1, "1": 2, "3": 3, "10": 4, "30": 5, "exact": 9.5} | dict.fromkeys(CONTROLS, 0),
        {"credit": "new", "first-steps": "new", "values": "new"},
    ),
}
AS_STORED = ({}, {"credit": "does not hold", "first-steps": "new", "values": "new"})


def with_ends(ends):
    """What reads stored runs, with leaders that end elsewhere."""
    read = results.stored_run

    def reads(name):
        content = copy.deepcopy(read(name))
        for leader, end in ends.items():
            row = content["results"]["leaders"][leader]
            row["final"] = [end] * len(row["final"])
        return content

    return mock.patch.object(results, "stored_run", reads)


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    ends, more = LEADERS.get(case, AS_STORED)
    with with_ends(ends):
        verdicts, content = play("foresight", tmp_path / "results.json", **parameters)
    expected = expected | more
    assert {name: verdicts[name] for name in expected} == expected
    assert len(verdicts) == 12
    for by_goal in content["results"]["games"].values():
        for row in by_goal.values():
            assert row["games"] == parameters["games"] and row["truth_higher"] + row["truth_lower"] <= 1
