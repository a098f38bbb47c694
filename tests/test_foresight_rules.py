"""The foresight chapter with other parameters: its verdict rules can fail and can stay open, and no cell falls over."""

import pytest
import torch
from tools.verdicts import play

CASES = {
    "too few games": (
        {"games": 20, "steps": 60},
        {"two-goals": "new", "aligns-ridge": "open", "steers-ridge-reward": "open", "matched": "open"},
    ),
    # Before the first step nobody has moved: what was asked for rises nowhere.
    "one step": (
        {"games": 40, "steps": 1},
        {"two-goals": "new", "aligns-bradley-terry": "not reproduced", "steers-bradley-terry-reward": "not reproduced"},
    ),
    # An RM that hardly answers gives its leader nothing to gain.
    "a ridge that holds the RM still": (
        {"games": 200, "steps": 200, "ridge": 100.0},
        {"two-goals": "new", "steers-bradley-terry-reward": "not reproduced", "steers-ridge-margin": "not reproduced"},
    ),
}


@pytest.fixture(autouse=True)
def double_precision():
    """As the chapter's first cell sets it; other tests do not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    verdicts, content = play("foresight", tmp_path / "results.json", **parameters)
    assert {name: verdicts[name] for name in expected} == expected
    assert len(verdicts) == 9
    for by_goal in content["results"]["games"].values():
        for row in by_goal.values():
            assert row["games"] == parameters["games"] and row["truth_higher"] + row["truth_lower"] <= 1
