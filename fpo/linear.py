"""The linear game: a policy that plays one action against a linear reward model, for many seeds and arms at once.

The policy is an action y in R^d, the reward model (RM) is r_w(y) = w.y, and people's true utility is

    U(y) = utility_scale * exp(-utility_sharpness * |y - t|^2),     t = (target, ..., target, 0, ..., 0).

One iteration is a policy step and then an RM step (Gauthier, Bach and Jordan 2026, arXiv:2605.04266, the linear
environment):

    y <- y + policy_lr * grad_y [ w.y - action_cost * |y|^2 + penalty(y) ]
    w <- (1 - rm_decay) * w + rm_lr * 2 * (U(y) - w.y) * y

Every arm's penalty has one shape, (w.y - U) * A(|y|^2) + B(|y|^2):

    standard     A = 0                        B = 0
    relaxed      A = -gamma * n               B = 0              (n = |y|^2)
    practical    A = 0                        B = -gamma * n
    foresight    A = (1 - 2 rm_lr n)^k - 1    B = 0              (k = foresight_steps)

The last one is a leader that knows what k RM steps at a fixed action do to the RM's error (weight decay left out).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from fpo.games import ByArm
from fpo.parameters import Distinct, Parameters, Seeds, Signal, arm_list, real, seed_list, signal, whole

Arm = Literal["standard", "relaxed", "practical", "foresight"]
ARMS: tuple[Arm, ...] = get_args(Arm)

# With a coordinate beyond this an action or a reward model counts as diverged: the game's own scale is about 3.
DIVERGED = 1e6


class Config(Parameters):
    """Settings of the linear game; the defaults are the paper's.

    Raises
    ------
    fpo.parameters.ParameterError
        For a value outside its range, an unknown name, or the wrong type.
    """

    seeds: Seeds = seed_list((0, 1), "NumPy's legacy RandomState")
    arms: Distinct[Arm] = arm_list(ARMS)
    gamma: float = real(0.1, 0, 1e6, "weight of the penalty in the relaxed and practical arms")
    steps: int = whole(300, 1, 1_000_000, "iterations of one policy step and one RM step")
    foresight_steps: int = whole(10, 0, 1_000_000, "RM steps that the foresight arm looks ahead")
    gradient: Literal["closed-form", "forward-difference"] = Field(
        "closed-form", description="exact gradients, or the release's estimator"
    )
    difference: float = real(0.05, 1e-8, 10, "step of the forward differences")
    through_oracle: bool = Field(True, description="whether the penalty's gradient sees how U changes with y")
    action_cost: float = real(0.1, 0, 1e6, "weight of |y|^2 in every arm's objective")
    policy_lr: float = real(0.02, 0, 1e3, "length of a policy step per unit of gradient")
    rm_lr: float = real(0.005, 0, 1e3, "the RM's learning rate on the squared error")
    rm_decay: float = real(1e-4, 0, 1, "share of w that is lost in each RM step")
    dimensions: int = whole(50, 1, 10_000, "length d of an action")
    signal_dimensions: Signal = signal(3)
    target: float = real(2.0, -100, 100, "the target's value in the signal coordinates")
    utility_scale: float = real(10.0, 1e-6, 1e6, "the best possible utility")
    utility_sharpness: float = real(0.3, 1e-6, 1e3, "how fast the utility falls with squared distance from the target")
    initial_noise: float = real(0.1, 0, 100, "standard deviation of the initial RM around (1, ..., 1, 0, ..., 0)")


@dataclass(frozen=True)
class Result(ByArm):
    """What `simulate` returns. Axes: iterations (steps + 1, the start included), arms, seeds, d.

    Attributes
    ----------
    config : Config
        The settings that made it.
    utility, reward, signal, noise : arrays (steps + 1, arms, seeds)
        U(y), w.y, and the norms of y's signal and noise coordinates. NaN from the iteration of a divergence on.
    diverged_at : int array (arms, seeds)
        The iteration at which a coordinate of y or w exceeded `DIVERGED`, or -1.
    action, weights : arrays (arms, seeds, d)
        y and w at the end.
    actions, reward_models : arrays (steps + 1, arms, seeds, d) or None
        y and w along the way, if asked for.
    """

    config: Config
    utility: np.ndarray
    reward: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    diverged_at: np.ndarray
    action: np.ndarray
    weights: np.ndarray
    actions: np.ndarray | None = None
    reward_models: np.ndarray | None = None


def target(config: Config) -> np.ndarray:
    """t, the action that people like best: shape (d,)."""
    return config.target * (np.arange(config.dimensions) < config.signal_dimensions)


def utility(y: np.ndarray, config: Config) -> np.ndarray:
    """U(y) = utility_scale * exp(-utility_sharpness * |y - t|^2) for y of shape (..., d)."""
    return config.utility_scale * np.exp(-config.utility_sharpness * np.sum((y - target(config)) ** 2, axis=-1))


def utility_gradient(y: np.ndarray, config: Config) -> np.ndarray:
    """grad U(y) = -2 utility_sharpness U(y) (y - t), shape of y."""
    return -2 * config.utility_sharpness * utility(y, config)[..., None] * (y - target(config))


def initial_weights(config: Config) -> np.ndarray:
    """The reward models at the start, shape (seeds, d): ones in the signal coordinates plus noise.

    Each seed makes one draw of d normals from `numpy.random.RandomState(seed)`, as the release does.
    """
    ones = 1.0 * (np.arange(config.dimensions) < config.signal_dimensions)
    noise = [np.random.RandomState(s).normal(0, config.initial_noise, config.dimensions) for s in config.seeds]
    return ones + np.stack(noise)


def coefficients(arms: tuple[str, ...], n: np.ndarray, config: Config):
    """A, dA/dn, B, dB/dn of the penalty (w.y - U) A(n) + B(n) at n = |y|^2, each of n's shape (arms, ...)."""
    a, da, b, db = np.zeros((4, *n.shape))
    for i, arm in enumerate(arms):
        if arm == "relaxed":
            a[i], da[i] = -config.gamma * n[i], -config.gamma
        elif arm == "practical":
            b[i], db[i] = -config.gamma * n[i], -config.gamma
        elif arm == "foresight" and config.foresight_steps > 0:
            k, shrink = config.foresight_steps, 1 - 2 * config.rm_lr * n[i]
            a[i], da[i] = shrink**k - 1, -2 * config.rm_lr * k * shrink ** (k - 1)
    return a, da, b, db


