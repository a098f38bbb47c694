"""The verdict rules of the linear chapter can fail: settings in which a claim does not hold, or cannot be decided."""

import pytest
from tools.verdicts import play

SIXTEEN = list(range(16))

CASES = {
    # Without a penalty the two forms are standard RLHF.
    "no penalty": (
        {"seeds": SIXTEEN, "gamma": 0.0},
        {
            "relaxed": "not reproduced",
            "practical": "not reproduced",
            "noise": "not reproduced",
            "oracle": "does not hold",
            "detached": "does not hold",
            "frozen": "does not hold",
        },
    ),
    # A huge price keeps the policy at the start: nothing collapses, so nothing can be prevented.
    "no collapse": (
        {"seeds": SIXTEEN, "action_cost": 10.0},
        {"collapse": "not reproduced", "relaxed": "open", "practical": "open", "slope": "does not hold"},
    ),
    # The reward model learns so fast that no rung of the ladder is in the first-order range.
    "no first order": ({"seeds": SIXTEEN, "rm_lr": 0.05}, {"horizon": "open"}),
    # Theorems hold for exact gradients and labels at the action, and are checked there whatever is played.
    "too few seeds, and another game": (
        {"seeds": [0, 1, 2], "gradient": "forward-difference", "label_spread": 0.1, "labels": 3, "inner_steps": 2},
        {name: "open" for name in ("collapse", "relaxed", "practical", "noise", "cost", "stop", "oracle", "spread")}
        | {name: "new" for name in ("ray", "ridge", "direction")},
    ),
    "everything diverges": (
        {"seeds": SIXTEEN, "policy_lr": 100.0, "gamma": 10.0},
        {
            "collapse": "not reproduced",
            "relaxed": "open",
            "ray": "open",
            "ridge": "open",
            "rest": "open",
            "cost": "open",
            "horizon": "open",
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    verdicts, _ = play("linear", tmp_path / "results.json", **parameters)
    assert {name: verdicts[name] for name in expected} == expected
