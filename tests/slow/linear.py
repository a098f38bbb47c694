"""The linear game, one action and one seed at a time."""

import numpy as np

from slow import differences


def utility(y, config):
    """U(y) of the linear game for one action."""
    t = np.zeros(config.dimensions)
    t[: config.signal_dimensions] = config.target
    return config.utility_scale * np.exp(-config.utility_sharpness * np.sum((y - t) ** 2))


def rm_steps(w, y, u, count, config, decay=None):
    """`count` literal RM steps at a fixed action y with utility u."""
    decay = config.rm_decay if decay is None else decay
    for _ in range(count):
        w = (1 - decay) * w + config.rm_lr * 2 * (u - w @ y) * y
    return w


def objective(arm, y, w, config, oracle=None):
    """What one arm's leader climbs at one action; `oracle` replaces U(y) where it is held constant."""
    u = utility(y, config) if oracle is None else oracle
    value = w @ y - config.action_cost * (y @ y)
    if arm == "relaxed":
        value -= config.gamma * (w @ y - u) * (y @ y)
    if arm == "practical":
        value -= config.gamma * (y @ y)
    if arm == "foresight":
        value += rm_steps(w, y, u, config.foresight_steps, config, decay=0.0) @ y - w @ y
    return value


def run(seed, arm, config, start=None):
    """One seed of one arm as a plain loop with forward differences: arrays (steps + 1,) of utility, signal, noise.

    This is the release's algorithm as the paper states it, and three things beside it: several policy steps in an
    iteration, labels around the action, and another start. `fpo.linear` must give the same numbers.
    """
    w = np.random.RandomState(seed).normal(0, config.initial_noise, config.dimensions)
    w[: config.signal_dimensions] += 1
    y = np.zeros(config.dimensions) if start is None else np.array(start)
    around, rows = np.random.default_rng([seed, 1]), []
    for t in range(config.steps + 1):
        rows.append(
            (
                utility(y, config),
                np.linalg.norm(y[: config.signal_dimensions]),
                np.linalg.norm(y[config.signal_dimensions :]),
            )
        )
        if t == config.steps:
            break
        for _ in range(config.inner_steps):
            held = None if config.through_oracle else utility(y, config)
            y = y + config.policy_lr * differences(
                lambda z, w=w, held=held: objective(arm, z, w, config, held), y, config.difference
            )
        if config.label_spread == 0:
            w = rm_steps(w, y, utility(y, config), 1, config)
            continue
        labeled = y + config.label_spread * around.normal(size=(config.labels, config.dimensions))
        slopes = [2 * (utility(z, config) - w @ z) * z for z in labeled]
        w = (1 - config.rm_decay) * w + config.rm_lr * np.mean(slopes, axis=0)
    return tuple(np.array(rows).T)


def follow(step, config, streams, window=50):
    """The game of one leader, all seeds at once and one iteration after the other: U(y), arrays (steps + 1, seeds).

    `step(y, w, x, u)` gives the next actions (seeds, d) from the latest `window` labels u of actions x; without labels
    the policy climbs w.y - action_cost |y|^2. This loop stood in a chapter before `fpo.linear` took a leader.
    """
    w, t = [], np.zeros(config.dimensions)
    t[: config.signal_dimensions] = config.target
    for seed in config.seeds:
        w.append(np.random.RandomState(seed).normal(0, config.initial_noise, config.dimensions))
        w[-1][: config.signal_dimensions] += 1
    w = np.array(w)
    y, x, u = np.zeros_like(w), np.empty((len(w), 0, w.shape[1])), np.empty((len(w), 0))

    def utilities(z):
        return config.utility_scale * np.exp(-config.utility_sharpness * np.sum((z - t) ** 2, axis=-1))

    path = [utilities(y)]
    for _ in range(config.steps):
        if x.shape[1]:
            y = step(y, w, x, u)
        else:
            y = y + config.policy_lr * (w - 2 * config.action_cost * y)
        path.append(utilities(y))
        noise = [each.normal(size=(config.labels, y.shape[1])) for each in streams]
        new = y[:, None] + config.label_spread * np.stack(noise)
        x = np.concatenate([x, new], axis=1)[:, -window:]
        u = np.concatenate([u, utilities(new)], axis=1)[:, -window:]
        miss = utilities(new) - (new @ w[..., None])[..., 0]
        w = (1 - config.rm_decay) * w + config.rm_lr * 2 * (miss[..., None] * new).mean(1)
    return np.array(path)
