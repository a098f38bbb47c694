"""What a standard policy may climb in place of its RM's reward, and how far: against dense algebra and a plain loop."""

import numpy as np
import pytest
import slow.neural
import torch

from fpo import mlp, neural
from fpo.neural import Config

SMALL = {
    "arms": ["standard"], "hidden": [6, 5], "dimensions": 4, "buffer_size": 12, "inner_steps": 3, "outer_steps": 5,
    "precision": "float64", "initial_scale": 0.6,
}  # fmt: skip
CHANGES = {
    "several RM steps": {"rm_steps": 3},
    "replay": {"rm_steps": 2, "replay": 4},
    "refit": {"follower": "refit", "damping": 0.01},
    "labels": {"follower": "labels"},
    "trust": {"trust": 2.0},
    "trusted refit": {"follower": "refit", "damping": 0.01, "trust": 1.0, "gradient": "closed-form"},
    "trusted labels": {"follower": "labels", "trust": 1.0},
}


def drawn(case, runs=3, count=9, d=4):
    """RMs, labeled actions, labels and their weights (some 0), in float64."""
    rng = torch.Generator().manual_seed(case)
    kind = {"generator": rng, "dtype": torch.float64}
    sizes = [(6, d), (5, 6), (1, 5)]
    layers = [(torch.randn(runs, *size, **kind), torch.randn(runs, size[0], **kind)) for size in sizes]
    weights = torch.rand(count, **kind) * (torch.arange(count) < count - 2)
    return layers, torch.randn(runs, count, d, **kind), torch.randn(runs, count, **kind), weights / weights.sum()


@pytest.mark.parametrize("name", CHANGES)
def test_a_game_is_the_plain_loop(name):
    config = Config(seeds=[0, 5], **{**SMALL, **CHANGES[name]})
    home = Config(seeds=[0, 5], **SMALL)
    result, plain = neural.simulate(config), neural.simulate(home)
    for i, seed in enumerate(config.seeds):
        wanted = slow.neural.run(seed, "standard", config)
        np.testing.assert_allclose([result.utility[:, 0, i], result.reward[:, 0, i]], wanted[:2], rtol=1e-7)
    assert not np.allclose(result.reward, plain.reward, rtol=1e-4)


def flat(layers, y):
    """r (n,) and g (n, p) of one RM, by torch's own Jacobian."""
    shapes = [part.shape for layer in layers for part in layer]
    phi = torch.cat([part.flatten() for layer in layers for part in layer])

    def rewards(vector):
        parts = [p.view(s) for p, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)]
        return mlp.reward(list(zip(parts[::2], parts[1::2], strict=True)), y)

    return rewards(phi), torch.autograd.functional.jacobian(rewards, phi)


@pytest.mark.parametrize("case", range(5))
def test_a_refit_is_ridge_regression_on_the_gradients(case):
    layers, y, labels, weights = drawn(case)
    a = mlp.refit(layers, y, labels, weights, 0.3)
    x = y[:, :4] + 0.2
    added = (a.coefficients * mlp.kernel(mlp.factors(layers, x)[1], a.factors)).sum(-1)
    for run in range(len(y)):
        model = [(weight[run], bias[run]) for weight, bias in layers]
        r, g = flat(model, y[run])
        # Least squares with a row of its own for each parameter's ridge.
        rows = torch.cat([weights.sqrt()[:, None] * g, (0.3 / 2) ** 0.5 * torch.eye(g.shape[1], dtype=g.dtype)])
        wanted = torch.cat([weights.sqrt() * (labels[run] - r), torch.zeros(g.shape[1], dtype=g.dtype)])
        delta = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
        torch.testing.assert_close(added[run], flat(model, x[run])[1] @ delta, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize("case", range(3))
def test_the_labels_slope_is_least_squares_with_an_intercept(case, count):
    _, y, labels, weights = drawn(case, count=count + 2)
    found = neural.label_slope(y, labels, weights)
    for run in range(len(y)):
        x, u, w = (part[:count].numpy() for part in (y[run], labels[run], weights))
        design = np.sqrt(w)[:, None] * np.column_stack([x - w @ x, np.ones(count)])
        plane = np.linalg.lstsq(design, np.sqrt(w) * u, rcond=None)[0]
        np.testing.assert_allclose(found[run], plane[:-1], rtol=1e-8)


def test_with_weight_one_a_linear_utility_is_followed_one_standard_deviation():
    """A cloud of labels, and next to no spread of the policy's own: the penalized optimum, by repeated steps."""
    rng, lr = torch.Generator().manual_seed(1), 0.05
    y = torch.randn(30, 3, generator=rng).double() * torch.tensor([0.2, 0.5, 1.0])
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weights = torch.full((30,), 1 / 30, dtype=torch.float64)
    one = torch.ones(1, 1, 1).double()
    trust = neural.trust_region(y[None], (y @ slope)[None], weights, 1e-12 * one, lr * one)
    theta = y[None, :1]
    for _ in range(3000):
        theta = trust.mean + (theta + lr * slope - trust.mean) @ trust.shrink
    move, width = (theta - trust.mean)[0, 0], torch.cov(y.T, correction=0)
    assert float(move @ torch.linalg.solve(width, move)) == pytest.approx(1, rel=1e-6)
    assert float(move @ slope) == pytest.approx(float((y @ slope).std(correction=0)), rel=1e-6)


def test_what_is_kept_are_the_labels_that_the_reward_model_was_fitted_to():
    config = Config(seeds=[0, 5], **SMALL)
    result = neural.simulate(config, keep=[0, 1, 4])
    assert result.labeled("standard", 0).shape == (2, 0, 4) and result.labeled("standard", 1).shape == (2, 5, 4)
    last = result.labeled("standard", 4)
    assert last.shape == (2, 12, 4) and np.ptp(last, axis=1).min() > 0.05
    theta = result.of("standard", "actions")[1]
    # Five labels around the mean that iteration 1 had not reached yet: within a few standard deviations of it.
    assert np.abs(result.labeled("standard", 1).mean(1) - theta).max() < 1


@pytest.mark.parametrize("case", range(4))
def test_a_step_corrects_the_level_tilts_the_slope_and_mends_it_with_the_square_of_the_spread(case):
    """The mechanism chapter's two lines, by autograd through r = <phi, g + G (y - theta)> and a linear U."""
    rng = torch.Generator().manual_seed(case)
    d, p, sigma, eta = 3, 7, 0.3, 0.05
    g, big_g, phi = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((p,), (p, d), (p,)))
    value, steep = torch.randn((), generator=rng, dtype=torch.float64), torch.randn(d, generator=rng).double()
    corners = d**0.5 * torch.eye(d, dtype=torch.float64)
    eps = torch.cat([corners, -corners])  # mean 0, covariance I

    def loss(parameters):
        return ((g + sigma * eps @ big_g.T) @ parameters - value - sigma * eps @ steep).square().mean()

    free = phi.clone().requires_grad_()
    after = phi - eta * torch.autograd.grad(loss(free), free)[0]
    level, delta = g @ phi - value, big_g.T @ phi - steep
    mended = level - 2 * eta * (g @ g) * level - 2 * eta * sigma**2 * (big_g.T @ g) @ delta
    turned = delta - 2 * eta * sigma**2 * big_g.T @ big_g @ delta - 2 * eta * level * big_g.T @ g
    torch.testing.assert_close(g @ after - value, mended)
    torch.testing.assert_close(big_g.T @ after - steep, turned)
