"""The linear game against the release's runs, slow references, autograd and its own identities."""

import json
from pathlib import Path

import numpy as np
import pytest
import slow.linear
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fpo import games, linear
from fpo.linear import ARMS, Config

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "released_runs.json"


@st.composite
def points(draw, **fixed):
    """A random configuration with one action and reward model for each arm, all of moderate size."""
    d = draw(st.integers(1, 8))
    config = Config(
        seeds=[0],
        dimensions=d,
        signal_dimensions=draw(st.integers(1, d)),
        gamma=draw(st.floats(0, 3)),
        action_cost=draw(st.floats(0, 3)),
        foresight_steps=draw(st.integers(0, 12)),
        rm_lr=draw(st.floats(1e-3, 0.05)),
        utility_sharpness=draw(st.floats(0.05, 1)),
        target=draw(st.floats(-3, 3)),
        through_oracle=draw(st.booleans()),
        **fixed,
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return config, *rng.normal(0, draw(st.floats(0.1, 2)), (2, len(ARMS), 1, d))


def assert_close(actual, expected, tolerance):
    """Relative to the size of what is compared, with 1 as the smallest size."""
    assert np.max(np.abs(actual - expected)) <= tolerance * max(1.0, np.max(np.abs(expected)))


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the release's runs are not beside this checkout")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", ["relaxed", "practical"])
def test_parity_with_the_release(seed, form):
    runs = json.loads(REFERENCE.read_text())["linear"][str(seed)]
    config = Config(seeds=[seed], arms=["standard", form], gradient="forward-difference")
    result = linear.simulate(config)
    for arm, name in (("standard", "rlhf"), (form, form)):
        for quantity in ("utility", "signal", "noise"):
            ours = result.of(arm, quantity)[runs["iterations"], 0]
            np.testing.assert_allclose(ours, runs[form][name][quantity], atol=1e-4, rtol=0)


@pytest.mark.parametrize("through_oracle", [True, False])
@pytest.mark.parametrize("arm", ARMS)
def test_batched_run_is_the_plain_loop(arm, through_oracle):
    config = Config(
        seeds=[3, 11], steps=80, dimensions=12, gradient="forward-difference", through_oracle=through_oracle
    )
    result = linear.simulate(config)
    for i, seed in enumerate(config.seeds):
        for quantity, wanted in zip(("utility", "signal", "noise"), slow.linear.run(seed, arm, config), strict=True):
            np.testing.assert_allclose(result.of(arm, quantity)[:, i], wanted, atol=1e-9, rtol=0)


@given(points())
def test_objective_is_the_plain_one(case):
    config, y, w = case
    wanted = [slow.linear.objective(arm, y[i, 0], w[i, 0], config) for i, arm in enumerate(ARMS)]
    assert_close(linear.objective(y, w, config)[:, 0], np.array(wanted), 1e-10)


@given(points())
def test_closed_form_gradient_is_the_central_difference(case):
    config, y, w = case
    fast = linear.gradient(y, w, config)
    for i, arm in enumerate(ARMS):
        held = None if config.through_oracle else slow.linear.utility(y[i, 0], config)
        wanted = slow.differences(
            lambda z, arm=arm, i=i, held=held: slow.linear.objective(arm, z, w[i, 0], config, held),
            y[i, 0],
            1e-5,
            central=True,
        )
        assert_close(fast[i, 0], wanted, 1e-6)


@given(points())
def test_closed_form_gradient_is_autograd(case):
    config, y, w = case
    fast = linear.gradient(y, w, config)
    t = torch.from_numpy(config.landscape().center)
    for i, arm in enumerate(ARMS):
        z, v = torch.tensor(y[i, 0], requires_grad=True), torch.from_numpy(w[i, 0])
        u = config.utility_scale * torch.exp(-config.utility_sharpness * ((z - t) ** 2).sum())
        u = u if config.through_oracle else u.detach()
        r, n = v @ z, z @ z
        contraction = (1 - 2 * config.rm_lr * n) ** config.foresight_steps
        penalty = {
            "standard": 0.0,
            "relaxed": -config.gamma * (r - u) * n,
            "practical": -config.gamma * n,
            "foresight": (r - u) * (contraction - 1),
        }[arm]
        (r - config.action_cost * n + penalty).backward()
        assert_close(fast[i, 0], z.grad.numpy(), 1e-10)


@given(points(gradient="forward-difference", difference=0.05))
def test_forward_difference_is_the_plain_one(case):
    config, y, w = case
    fast = linear.gradient(y, w, config)
    for i, arm in enumerate(ARMS):
        held = None if config.through_oracle else slow.linear.utility(y[i, 0], config)
        wanted = slow.differences(
            lambda z, arm=arm, i=i, held=held: slow.linear.objective(arm, z, w[i, 0], config, held), y[i, 0], 0.05
        )
        assert_close(fast[i, 0], wanted, 1e-8)


@given(points())
def test_utility_gradient_is_the_central_difference(case):
    config, y, _ = case
    wanted = slow.differences(lambda z: slow.linear.utility(z, config), y[0, 0], 1e-5, central=True)
    assert_close(config.landscape().gradient(y[0, 0]), wanted, 1e-7)


@given(points(), st.integers(0, 60))
def test_k_rm_steps_contract_the_error_as_the_formula_says(case, k):
    config, y, w = case
    y, w = y[0, 0], w[0, 0]
    u, n = slow.linear.utility(y, config), y @ y
    error = slow.linear.rm_steps(w, y, u, k, config, decay=0.0) @ y - u
    assert_close(error, (w @ y - u) * (1 - 2 * config.rm_lr * n) ** k, 1e-9)


@given(points())
def test_relaxed_penalty_is_foresight_to_first_order(case):
    """gamma = 2 rm_lr k: the difference of the two objectives falls as the square of rm_lr k."""
    config, y, w = case
    i, j = ARMS.index("relaxed"), ARMS.index("foresight")
    y, w = np.repeat(y[:1], len(ARMS), axis=0), np.repeat(w[:1], len(ARMS), axis=0)

    def gap(rm_lr):
        k = 5
        values = linear.objective(y, w, config.replace(rm_lr=rm_lr, foresight_steps=k, gamma=2 * rm_lr * k))
        return abs(values[i, 0] - values[j, 0])

    n, error = np.sum(y[0] ** 2), abs(np.sum(w[0] * y[0]) - slow.linear.utility(y[0, 0], config))
    small = 1e-3 / max(n, 1e-3)
    # The second-order term is (r - U) k (k - 1) / 2 (2 rm_lr n)^2.
    assert gap(small) <= 1.01 * error * 10 * (2 * small * n) ** 2 + 1e-12


@given(gamma=st.floats(0, 5), action_cost=st.floats(0, 5), seed=st.integers(0, 1000), estimator=st.booleans())
@settings(max_examples=25)
def test_practical_is_standard_with_a_raised_action_cost(gamma, action_cost, seed, estimator):
    way = "forward-difference" if estimator else "closed-form"
    config = Config(seeds=[seed], steps=60, gamma=gamma, action_cost=action_cost, gradient=way, arms=["practical"])
    practical = linear.simulate(config, range(config.steps + 1))
    raised = config.replace(arms=["standard"], action_cost=action_cost + gamma)
    standard = linear.simulate(raised, range(raised.steps + 1))
    assert_close(practical.actions[:, 0], standard.actions[:, 0], 1e-10)


@pytest.mark.parametrize("spread, labels, window", [(0.0, 1, 50), (0.0, 1, 3), (0.1, 5, 50), (0.4, 2, 7)])
def test_a_leader_that_reads_the_latest_labels_plays_the_plain_loop(spread, labels, window):
    config = Config(
        seeds=[3, 11, 4], arms=["standard"], steps=60, dimensions=6, label_spread=spread, labels=labels
    )  # fmt: skip

    def step(y, w, x, u):
        """Climb the RM, corrected by a ridge fit to its errors on the labels that are seen."""
        error = u - np.einsum("...nd,...d->...n", x, w)
        square = np.swapaxes(x, -1, -2) @ x + 0.1 * np.eye(6)
        fit = np.linalg.solve(square, (x * error[..., None]).sum(-2)[..., None])[..., 0]
        return y + config.policy_lr * (w + fit - 2 * config.action_cost * y)

    def streams():
        return [np.random.RandomState([seed, 1]) for seed in config.seeds]

    found = linear.simulate(config, leader=step, window=window, streams=streams()).utility[:, 0]
    wanted = slow.linear.follow(step, config, streams(), window)
    np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)
    # And the labels' window and noise tell, so that nothing was compared with a game that has neither.
    assert not np.allclose(found, slow.linear.follow(step, config, streams(), 2), atol=1e-6)
    own = linear.simulate(config, leader=step, window=window).utility[:, 0]
    assert np.allclose(own, found, atol=1e-6) == (spread == 0)


