"""Moved games and remedies: formulas against autograd, games against the plain loop, home as it was."""

from itertools import product

import numpy as np
import pytest
import slow.neural
import torch
from test_followers import SMALL, drawn, flat

from fpo import mlp, neural, remedies
from fpo.landscapes import Bell, Biased
from fpo.neural import Config, Stream
from fpo.parameters import ParameterError

MOVES = {
    "offset": {"offset": 1.5},
    "cost at the origin": {"offset": 3.0, "cost_center": "origin", "action_cost": 0.1},
    "start": {"start_distance": 2.0},
    "cost at the start": {"start_distance": 2.0, "cost_center": "start", "action_cost": 0.1},
    "noise target": {"noise_target": 1.0},
    "factors": {"sharpness_factors": [0.5, 1.5, 0.25, 4.0]},
    "two peaks": {"second_peak": True, "start_distance": 1.0},
    "label noise": {"label_noise": 0.7},
    "wide labels": {"wide_labels": 2, "label_spread": 5.0},
    "moved, labels": {"offset": 1.5, "follower": "labels", "trust": 1.0, "action_cost": 0.1},
}
REMEDIES = {
    "leverage": {"remedy_weight": 0.3},
    "bound": {},
    "bound around the refit": {"follower": "refit"},
    "fitted": {"remedy_weight": 0.5},
    "flat": {},
    "rotated": {"remedy_weight": 0.1},
    "mean": {"members": 3},
    "minimum": {"members": 3},
    "ensemble-bound": {"members": 3},
    "error": {"remedy_weight": 0.3},
    "spread": {"members": 3, "remedy_weight": 2.0},
    "held-out": {"remedy_weight": 0.3},
    "leave-one-out": {"remedy_weight": 0.03},
    "wall": {"remedy_weight": 0.03},
}
ORACLES = {
    "too high": {"oracle_level": 2.0},
    "tilted": {"oracle_tilt": 3.0, "through_oracle": ["relaxed", "exact"]},
    "at some steps": {"oracle_share": 0.4, "through_oracle": ["exact"]},
    "tilted, at the mean": {"oracle_tilt": 3.0, "oracle_level": -1.0, "utility_at": "mean"},
}


def same_as_the_plain_loop(changes):
    config = Config(seeds=[0, 5], **{**SMALL, **changes})
    result, home = neural.simulate(config), neural.simulate(Config(seeds=[0, 5], **SMALL))
    for i, seed in enumerate(config.seeds):
        found = result.utility[:, 0, i], result.reward[:, 0, i], result.noise[:, 0, i]
        np.testing.assert_allclose(found, slow.neural.run(seed, "standard", config), rtol=1e-6)
    assert not np.allclose(result.reward, home.reward, rtol=1e-4)


@pytest.mark.parametrize("name", MOVES)
def test_a_moved_game_is_the_plain_loop(name):
    same_as_the_plain_loop({"gradient": "closed-form", **MOVES[name]})


@pytest.mark.parametrize("name", REMEDIES)
def test_a_game_with_a_remedy_is_the_plain_loop(name):
    # One by autograd is enough: the remedies only call it.
    kind = {"gradient": "autograd" if name == "leverage" else "closed-form", "damping": 0.01}
    same_as_the_plain_loop({**kind, "remedy": name.split(" ")[0], **REMEDIES[name]})


