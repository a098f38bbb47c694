"""The chapter on where collapse happens: its formulas by independent routes, and verdicts that can fail."""

from ast import literal_eval

import numpy as np
import pytest
import torch
from tools.parameter_classes import defined, validated
from tools.verdicts import play

from fpo import linear, mlp, neural, results, sweeps
from fpo.parameters import ParameterError

MARKS = (
    "HERE = linear.Config",
    "def height",
    "def least_gamma",
    "def linearized",
    "def ratio",
    "def rest(",
    "def rays",
)
ALL = {"rest", "flip", "outrun", "twin", "clock", "memory", "spread", "follower", "trade", "labels", "again"}


@pytest.fixture(scope="module")
def chapter():
    """What the chapter's cells of theory define, and its maps' axes."""
    return defined("phase_maps", *MARKS, "MAPS = {")


def settings(chapter, count=200):
    """Random penalties, rates and seeds, within the map: C, eta, size, top, best, each (count,)."""
    rng = np.random.default_rng(4)
    size, top, best = chapter["rays"](range(count))
    return rng.uniform(0.1, 0.48, count), np.exp(rng.uniform(np.log(1.3e-4), np.log(0.3), count)), size, top, best


def test_the_ray_plays_what_the_game_plays(chapter):
    game = linear.Config(seeds=(1, 2, 3), arms=("practical",), gamma=0.07, rm_lr=0.003, steps=200)
    path = chapter["on_rays"](0.1 + 0.07, 0.003, *chapter["rays"](game.seeds), 200)
    np.testing.assert_allclose(path, linear.simulate(game).of("practical"), rtol=1e-9)


def test_nothing_moves_at_the_rest_point_and_beyond_it_there_is_none(chapter):
    C, eta, _, top, best = settings(chapter)
    rho = chapter["rest"](C, eta, top, best)
    assert np.isfinite(rho).all()
    again, omega = chapter["step"](rho, 2 * C * rho, C, eta, top, best)
    np.testing.assert_allclose([again, omega], [rho, 2 * C * rho], rtol=1e-9)
    out = rho + np.geomspace(1e-6, 9, 50)[:, None]
    assert (chapter["height"](out, top, best) < C * (2 * out**2 + chapter["delta"] / eta)).all()


def test_a_rest_point_is_fallen_from_exactly_where_the_formula_says(chapter):
    _, eta, _, top, best = settings(chapter)
    for little, fallen in ((-1e-6, True), (1e-6, False)):
        C = 0.1 + chapter["least_gamma"](eta, top, best) + little
        u = chapter["height"](chapter["rest"](C, eta, top, best), top, best)
        assert ((u < 0.9 * best) == fallen).all()


def eigenvalues(trace, det):
    root = np.sqrt(np.asarray(trace**2 - 4 * det, complex))
    return np.stack([trace - root, trace + root]) / 2


def test_trace_and_determinant_are_those_of_a_numerical_jacobian(chapter):
    C, eta, _, top, best = settings(chapter)
    rho, h = chapter["rest"](C, eta, top, best), 1e-6
    columns = []
    for moves in ((h, 0), (0, h)):
        ends = [chapter["step"](rho + s * moves[0], 2 * C * rho + s * moves[1], C, eta, top, best) for s in (1, -1)]
        columns.append((np.array(ends[0]) - np.array(ends[1])) / (2 * h))
    jacobian = np.array(columns)  # (from, to, cases)
    trace, det = chapter["linearized"](rho, C, eta, top, best)
    np.testing.assert_allclose(trace, jacobian[0, 0] + jacobian[1, 1], rtol=1e-6, atol=1e-7)
    wanted = jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0]
    np.testing.assert_allclose(det, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("gamma", "eta"), [(0.0, 0.005), (0.2, 0.0008), (0.3, 0.05)])
