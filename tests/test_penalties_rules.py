"""The penalties chapter with other parameters: its verdict rules can fail and can stay open, and no cell falls over."""

import pytest
from tools.verdicts import play

CASES = {
    # No iteration is left behind the first ten, which the worst angles leave out.
    "too few of everything": (
        {
            "seeds": [0],
            "steps": 10,
            "games": 2,
            "actions": 3,
            "features": 2,
            "cases": 10,
            "redraws": 100,
        },
        {
            **dict.fromkeys(("relaxed-direction", "practical-direction", "detached"), "open"),
            **dict.fromkeys(("relaxed-softmax", "practical-softmax", "sign", "leverage"), "open"),
            **dict.fromkeys(("identity", "line", "horizon", "sign-unselected"), "new"),
        },
    ),
    # The game ends in the middle of the climb, where "shorter" is the wrong way. With two features, more than a quarter
    # of the best of 8 are not overrated.
    "the climb alone, and few features": (
        {"seeds": list(range(16)), "steps": 60, "games": 400, "features": 2, "redraws": 800},
        {
            "relaxed-direction": "reproduced",
            "practical-direction": "not reproduced",
            "practical-softmax": "reproduced",
            "detached": "new",
            "sign": "partly",
            "sign-unselected": "new",
            "leverage": "new",
        },
    ),
    # Among many features the length of an action says nothing about one error's direction.
    "many features": (
        {"seeds": [0], "steps": 10, "games": 1000, "actions": 10, "features": 60, "redraws": 100},
        {"practical-softmax": "not reproduced"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    verdicts, content = play("penalties", tmp_path / "results.json", **parameters)
    results = content["results"]
    assert {name: verdicts[name] for name in expected} == expected
    assert len(verdicts) == 11
    assert (results["worst"]["standard"]["relaxed"] is None) == (parameters["steps"] <= results["early"])
