"""Remedies for the neural game: what a policy climbs in place of, or beside, its reward model's reward.

Of R runs, with labeled actions y (R, n, d), labels (R, n) and their weights (n,). Each remedy has at most one weight,
written w. With the RM r, g(y) = grad_phi r(y), the Hessian H of the RM's loss on the buffer (`mlp.GaussNewton`) and the
refit's answer f(y) = <a_f, g(y)>, which is what the buffer's labels would add to r (`mlp.refit`):

    leverage         r - w g^T H^-1 g
    bound            r - w s,  s^2 = c rm_decay g^T H^-1 g: the posterior deviation in the model linear in phi
    fitted           r + 2 w f <a, g>,  a = H^-1 g(theta): the exact penalty with U read off the refit, U = r + f
    flat             r - w |grad_y r|^2
    rotated          r with the slope of -w |g|^2 turned by a rotation of each run's own: as large, and no help
    mean             the mean of `members` RMs with the same labels and other first weights
    minimum          their minimum
    ensemble-bound   their mean less w of their standard deviations

and, with an estimate o of the RM's overconfidence r - U that is held constant in a policy step, r - w o |g|^2:

    error            o = r - U itself, at the action
    permuted         that of the next seed's run: as large, and of no use
    spread           the standard deviation of `members` RMs' rewards at the action
    held-out         the mean of r - label over the newest labels, before the RM was fitted to them
    leave-one-out    the mean of (r - label) / (1 - h) over them, with the leverage h of each among all labels

and one that holds nothing but r constant, r - w (r - r_held) |g|^2, with the slope (1 - w |g|^2) grad r:

    wall             the relaxed penalty with the RM in the oracle's place: it turns round where |g|^2 = 1 / w

Beside them are the trust region (`Trust`) and the labels' own slope (`label_slope`). The penalties are those of
Gauthier, Bach and Jordan 2026 (arXiv:2605.04266) in another metric (leverage) or with a stand-in for U (fitted).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from fpo import mlp
from fpo.mlp import Direction, Factors, GaussNewton, Layers, Objective

Ensemble = Literal["mean", "minimum", "ensemble-bound"]
Remedy = Literal[
    "none", "leverage", "bound", "fitted", "flat", "rotated", "mean", "minimum", "ensemble-bound",
    "error", "permuted", "spread", "held-out", "leave-one-out", "wall",
]  # fmt: skip
ENSEMBLES: tuple[Ensemble, ...] = get_args(Ensemble)
ESTIMATES = ("error", "permuted", "spread", "held-out", "leave-one-out")
SEVERAL = (*ENSEMBLES, "spread")  # those that have members
SOLVED = ("leverage", "bound", "fitted")  # those that ask H
Gradient = Callable[..., torch.Tensor]
Estimate = Callable[[Layers, torch.Tensor, Objective], torch.Tensor]


class Trust(NamedTuple):
    """A penalty (weight s / 2) (theta - m)^T S^-1 (theta - m) of R runs: what a Gaussian KL to the labels depends on.

    m (R, 1, d) is the labeled actions' mean, S their covariance plus the policy's own sigma^2 I, and s the labels'
    standard deviation. With weight 1, and where sigma adds little to S, the best move for a U that is linear over the
    labels is one standard deviation of the labeled actions, (theta - m)^T S^-1 (theta - m) = 1. A policy step ends with
    the penalty's proximal step, theta <- m + (theta - m) `shrink`, shrink (R, d, d) = S (S + lr weight s I)^-1.
    """

    mean: torch.Tensor
    shrink: torch.Tensor


def trust_region(
    y: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor
) -> Trust:
    """`Trust` around R buffers: y (R, n, d), labels (R, n), sample_weights (n,).

    `variance` is the policy's sigma^2, and `weight` lr times the penalty's: (R, 1, 1) each.
    """
    mean = (sample_weights[:, None] * y).sum(1, keepdim=True)
    away = y - mean
    eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    covariance = (sample_weights[:, None] * away).mT @ away + variance * eye
    middle = (sample_weights * labels).sum(-1, keepdim=True)
    deviation = (sample_weights * (labels - middle).square()).sum(-1).sqrt()
    return Trust(mean, torch.linalg.solve(covariance + weight * deviation[..., None, None] * eye, covariance))


def label_slope(y: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor) -> torch.Tensor:
    """Slope (R, d) of the weighted linear regression, with intercept, of labels on their actions; no RM is asked.

    Where the actions leave directions open, the shortest slope that fits best. Shapes as in `trust_region`.
    """
    root = sample_weights.sqrt()
    away = root[:, None] * (y - (sample_weights[:, None] * y).sum(1, keepdim=True))
    rise = root * (labels - (sample_weights * labels).sum(-1, keepdim=True))
    return (torch.linalg.pinv(away) @ rise[..., None])[..., 0]


class Answers(NamedTuple):
    """What a buffer says in the model that is linear in phi: H, the refit's coefficients (R, 1, n), and c (R, 1, 1).

    c is the scale of the prior. Before its labels, let the change of phi be normal with covariance c I and the labels'
    noise have variance c n rm_decay / 2, so that `mlp.refit` is the posterior's mean. The likelihood of the n errors
    e = labels - r is then largest at c = e^T (K + n rm_decay / 2 I)^-1 e / n: the run's own errors set the scale.
    """

    hessian: GaussNewton
    fit: torch.Tensor
    scale: torch.Tensor


def answers(
    layers: Layers, y: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor, ridge: float
) -> Answers:
    """`Answers` of R buffers, in which equal weights mark the labels and 0 the free rows."""
    hessian = mlp.gauss_newton(layers, y, sample_weights, ridge)
    errors = (labels - mlp.reward(layers, y))[:, None]
    fit = errors @ hessian.inverse
    return Answers(hessian, fit, (fit * errors).sum(-1, keepdim=True) / (sample_weights > 0).sum())


def leverage(layers: Layers, y: torch.Tensor, hessian: GaussNewton, weight: torch.Tensor) -> Direction:
    """The a, held, with which <a, g> has the slope of -weight g^T H^-1 g at y (R, 1, d): a = -2 weight H^-1 g(y)."""
    a = mlp.inverse_times_gradient(layers, y, hessian)
    return a._replace(coefficients=-2 * weight * a.coefficients)


def bound(layers: Layers, y: torch.Tensor, known: Answers, weight: torch.Tensor, refitted: bool) -> Direction:
    """The same for -weight s, and for f - weight s if `refitted`; see the module for s.

    With v = g^T H^-1 g, grad s = (c rm_decay / v)^(1/2) grad <H^-1 g(y), g>.
    """
    a = mlp.inverse_times_gradient(layers, y, known.hessian)
    v = (a.coefficients * mlp.kernel(_last(a.factors), a.factors)).sum(-1, keepdim=True)
    slope = (known.scale * known.hessian.ridge / v.clamp_min(torch.finfo(v.dtype).tiny)).sqrt()
    mean = _wider(known.fit) if refitted else 0.0
    return a._replace(coefficients=mean - weight * slope * a.coefficients)


def fitted(layers: Layers, y: torch.Tensor, theta: torch.Tensor, known: Answers, weight: torch.Tensor) -> Direction:
    """The same for 2 weight f(y) <a, g(y)>, a = H^-1 g(theta): the product rule."""
    a = mlp.inverse_times_gradient(layers, theta, known.hessian)
    k = mlp.kernel(mlp.factors(layers, y)[1], a.factors)
    fit = _wider(known.fit)
    over, pull = ((c * k).sum(-1, keepdim=True) for c in (fit, a.coefficients))
    return a._replace(coefficients=2 * weight * (pull * fit + over * a.coefficients))


def _last(factors: Factors) -> Factors:
    return [(d[:, -1:], x[:, -1:]) for d, x in factors]


def _wider(coefficients: torch.Tensor) -> torch.Tensor:
    """With a 0 for the row that `mlp.GaussNewton` keeps free."""
    return torch.cat([coefficients, torch.zeros_like(coefficients[..., :1])], -1)


def flatness(layers: Layers, y: torch.Tensor) -> torch.Tensor:
    """grad_y |grad_y r(y)|^2, (R, 1, d): twice the RM's Hessian in y times its slope."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(mlp.reward(layers, y).sum(), y, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), y)[0]


