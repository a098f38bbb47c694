"""The foresight chapter with other parameters: its verdict rules can fail and can stay open, and no cell falls over.

What it keeps of interrupted runs is read back only where settings and code are the same.
"""

import copy
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from tools.parameter_classes import NOTEBOOKS, validated
from tools.verdicts import play

from fpo import files, results, unrolled

CASES = {
    "too few games": (
        {"games": 20, "steps": 60},
        {
            "two-goals": "new",
            "aligns-ridge": "does not hold",
            "steers-ridge-reward": "does not hold",
            "matched": "open",
        },
    ),
    # After one step every leader has done a little of what it wants, and utility has hardly had time to fall.
    "one step": (
        {"games": 40, "steps": 1},
        {
            "two-goals": "new",
            "matched": "new",
            "steers-ridge-reward": "does not hold",
            "steers-ridge-margin": "open",
        },
    ),
    # At rest it does not align at this ridge either; on its first steps it does.
    "a ridge that holds the RM still": (
        {"games": 200, "steps": 5, "ridge": 100.0},
        {
            "two-goals": "new",
            "aligns-ridge": "new",
            "aligns-bradley-terry": "new",
            "steers-bradley-terry-reward": "does not hold",
            "matched": "new",
            "open": "does not hold",
        },
    ),
}
CONTROLS = ("labels to the RM", "labels to the policy", "placebo")
# Where stored leaders are made to end, and what follows. Without an entry they are as they were.
LEADERS = {
    "too few games": (
        {"0": 9, "1": 8, "3": 7, "10": 6, "30": 5, "exact": 4} | dict.fromkeys(CONTROLS, 10),
        {"credit": "does not hold", "first-steps": "does not hold", "values": "does not hold"},
    ),
    "one step": (
        {"0": 1, "1": 2, "3": 3, "10": 4, "30": 5, "exact": 9.5} | dict.fromkeys(CONTROLS, 0),
        {"credit": "new", "first-steps": "new", "values": "new"},
    ),
}
AS_STORED = ({}, {"credit": "does not hold", "first-steps": "new", "values": "new"})


def with_ends(ends):
    """What reads stored runs, with leaders that end elsewhere."""
    read = results.stored_run

    def reads(name):
        content = copy.deepcopy(read(name))
        for leader, end in ends.items():
            row = content["results"]["leaders"][leader]
            row["final"] = [end] * len(row["final"])
        return content

    return mock.patch.object(results, "stored_run", reads)


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    parameters, expected = CASES[case]
    ends, more = LEADERS.get(case, AS_STORED)
    with with_ends(ends):
        verdicts, content = play("foresight", tmp_path / "results.json", **parameters)
    expected = expected | more
    assert {name: verdicts[name] for name in expected} == expected
    assert len(verdicts) == 12
    for by_goal in content["results"]["games"].values():
        for row in by_goal.values():
            assert row["games"] == parameters["games"] and row["truth_higher"] + row["truth_lower"] <= 1


def cells_that_play_leaders(folder):
    """What the chapter knows once it has played its leaders, with checkpoints in `folder`."""
    values = {"leaders": "run", "leader_seeds": [1, 2], "leader_steps": 10, "checkpoints": str(folder)}
    namespace = validated("foresight", **values)
    sources = [cell.source for cell in nbformat.read(NOTEBOOKS["foresight"], as_version=4).cells]
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        with plt.rc_context():
            for source in (sources[1], *(each for each in sources if "def make_leaders" in each)):
                exec(compile(source, "foresight", "exec", dont_inherit=True), namespace)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    return namespace


def test_a_leader_is_read_back_only_where_settings_and_code_are_its_own(tmp_path):
    chapter = cells_that_play_leaders(tmp_path)
    assert chapter["repeats"] and len([*tmp_path.iterdir()]) == len(chapter["LEADERS"])

    def played():
        """How many leaders are played, with what is kept, and their rows."""
        with mock.patch.object(unrolled, "simulate", wraps=unrolled.simulate) as simulate:
            made, _ = chapter["make_leaders"]()
        return simulate.call_count, made

    assert played() == (0, chapter["led"])
    with mock.patch.dict(chapter["LEADERS"], {"labels to the RM": (0, {"rm_steps": 5})}):
        count, made = played()
    assert count == 1 and made["labels to the RM"]["final"] != chapter["led"]["labels to the RM"]["final"]
    chapter["LEADERS"] = {"0": (0, {})}
    with mock.patch.object(files, "code_digest", lambda module: "other"):
        assert played()[0] == 1
    with mock.patch.dict(chapter, rule=chapter["rules_of"]([1, 2], 11)):
        assert played()[0] == 1
    assert played()[0] == 0
    for kept in tmp_path.iterdir():
        kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(ValueError, match="leader-.*is damaged or no checkpoint of this program: remove it"):
        played()
