"""The chapter on TRL with other runs in place of the stored ones: its verdict rules can fail and can stay open."""

import copy
import re

import pytest
from tools.verdicts import NOTEBOOKS, play

from fpo import results
from fpo.parameters import ParameterError

NAMES = ["again", "cost", "weight"]


@pytest.fixture
def runs(monkeypatch):
    """The stored runs, of which two windows are played again; changes to them are what the chapter reads."""
    made = copy.deepcopy(results.stored_runs("use_in_trl"))
    for run in made.values():
        run["written"] = run["written"][:2]
    monkeypatch.setattr(results, "stored_runs", lambda folder: made)
    return made


def test_every_claim_can_fail(runs, tmp_path, capsys):
    """Another head, a dear penalty, and alike weights."""
    for rule in ("leverage", "practical"):
        runs[rule]["cpu_seconds"]["reward"] = runs["standard"]["cpu_seconds"]["all"]
        runs[rule]["gamma"] = 0.5
    verdicts, _ = play("use_in_trl", tmp_path / "results.json", figures=False)
    assert verdicts == dict.fromkeys(NAMES, "does not hold")
    assert "ANOTHER" in capsys.readouterr().out  # two windows do not lead to the last head


def test_the_openrlhf_adapter_gives_what_trl_logged(runs, tmp_path):
    """As a plain function, on the first window; had TRL logged another mean, the chapter would end there."""
    runs["practical"]["log"]["reward"][0] += 0.5
    with pytest.raises(AssertionError):
        play("use_in_trl", tmp_path / "results.json", figures=False)


def test_the_stored_runs_are_of_the_pinned_trl(runs):
    pinned = re.search(r"^trl==(\S+)$", (NOTEBOOKS["use_in_trl"].parents[1] / "constraints.txt").read_text(), re.M)[1]
    assert {run["provenance"]["environment"]["trl"] for run in runs.values()} == {pinned}


def test_stored_runs_are_not_passed_off_as_others(runs, tmp_path):
    with pytest.raises(ParameterError, match="steps = 9: the stored runs have 8; set fresh = True"):
        play("use_in_trl", tmp_path / "results.json", figures=False, steps=9)
