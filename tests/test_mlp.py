"""Batched MLP reward models: each closed form against autograd, finite differences and dense algebra."""

import numpy as np
import pytest
import slow
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fpo import mlp, steering
from fpo.landscapes import Bell

softplus = torch.nn.functional.softplus


def exact_softplus(x):
    """torch's own is the identity beyond 20, so that a sigmoid is not quite its slope."""
    return torch.logaddexp(x, torch.zeros_like(x))


@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 6), min_size=0, max_size=3),
    inputs=st.integers(1, 5),
    batch=st.sampled_from([(), (3,), (2, 2)]),
)
@settings(max_examples=40)
def test_mlp_factors_are_torch_func(seed, widths, inputs, batch):
    """Rewards, gradients, their norms and products, for one MLP and for batches of them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *widths, 1]
    layers = [
        (
            torch.randn(*batch, b, a, generator=generator, dtype=torch.float64),
            torch.randn(*batch, b, generator=generator, dtype=torch.float64),
        )
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    x = torch.randn(*batch, 6, inputs, generator=generator, dtype=torch.float64)

    def value(parameters, row):
        for weight, bias in parameters[:-1]:
            row = exact_softplus(weight @ row + bias)
        return (parameters[-1][0] @ row + parameters[-1][1])[0]

    over, of_batch = torch.func.vmap(torch.func.grad_and_value(value), (None, 0)), [(0, 0)] * len(layers)
    for _ in batch:
        over = torch.func.vmap(over, (of_batch, 0))
    slow, values = over(layers, x)
    slow = torch.cat([part.flatten(len(batch) + 1) for pair in slow for part in pair], -1)
    rewards, factors = mlp.factors(layers, x, exact_softplus, torch.sigmoid)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(rewards, values, **close)
    torch.testing.assert_close(mlp.gradient_norms(factors), slow.square().sum(-1), **close)
    torch.testing.assert_close(mlp.kernel(factors, factors), slow @ slow.mT, **close)
    for (weight, _), (delta, a), start in zip(layers, factors, offsets(layers), strict=True):
        matrix = slow[..., start : start + weight.shape[-2] * weight.shape[-1]]
        torch.testing.assert_close((delta[..., None] * a[..., None, :]).flatten(-2), matrix, **close)


def offsets(layers):
    """Where each layer's weight begins in a flat gradient."""
    start = 0
    for weight, _ in layers:
        yield start
        start += weight.shape[-2] * (weight.shape[-1] + 1)


def test_mlp_with_two_outputs_is_refused():
    with pytest.raises(ValueError, match="2 outputs"):
        mlp.factors([(torch.ones(2, 3), torch.ones(2))], torch.ones(1, 3), torch.tanh, torch.tanh)


def steepest(layers, x):
    """The largest argument of an activation."""
    found = []
    for weight, bias in layers[:-1]:
        found.append(x @ weight.mT + bias[:, None])
        x = softplus(found[-1])
    return max(float(z.max()) for z in found)


@st.composite
def games(draw):
    """Random reward models, an action for each, an objective of every kind and a direction or none, in float64."""
    hidden = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    d, runs, n = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    widths = [d, *hidden, 1]
    layers = [(normal(runs, b, a, scale=0.7), normal(runs, b)) for a, b in zip(widths, widths[1:], strict=False)]
    through = draw(st.sampled_from([None, True]))
    objective = mlp.Objective(
        cost=normal(runs, 1).abs(),
        error_weight=normal(runs, 1),
        norm_weight=normal(runs, 1),
        through_oracle=None if through is None else torch.rand(runs, 1, generator=generator) < 0.5,
        utility=Bell(normal(d), draw(st.floats(0.5, 10)), draw(st.floats(0.05, 1))),
        center=normal(runs, 1, d) if draw(st.booleans()) else None,
    )
    labeled = normal(runs, n, d) if draw(st.booleans()) else None
    offset = normal(runs, 1, d, scale=0.1) if draw(st.booleans()) else None
    y = normal(runs, 1, d)
    # Above 20 torch's softplus is its argument, with derivative 1: 2e-9 away from the closed form's sigmoid.
    assume(max(steepest(layers, x) for x in (y, y if offset is None else y - offset, labeled) if x is not None) < 20)
    if labeled is None:
        return layers, y, offset, objective, None
    hessian = mlp.gauss_newton(layers, labeled, torch.full((n,), 1 / n).double(), 0.1)
    return layers, y, offset, objective, mlp.inverse_times_gradient(layers, y + 0.1, hessian)


@given(games())
@settings(max_examples=150)
def test_closed_form_gradient_is_autograd(game):
    layers, y, offset, objective, a = game
    fast = mlp.gradient_in_closed_form(layers, y, offset, objective, a)
    wanted = mlp.gradient_by_autograd(layers, y, offset, objective, a)
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(fast / scale, wanted / scale, rtol=0, atol=1e-11)