def test_the_whole_game_has_the_rays_two_eigenvalues_and_a_neutral_one_in_every_other_direction(chapter, gamma, eta):
    d, h = 6, 1e-6
    game = linear.Config(seeds=(5,), arms=("practical",), gamma=gamma, rm_lr=eta, dimensions=d)
    (w0,), t, C = linear.initial_weights(game), game.landscape().center, game.action_cost + gamma
    ray = w0 / np.linalg.norm(w0)
    top, best = ray @ t, game.landscape()((ray @ t) * ray)
    rho = chapter["rest"](C, np.array([eta]), np.array([top]), np.array([best]))[0]

    def iterate(state):
        y, w = state[None, None, :d], state[None, None, d:]
        y = y + game.policy_lr * linear.gradient(y, w, game)
        return np.concatenate([y[0, 0], linear.learn(w, y[..., None, :], game.landscape()(y)[..., None], game)[0, 0]])

    start = np.concatenate([rho * ray, 2 * C * rho * ray])
    np.testing.assert_allclose(iterate(start), start, rtol=1e-9, atol=1e-12)
    jacobian = np.stack([(iterate(start + h * e) - iterate(start - h * e)) / (2 * h) for e in np.eye(2 * d)], axis=1)
    trace, det = chapter["linearized"](rho, C, eta, top, best)
    others = [1.0, (1 - 2 * game.policy_lr * C) * (1 - game.rm_decay)] * (d - 1)
    wanted = np.concatenate([eigenvalues(trace, det), others])
    np.testing.assert_allclose(
        np.sort_complex(np.round(np.linalg.eigvals(jacobian), 5)), np.sort_complex(np.round(wanted, 5)), atol=3e-5
    )


def test_the_conditions_are_those_of_the_eigenvalues(chapter):
    C, eta, size, top, best = settings(chapter)
    says = chapter["theory"](C, eta, size, top, best)
    pair = eigenvalues(*chapter["linearized"](says["rho"], C, eta, top, best))
    assert (says["settles"] == (np.abs(pair).max(axis=0) < 1)).all()
    turning = np.abs(pair.imag).max(axis=0) > 0
    assert says["outruns"][turning].all() and 0 < turning.sum() < len(C)
    # Both ways of each condition were there.
    assert 0 < says["settles"].sum() < len(C) and 0 < says["outruns"].sum() < len(C)


def test_at_the_flip_an_eigenvalue_is_minus_one(chapter):
    C, _, size, top, best = settings(chapter)
    eta = chapter["flip"](C, size, top, best)
    rho = chapter["rest"](C, eta, top, best)
    pair = eigenvalues(*chapter["linearized"](rho, C, eta, top, best))
    np.testing.assert_allclose(pair.real.min(axis=0), -1, atol=1e-9)
    np.testing.assert_allclose(eta, 1 / rho**2, rtol=0.05)  # as the text says


def test_the_leader_outruns_where_small_steps_turn(chapter):
    """With steps a thousandth of the game's, and no decay, the formula of rates is the eigenvalues' condition."""
    slow = chapter | {"alpha": chapter["alpha"] / 1000, "delta": 0.0}
    small = defined("phase_maps", *MARKS[1:], space=slow)
    C, _, size, top, best = settings(chapter)
    edge = small["outrun"](C, size, top, best)
    some = np.isfinite(edge)
    assert some.sum() > 100
    for factor, outruns in ((0.99, True), (1.01, False)):
        says = small["theory"](C[some], factor * edge[some], size[some], top[some], best[some])
        assert (says["outruns"] == outruns).mean() == 1


# Verdicts, on made-up maps


class Fake:
    """In place of `sweeps.sweep`: every cell ends as told, or as its first cell does when it is played here."""

    def __init__(self, final=None, failures=()):
        self.final, self.failures, self.asked = final, list(failures), []

    def __call__(self, play, cells, folder, *, check, workers, scheduler, version):
        cells = list(cells)
        assert version and check(**cells[0])
        self.asked.append(cells)
        row = play(**cells[0]) if self.final is None else {"final": self.final}
        return [cell | row for cell in cells], self.failures


def stored(chapter, **maps):
    parameters = chapter["config"].model_dump(mode="json") | {"linear_steps": 200}  # `twin` plays as many
    return {
        name: {"parameters": parameters, "results": {"maps": {name: {k: v.tolist() for k, v in columns.items()}}}}
        for name, columns in maps.items()
    }


def told(tmp_path, monkeypatch, kept, sweep, **changes):
    monkeypatch.setattr(results, "stored_runs", lambda folder: kept)
    monkeypatch.setattr(sweeps, "sweep", sweep)
    return play("phase_maps", tmp_path / "results.json", figures=False, **changes)


def crosses(wide, narrow):
    """Four cells of 32 seeds: how many are saved with a narrow policy and wide labels, and the reverse."""
    ends = {
        f"({policy}, {labels})": [9.5] * count + [5.0] * (32 - count)
        for policy, labels, count in ((0.021, 0.021, 0), (0.021, 0.1, wide), (0.1, 0.021, narrow), (0.1, 0.1, 32))
    }
    rows = {name: {"final": end, "peak": [min(value + 0.6, 10.0) for value in end]} for name, end in ends.items()}
    return {"spreads": {"parameters": {}, "results": {"spreads": rows}}}


