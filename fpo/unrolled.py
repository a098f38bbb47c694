"""A leader that foresees k steps of its neural reward model, from values of U alone.

The policy of `fpo.neural`, a normal distribution around theta, draws n actions y_j, which are labeled with U. The RM
will take Adam steps on their weighted squared error, and k of these lead from phi to phi_k. With the weights as a
stand-in for the policy's density,

    F_k(w) = sum_j w_j r_{phi_k(w)}(y_j),    loss sum_j w_j (r_phi(y_j) - U(y_j))^2,    w_j = 1 / n,

the leader's goal at horizon k is E[F_k], and its effective reward of an action is

    v_j = dF_k / dw_j = r_{phi_k}(y_j) + sum_i w_i dr_{phi_k}(y_i) / dw_j ,

the reward it will get and what the action teaches (Gauthier, Bach and Jordan 2026, arXiv:2605.04266, effective reward,
with k steps in place of the minimizer). A policy step follows sum_j w_j (v_j - mean v) grad_theta log pi(y_j), so no
gradient of U is ever taken. k = 0 is standard RLHF; in place of a horizon, "exact" has r + <g_bar, I> with the
Gauss-Newton Hessian, and "utility" climbs the labels themselves.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fpo import mlp
from fpo.mlp import Layers
from fpo.neural import Config, Stream, noise_tensors

Horizon = int | Literal["exact", "utility"]
BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's own for Adam


class Moments(NamedTuple):
    """What Adam carries from step to step: both moments of every parameter, (R, p), and how many steps it took."""

    first: torch.Tensor
    second: torch.Tensor
    steps: int


def rest(layers: Layers) -> Moments:
    """Adam before its first step."""
    zero = torch.zeros_like(_flat([part for layer in layers for part in layer]))
    return Moments(zero, zero, 0)


def _flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)


def adam_step(
    layers: Layers,
    moments: Moments,
    y: torch.Tensor,
    labels: torch.Tensor,
    sample_weights: torch.Tensor,
    lr: float,
    decay: float,
) -> tuple[Layers, Moments]:
    """One Adam step on sum_j w_j (r(y_j) - labels_j)^2, `decay` added to the gradient, as a function of its inputs.

    Shapes: y (R, n, d), labels and sample_weights (R, n). Nothing is changed in place: the step can be differentiated.
    """
    r, factors = mlp.factors(layers, y)
    pull = (2 * sample_weights * (r - labels))[..., None]
    slopes = [part for d, a in factors for part in ((pull * d).mT @ a, (pull * d).sum(-2))]
    parts = [part for layer in layers for part in layer]
    phi, now, (b1, b2) = _flat(parts), moments.steps + 1, BETAS
    slope = _flat(slopes) + decay * phi
    first = b1 * moments.first + (1 - b1) * slope
    second = b2 * moments.second + (1 - b2) * slope * slope
    phi = phi - lr / (1 - b1**now) * first / ((second / (1 - b2**now)).sqrt() + EPSILON)
    pieces = phi.split([part[0].numel() for part in parts], 1)
    after = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    return list(zip(after[::2], after[1::2], strict=True)), Moments(first, second, now)


def goal(
    layers: Layers,
    moments: Moments,
    y: torch.Tensor,
    labels: torch.Tensor,
    sample_weights: torch.Tensor,
    horizon: int,
    **adam: float,
) -> torch.Tensor:
    """F_k(w): the mean reward under the RM as it will be in `horizon` steps, (R,); `adam` holds lr and decay."""
    for _ in range(horizon):
        layers, moments = adam_step(layers, moments, y, labels, sample_weights, **adam)
    return (sample_weights * mlp.reward(layers, y)).sum(-1)


def effective_rewards(
    layers: Layers, moments: Moments, y: torch.Tensor, labels: torch.Tensor, horizon: Horizon, **adam: float
) -> torch.Tensor:
    """v_j of R leaders for n actions each, (R, n): see the module.

    Parameters
    ----------
    layers, moments : Layers, Moments
        The RM and its optimizer as they are.
    y, labels : tensors (R, n, d), (R, n)
        The actions and what the leader takes for their utility.
    horizon : int, "exact" or "utility"
        Steps that are foreseen.
    adam : float
        The RM's `lr` and `decay`; the latter is the exact leader's ridge.
    """
    if horizon == "utility":
        return labels
    count = y.shape[1]
    if horizon == "exact":
        sample_weights = torch.full((count,), 1 / count, dtype=y.dtype)
        hessian = mlp.gauss_newton(layers, y, sample_weights, adam["decay"])
        r, factors = mlp.factors(layers, y)
        a = _inverse_times_mean(factors, hessian)
        return r - 2 * (r - labels) * a
    with torch.enable_grad():
        sample_weights = torch.full_like(labels, 1 / count).requires_grad_()
        total = goal(layers, moments, y, labels, sample_weights, horizon, **adam).sum()
        return torch.autograd.grad(total, sample_weights)[0]


def _inverse_times_mean(factors: mlp.Factors, hessian: mlp.GaussNewton) -> torch.Tensor:
    """<H^-1 g_bar, g_j> for the labeled actions themselves, (R, n): by the Woodbury identity in function space."""
    gram = mlp.kernel(factors, factors)
    mean = gram.mean(-1, keepdim=True)
    return ((mean - gram @ (hessian.inverse @ mean)) / hessian.ridge)[..., 0]


def simulate(
    config: Config, horizon: Horizon, permuted: bool = False, rm_steps: int = 1, iterations: int | None = None
) -> np.ndarray:
    """True utility at the policy's mean, (iterations, seeds), while a leader plays the game from values alone.

    An iteration is `new_samples` labeled actions, one policy step from their effective rewards less the action's cost,
    clipped as in the neural game, and `rm_steps` Adam steps on the same labels. Leaders share first RMs and noise.

    Parameters
    ----------
    config : Config
        Of the neural game; arms, penalties and `inner_steps` are not read. Labels are forgotten after an iteration.
    horizon : int, "exact" or "utility"
        What the leader climbs: see the module.
    permuted : bool
        A placebo: the leader foresees the steps with U permuted among the actions. The RM learns from the true labels.
    rm_steps : int
        Steps that the RM takes in an iteration.
    iterations : int, optional
        How many of `outer_steps` are played; by default all.

    Raises
    ------
    ValueError
        For a horizon that is neither 0 to 1,000 nor a name, or rm_steps beyond 1 to 1,000.
    """
    known = horizon in ("exact", "utility") or (isinstance(horizon, int) and 0 <= horizon <= 1000)
    if not known:
        raise ValueError(f"horizon = {horizon!r}: must be a whole number from 0 to 1,000, 'exact' or 'utility'")
    if not 1 <= rm_steps <= 1000:
        raise ValueError(f"rm_steps = {rm_steps}: must be a whole number from 1 to 1,000")
    with torch.no_grad():
        return _play(config, horizon, permuted, rm_steps, config.outer_steps if iterations is None else iterations)


def _play(config: Config, horizon: Horizon, permuted: bool, rm_steps: int, iterations: int) -> np.ndarray:
    kind: dict[str, Any] = {"dtype": getattr(torch, config.precision)}
    streams = [Stream(seed, config) for seed in config.seeds]
    models = zip(*(stream.reward_model() for stream in streams), strict=True)
    layers = [tuple(torch.stack(parts).to(**kind) for parts in zip(*row, strict=True)) for row in models]
    moments, adam = rest(layers), {"lr": config.rm_lr, "decay": config.rm_decay}
    theta = torch.zeros(len(streams), config.dimensions, **kind)
    policy_noise, noise = noise_tensors(len(streams), config)
    U, shuffle = config.landscape().like(theta), torch.Generator().manual_seed(0)
    record = np.empty((iterations, len(streams)))
    for t in tqdm(range(iterations), desc=f"horizon {horizon}", unit="iteration"):
        for stream, *parts in zip(streams, policy_noise, noise, strict=True):
            stream.noise(*parts)
        sigma, lr = config.schedule(t)
        eps = noise.to(**kind)
        y = theta[:, None] + sigma * eps
        labels = U(y)
        seen = labels
        if permuted:
            seen = labels.gather(1, torch.rand(labels.shape, generator=shuffle).argsort(-1))
        v = effective_rewards(layers, moments, y, seen, horizon, **adam) - config.action_cost * (y * y).sum(-1)
        v = v - v.mean(-1, keepdim=True)
        uphill = (v[..., None] * eps).mean(1) / sigma
        theta = theta + lr * uphill.clamp(-config.clip, config.clip)
        record[t] = U(theta)
        sample_weights = torch.full_like(labels, 1 / labels.shape[1])
        for _ in range(rm_steps):
            layers, moments = adam_step(layers, moments, y, labels, sample_weights, **adam)
    return record
