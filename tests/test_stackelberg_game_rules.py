"""The verdict rules of the Stackelberg chapter at other settings: what cannot be decided there is open."""

import pytest
from tools.verdicts import play

CASES = {
    # A single output has no gradient, and with a small utility a myopic leader finds no rest.
    "nothing to see": (
        {"games": 2, "actions": 1, "samples": 64, "target": 5.0, "action_cost": 1.0, "utility_scale": 1.0},
        {
            "decomposition": "reproduced",
            "myopic": "open",
            "sampling": "open",
            "variance": "open",
            "unrolled": "open",
            "breakdown": "new",
        },
    ),
    # Few samples leave the slope open; where the ridge is most of the curvature, unrolling is faster than predicted.
    "a large ridge": (
        {"games": 24, "ridge": 10.0, "repeats": 16, "samples": 1024},
        {"myopic": "reproduced", "sampling": "open", "variance": "new", "unrolled": "partly"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    # The figures say nothing about verdicts, and take longer than all else.
    verdicts, _ = play("stackelberg_game", tmp_path / "results.json", figures=False, **parameters)
    assert {name: verdicts[name] for name in expected} == expected
