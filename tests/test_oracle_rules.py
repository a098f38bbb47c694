"""The chapter on what an oracle is worth: direct ascent, its calls, the AUC, and verdicts that can fail."""

import numpy as np
import pytest
from scipy.integrate import quad
from tools.parameter_classes import defined
from tools.verdicts import play

from fpo import neural, results
from fpo.landscapes import Bell
from fpo.parameters import ParameterError

FACTORS = ("constant", "error", "held-out", "leave-one-out", "spread", "permuted", "relaxed")
SHORT = {
    "study": "run", "outer_steps": 12, "tuning_seeds": [0], "study_seeds": [1, 2, 3], "live_seeds": [1], "every": 4,
    "wall_seeds": [4, 5],
}  # fmt: skip


@pytest.fixture(scope="module")
def chapter():
    """What the chapter's cells define about direct ascent and the AUC."""
    return defined("oracle", "HOME = neural", "def slope_from", "def ascend", "def area", outer_steps=40)


def test_two_calls_are_the_slope_of_the_smoothed_utility_in_the_mean(chapter):
    U, theta, sigma = Bell(np.array([1.0]), 10.0, 0.3), np.array([[0.4]]), 0.5

    def smoothed(at):
        return quad(lambda z: U(at + sigma * np.array([z])) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi), -9, 9)[0]

    def weighted(z):
        return chapter["slope_from"](U, theta, sigma * np.array([[z]]), sigma, False)[0, 0]

    mean = quad(lambda z: weighted(z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi), -9, 9)[0]
    h = 1e-4
    assert mean == pytest.approx((smoothed(theta[0] + h) - smoothed(theta[0] - h)) / (2 * h), rel=1e-6)
    eps = np.array([[0.2]])
    assert np.array_equal(chapter["slope_from"](U, theta, eps, sigma, True), U.gradient(theta + eps))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.1, 0.05])
def test_a_share_of_the_calls_is_what_is_asked(share):
    parts = [neural.asked(share, 15 * t, 15) for t in range(400)]
    assert np.concatenate(parts).sum() == pytest.approx(share * 6000, abs=1)


def test_direct_ascent_is_a_plain_loop(chapter):
    found = chapter["ascend"]((4, 9), 0.6, slopes=False, level=3.0, tilt=0.5)
    for i, seed in enumerate((4, 9)):
        U, theta, k = Bell(np.r_[2.5, 2.5, np.zeros(8)], 10.0, 0.2), np.zeros(10), 0
        z = np.random.RandomState([seed, 2])
        for t in range(40):
            f = 1 - (t / 40) ** 4
            sigma, lr = 0.001 + 0.099 * f, 0.001 + 0.049 * f
            for eps in sigma * z.normal(size=(15, 10)):
                if int((k + 1) * 0.3) > int(k * 0.3):
                    rise = U(theta + eps) - U(theta - eps) + 2 * 0.5 * eps[-1]
                    up = rise * eps / (2 * sigma**2) - 0.02 * (theta + eps)
                    theta = theta + lr * np.clip(up, -1, 1)
                k += 1
            np.testing.assert_allclose(found[t, i], U(theta), rtol=1e-9)
    level = chapter["ascend"]((4, 9), 0.6, slopes=False, level=0.0, tilt=0.5)
    np.testing.assert_allclose(found, level, rtol=1e-9)


def test_the_area_is_the_share_of_pairs_in_the_right_order(chapter):
    rng = np.random.default_rng(1)
    for _ in range(50):
        wrong, score = rng.normal(size=12), rng.integers(0, 4, size=12).astype(float)
        some = np.abs(wrong) > 0.1
        pairs = [(a, b) for a in score[some & (wrong > 0)] for b in score[some & (wrong < 0)]]
        right = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
        np.testing.assert_allclose(chapter["area"](score, wrong), np.mean(right) if right else np.nan)
    assert np.isnan(chapter["area"](np.ones(3), np.ones(3)))


