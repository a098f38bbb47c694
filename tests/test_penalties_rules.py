"""The penalties chapter with other parameters: its verdict rules can fail and can stay open, and no cell falls over."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from tools.parameter_classes import NOTEBOOKS, validated

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
            **dict.fromkeys(("identity", "line", "horizon"), "new"),
        },
    ),
    # The game ends in the middle of the climb, where "shorter" is the wrong way. With two features, more than a quarter
    # of the best of 8 are not overrated.
    "the climb alone, and few features": (
        {"seeds": list(range(16)), "steps": 60, "games": 40, "features": 2, "redraws": 800},
        {
            "relaxed-direction": "reproduced",
            "practical-direction": "not reproduced",
            "practical-softmax": "not reproduced",
            "detached": "new",
            "sign": "partly",
            "leverage": "new",
        },
    ),
}


@pytest.fixture(autouse=True)
def left_as_found():
    """The chapter works in double precision and opens figures; other tests do not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
    plt.close("all")


def play(monkeypatch, path: Path, **values):
    """Run the chapter's cells below its parameters in this process: its verdicts and results."""
    monkeypatch.setattr(plt, "show", lambda: None)
    namespace = validated("penalties", **values, results_path=str(path))
    cells = [cell for cell in nbformat.read(NOTEBOOKS["penalties"], as_version=4).cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(cells) if "validate" in cell.metadata.get("tags", [])) + 1
    for cell in cells[first:]:
        exec(compile(cell.source, cell.id, "exec", dont_inherit=True), namespace)
    content = json.loads(path.read_text(encoding="utf-8"))
    verdicts = {claim["id"].removeprefix("penalties-"): claim["verdict"] for claim in content["claims"]}
    return verdicts, content["results"]


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, monkeypatch, tmp_path):
    parameters, expected = CASES[case]
    verdicts, results = play(monkeypatch, tmp_path / "results.json", **parameters)
    assert {name: verdicts[name] for name in expected} == expected
    assert len(verdicts) == 10
    assert (results["worst"]["standard"]["relaxed"] is None) == (parameters["steps"] <= results["early"])
