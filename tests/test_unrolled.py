"""The leader that foresees k steps: its effective rewards against torch's own optimizer and whole gradients."""

import numpy as np
import pytest
import torch

from fpo import mlp, unrolled
from fpo.neural import Config

ADAM = {"lr": 0.01, "decay": 0.02}
CASES = range(6)


def drawn(case, count=7, d=3, width=5):
    """An RM, actions, and labels of one run, in double precision."""
    rng = torch.Generator().manual_seed(case)
    sizes = [(width, d), (width, width), (1, width)]
    kind = {"generator": rng, "dtype": torch.float64}
    layers = [(torch.randn(1, *size, **kind), torch.randn(1, size[0], **kind)) for size in sizes]
    return layers, torch.randn(1, count, d, **kind), 3 * torch.randn(1, count, **kind)


def module(layers):
    """The same RM as torch builds one."""
    parts = []
    for weight, bias in layers:
        linear = torch.nn.Linear(weight.shape[-1], weight.shape[-2], dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight[0].clone(), bias[0].clone()
        parts += [linear, torch.nn.Softplus()]
    return torch.nn.Sequential(*parts[:-1])


def trained(layers, batches):
    """torch's own Adam on weighted errors, a step for each batch: the RM after it."""
    model = module(layers)
    adam = torch.optim.Adam(model.parameters(), ADAM["lr"], weight_decay=ADAM["decay"])
    for y, labels, weights in batches:
        adam.zero_grad()
        (weights * (model(y[0])[:, 0] - labels[0]) ** 2).sum().backward()
        adam.step()
    return model


def warmed(layers, y, labels, steps=3):
    """The RM and Adam after some steps on other labels: moments are not zero, as in a game."""
    moments = unrolled.rest(layers)
    equal = torch.full_like(labels, 1 / labels.shape[1])
    for _ in range(steps):
        layers, moments = unrolled.adam_step(layers, moments, y + 0.3, labels - 1, equal, **ADAM)
    return layers, moments, [(y + 0.3, labels - 1, equal[0])] * steps


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_torch(case):
    layers, y, labels = drawn(case)
    after, moments, batches = warmed(layers, y, labels)
    there = torch.cat([part.flatten() for part in trained(layers, batches).parameters()])
    ours = torch.cat([part.flatten() for layer in after for part in layer])
    assert torch.allclose(ours, there, rtol=1e-10, atol=1e-12) and moments.steps == len(batches)


@pytest.mark.parametrize("horizon", [0, 1, 3, 10])
def test_an_effective_reward_is_the_slope_of_the_goal_through_the_steps(horizon):
    """Central differences in an action's weight, with torch's optimizer run anew at every point."""
    for case in CASES:
        layers, y, labels = drawn(case)
        now, moments, batches = warmed(layers, y, labels)
        equal = torch.full((y.shape[1],), 1 / y.shape[1], dtype=torch.float64)

        def total(weights, layers=layers, batches=batches, y=y, labels=labels):
            model = trained(layers, [*batches, *[(y, labels, weights)] * horizon])
            return float((weights * model(y[0])[:, 0]).sum().detach())

        step = 1e-5
        moves = step * torch.eye(len(equal), dtype=torch.float64)
        wanted = [(total(equal + move) - total(equal - move)) / (2 * step) for move in moves]
        ours = unrolled.effective_rewards(now, moments, y, labels, horizon, **ADAM)[0]
        assert np.allclose(ours, wanted, rtol=1e-5, atol=1e-6), case
        # The planted fault: what the action will be worth, without what it teaches.
        later = trained(layers, [*batches, *[(y, labels, equal)] * horizon])(y[0])[:, 0].detach()
        assert np.allclose(later, wanted, rtol=1e-3, atol=1e-3) == (horizon == 0)


@pytest.mark.parametrize("case", CASES)
def test_the_exact_leader_has_the_influence_of_a_dense_hessian(case):
    layers, y, labels = drawn(case)
    model = module(layers)
    rows = []
    for action in y[0]:
        slopes = torch.autograd.grad(model(action)[0], list(model.parameters()))
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    g, r = torch.stack(rows), mlp.reward(layers, y)[0]
    H = 2 / len(g) * g.T @ g + ADAM["decay"] * torch.eye(g.shape[1], dtype=torch.float64)
    influence = -torch.linalg.solve(H, (2 * (r - labels[0]))[:, None].mul(g).T)
    wanted = r + g.mean(0) @ influence
    ours = unrolled.effective_rewards(layers, unrolled.rest(layers), y, labels, "exact", **ADAM)[0]
    assert torch.allclose(ours, wanted, rtol=1e-7, atol=1e-8)


def test_the_leader_that_climbs_utility_reads_the_labels_alone():
    layers, y, labels = drawn(0)
    assert unrolled.effective_rewards(layers, unrolled.rest(layers), y, labels, "utility", **ADAM) is labels


SMALL = Config(
    seeds=(3, 4), arms=("standard",), outer_steps=30, new_samples=12, buffer_size=12, hidden=(6,), dimensions=4,
    precision="float64",
)  # fmt: skip


def test_leaders_of_a_seed_start_alike_and_a_run_does_not_depend_on_the_others():
    runs = {horizon: unrolled.simulate(SMALL, horizon) for horizon in (0, 2, "exact", "utility")}
    assert len({tuple(run[-1]) for run in runs.values()}) == len(runs)
    alone = unrolled.simulate(SMALL.replace(seeds=(4,)), 2)
    assert np.allclose(alone[:, 0], runs[2][:, 1], rtol=1e-9)
    assert runs["utility"][-1].mean() > runs["utility"][0].mean()


def test_the_placebo_permutes_what_is_foreseen_and_not_what_is_learned():
    """A leader without foresight reads no labels: permuted or not, it plays the same game."""
    same, placebo = (unrolled.simulate(SMALL, 0, permuted=each) for each in (False, True))
    assert np.array_equal(same, placebo)
    assert not np.allclose(unrolled.simulate(SMALL, 2), unrolled.simulate(SMALL, 2, permuted=True))


def test_more_steps_of_the_rm_are_another_game():
    assert not np.allclose(unrolled.simulate(SMALL, 0), unrolled.simulate(SMALL, 0, rm_steps=3))


@pytest.mark.parametrize("bad", [-1, 1001, 2.0, "far"])
def test_a_horizon_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"horizon = .*0 to 1,000"):
        unrolled.simulate(SMALL, bad)


def test_no_steps_of_the_rm_are_refused():
    with pytest.raises(ValueError, match=r"rm_steps = 0: .* 1 to 1,000"):
        unrolled.simulate(SMALL, 0, rm_steps=0)