def told(tmp_path, monkeypatch, end, area, wall):
    """The verdicts on a stored study in which each run climbs to end(part, arm, kind) and stays there.

    `area` is every AUC, and `wall` the product of weight, share and squared length of the gradient.
    """

    def row(*where):
        return {"final": [float(end(*where))] * 64, "peak": [float(end(*where))] * 64}

    shares, weight = ("100", "30", "10"), {"tried": [1.0], "ends": [9.0], "chosen": 1.0}
    arms = ("relaxed", "exact", "values", "slopes")
    errors = ("level -2", "level -1", "level 1", "level 2", "tilt 1", "tilt 2", "tilt 4")
    study = {
        "weights": {form: dict.fromkeys(shares, weight) for form in arms[:2]}
        | {"factors": dict.fromkeys(FACTORS, weight)},
        "calls": {arm: {share: row("calls", arm, share) for share in shares} for arm in arms}
        | {name: {"0": row("calls", name, "0")} for name in ("standard", "labels-trust-1")},
        "bias": {arm: {error: row("bias", arm, error) for error in errors} for arm in arms},
        "factors": {
            game: {name: {kind: row(game, name, kind) for kind in ("tuned", "paper")} for name in FACTORS}
            for game in ("home", "shift3")
        },
        "areas": {name: [area] * 64 for name in FACTORS[1:-1]},
        "wall": {
            share: {
                weight: row("wall", share, weight) | {"norm": [wall * 1000 / float(weight)] * 64}
                for weight in ("2", "4", "8", "16")
            }
            for share in shares
        },
        "flat": {"s50": row("flat", "s50", "home")},
        "own": {
            name: {game: row("own", name, game) | {"norm": [100.0] * 64} for game in ("home", "shift3")}
            | {"weight": weight}
            for name in ("relaxed", "own")
        },
    }
    monkeypatch.setattr(results, "stored_runs", lambda folder: {"one": {"results": {"study": study}}})
    return play("oracle", tmp_path / "results.json", live_seeds=[0], outer_steps=20)


def as_predicted(part, arm, kind):
    if part in ("home", "shift3"):
        return {("home", "tuned", "error"): 5.0, ("home", "paper", "constant"): 5.0,
                ("shift3", "tuned", "constant"): 5.0}.get((part, kind, arm), 7.0)  # fmt: skip
    low = {("calls", "relaxed", "10"): 4.0, ("calls", "relaxed", "100"): 8.0, ("calls", "relaxed", "30"): 8.0,
           ("bias", "relaxed", "level 2"): 2.0, ("bias", "exact", "level 2"): 2.0, ("bias", "values", "tilt 4"): 0.0,
           ("bias", "slopes", "tilt 4"): 0.0, ("bias", "relaxed", "tilt 4"): 7.5}  # fmt: skip
    return low.get((part, arm, kind), 9.5)


def against(part, arm, kind):
    turned = {("own", "own", "home"): 2.0, ("bias", "exact", "level 2"): 9.5, ("bias", "relaxed", "tilt 4"): 0.0}
    return turned.get((part, arm, kind), 9.9 - as_predicted(part, arm, kind))


def test_every_claim_can_hold_and_can_fail(tmp_path, monkeypatch):
    verdicts, content = told(tmp_path, monkeypatch, as_predicted, 0.9, 1.1)
    assert verdicts.pop("again") == "open" and len(verdicts) == 10 and set(verdicts.values()) == {"new"}
    found = content["results"]
    assert found["ends"]["relaxed"]["10"]["median"] == 4.0 and found["ends"]["exact"]["10"]["saved"] == 64
    assert found["closed"]["home_paper"] == {"gap": 2.0} | dict.fromkeys(
        ("error", "held_out", "leave_one_out", "spread", "permuted"), 1.0
    )
    verdicts, _ = told(tmp_path, monkeypatch, against, 0.1, 1.3)
    assert verdicts.pop("again") == "open" and set(verdicts.values()) == {"does not hold"}


def test_the_study_can_be_made_and_its_live_ascent_is_the_stored_one(tmp_path):
    verdicts, content = play("oracle", tmp_path / "a.json", figures=False, **SHORT, checkpoints=str(tmp_path / "c"))
    assert set(verdicts.values()) <= {"open", "does not hold", "partly"}
    study = content["results"]["study"]
    assert list(study["areas"]) == list(FACTORS[1:-1]) and len(study["areas"]["spread"]) == 3
    assert len(study["wall"]["10"]["16"]["norm"]) == 2 and min(study["wall"]["100"]["2"]["norm"]) > 1
    assert len(study["flat"]["s50"]["final"]) == 2
    assert study["own"]["own"]["weight"]["chosen"] > 0 and len(study["own"]["own"]["shift3"]["final"]) == 2
    live = content["results"]["live"]["ends"]
    for share in ("100", "30", "10"):
        assert live[share][0] == pytest.approx(study["calls"]["values"][share]["final"][0], abs=1e-4)
    again = play("oracle", tmp_path / "b.json", figures=False, **SHORT, checkpoints=str(tmp_path / "c"))[1]
    assert again["results"]["study"] == study


def test_bad_parameters_are_refused(tmp_path):
    for wrong in ({"every": 0}, {"error_floor": -1.0}, {"study": "maybe"}, {"study_seeds": [1, 1]}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            play("oracle", tmp_path / "out.json", **wrong)