def rotations(seeds: tuple[int, ...], d: int) -> torch.Tensor:
    """A random orthogonal matrix for each seed, (seeds, d, d), uniform: Q of a normal matrix, with signs of R's."""
    found = [np.linalg.qr(np.random.RandomState(seed).normal(size=(d, d))) for seed in seeds]
    return torch.from_numpy(np.stack([q * np.sign(np.diagonal(r)) for q, r in found]))


def shares(rewards: torch.Tensor, kind: Ensemble, weight: torch.Tensor) -> torch.Tensor:
    """Shares (members, R) with which the members' slopes make the ensemble's, from their rewards (members, R).

    Of the mean 1 / m; of the minimum 1 for the lowest; of mean - weight s they are 1 / m - weight (r_j - mean) / (m s),
    s the standard deviation with divisor m (where s is 0, those of the mean).
    """
    even = torch.full_like(rewards, 1 / len(rewards))
    if kind == "minimum":
        return torch.zeros_like(rewards).scatter_(0, rewards.argmin(0, keepdim=True), 1.0)
    away = rewards - rewards.mean(0)
    deviation = away.square().mean(0).sqrt()
    return even - weight * even * away / deviation.clamp_min(1e-12) if kind == "ensemble-bound" else even


def left_out(
    layers: Layers, y: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor, ridge: float
) -> torch.Tensor:
    """(r(y_i) - label_i) / (1 - h_i) of R buffers, (R, n): what r would have missed without label i, to first order.

    h_i is label i's leverage in ridge regression on the gradients (`mlp.refit`). With the inverse B of its normal
    equations in function space (`mlp.GaussNewton`), 1 - h_i = ridge B_ii / (2 w_i). All weights must be above 0.
    """
    hessian = mlp.gauss_newton(layers, y, sample_weights, ridge)
    kept = ridge * hessian.inverse.diagonal(dim1=-2, dim2=-1) / (2 * sample_weights)
    return (mlp.reward(layers, y) - labels) / kept


