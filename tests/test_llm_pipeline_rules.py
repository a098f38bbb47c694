"""The pipeline chapter with other parameters, on tiny models: its verdict rules can fail and can stay open."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from tools.parameter_classes import NOTEBOOKS, validated

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
        {"scale": "not reproduced", "factor": "new"},
    ),
}


@pytest.fixture(autouse=True)
def figures_closed():
    yield
    plt.close("all")


def play(monkeypatch, path: Path, **values):
    """Run the chapter's cells below its parameters in this process: its verdicts and results."""
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(NOTEBOOKS["llm_pipeline"].parent)
    namespace = validated("llm_pipeline", **values, results_path=str(path))
    cells = [cell for cell in nbformat.read(NOTEBOOKS["llm_pipeline"], as_version=4).cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(cells) if "validate" in cell.metadata.get("tags", [])) + 1
    for cell in cells[first:]:
        exec(compile(cell.source, cell.id, "exec", dont_inherit=True), namespace)
    content = json.loads(path.read_text(encoding="utf-8"))
    return {claim["id"].removeprefix("llm-"): claim["verdict"] for claim in content["claims"]}, content["results"]


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tiny, monkeypatch, tmp_path, capsys):
    parameters, overrides, expected = CASES[case]
    models = [f"{name}: {tiny[name]}" for name in ("policy", "reward_model")]
    overrides = [*models, "min_new_tokens: 4", "prompt_count: 24", *overrides]
    verdicts, results = play(monkeypatch, tmp_path / "results.json", **SHORT, **parameters, overrides=overrides)
    assert {name: verdicts[name] for name in expected} == expected
    assert list(verdicts) == ["anchor", "scale", "factor", "overhead", "speed"]
    assert set(results["traces"]) == set(results["gain"]) == set(parameters["play"])
    # The penalties that the cells write out are the module's: the chapter checks them on every prompt.
    assert "the formulas and the module agree" in capsys.readouterr().out