def linear_map(chapter, right):
    """A map that does what theory says of every cell, or the contrary."""
    gammas, rates = np.array(chapter["GAMMAS"])[:, None, None], np.array(chapter["RATES"])[:, None]
    says = chapter["theory"](chapter["c"] + gammas, rates, *chapter["rays"](chapter["HERE"].seeds))
    fallen, settles, outruns = (says[what] == right for what in ("fallen", "settles", "outruns"))
    final = np.where(fallen, 2.0, 5.0)
    columns = {"final": final, "peak": 5.0 + 0 * final}
    columns |= {"dip": np.where(outruns, 0.5, 0.0), "moves": np.where(settles, 0.0, 1.0)}
    return {name: column.reshape(400, -1) for name, column in columns.items()}


def neural_map(falls, end):
    """Falls as a table of zeros and ones over the map's cells, and ends, alike on all eight seeds."""
    final = np.broadcast_to(end, (20, 20)).reshape(400, 1) + np.zeros(8)
    return {"final": final, "peak": final + 3 * np.broadcast_to(falls, (20, 20)).reshape(400, 1)}


def test_every_claim_can_hold_and_can_fail(chapter, tmp_path, monkeypatch):
    x, y = np.arange(20)[:, None], np.arange(20)
    sigma = np.array(chapter["SPREADS"])[:, None]
    needed = 10 * (0.1 / sigma) ** 2  # RM steps under which a run falls
    maps = {
        "linear": linear_map(chapter, right=True),
        "buffer": neural_map(x > y, end=y / 4),
        "sigma": neural_map(y + 1 < needed, end=x / 4),
    }
    first = maps["linear"]["final"][9]  # of the one cell that is played again
    kept = stored(chapter, **maps) | crosses(wide=30, narrow=2)
    found = told(tmp_path, monkeypatch, kept, Fake(first.tolist()), again=[[0, 9]], linear_steps=200)
    verdicts, content = found
    assert set(verdicts) == ALL and {k for k, v in verdicts.items() if v != "new"} == {"twin"}
    assert content["results"]["missing"] == [] and -2.5 < content["results"]["neural"]["power"] < -1.5
    maps = {
        "linear": linear_map(chapter, right=False),
        "buffer": neural_map(x < y, end=-y / 4),
        "sigma": neural_map(y + 1 > 20 - 19 * sigma / sigma.max(), end=-x / 4),
    }
    kept = stored(chapter, **maps) | crosses(wide=30, narrow=28)
    verdicts, content = told(tmp_path, monkeypatch, kept, Fake([9.0] * 8), linear_steps=200)
    assert {k for k, v in verdicts.items() if v != "does not hold"} <= {"trade"}
    assert content["results"]["linear"]["shares"]["rest"]["least"] < 0.05
    # Seven of eight seeds are not all of them, and a power that is too steep is refuted.
    maps["buffer"]["final"][:, 0] = np.tile(y, 20)
    maps["sigma"] = neural_map(y + 1 < 10 * (0.1 / sigma) ** 5, end=x / 4)
    kept = stored(chapter, **maps) | crosses(wide=18, narrow=2)
    verdicts, _ = told(tmp_path, monkeypatch, kept, Fake([9.0] * 8), linear_steps=200)
    assert (verdicts["memory"], verdicts["trade"], verdicts["labels"]) == ("open", "does not hold", "open")


def test_what_is_not_played_stays_open(tmp_path, monkeypatch):
    verdicts, content = told(tmp_path, monkeypatch, {}, Fake([1.0] * 8))
    assert set(verdicts) == ALL and set(verdicts.values()) == {"open"}
    assert content["results"]["missing"] == ["linear", "buffer", "sigma"]


