"""The neural chapter's verdicts can fail, its study can be made and taken up again, and it reads what was stored."""

from pathlib import Path

import papermill
import pytest
from tools.verdicts import play

from fpo import neural

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "neural.ipynb"
SHORT = {"outer_steps": 12}


def check_prints(printed):
    """The chapter's own checks by a second route were made, and held."""
    assert "the loops agree" in printed and "the routes agree" in printed and "the two agree" in printed


def refused(folder, **parameters):
    """How the chapter, executed by papermill, refuses parameters: name and text of its error."""
    values = {**parameters, "results_path": str(folder / "results.json")}
    quietly = {"progress_bar": False, "log_output": False}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(NOTEBOOK, None, values, cwd=NOTEBOOK.parent, **quietly)
    return caught.value.ename, caught.value.evalue


def test_with_a_margin_that_saves_every_run(tmp_path, capsys):
    """Nothing collapses, so the arms that prevent it do so, and those that were said to fail do not."""
    verdicts, _ = play("neural", tmp_path / "results.json", **SHORT, arms=["relaxed"], saved_margin=20.0)
    check_prints(capsys.readouterr().out)
    expected = {
        "low": "not reproduced",
        "fall": "not reproduced",
        "relaxed": "reproduced",
        "practical": "reproduced",
        "tuned-relaxed": "new",
        "oracle": "partly",
        "gamma": "partly",
        "five": "partly",
        "rest": "open",
    }
    assert {name: verdicts[name] for name in expected} == expected


def test_with_a_margin_that_saves_no_run(tmp_path, capsys):
    verdicts, _ = play("neural", tmp_path / "results.json", **SHORT, arms=["standard"], saved_margin=0.0)
    check_prints(capsys.readouterr().out)
    expected = {
        "low": "reproduced",
        "exact": "does not hold",
        "tuned-practical": "does not hold",
        "cost": "does not hold",
        "oracle": "partly",
        "five": "partly",
    }
    assert {name: verdicts[name] for name in expected} == expected
    # After twelve iterations the policy is not at rest, and the RM knows nothing.
    assert verdicts["rest"] in ("partly", "does not hold")


def test_a_study_of_its_own(tmp_path, capsys):
    """A few iterations save nothing; made again with the checkpoints, the study is read and not played."""
    checkpoints = tmp_path / "checkpoints"
    settings = {
        **SHORT,
        "inner_steps": 15,
        "seeds": list(range(20)),
        "arms": list(neural.ARMS),
        "study": "run",
        "checkpoints": str(checkpoints),
    }
    verdicts, content = play("neural", tmp_path / "results.json", **settings)
    check_prints(capsys.readouterr().out)
    assert verdicts["exact"] == verdicts["cost"] == "does not hold"
    # None saved either; but none has fallen, the other part of the rule.
    assert verdicts["relaxed"] == "partly" and verdicts["fall"] == "not reproduced"
    study = content["results"]["study"]
    kept = content["digits"]["final_utility"]
    ends = [round(value, kept) for value in study["paired"]["exact"]["final"]]
    assert ends == list(content["results"]["final_utility"]["exact"].values())
    assert content["results"]["provenance"]["wall_seconds"] > 0
    files = {path: path.stat().st_mtime_ns for path in checkpoints.iterdir()}
    _, again = play("neural", tmp_path / "again.json", **settings)
    check_prints(capsys.readouterr().out)
    for one in (content, again):
        del one["results"]["provenance"], one["results"]["study_minutes"]
    assert again["results"] == content["results"]
    assert files == {path: path.stat().st_mtime_ns for path in checkpoints.iterdir()}


def test_a_study_needs_seeds_beside_the_first_five(tmp_path):
    """They are refused before the hour that it takes, not by the comparison at its end."""
    name, text = refused(tmp_path, study="run", seeds=[0, 1, 2, 3, 4])
    assert name == "ParameterError" and "not 0 to 4 alone" in text


BAD = {"study": "maybe", "saved_margin": -1.0, "gamma_exact": -2.0, "hidden": []}


def test_bad_parameters_end_the_notebook_at_once(tmp_path):
    error, text = refused(tmp_path, **BAD)
    assert error == "ParameterError" and "4 parameters" in text
    for name in BAD:
        assert f"{name} = " in text
    assert not list(tmp_path.iterdir())