def test_a_leader_of_all_arms_may_lose_one_and_a_window_holds_a_label():
    config = Config(seeds=[0, 1], steps=20, arms=["standard", "practical"])

    def leap(y, w, x, u):
        """The first arm's second seed leaves every bound, the others move on; pinv refuses what is not finite."""
        away = np.linalg.pinv(x) @ u[..., None]
        factor = np.array([[1.0, 1e200], [1.0, 1.0]])[..., None]
        return y * factor + 0.01 * away[..., 0]

    lost = linear.simulate(config, leader=leap)
    assert (lost.diverged_at[0, 1] > 0) and (lost.diverged_at >= 0).sum() == 1
    assert np.isnan(lost.utility[-1, 0, 1]) and np.isfinite(lost.utility[:, 1]).all()
    with pytest.raises(ValueError, match="window = 0"):
        linear.simulate(config, leader=leap, window=0)


@given(seed=st.integers(0, 1000), gamma=st.floats(0, 0.5), k=st.integers(0, 40))
@settings(max_examples=25)
def test_without_the_oracles_gradient_no_arm_leaves_the_ray_of_its_first_reward_model(seed, gamma, k):
    config = Config(seeds=[seed], gamma=gamma, foresight_steps=k, through_oracle=False)
    result = linear.simulate(config, range(config.steps + 1))
    ray = linear.initial_weights(config)[0]
    ray /= np.linalg.norm(ray)
    assert (result.diverged_at == -1).all()
    off = result.actions - np.sum(result.actions * ray, axis=-1, keepdims=True) * ray
    assert np.max(np.abs(off)) < 1e-9