def test_maps_are_made_read_back_and_cells_are_any(chapter, tmp_path, monkeypatch):
    sweep, changes = Fake(), {"linear_steps": 200, "outer_steps": 10, "seeds": list(range(8)), "study": "run"}
    changes["parts"] = ["linear", "buffer"]
    changes |= {"again_map": "buffer", "again": [[2, 3], [19, 0]]}
    _, content = told(tmp_path, monkeypatch, {}, sweep, **changes)
    found = content["results"]
    assert [len(cells) for cells in sweep.asked] == [400, 400, 2]
    cells = sweep.asked[2]
    assert [(cell["inner_steps"], cell["buffer_size"]) for cell in cells] == [(3, 12), (20, 5)]
    assert found["missing"] == ["sigma"] and found["cost"]["buffer"]["map"] > 0
    assert {name: sorted(columns) for name, columns in found["maps"].items()} == {
        "linear": ["dip", "final", "moves", "peak"], "buffer": ["final", "peak"],
    }  # fmt: skip
    again, sweep = dict.fromkeys(("linear", "buffer"), content), Fake(found["maps"]["buffer"]["final"][0])
    del changes["study"], changes["parts"]
    verdicts, content = told(tmp_path, monkeypatch, again, sweep, **changes)
    assert content["results"]["missing"] == ["sigma"] and len(sweep.asked) == 1 and verdicts["again"] == "new"


def test_a_row_of_spreads_is_its_cells(chapter, tmp_path, monkeypatch):
    sweep = Fake()
    changes = {"outer_steps": 10, "seeds": list(range(8)), "study": "run", "parts": ["sigma"], "again": [[0, 0]]}
    _, content = told(tmp_path, monkeypatch, {}, sweep, **changes, linear_steps=200)
    found = content["results"]
    rows = sweep.asked[0]
    assert [row["rm_steps"] for row in rows] == list(range(1, 21))
    assert all(row["spreads"] == chapter["SPREADS"] for row in rows)
    assert found["cost"]["sigma"]["map"] > 0 and np.shape(found["maps"]["sigma"]["final"]) == (400, 8)
    # Spread by spread, RM steps fastest; the fake gives every row the first one's, which has one RM step.
    games = [{"sigma": sigma, "rm_steps": 1, "seeds": list(range(8)), "outer_steps": 10} for sigma in (0.1, 1.16)]
    for game in games:
        alone = neural.simulate(
            neural.Config(arms=("standard",), gradient="closed-form", precision="float64", **game)
        ).utility[-1, 0]
        at = 20 * chapter["SPREADS"].index(game["sigma"])
        for place in (at, at + 19):
            np.testing.assert_allclose(found["maps"]["sigma"]["final"][place], alone, atol=6e-4)


def test_a_look_is_the_game_of_its_cell_and_is_told(tmp_path, monkeypatch):
    sweep, seeds = Fake(), list(range(8))
    changes = {"outer_steps": 10, "linear_steps": 200, "seeds": seeds, "again": [[0, 0]]}
    _, content = told(tmp_path, monkeypatch, {}, sweep, **changes, study="run", parts=["look"])
    looks = content["results"]["look"]
    assert len(looks) == 5 and content["results"]["maps"] == {}
    for name, look in looks.items():
        sigma, steps, labels = literal_eval(name)
        game = {"sigma": sigma, "rm_steps": steps, "seeds": seeds, "outer_steps": 10, "label_spread": labels / sigma}
        config = neural.Config(arms=("standard",), precision="float64", **game)
        run, bell = neural.simulate(config, keep=range(1, 10)), config.landscape()
        theta = run.of("standard", "actions")
        expected = {"utility": run.of("standard")[1:], "reward": run.of("standard", "reward")[1:]}
        expected["distance"] = np.linalg.norm(theta, axis=-1)
        labeled = run.labeled("standard", 9)
        apart = labeled - labeled.mean(axis=1, keepdims=True)
        assert look["times"] == list(range(1, 10))
        for what, values in expected.items():
            np.testing.assert_allclose(look[what], values, atol=2e-3)
        np.testing.assert_allclose(look["scatter"][-1], np.sqrt((apart**2).mean(axis=(1, 2))), atol=2e-3)
        # The RM's slope by finite differences, at the last look of the first seed.
        layers, nudges = run.reward_model("standard", 0, 9), 1e-5 * np.eye(10)
        ahead, behind = (mlp.reward(layers, torch.from_numpy(theta[-1, 0] + way * nudges)) for way in (1, -1))
        slope, steep = (ahead - behind).numpy() / 2e-5, bell.gradient(theta[-1, 0])
        assert look["slope"][-1][0] == pytest.approx(np.linalg.norm(slope), abs=2e-3)
        error = np.linalg.norm(slope - steep) / np.linalg.norm(steep)
        assert look["slope_error"][-1][0] == pytest.approx(error, abs=2e-3)
    narrow = looks["(0.021, 3, 0.021)"]
    narrow["distance"][-1] = [0.05] * 5 + [0.2] * 3
    narrow["distance"][4] = [7.0] * 8
    narrow["utility"][-1] = [9.5] * 3 + [8.5] * 5
    narrow["reward"][-1] = [value - 0.25 for value in narrow["utility"][-1]]
    _, content = told(tmp_path, monkeypatch, {"look": content}, sweep, **changes)
    narrow = content["results"]["looked"][2]
    assert (narrow["home"], narrow["saved"], narrow["far"]) == (5, 3, 7.0) and narrow["gap"] == pytest.approx(
        0.25, abs=1e-5
    )


