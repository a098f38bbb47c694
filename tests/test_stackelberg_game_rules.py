"""The verdict rules of the Stackelberg chapter at other settings: what cannot be decided there is open."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "stackelberg_game.ipynb"

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
def test_verdicts(case):
    parameters, expected = CASES[case]
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    chapter = {"In": []}
    threads = torch.get_num_threads()
    with plt.rc_context():
        try:
            for cell in cells:
                # The figures say nothing about verdicts, and take longer than all else.
                if "figure" not in cell["metadata"].get("mystnb", {}):
                    exec("".join(cell["source"]), chapter)
                if "parameters" in cell["metadata"].get("tags", []):
                    chapter.update(parameters)
        finally:
            torch.set_num_threads(threads)
    verdicts = {claim.id: claim.verdict for claim in chapter["ledger"].claims}
    assert {name: verdicts[f"stackelberg-{name}"] for name in expected} == expected
