"""The mechanism chapter's verdicts can fail, and what has not been played stays open."""

from pathlib import Path

import papermill
from tools.verdicts import read

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "mechanism.ipynb"


def test_where_no_slope_counts_nothing_is_shown(tmp_path):
    path = tmp_path / "results.json"
    papermill.execute_notebook(
        NOTEBOOK,
        None,
        {
            "seeds": [0],
            "study_seeds": list(range(14)),
            "linear_seeds": list(range(14)),
            "outer_steps": 100,
            "every": 25,
            "catch_up_steps": 10,
            "slope_floor": 100.0,
            "study": "run",
            "parts": ["home"],
            "results_path": str(path),
        },
        cwd=NOTEBOOK.parent,
        progress_bar=False,
        log_output=False,
    )
    verdicts, _ = read(path)
    assert verdicts == {
        "level": "does not hold",
        "power": "partly",  # the kernel's spectrum is whatever slopes count; the steps are too few
        "plane": "does not hold",
        "score": "new",
        "lag": "does not hold",
        "trust": "open",
        "no-part": "open",
        "race": "open",
        "clock": "open",
        "linear": "partly",
    }
