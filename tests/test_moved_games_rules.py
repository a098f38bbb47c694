"""The chapter on moved games: its verdicts can fail, and what has not been played stays open."""

import json

import numpy as np
import pytest
from tools.parameter_classes import defined
from tools.verdicts import play

from fpo import results
from fpo.parameters import ParameterError

GAMES = ("home", "shift1.5", "shift3", "shift3cost", "start2", "noise1", "aniso", "twopeak")
RULES = ("bound-1", "exact-1", "refit-trust-1", "labels-trust-1", "labels", "fitted-1")
NOISES = ("label noise 0.5", "label noise 1", "label noise 2")
BREAKS = (*NOISES, "one label", "buffer 5", "buffer 20", "buffer 200", "buffer 500")
REMEDIES = (
    "standard", "cost", "cost-start", "practical", "relaxed", "exact", "leverage", "bound", "refit-bound", "fitted",
    "flat", "mean", "minimum", "ensemble-bound", "all-labels", "rm-steps", "explore", "trust", "refit", "refit-trust",
    "labels", "labels-trust", "early-stop", "rotated",
)  # fmt: skip
SHORT = {"live_steps": 10, "outer_steps": 10, "linear_steps": 10, "every": 2, "study": "run", "members": 2}
SHORT |= {"tuning_seeds": [0], "study_seeds": [1, 2, 3], "live_seeds": [0]}


def told(tmp_path, monkeypatch, end):
    """The verdicts on a stored study in which each run climbs to end(part, name, kind) and stays there."""

    def row(*where):
        height = [float(end(*where))] * 64
        return {"final": height, "peak": height, "labels": [20000] * 64}

    tuning = {"weights": [1.0], "final": 1.0, "fall": 1.0}
    study = {
        game: {
            name: {"tuning": tuning | {"score": end(game, name, "retuned"), "ends": [end(game, name, "retuned")]}}
            | {f"{kind}_{what}": row(game, name, kind) for kind in ("frozen", "retuned") for what in ("final", "fall")}
            for name in REMEDIES
        }
        for game in GAMES
    }
    study["untuned"] = {
        game: {rule: row(game, rule, "untuned") for rule in RULES} for game in (*GAMES, "linear", "linear-spread")
    }
    study["breaks"] = {
        name: {rule: row(name, rule, "breaks") for rule in RULES if rule != "exact-1"} for name in BREAKS
    }
    study["together"] = {name: row("together", name, "best") | {"best": {}} for name in ("pair", "cost")}
    monkeypatch.setattr(results, "stored_runs", lambda folder: {"one": {"results": {"study": study}}})
    changes = {"live_steps": 10, "live_seeds": [0], "study_seeds": list(range(64))}
    return play("moved_games", tmp_path / "results.json", figures=False, **changes)


def as_predicted(part, name, kind):
    low = {("shift3cost", "cost"), ("start2", "cost-start"), ("home", "rotated"), ("label noise 2", "labels-trust-1")}
    low |= {("shift3", "practical"), ("shift3cost", "practical")}
    return 4.0 if (part, name) in low else 9.8


def against(part, name, kind):
    order = {
        ("shift3", "cost"): 1.0, ("shift3cost", "cost"): 9.0, ("start2", "cost"): 1.0, ("home", "cost"): 9.0,
        ("home", "practical"): 2.0, ("shift3", "practical"): 3.0, ("shift3cost", "practical"): 3.0,
        ("together", "cost"): 1.0, ("label noise 2", "labels-trust-1"): 9.9,
    }  # fmt: skip
    if kind in ("untuned", "breaks"):
        return order.get((part, name), 5.0 if name == "refit-trust-1" else 1.0)
    return order.get((part, name), 2.5 if name == "refit-bound" else 9.7)


