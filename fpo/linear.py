"""The linear game: a policy that plays one action against a linear reward model, for many seeds and arms at once.

The policy is an action y in R^d, the reward model (RM) is r_w(y) = w.y, and people's true utility is

    U(y) = utility_scale * exp(-utility_sharpness * |y - t|^2),     t = (target, ..., target, 0, ..., 0).

One iteration is a policy step and then an RM step (Gauthier, Bach and Jordan 2026, arXiv:2605.04266, the linear
environment):

    y <- y + policy_lr * grad_y [ w.y - action_cost * |y|^2 + penalty(y) ]        (inner_steps times)
    w <- (1 - rm_decay) * w + rm_lr * 2 * (U(y) - w.y) * y

Every arm's penalty has one shape, (w.y - U) * A(|y|^2) + B(|y|^2):

    standard     A = 0                        B = 0
    relaxed      A = -gamma * n               B = 0              (n = |y|^2)
    practical    A = 0                        B = -gamma * n
    foresight    A = (1 - 2 rm_lr n)^k - 1    B = 0              (k = foresight_steps)

The last one is a leader that knows what k RM steps at a fixed action do to the RM's error (weight decay left out).

Not in the paper: several policy steps in an iteration, and labels around the action, y + label_spread * z with standard
normal z in place of y alone; the RM then takes one step on the mean gradient of `labels` of them; and a leader that
reads the latest labels in place of an arm's gradient.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from fpo import games
from fpo.parameters import Distinct, Seeds, Signal, arm_list, real, seed_list, signal, whole

Arm = Literal["standard", "relaxed", "practical", "foresight"]
ARMS: tuple[Arm, ...] = get_args(Arm)
# A policy step: the next actions from y, w (arms, seeds, d), labeled actions (arms, seeds, n, d) and their labels
# (arms, seeds, n).
Leader = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Config(games.Settings):
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
    action_cost: float = games.setting("action_cost", 0.1)
    inner_steps: int = whole(1, 1, 10_000, "policy steps in an iteration")
    policy_lr: float = real(0.02, 0, 1e3, "length of a policy step per unit of gradient")
    rm_lr: float = real(0.005, 0, 1e3, "the RM's learning rate on the squared error")
    rm_decay: float = real(1e-4, 0, 1, "share of w that is lost in each RM step")
    labels: int = whole(1, 1, 10_000, "labeled actions in an RM step, where label_spread is not 0")
    label_spread: float = real(0.0, 0, 100, "standard deviation of the labeled actions around the policy's")
    dimensions: int = games.dimensions(50)
    signal_dimensions: Signal = signal(3)
    target: float = games.setting("target", 2.0)
    utility_scale: float = games.setting("utility_scale", 10.0)
    utility_sharpness: float = games.setting("utility_sharpness", 0.3)
    initial_noise: float = real(0.1, 0, 100, "standard deviation of the initial RM around (1, ..., 1, 0, ..., 0)")


class Result(games.Result):
    """What `simulate` returns: see `games.Result`. Iterations are 0 (the start) to `steps`.

    The RM is its weights w: `reward_models` has shape (keep, arms, seeds, d).
    """

    def reward_model(self, arm: str, seed: int, iteration: int) -> np.ndarray:
        """w of one run at an iteration that was kept, (d,)."""
        at = self.keep.index(iteration), self.config.arms.index(arm), self.config.seeds.index(seed)
        return self.reward_models[at]


def initial_weights(config: Config) -> np.ndarray:
    """The reward models at the start, shape (seeds, d): ones in the signal coordinates plus noise.

    Each seed makes one draw of d normals from `numpy.random.RandomState(seed)`, as the release does.
    """
    ones = 1.0 * (np.arange(config.dimensions) < config.signal_dimensions)
    noise = [np.random.RandomState(s).normal(0, config.initial_noise, config.dimensions) for s in config.seeds]
    return ones + np.stack(noise)


def coefficients(arms: Sequence[str], n: np.ndarray, config: Config) -> tuple[np.ndarray, ...]:
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
    config : Config
        The settings.
    """
    r, n = np.sum(w * y, axis=-1), np.sum(y * y, axis=-1)
    a, _, b, _ = coefficients(config.arms, n, config)
    return r - config.action_cost * n + (r - config.landscape()(y)) * a + b


def gradient(y: np.ndarray, w: np.ndarray, config: Config) -> np.ndarray:
    """Gradient of `objective` in y, by `config.gradient`: shape (arms, seeds, d).

    Closed form, with r = w.y, n = |y|^2 and s = 1 if `through_oracle` else 0:

        (1 + A) w - s A grad U + 2 [ (r - U) dA/dn + dB/dn - action_cost ] y

    The forward difference of step h moves one coordinate at a time; r, n and U at the moved points follow from what is
    known, so no d x d array of points is made.
    """
    r, n = np.sum(w * y, axis=-1, keepdims=True), np.sum(y * y, axis=-1, keepdims=True)
    utility = config.landscape()
    u = utility(y)[..., None]
    a, da, b, db = coefficients(config.arms, n, config)
    if config.gradient == "closed-form":
        through = a * utility.gradient(y) if config.through_oracle else 0.0
        return (1 + a) * w - through + 2 * ((r - u) * da + db - config.action_cost) * y
    h = config.difference
    r_moved, n_moved = r + h * w, n + 2 * h * y + h * h
    u_moved = utility.moved(y, h) if config.through_oracle else u
    a_moved, _, b_moved, _ = coefficients(config.arms, n_moved, config)
    before = r - config.action_cost * n + (r - u) * a + b
    after = r_moved - config.action_cost * n_moved + (r_moved - u_moved) * a_moved + b_moved
    return (after - before) / h