def estimate(remedy: Remedy, members: int, seeds: int) -> Estimate:
    """The overconfidence of R runs at an action, (R, 1), where it is read there: of error, permuted and spread.

    Its arguments are the layers, y (R, 1, d), and the objective, whose utility is what is read of U. Runs are in rows
    of `seeds`, with the layers of `members` reward models.
    """

    def error(layers: Layers, y: torch.Tensor, objective: Objective) -> torch.Tensor:
        return mlp.reward(layers, y) - objective.utility(y)

    def permuted(layers: Layers, y: torch.Tensor, objective: Objective) -> torch.Tensor:
        return error(layers, y, objective).view(-1, seeds).roll(-1, 1).view(-1, 1)

    def spread(layers: Layers, y: torch.Tensor, objective: Objective) -> torch.Tensor:
        rewards = mlp.reward(layers, y.repeat(members, 1, 1))
        return rewards.unflatten(0, (members, -1)).std(0, correction=0)

    return {"error": error, "permuted": permuted, "spread": spread}[remedy]


def gradient(
    remedy: Remedy,
    weight: torch.Tensor,
    plain: Gradient,
    known: Answers | None,
    refitted: bool,
    turn: torch.Tensor,
    members: int,
    over: Estimate | None = None,
) -> Gradient:
    """The gradient that a policy step takes, with the arguments and shapes of `plain`, which is one of mlp's two.

    `weight` has shape (R, 1, 1). `over` estimates the overconfidence, where the remedy is one of `ESTIMATES`.

    `offset` must be the policy's noise where the remedy is fitted: y - offset is the policy's mean. `turn` (R, d, d)
    are the runs' rotations. In an ensemble the layers have `members` times R models, the first R are the runs' own.
    """

    def with_remedy(
        layers: Layers, y: torch.Tensor, offset: torch.Tensor | None, objective: Objective, a: Direction | None = None
    ) -> torch.Tensor:
        if remedy in ENSEMBLES:
            some = y.repeat(members, 1, 1)
            rewards = mlp.reward(layers, some)[:, 0].unflatten(0, (members, -1))
            zero = torch.zeros_like(rewards).view(-1, 1)
            free = objective._replace(cost=zero, error_weight=zero, norm_weight=zero, center=None)
            slopes = plain(layers, some, None, free).unflatten(0, (members, -1))
            uphill = (shares(rewards, remedy, weight[:, 0, 0])[..., None, None] * slopes).sum(0)
            return uphill - 2 * objective.cost[..., None] * objective.away(y)
        if known is not None:
            if remedy == "leverage":
                a = leverage(layers, y, known.hessian, weight)
            elif remedy == "bound":
                a = bound(layers, y, known, weight, refitted)
            else:
                a = fitted(layers, y, y if offset is None else y - offset, known, weight)
            # r + <a, g> is a penalty of weight -1.
            return plain(layers, y, None, objective._replace(norm_weight=-torch.ones_like(objective.cost)), a)
        if over is not None:
            own = [(matrix[: len(y)], bias[: len(y)]) for matrix, bias in layers]
            return plain(own, y, None, objective._replace(norm_weight=weight[..., 0] * over(layers, y, objective)))
        if remedy == "wall":
            held: Any = partial(mlp.reward, layers)  # a utility that is asked for its value alone
            return plain(layers, y, None, objective._replace(error_weight=weight[..., 0], utility=held))
        uphill = plain(layers, y, None, objective)
        if remedy == "flat":
            return uphill - weight * flatness(layers, y)
        pull = plain(layers, y, None, objective._replace(norm_weight=weight[..., 0])) - uphill
        return uphill + pull @ turn

    return with_remedy