def test_same_numbers_whatever_the_batch():
    config = Config(seeds=[5, 2, 9])
    whole = linear.simulate(config)
    again = linear.simulate(config)
    np.testing.assert_array_equal(whole.utility, again.utility)
    shuffled = linear.simulate(config.replace(seeds=[9, 5, 2], arms=tuple(reversed(ARMS))))
    for arm in ARMS:
        alone = linear.simulate(config.replace(seeds=[9], arms=[arm]))
        for quantity in ("utility", "reward", "signal", "noise"):
            np.testing.assert_array_equal(whole.of(arm, quantity)[:, 2], shuffled.of(arm, quantity)[:, 0])
            np.testing.assert_array_equal(whole.of(arm, quantity)[:, 2], alone.of(arm, quantity)[:, 0])


def test_arms_start_from_the_same_reward_model():
    result = linear.simulate(Config(seeds=[4, 7], steps=1), [0, 1])
    for arm in ARMS:
        np.testing.assert_array_equal(result.of(arm, "reward_models")[0], linear.initial_weights(result.config))


@pytest.mark.parametrize("way", ["closed-form", "forward-difference"])
def test_a_diverging_run_is_marked_and_the_others_go_on(way):
    config = Config(seeds=[0, 1], gamma=1e4, gradient=way)
    with np.errstate(all="raise", under="ignore"):
        result = linear.simulate(config, range(config.steps + 1))
    lost = [config.arms.index(arm) for arm in ("relaxed", "practical")]
    kept = [config.arms.index(arm) for arm in ("standard", "foresight")]
    assert (result.diverged_at[lost] > 0).all() and (result.diverged_at[kept] == -1).all()
    for i in lost:
        for j in range(2):
            at = result.diverged_at[i, j]
            assert np.isfinite(result.utility[:at, i, j]).all() and np.isnan(result.utility[at:, i, j]).all()
            assert np.isnan(result.actions[at:, i, j]).all() and np.isfinite(result.actions[:at, i, j]).all()
    np.testing.assert_array_equal(
        result.utility[:, kept], linear.simulate(config.replace(arms=["standard", "foresight"])).utility
    )