def labeled(y: np.ndarray, u: np.ndarray, config: Config, streams: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """An iteration's labeled actions (arms, seeds, labels, d) and their labels, for y (arms, seeds, d) and u = U(y).

    `streams` holds a random generator a seed for the labels around the action, which all arms share.
    """
    if not config.label_spread:
        return y[..., None, :], u[..., None]
    z = np.stack([stream.normal(size=(config.labels, config.dimensions)) for stream in streams])
    at = y[..., None, :] + config.label_spread * z
    return at, config.landscape()(at)


def learn(w: np.ndarray, at: np.ndarray, labels: np.ndarray, config: Config) -> np.ndarray:
    """The RM (..., d) after one step on an iteration's labels (..., n) of actions `at` (..., n, d): see `labeled`."""
    remembered = (1 - config.rm_decay) * w
    if not config.label_spread:
        y = at[..., 0, :]
        return remembered + 2 * config.rm_lr * (labels - np.sum(w * y, axis=-1, keepdims=True)) * y
    error = labels - np.einsum("...ld,...d->...l", at, w)
    return remembered + 2 * config.rm_lr * np.einsum("...l,...ld->...d", error, at) / config.labels


def simulate(
    config: Config,
    keep: Sequence[int] = (),
    start: Any = None,
    leader: Leader | None = None,
    window: int = 50,
    streams: Sequence[Any] | None = None,
) -> Result:
    """Play the game for every arm and seed of `config` at once, from the same initial reward models (paired arms).

    Parameters
    ----------
    config : Config
        The settings. Results do not depend on the order of seeds or arms.
    keep : iterations, from 0 to steps
        When to keep y and w; `range(steps + 1)` keeps the whole path (8 bytes a number).
    start : array, optional
        The first action, (d,), (seeds, d) or (arms, seeds, d); by default 0.
    leader : callable, optional
        A `Leader`, which takes the place of each policy step once there are labels. Before, and by default, a step
        follows `gradient`.
    window : int, at least 1
        How many labels it sees: the latest.
    streams : sequence of random generators, optional
        One a seed, for the labels around the action; by default `numpy.random.default_rng([seed, 1])`.

    Returns
    -------
    Result
        A run that leaves every bound is marked in `diverged_at`, recorded as NaN from there on, and stops moving.

    Raises
    ------
    ValueError
        For an iteration outside the game, a start of another shape, or a window without a label.
    """
    if window < 1:
        raise ValueError(f"window = {window}: must be at least 1")
    keep, began = games.iterations_kept(keep, config.steps), monotonic()
    shape = (len(config.arms), len(config.seeds), config.dimensions)
    y, w = games.first_actions(start, *shape), np.broadcast_to(initial_weights(config), shape).copy()
    utility = config.landscape()
    streams = [np.random.default_rng([seed, 1]) for seed in config.seeds] if streams is None else streams
    seen, told = np.empty((*shape[:2], 0, shape[2])), np.empty((*shape[:2], 0))
    diverged_at = np.full(shape[:2], -1)
    record = np.full((4, config.steps + 1, *shape[:2]), np.nan)
    actions, reward_models = np.full((2, len(keep), *shape), np.nan)
    # A run on its way out may overflow; its size is checked before anything of it is recorded.
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(config.steps + 1):
            u = utility(y)
            if t:
                at, labels = labeled(y, u, config, streams)
                w = learn(w, at, labels, config)
                if leader is not None:
                    seen = np.concatenate([seen, at], axis=2)[:, :, -window:]
                    told = np.concatenate([told, labels], axis=2)[:, :, -window:]
            games.mark_lost(np.maximum(np.abs(y).max(axis=-1), np.abs(w).max(axis=-1)), diverged_at, t)
            alive = diverged_at < 0
            y[~alive] = w[~alive] = seen[~alive] = told[~alive] = 0.0
            signal, noise = y[..., : config.signal_dimensions], y[..., config.signal_dimensions :]
            now = [u, np.sum(w * y, axis=-1), np.linalg.norm(signal, axis=-1), np.linalg.norm(noise, axis=-1)]
            record[:, t] = np.where(alive, np.stack(now), np.nan)
            if t in keep:
                actions[keep.index(t)], reward_models[keep.index(t)] = np.where(alive[..., None], [y, w], np.nan)
            for _ in range(config.inner_steps if t < config.steps else 0):
                if leader is None or not t:
                    y = y + config.policy_lr * gradient(y, w, config)
                else:
                    y = leader(y, w, seen, told)
    u, r, signal, noise = record
    return Result(config, u, r, signal, noise, diverged_at, keep, actions, reward_models, monotonic() - began)