def objective(y: np.ndarray, w: np.ndarray, config: Config) -> np.ndarray:
    """What each arm climbs, w.y - action_cost |y|^2 + penalty: shape (arms, seeds).

    Parameters
    ----------
    y, w : arrays (arms, seeds, d)
        Actions and reward models, arms in the order of `config.arms`.
    """
    r, n = np.sum(w * y, axis=-1), np.sum(y * y, axis=-1)
    a, _, b, _ = coefficients(config.arms, n, config)
    return r - config.action_cost * n + (r - utility(y, config)) * a + b


def gradient(y: np.ndarray, w: np.ndarray, config: Config) -> np.ndarray:
    """Gradient of `objective` in y, by `config.gradient`: shape (arms, seeds, d).

    Closed form, with r = w.y, n = |y|^2 and s = 1 if `through_oracle` else 0:

        (1 + A) w - s A grad U + 2 [ (r - U) dA/dn + dB/dn - action_cost ] y

    The forward difference of step h moves one coordinate at a time; r, n and |y - t|^2 at the moved points are sums
    of what is known, so no d x d array of points is made.
    """
    r, n = np.sum(w * y, axis=-1, keepdims=True), np.sum(y * y, axis=-1, keepdims=True)
    u = utility(y, config)[..., None]
    a, da, b, db = coefficients(config.arms, n, config)
    if config.gradient == "closed-form":
        through = a * utility_gradient(y, config) if config.through_oracle else 0.0
        return (1 + a) * w - through + 2 * ((r - u) * da + db - config.action_cost) * y
    h = config.difference
    r_moved, n_moved = r + h * w, n + 2 * h * y + h * h
    u_moved = u
    if config.through_oracle:
        away = y - target(config)
        distance = np.sum(away**2, axis=-1, keepdims=True) + 2 * h * away + h * h
        u_moved = config.utility_scale * np.exp(-config.utility_sharpness * distance)
    a_moved, _, b_moved, _ = coefficients(config.arms, n_moved, config)
    before = r - config.action_cost * n + (r - u) * a + b
    after = r_moved - config.action_cost * n_moved + (r_moved - u_moved) * a_moved + b_moved
    return (after - before) / h


def simulate(config: Config, keep_path: bool = False) -> Result:
    """Play the game for every arm and seed of `config` at once, from the same initial reward models (paired arms).

    Parameters
    ----------
    config : Config
        The settings. Results do not depend on the order of seeds or arms.
    keep_path : bool
        Also keep y and w at every iteration (8 bytes a number).

    Returns
    -------
    Result
        A run that leaves every bound is marked in `diverged_at`, recorded as NaN from there on, and stops moving.
    """
    shape = (len(config.arms), len(config.seeds), config.dimensions)
    y, w = np.zeros(shape), np.broadcast_to(initial_weights(config), shape).copy()
    alive = np.ones(shape[:2], dtype=bool)
    diverged_at = np.full(shape[:2], -1)
    record = np.full((4, config.steps + 1, *shape[:2]), np.nan)
    path = np.full((2, config.steps + 1, *shape), np.nan) if keep_path else None
    # A run on its way out may overflow; its size is checked before anything of it is recorded.
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(config.steps + 1):
            u, r = utility(y, config), np.sum(w * y, axis=-1)
            if t:
                w = (1 - config.rm_decay) * w + 2 * config.rm_lr * (u - r)[..., None] * y
                r = np.sum(w * y, axis=-1)
            size = np.maximum(np.max(np.abs(y), axis=-1), np.max(np.abs(w), axis=-1))
            lost = alive & ~(size <= DIVERGED)
            diverged_at[lost] = t
            alive &= ~lost
            y[~alive] = w[~alive] = 0.0
            signal, noise = y[..., : config.signal_dimensions], y[..., config.signal_dimensions :]
            now = np.stack([u, r, np.linalg.norm(signal, axis=-1), np.linalg.norm(noise, axis=-1)])
            record[:, t] = np.where(alive, now, np.nan)
            if path is not None:
                path[:, t] = np.where(alive[..., None], np.stack([y, w]), np.nan)
            if t < config.steps:
                y = y + config.policy_lr * gradient(y, w, config)
    y[~alive] = w[~alive] = np.nan
    return Result(config, *record, diverged_at, y, w, *(path if path is not None else ()))