def test_every_claim_can_hold_and_can_fail_and_the_whole_ledger_closes(tmp_path, monkeypatch):
    verdicts, content = told(tmp_path, monkeypatch, as_predicted)
    assert len(verdicts) == 10 and set(verdicts.values()) == {"new"}
    found = content["results"]
    assert found["missing"] == [] and found["saved"]["start2"]["cost-start"]["retuned"] == 0
    assert found["untuned"]["linear"]["bound-1"] | {"interval": 0} == {
        "saved": 64, "of": 64, "median": 9.8, "interval": 0, "drop": 0.0, "lowest": 9.8,
    }  # fmt: skip
    assert found["advice"]["practical"]["fails"] == ["shift3", "shift3cost"]
    assert found["advice"]["cost"]["moved"]["fails"] == ["shift3cost"] and found["advice"]["flat"]["tuning"] == 8
    verdicts, _ = told(tmp_path, monkeypatch, against)
    assert set(verdicts.values()) == {"does not hold"}


def test_what_is_not_played_stays_open(tmp_path):
    changes = {**SHORT, "parts": ["home", "shift3"], "remedies": ["practical", "early-stop"]}
    verdicts, content = play("moved_games", tmp_path / "results.json", figures=False, **changes)
    assert set(verdicts.values()) == {"open"}
    found = content["results"]
    # Ten iterations take nobody to the top, and nobody far enough to fall.
    for game, what in (("home", "saved"), ("shift3", "saved"), ("home", "fell")):
        row = found[what][game]["practical"]
        assert (row["frozen"], row["retuned"], row["of"]) == (0, 0, 3)
    assert found["saved"]["twopeak"] == {} and found["untuned"] == {}
    assert found["advice"]["early-stop"]["reads_u"] and found["advice"]["flat"]["labels"] is None
    home, moved = (found["study"][game]["practical"] for game in ("home", "shift3"))
    assert home["frozen_final"] == home["retuned_final"]
    # What is frozen is home's weight: at the weight that shift3 chose itself, nothing would differ.
    best, own = (rows["tuning"]["final"] for rows in (home, moved))
    assert (best == own) == (moved["frozen_final"] == moved["retuned_final"])


def test_moves_can_be_judged_with_homes_weights_alone(tmp_path):
    changes = {**SHORT, "parts": ["home", "shift3"], "remedies": ["practical", "labels"]}
    whole = play("moved_games", tmp_path / "a.json", figures=False, **changes)[1]["results"]
    found = play("moved_games", tmp_path / "b.json", figures=False, **changes, kinds=["frozen"])[1]["results"]
    assert found["study"]["home"] == whole["study"]["home"]
    for name in ("practical", "labels"):
        rows = whole["study"]["shift3"][name]
        assert found["study"]["shift3"][name] == {"tuning": None} | {
            key: rows[key] for key in ("frozen_final", "frozen_fall")
        }
        row = found["saved"]["shift3"][name]
        assert (row["frozen"], row["retuned"], row["of"]) == (whole["saved"]["shift3"][name]["frozen"], None, 3)
    assert found["advice"]["practical"]["compared"] == 0 and whole["advice"]["practical"]["compared"] == 1


def test_a_cell_that_is_stored_is_read_and_not_played(tmp_path):
    changes = {**SHORT, "parts": ["home"], "remedies": ["standard"], "checkpoints": str(tmp_path / "cells")}
    found = play("moved_games", tmp_path / "a.json", figures=False, **changes)[1]["results"]
    assert found["saved"]["home"]["standard"]["frozen"] == 0
    (cell,) = (tmp_path / "cells").iterdir()  # the game's own checkpoint is gone
    row = json.loads(cell.read_text())
    cell.write_text(json.dumps(row | {"final": [9.5] * 3, "peak": [9.5] * 3}))
    found = play("moved_games", tmp_path / "b.json", figures=False, **changes)[1]["results"]
    assert found["saved"]["home"]["standard"]["frozen"] == 3


