"""The foresight chapter with other parameters: its verdict rules can fail and can stay open, and no cell falls over."""

import pytest
from tools.verdicts import play

CASES = {
    "too few games": (
        {"games": 20, "steps": 60},
        {"two-goals": "new", "aligns-ridge": "open", "steers-ridge-reward": "open", "matched": "partly"},
    ),
    # After one step every leader has done a little of what it wants, and utility has hardly had time to fall.
    "one step": (
        {"games": 40, "steps": 1},
        {"two-goals": "new", "matched": "new", "steers-ridge-reward": "partly", "steers-ridge-margin": "partly"},
    ),
    "a ridge that holds the RM still": (
        {"games": 200, "steps": 200, "ridge": 100.0},
        {
            "two-goals": "new",
            "aligns-ridge": "new",
            "aligns-bradley-terry": "new",
            "steers-bradley-terry-reward": "not reproduced",
            "matched": "new",
            "open": "not reproduced",
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    verdicts, content = play("foresight", tmp_path / "results.json", **parameters)
    assert {name: verdicts[name] for name in expected} == expected
    assert len(verdicts) == 11
    for by_goal in content["results"]["games"].values():
        for row in by_goal.values():
            assert row["games"] == parameters["games"] and row["truth_higher"] + row["truth_lower"] <= 1