def test_one_seed_may_diverge_alone():
    """A large gamma with a large step throws out some seeds and not others; each is reported for itself."""
    config = Config(seeds=range(40), arms=["relaxed"], gamma=2.0, policy_lr=0.05)
    result = linear.simulate(config)
    diverged = result.diverged_at[0] >= 0
    assert 0 < diverged.sum() < len(diverged)
    np.testing.assert_array_equal(diverged, np.isnan(result.utility[-1, 0]))


def test_record_holds_what_it_says():
    config = Config(seeds=[1])
    result = linear.simulate(config, range(config.steps + 1))
    y, w, k = result.actions, result.reward_models, config.signal_dimensions
    np.testing.assert_allclose(result.utility, config.landscape()(y))
    np.testing.assert_allclose(result.reward, np.sum(y * w, axis=-1), atol=1e-12)
    np.testing.assert_allclose(result.signal, np.linalg.norm(y[..., :k], axis=-1))
    np.testing.assert_allclose(result.noise, np.linalg.norm(y[..., k:], axis=-1))
    some = linear.simulate(config, [300, 0, 7])
    for name in ("actions", "reward_models"):
        np.testing.assert_array_equal(getattr(some, name), getattr(result, name)[[300, 0, 7]])
    np.testing.assert_array_equal(some.reward_model("relaxed", 1, 7), w[7, 1, 0])
    table = result.by_arm_and_seed(result.utility[-1])
    assert table["relaxed"]["1"] == result.of("relaxed")[-1, 0]


def test_defaults_are_the_papers():
    """The table of the linear environment, but for the seeds and the arms."""
    settings = Config().model_dump(exclude={"seeds", "arms"})
    assert settings == {
        "gamma": 0.1, "steps": 300, "foresight_steps": 10, "gradient": "closed-form", "difference": 0.05,
        "through_oracle": True, "action_cost": 0.1, "policy_lr": 0.02, "rm_lr": 0.005, "rm_decay": 1e-4,
        "dimensions": 50, "signal_dimensions": 3, "target": 2.0, "utility_scale": 10.0, "utility_sharpness": 0.3,
        "initial_noise": 0.1, "inner_steps": 1, "labels": 1, "label_spread": 0.0,
    }  # fmt: skip


def test_table_by_arm_and_seed():
    result = linear.simulate(Config(seeds=[7, 3], arms=["relaxed", "standard"], steps=2))
    table = result.by_arm_and_seed(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert table == {"relaxed": {"7": 1.0, "3": 2.0}, "standard": {"7": 3.0, "3": 4.0}}


@pytest.mark.parametrize("size, diverges", [(0.9, False), (1.1, True)])
def test_a_million_is_the_limit(size, diverges, monkeypatch):
    """One step of a policy with this learning rate takes the first coordinate to `size` times the limit."""
    config = Config(
        seeds=[0], arms=["standard"], steps=1, dimensions=1, signal_dimensions=1, initial_noise=0,
        policy_lr=1000.0, rm_lr=0.0, action_cost=0.0,
    )  # fmt: skip
    assert games.DIVERGED == 1e6
    monkeypatch.setattr(games, "DIVERGED", 1000 / size)
    assert (linear.simulate(config).diverged_at[0, 0] == 1) == diverges