def test_a_game_without_home_is_refused_before_any_work(tmp_path):
    with pytest.raises(ParameterError, match="home"):
        play("moved_games", tmp_path / "results.json", figures=False, **SHORT, parts=["shift3"], remedies=["flat"])
    with pytest.raises(ParameterError, match="no-such"):
        play("moved_games", tmp_path / "results.json", figures=False, **SHORT, parts=["home"], remedies=["no-such"])
    with pytest.raises(ParameterError, match="breaks = 'buffer 7': must be some of label noise 0.5, label noise 1"):
        play("moved_games", tmp_path / "results.json", figures=False, **SHORT, parts=["breaks"], breaks=["buffer 7"])


def cells(*marks):
    """What the chapter's cells with these marks define, with what they read."""
    return defined("moved_games", *marks, linear_steps=10, study_seeds=[0, 1])


def test_every_remedy_can_be_played_in_every_game():
    space = cells("HOME = neural.Config", "GAMES = {", "REMEDIES = {", "def settings(")
    assert tuple(space["REMEDIES"]) == REMEDIES and tuple(space["GAMES"]) == GAMES
    home = space["HOME"].model_dump()
    for game in GAMES:
        for name, (_, knob, weights) in space["REMEDIES"].items():
            assert weights is None or len(set(weights)) == 8
            for weight in weights or [None]:
                found = space["settings"](game, name, weight, (3, 4)).model_dump()
                changed = {k for k in found if found[k] != home[k]} - {"seeds"}
                allowed = {*space["GAMES"][game], *space["REMEDIES"][name][0], knob}
                assert changed <= allowed, (game, name)


@pytest.mark.parametrize("rule", ["bound-1", "exact-1", "fitted-1", "refit-trust-1"])
def test_a_rule_in_the_linear_game_is_the_slope_of_its_objective(rule):
    space, rng = cells("def linear_slope"), np.random.default_rng(1)
    V, ridge, n, d = space["linear"].Config(dimensions=4).landscape(), 0.2, 6, 4
    y, w, x, u = rng.normal(size=(1, d)), rng.normal(size=(1, d)), rng.normal(size=(1, n, d)), rng.normal(size=(1, n))
    H = 2 / n * x[0].T @ x[0] + ridge * np.eye(d)
    e = u[0] - x[0] @ w[0]
    fit, a = np.linalg.solve(H, 2 / n * x[0].T @ e), np.linalg.solve(H, y[0])
    c = e @ np.linalg.solve(x[0] @ x[0].T + n * ridge / 2 * np.eye(n), e) / n
    value = {
        "bound-1": lambda z: (w[0] + fit) @ z - np.sqrt(c * ridge * z @ np.linalg.solve(H, z)),
        "exact-1": lambda z: w[0] @ z - 2 * (w[0] @ z - V(z)) * (a @ z),
        "fitted-1": lambda z: w[0] @ z + 2 * (fit @ z) * (a @ z),
        "refit-trust-1": lambda z: (w[0] + fit) @ z,
    }[rule]
    h = 1e-5
    wanted = [(value(y[0] + h * i) - value(y[0] - h * i)) / (2 * h) for i in np.eye(d)]
    np.testing.assert_allclose(space["linear_slope"](rule, y, w, x, u, ridge, V)[0], wanted, rtol=1e-6, atol=1e-7)


def test_where_nothing_has_spread_the_region_lets_nothing_move():
    space = cells("def linear_slope")
    x, u = np.ones((1, 1, 3)), np.ones((1, 1))
    np.testing.assert_allclose(space["linear_trust"](np.zeros((1, 3)), x, u, 0.0, 0.02), 1.0)
    still = space["play_linear"]("refit-trust-1", 0.0)
    assert still["final"].shape == (2,) and np.ptp([still["final"], still["peak"]], axis=0).max() < 1e-9


def test_some_changes_of_the_labels_can_be_played_alone(tmp_path):
    changes = {**SHORT, "parts": ["breaks"], "breaks": ["buffer 5", "one label"]}
    found = play("moved_games", tmp_path / "results.json", figures=False, **changes)[1]["results"]
    assert set(found["study"]["breaks"]) == {"buffer 5", "one label"} and "breaks" in found["missing"]
    assert found["breaks"]["one_label"]["labels"]["saved"] == 0 and set(found["breaks"]) == {"buffer_5", "one_label"}