@pytest.mark.parametrize("gradient", ["autograd", "closed-form"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_game_with_an_oracle_that_errs_or_is_silent_is_the_plain_loop(name, gradient):
    kind = {**SMALL, "arms": neural.ARMS, "gamma_relaxed": 0.2, "gamma_practical": 0.1, "damping": 0.01}
    true = Config(seeds=[0, 5], gradient=gradient, **kind)
    config = true.replace(**ORACLES[name])
    result, other = neural.simulate(config), neural.simulate(true)
    for (a, arm), (i, seed) in product(enumerate(config.arms), enumerate(config.seeds)):
        found = result.utility[:, a, i], result.reward[:, a, i], result.noise[:, a, i]
        np.testing.assert_allclose(found, slow.neural.run(seed, arm, config), rtol=1e-6)
    reads = [arm in ("relaxed", "exact") for arm in config.arms]
    same = [np.array_equal(result.reward[:, a], other.reward[:, a]) for a in range(len(reads))]
    assert same == [not each for each in reads]


def test_an_oracle_that_is_too_low_is_the_relaxed_penalty_and_some_of_the_practical_one():
    config = Config(seeds=[3, 4], **{**SMALL, "arms": ["relaxed"]}, gamma_relaxed=0.2, oracle_level=-0.7)
    model = Stream(3, config).reward_model()
    y = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(1)).double()
    layers = [(weight[None].double(), bias[None].double()) for weight, bias in model]
    one = torch.ones(1, 1).double()
    true = mlp.Objective(0 * one, 0.2 * one, 0 * one, None, config.landscape().like(y))
    low = true._replace(utility=Biased(true.utility, -0.7, torch.zeros(4).double()))
    both = true._replace(norm_weight=0.2 * 0.7 * one)
    here = [mlp.gradient_in_closed_form(layers, y, None, each) for each in (low, both, true)]
    torch.testing.assert_close(here[0], here[1], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(here[0], here[2], rtol=1e-3)


@pytest.mark.parametrize("case", range(5))
def test_what_was_left_out_is_missed_to_first_order(case):
    """1 / (1 - h_i) = 1 + (2 / n) g_i^T H^-1 g_i with the Hessian of the other labels."""
    layers, y, labels, _ = drawn(case)
    even, ridge = torch.full((9,), 1 / 9).double(), 0.3
    found = remedies.left_out(layers, y, labels, even, ridge)
    for run in range(3):
        r, g = flat([(weight[run], bias[run]) for weight, bias in layers], y[run])
        for i in range(9):
            others = [j for j in range(9) if j != i]
            hessian = 2 / 9 * g[others].T @ g[others] + ridge * torch.eye(g.shape[1]).double()
            width = 2 / 9 * g[i] @ torch.linalg.solve(hessian, g[i])
            torch.testing.assert_close(found[run, i], (r[i] - labels[run, i]) * (1 + width), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("route", [mlp.gradient_by_autograd, mlp.gradient_in_closed_form])
def test_a_wall_turns_the_slope_round(route):
    layers, y, _, _ = drawn(4)
    zero, at = torch.zeros(3, 1).double(), y[:, :1]
    plain = mlp.Objective(zero, zero, zero, None, Bell(np.zeros(4), 1.0, 0.1))
    weight = torch.tensor([0.1, 1.0, 10.0]).double()[:, None, None]
    found = remedies.gradient("wall", weight, route, None, False, torch.empty(0), 1)(layers, at, None, plain)
    norms = mlp.gradient_norms(mlp.factors(layers, at)[1])[..., None]
    torch.testing.assert_close(found, (1 - weight * norms) * route(layers, at, None, plain))


def test_a_permuted_error_is_the_next_seeds():
    layers, y, _, _ = drawn(2, runs=6)
    at = y[:, :1]
    zero = torch.zeros(6, 1).double()
    plain = mlp.Objective(zero, zero, zero, None, Bell(np.zeros(4), 1.0, 0.1))
    errors = remedies.estimate("error", 1, 3)(layers, at, plain)
    found = remedies.estimate("permuted", 1, 3)(layers, at, plain)
    torch.testing.assert_close(found[[0, 1, 2, 3, 4, 5]], errors[[1, 2, 0, 4, 5, 3]])
    weight, over = torch.full((6, 1, 1), 0.4, dtype=torch.float64), remedies.estimate("permuted", 1, 3)
    pull = remedies.gradient("permuted", weight, mlp.gradient_in_closed_form, None, False, torch.empty(0), 1, over)
    held = pull(layers, at, None, plain)
    for run in range(6):
        model = [(weight[run], bias[run]) for weight, bias in layers]

        def value(x, model=model, run=run):
            return mlp.reward(model, x)[0] - 0.4 * found[run, 0] * mlp.gradient_norms(mlp.factors(model, x)[1])[0]

        torch.testing.assert_close(held[run], slopes(value, at[run]), rtol=1e-9, atol=1e-11)


def test_home_written_out_is_home_to_the_last_bit():
    written = {
        "offset": 0.0, "start_distance": 0.0, "noise_target": 0.0, "sharpness_factors": [], "second_peak": False,
        "cost_center": "zero", "remedy": "none", "members": 1, "label_noise": 0.0, "wide_labels": 0,
        "oracle_level": 0.0, "oracle_tilt": 0.0, "oracle_share": 1.0,
    }  # fmt: skip
    here = neural.simulate(Config(seeds=[0], outer_steps=12, **written)).reward
    there = Config(seeds=[0], outer_steps=12)
    assert isinstance(there.landscape(), Bell) and not there.start().any()
    assert np.array_equal(here, neural.simulate(there).reward)
    # All centers coincide at home, and the arithmetic with a center of 0 is skipped.
    for center in ("start", "origin"):
        assert np.array_equal(here, neural.simulate(there.replace(cost_center=center)).reward)
    # The penalized arms of a game that starts elsewhere differ: nothing above was compared with itself.
    assert not np.array_equal(here, neural.simulate(there.replace(offset=0.01)).reward)


@pytest.mark.parametrize("name", ["start", "offset"])
def test_a_seed_starts_where_its_variant_says(name):
    config = Config(seeds=[3, 4], outer_steps=1, inner_steps=1, policy_lr=0.0, policy_lr_end=0.0, **MOVES[name])
    result = neural.simulate(config, keep=[0])
    first = result.of("standard", "actions")[0] - config.offset
    wanted = MOVES[name].get("start_distance", 0.0)
    np.testing.assert_allclose(np.linalg.norm(first, axis=-1), wanted, atol=1e-6)
    assert np.all(first[:, :2] == 0) and (not wanted or abs(first[0] @ first[1]) < 3.9)
    for i in range(2):
        alone = neural.simulate(config.replace(seeds=[config.seeds[i]]), keep=[0])
        assert np.array_equal(alone.of("standard", "actions")[0][0], result.of("standard", "actions")[0][i])


def slopes(function, y):
    """The gradient of a function of one action at each row, by autograd."""
    y = y.clone().requires_grad_()
    return torch.autograd.grad(function(y), y)[0]


def penalized(model, w, hessian, delta, scale, pull):
    """The penalized rewards, by dense algebra, as functions of one action (1, d)."""

    def g(x):
        parts = mlp.factors(model, x)[1]
        return torch.cat([part for d, a in parts for part in ((d.mT @ a).flatten(), d[0])])

    def reward(x):
        return mlp.reward(model, x)[0]

    def width(x):
        return g(x) @ torch.linalg.solve(hessian, g(x))

    return {
        "leverage": lambda x: reward(x) - w * width(x),
        "bound": lambda x: reward(x) + delta @ g(x) - w * (scale * width(x)).sqrt(),
        "fitted": lambda x: reward(x) + 2 * w * (delta @ g(x)) * (pull @ g(x)),
    }


def steepness(model, x):
    return slopes(lambda y: mlp.reward(model, y)[0], x).square().sum()


@pytest.mark.parametrize("case", range(5))
def test_each_direction_is_the_penaltys_gradient(case):
    layers, y, labels, _ = drawn(case)
    weights = (torch.arange(9) < 7).double() / 7
    ridge, w = 0.3, 0.8
    at, theta = torch.randn(3, 1, 4).double(), torch.randn(3, 1, 4).double()
    known = remedies.answers(layers, y, labels, weights, ridge)
    zero = torch.zeros(3, 1).double()
    plain = mlp.Objective(zero, zero, zero, None, Bell(np.zeros(4), 1.0, 0.1))
    found = {
        name: remedies.gradient(
            name, torch.full((3, 1, 1), w).double(), mlp.gradient_in_closed_form, known, refitted, torch.empty(0), 1
        )(layers, at, at - theta, plain)
        for name, refitted in (("leverage", False), ("bound", True), ("fitted", False))
    }
    found["flat"] = remedies.flatness(layers, at)
    for run in range(3):
        model = [(weight[run], bias[run]) for weight, bias in layers]
        r, g = flat(model, y[run, :7])
        hessian = 2 / 7 * g.T @ g + ridge * torch.eye(g.shape[1]).double()
        errors = labels[run, :7] - r
        delta = torch.linalg.solve(hessian, 2 / 7 * g.T @ errors)
        scale = errors @ torch.linalg.solve(g @ g.T + 7 * ridge / 2 * torch.eye(7).double(), errors) / 7
        pull = torch.linalg.solve(hessian, flat(model, theta[run])[1][0])

        wanted = penalized(model, w, hessian, delta, scale * ridge, pull)
        for name, function in wanted.items():
            torch.testing.assert_close(found[name][run], slopes(function, at[run]), rtol=1e-7, atol=1e-8)
        h = 1e-5
        steps = [
            (steepness(model, at[run] + h * e) - steepness(model, at[run] - h * e)) / (2 * h) for e in torch.eye(4)
        ]
        torch.testing.assert_close(found["flat"][run, 0], torch.stack(steps), rtol=1e-5, atol=1e-6)


def test_the_scale_of_the_prior_is_the_one_of_most_likelihood():
    layers, y, labels, _ = drawn(1)
    known = remedies.answers(layers, y, labels, torch.full((9,), 1 / 9).double(), 0.3)
    for run in range(3):
        r, g = flat([(weight[run], bias[run]) for weight, bias in layers], y[run])
        width = g @ g.T + 9 * 0.3 / 2 * torch.eye(9).double()

        def likelihood(scale, r=r, width=width, run=run):
            return torch.distributions.MultivariateNormal(r, scale * width).log_prob(labels[run])

        best = float(known.scale[run])
        assert likelihood(best) > max(likelihood(0.99 * best), likelihood(1.01 * best))


@pytest.mark.parametrize("case", range(4))
def test_an_ensembles_slope_is_that_of_its_value(case):
    rewards = torch.randn(4, 3, generator=torch.Generator().manual_seed(case), dtype=torch.float64)
    kinds = {
        "mean": lambda r: r.mean(0),
        "minimum": lambda r: r.min(0).values,
        "ensemble-bound": lambda r: r.mean(0) - 0.7 * r.std(0, correction=0),
    }
    for kind, value in kinds.items():
        wanted = slopes(lambda r, value=value: value(r).sum(), rewards)
        torch.testing.assert_close(remedies.shares(rewards, kind, torch.tensor([0.7] * 3)), wanted)
    even = torch.ones(4, 3).double()
    assert remedies.shares(even, "ensemble-bound", torch.tensor([0.7] * 3)).equal(even / 4)


def test_a_rotation_keeps_lengths_and_differs_from_seed_to_seed():
    turn = remedies.rotations((0, 1), 5)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(5).double().expand(2, 5, 5))
    assert (turn[0] - turn[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"remedy": "bound"},
        {"arms": ["standard"], "remedy": "fitted", "follower": "refit"},
        {"arms": ["standard"], "remedy": "bound", "follower": "labels"},
        {"arms": ["standard"], "remedy": "mean"},
        {"members": 2},
        {"sharpness_factors": [1.0]},
        {"dimensions": 1, "signal_dimensions": 1, "second_peak": True},
        {"arms": ["standard"], "remedy": "leverage", "rm_decay": 0.0},
        {"arms": ["standard"], "remedy": "leave-one-out", "rm_decay": 0.0},
        {"arms": ["standard"], "remedy": "spread"},
        {"oracle_share": 1.5},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong):
    with pytest.raises(ParameterError):
        Config(**wrong)


def test_an_interrupted_ensemble_goes_on_to_the_same_numbers(tmp_path):
    config = Config(seeds=[0, 5], **{**SMALL, "remedy": "minimum", "members": 3, "outer_steps": 8})
    whole = neural.simulate(config, keep=[7])
    play = neural.Play([config], (7,), neural.games.first_actions(config.start(), 1, 2, 4), resumed=False)
    with torch.no_grad():
        for t in range(4):
            play.iteration(t)
        state = play.state(3) | {"record": torch.from_numpy(play.record)}
        later = neural.Play([config], (7,), neural.games.first_actions(config.start(), 1, 2, 4), resumed=True)
        later.load(state)
        for t in range(4, 8):
            later.iteration(t)
    result = later.result(0, 0.0)
    assert np.array_equal(result.utility, whole.utility) and np.array_equal(result.actions, whole.actions)
    assert result.reward_models[0][0].shape == (1, 1, 2, 6, 4)


TOGETHER = {
    "all arms": {"arms": neural.ARMS, "gradient": "closed-form"} | {
        "WEIGHTS": {"gamma_relaxed": 0.1, "gamma_practical": 0.2, "gamma_exact": 0.5, "action_cost": 0.3}
    },
    "spread": {"WEIGHTS": {"sigma": 0.4, "sigma_end": 0.1, "label_spread": 2.0}, "label_noise": 0.3, "wide_labels": 2},
    "trust": {"WEIGHTS": {"trust": 3.0, "sigma": 0.3}, "trust": 1.0},
    "oracle": {"arms": ("relaxed", "exact"), "gradient": "closed-form", "oracle_share": 0.4} | {
        "WEIGHTS": {"oracle_level": 2.0, "oracle_tilt": 1.0}
    },
    "labels": {"WEIGHTS": {"trust": 3.0, "action_cost": 0.3}, "trust": 1.0, "follower": "labels"},
} | {
    remedy: {"WEIGHTS": {"remedy_weight": 0.3}, "remedy": remedy, "members": 1 + 2 * (remedy in remedies.SEVERAL)}
    for remedy in (
        *("leverage", "bound", "fitted", "flat", "rotated", "ensemble-bound"),
        *("error", "permuted", "spread", "held-out", "leave-one-out", "wall"),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", TOGETHER)
def test_games_at_once_are_what_each_is_alone(name):
    changes = TOGETHER[name].copy()
    others = changes.pop("WEIGHTS")
    first = Config(seeds=[0, 5], **{**SMALL, **changes})
    configs = [first, first.replace(**others), first]
    found = neural.simulate_each(configs, keep=[4])
    for each, result in zip(configs, found, strict=True):
        alone = neural.simulate(each, keep=[4])
        assert result.config == each
        for what in ("utility", "reward", "signal", "noise", "actions", "buffers"):
            np.testing.assert_allclose(getattr(result, what), getattr(alone, what), rtol=1e-6, atol=1e-9)
        for ours, theirs in zip(result.reward_models, alone.reward_models, strict=True):
            np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-8)  # Adam blows rounding up
    for arm in range(len(first.arms)):
        assert not np.allclose(found[0].reward[:, arm], found[1].reward[:, arm], rtol=1e-5)


def test_rivals_of_the_standard_arm_are_one_batch_with_it():
    """The practical arm without a weight is the standard one, beside which an action cost and a penalty can stand."""
    first = Config(seeds=[0, 5], gradient="closed-form", gamma_practical=0.0, **{**SMALL, "arms": ["practical"]})
    games = [first, first.replace(action_cost=0.3), first.replace(gamma_practical=0.2)]
    for found, each in zip(neural.simulate_each(games), games, strict=True):
        alone = neural.simulate(each.replace(arms=["practical" if each.gamma_practical else "standard"]))
        np.testing.assert_allclose(found.utility, alone.utility, rtol=1e-9)
        np.testing.assert_allclose(found.reward, alone.reward, rtol=1e-9)


def test_games_at_once_go_on_to_the_same_numbers(tmp_path, monkeypatch):
    first = Config(seeds=[0, 5], **{**SMALL, "outer_steps": 8})
    configs = [first, first.replace(action_cost=0.5)]
    whole = neural.simulate_each(configs)
    played = neural.Play.iteration

    def until(play, t):
        if t == 5:
            raise KeyboardInterrupt
        played(play, t)

    with monkeypatch.context() as patch:
        patch.setattr(neural.Play, "iteration", until)
        with pytest.raises(KeyboardInterrupt):
            neural.simulate_each(configs, (), tmp_path)
    assert [path.name for path in tmp_path.glob("*.pt")] == [neural.checkpoint_name(configs)]
    gone_on = []
    monkeypatch.setattr(neural.Play, "iteration", lambda play, t: (gone_on.append(t), played(play, t)))
    for ours, theirs in zip(neural.simulate_each(configs, (), tmp_path), whole, strict=True):
        np.testing.assert_array_equal(ours.utility, theirs.utility)
    assert gone_on == [5, 6, 7]


@pytest.mark.parametrize("changes", [{"rm_lr": 0.5}, {"seeds": [0]}, {"trust": 1.0}, {"label_noise": 0.5}, None])
def test_games_that_differ_in_more_than_weights_are_refused(changes):
    first = Config(seeds=[0, 5], **SMALL)
    with pytest.raises(ValueError, match="differ in nothing but action_cost, "):
        neural.simulate_each([] if changes is None else [first, first.replace(**changes)])
