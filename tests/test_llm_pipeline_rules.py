"""The pipeline chapter with other parameters, on tiny models: its verdict rules can fail and can stay open."""

import pytest
from tools.verdicts import play

MAIN = ["standard", "relaxed", "practical"]
SHORT = {"steps": 1, "window": 1, "max_new_tokens": 6, "threads": 1}
CASES = {
    # Four prompts decide nothing. A head of zeros gives every candidate the same reward, and no comparisons for H.
    "few prompts and a head of zeros": (
        {"judged": 4, "candidates": 2, "play": [*MAIN, "exact"]},
        ["head_start: zero"],
        dict.fromkeys(("anchor", "scale", "factor"), "open") | {"overhead": "new", "speed": "new"},
    ),
    # Without its penalty a rule is the standard one, with the gradient factor or without.
    "no penalties": (
        {"judged": 20, "candidates": 2, "play": MAIN},
        ["head_start: answers", "gamma: 0"],
        {"scale": "does not hold", "factor": "new"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tiny, tmp_path, capsys):
    parameters, overrides, expected = CASES[case]
    models = [f"{name}: {tiny[name]}" for name in ("policy", "reward_model")]
    overrides = [*models, "min_new_tokens: 4", "prompt_count: 24", *overrides]
    verdicts, content = play("llm_pipeline", tmp_path / "results.json", **SHORT, **parameters, overrides=overrides)
    results = content["results"]
    assert {name: verdicts[name] for name in expected} == expected
    assert list(verdicts) == ["anchor", "scale", "factor", "overhead", "speed"]
    assert set(results["gain"]) == set(parameters["play"]) and set(results["traces"]) == set(MAIN)
    # The penalties that the cells write out are the module's: the chapter checks them on every prompt.
    assert "the formulas and the module agree" in capsys.readouterr().out