@given(games())
@settings(max_examples=60)
def test_autograd_gradient_is_the_central_difference_of_the_stated_objective(game):
    layers, y, offset, objective, direction = game
    ours = mlp.gradient_by_autograd(layers, y, offset, objective, direction)
    if direction is not None:
        c = direction.coefficients
        direction = [(((c.mT * d).mT @ a), (c @ d)[:, 0]) for d, a in direction.factors]

    for run in range(len(y)):
        model = [(weight[run], bias[run]) for weight, bias in layers]
        held = y[run, 0] - (0 if offset is None else offset[run, 0])
        free = objective.through_oracle is not None and bool(objective.through_oracle[run])

        def value(x, run=run, model=model, held=held, free=free):
            x = torch.from_numpy(np.array(x))
            parts = [part.clone().requires_grad_() for layer in model for part in layer]
            with torch.enable_grad():
                h = x
                for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
                    h = softplus(weight @ h + bias)
                r = (parts[-2] @ h + parts[-1])[0]
                g = torch.autograd.grad(r, parts)
            if direction is None:
                m = sum(float(part.square().sum()) for part in g)
            else:
                flat = [part[run] for layer in direction for part in layer]
                m = sum(float((part * v).sum()) for part, v in zip(g, flat, strict=True))
            at = x - (y[run, 0] - held) if free else held
            bell = objective.utility
            u = bell.scale * np.exp(-bell.sharpness * float((at - bell.center).square().sum()))
            cost, alpha, beta = (float(part[run]) for part in objective[:3])
            r = float(r.detach())
            away = x if objective.center is None else x - objective.center[run, 0]
            return r - cost * float(away @ away) - (alpha * (r - u) + beta) * m

        wanted = slow.differences(value, y[run, 0].numpy(), 1e-5, central=True)
        np.testing.assert_allclose(ours[run, 0], wanted, atol=2e-6 * max(1.0, np.abs(wanted).max()), rtol=0)


@given(games(), st.integers(1, 8))
@settings(max_examples=80)
def test_direction_is_a_dense_solve_and_gives_the_influence(game, n):
    """a = H^-1 g(theta), and -<a, grad loss> is the exact penalty with g_bar = g(theta)."""
    layers, theta, *_ = game
    y = theta + torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    weights, ridge = torch.full((n,), 1 / n, dtype=torch.float64), 0.05
    direction = mlp.inverse_times_gradient(layers, theta, mlp.gauss_newton(layers, y, weights, ridge))

    def flat(points):
        r, factors = mlp.factors(layers, points)
        rows = [torch.cat([(d[..., None] * a[..., None, :]).flatten(-2), d], -1) for d, a in factors]
        return r, torch.cat(rows, -1)

    rewards, g = flat(y)
    hessian = 2 * g.mT @ (weights[:, None] * g) + ridge * torch.eye(g.shape[-1], dtype=torch.float64)
    mean = flat(theta)[1]
    expected = torch.linalg.solve(hessian, mean.mT).mT
    rows = [(direction.coefficients.mT * d, a) for d, a in direction.factors]
    found = torch.cat([torch.cat([(d.mT @ a).flatten(1), d.sum(1)], 1) for d, a in rows], 1)[:, None]
    scale = expected.abs().amax()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-9)

    slopes = 2 * (rewards - 1.0)[..., None] * g
    for solver in (
        steering.dense_solver(hessian),
        steering.gram_solver(g, 2 * weights.expand(len(g), n), ridge),
    ):
        penalty = steering.exact_penalty(mean[:, 0], steering.influence(slopes, solver))
        ours = -(slopes @ found.mT)[..., 0]
        torch.testing.assert_close(ours, penalty, rtol=1e-7, atol=1e-7 * float(penalty.abs().max()))


@given(games())
@settings(max_examples=40)
def test_rm_gradient_is_the_one_through_the_factors(game):
    layers, y, *_ = game
    y = y + torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    labels, weights = torch.sin(3 * y.sum(-1)), torch.tensor([0.5, 0.25, 0.25, 0.0, 0.0], dtype=torch.float64)
    r, factors = mlp.factors(layers, y)
    slope = (2 * weights * (r - labels))[..., None]
    for ours, (d, a) in zip(mlp.rm_gradient(layers, y, labels, weights), factors, strict=True):
        torch.testing.assert_close(ours[0], (slope * d).mT @ a)
        torch.testing.assert_close(ours[1], (slope * d).sum(-2))


def test_one_run_whose_matrix_has_no_factor_diverges_alone():
    layers = [(torch.ones(2, 1, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))]
    y = torch.tensor([[[1.0], [2.0]], [[1.0], [torch.nan]]], dtype=torch.float64)
    hessian = mlp.gauss_newton(layers, y, torch.full((2,), 0.5, dtype=torch.float64), 0.1)
    assert torch.isfinite(hessian.inverse[0]).all() and torch.isnan(hessian.inverse[1]).all()