def test_the_crossing_of_spreads_is_made_of_games(tmp_path, monkeypatch):
    seeds = [5, 6]
    changes = {"outer_steps": 10, "linear_steps": 200, "spread_seeds": seeds, "study": "run", "parts": ["spreads"]}
    _, content = told(tmp_path, monkeypatch, {}, Fake([1.0] * 8), **changes)
    rows = content["results"]["spreads"]
    assert len(rows) == 4
    for name, row in rows.items():
        sigma, labels = literal_eval(name)
        game = neural.Config(
            arms=("standard",), seeds=seeds, outer_steps=10, rm_steps=3, sigma=sigma, label_spread=labels / sigma
        )
        run = neural.simulate(game)
        np.testing.assert_allclose(row["final"], run.utility[-1, 0], atol=2e-3)
        np.testing.assert_allclose(row["peak"], run.peak()[0], atol=2e-3)


def test_a_neural_map_is_joined_of_its_pieces_and_judged_when_it_is_whole(chapter, tmp_path, monkeypatch):
    sweep, kept = Fake(), {}
    changes = {"linear_steps": 200, "outer_steps": 10, "seeds": list(range(8)), "again": [[0, 0]]}
    for name, steps in (("first", [1, 2, 20]), ("second", list(range(3, 20)))):
        made = changes | {"study": "run", "parts": ["buffer", "sigma"], "steps": steps}
        _, kept[name] = told(tmp_path, monkeypatch, {}, sweep, **made)
        assert kept[name]["results"]["lines"] == {"buffer": len(steps), "sigma": len(steps)}
        assert kept[name]["results"]["missing"] == ["linear", "buffer", "sigma"]
    assert [len(cells) for cells in sweep.asked] == [60, 3, 1, 340, 17, 1]
    assert {cell["inner_steps"] for cell in sweep.asked[0]} == {1, 2, 20}
    assert [row["rm_steps"] for row in sweep.asked[1]] == [1, 2, 20]
    for place in (0, 19, 20, 399):  # policy steps slowest, RM steps fastest: 3 of them are in the second piece
        column = kept["first"]["results"]["maps"]["buffer"]["final"]
        assert (column[place] is None) == (place // 20 + 1 not in (1, 2, 20))
        column = kept["first"]["results"]["maps"]["sigma"]["final"]
        assert (column[place] is None) == (place % 20 + 1 not in (1, 2, 20))
    verdicts, content = told(tmp_path, monkeypatch, {"first": kept["first"]}, sweep, **changes)
    assert content["results"]["missing"] == ["linear", "buffer", "sigma"] and verdicts["clock"] == "open"
    _, content = told(tmp_path, monkeypatch, kept, sweep, **changes)
    assert content["results"]["missing"] == ["linear"] and content["results"]["lines"] == {"buffer": 20, "sigma": 20}
    kept["second"]["parameters"]["seeds"] = list(range(1, 9))
    with pytest.raises(ValueError, match="pieces of the map buffer differ in their seeds or lengths"):
        told(tmp_path, monkeypatch, kept, sweep, **changes)


def test_a_map_with_a_failed_cell_is_not_there_and_says_why(tmp_path, monkeypatch, capsys):
    sweep = Fake([1.0] * 8, [{"cell": {"gamma": 0.3}, "error": "OSError: no room"}])
    changes = {"study": "run", "parts": ["linear"], "linear_steps": 200}
    _, content = told(tmp_path, monkeypatch, {}, sweep, **changes)
    assert "linear" in content["results"]["missing"] and "no room at {'gamma': 0.3}" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [[], [0], [21], [1, 1], [1.5], 3])
def test_a_line_that_is_none_is_refused(steps):
    with pytest.raises(ParameterError, match="distinct whole numbers from 1 to 20"):
        validated("phase_maps", steps=steps)


@pytest.mark.parametrize("again", [[], [[0, 20]], [[1]], [[0, 1], [0, 1]], [0, 1], [[0, 1.5]]])
def test_a_cell_that_is_none_is_refused(again):
    with pytest.raises(ParameterError, match="distinct pairs"):
        validated("phase_maps", again=again)
