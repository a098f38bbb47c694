"""The neural game, one action and one seed at a time, by autograd."""

import numpy as np
import torch


def rng(seed, config):
    """The release's random numbers for one seed: an endless iterator over runs, each a model and then its noise."""
    torch.manual_seed(seed)
    while True:
        widths = (config.dimensions, *config.hidden, 1)
        layers = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        for layer in layers:
            torch.nn.init.normal_(layer.weight, 0.0, config.initial_scale)
            torch.nn.init.normal_(layer.bias, 0.0, 0.0)
        yield layers
        for _ in range(config.outer_steps):
            policy = [torch.randn(config.dimensions) for _ in range(config.inner_steps)]
            yield policy, torch.randn(config.new_samples, config.dimensions)


def utility(y, config):
    """U of the neural game for one action as the RM sees it."""
    y = y - config.offset
    t = torch.full_like(y, config.noise_target)
    t[: config.signal_dimensions] = config.target
    factors = torch.tensor(config.sharpness_factors or [1.0] * len(y), dtype=y.dtype)
    u = config.utility_scale * torch.exp(-config.utility_sharpness * (factors * (y - t) ** 2).sum())
    if config.second_peak:
        t = torch.zeros_like(y)
        t[0], t[1] = 1.5, -1.5
        u = u + 4 * torch.exp(-0.7 * ((y - t) ** 2).sum())
    return u


def start(seed, config, dtype):
    """The first mean, as the RM sees it."""
    first = np.full(config.dimensions, float(config.offset))
    if config.start_distance:
        way = np.random.RandomState(seed).normal(size=config.dimensions - config.signal_dimensions)
        first[config.signal_dimensions :] += config.start_distance * way / np.sqrt((way**2).sum())
    return torch.tensor(first, dtype=dtype)


def member(seed, config, dtype):
    """A reward model of the seed's, with Adam."""
    model = sequence([layer.to(dtype) for layer in next(rng(seed, config))])
    return model, torch.optim.Adam(model.parameters(), lr=config.rm_lr, weight_decay=config.rm_decay)


def sequence(layers):
    """Layers with Softplus between them."""
    pairs = [part for layer in layers for part in (layer, torch.nn.Softplus())]
    return torch.nn.Sequential(*pairs[:-1])


def beside(seed, models, y, theta, known, config):
    """What a remedy adds to the first RM's value at an action (y carries a graph), by dense algebra."""
    model, w = models[0], config.remedy_weight
    parameters = list(model.parameters())

    def slope(x, graph):
        rows = torch.autograd.grad(model(x)[0], parameters, create_graph=graph, retain_graph=True)
        return torch.cat([row.flatten() for row in rows])

    if config.remedy == "flat":
        (uphill,) = torch.autograd.grad(model(y)[0], y, create_graph=True)
        return -w * uphill @ uphill
    if config.remedy == "rotated":
        q, r = np.linalg.qr(np.random.RandomState(seed).normal(size=(len(y), len(y))))
        g = slope(y, True)
        (pull,) = torch.autograd.grad(g @ g, y)
        return -w * (pull @ torch.from_numpy(q * np.sign(np.diagonal(r))).to(pull)) @ y
    if config.remedy in ("mean", "minimum", "ensemble-bound"):
        r = torch.stack([each(y)[0] for each in models])
        kinds = {"mean": r.mean(), "minimum": r.min(), "ensemble-bound": r.mean() - w * r.std(correction=0)}
        return kinds[config.remedy] - r[0]
    if config.remedy == "wall":
        g = slope(y, True)
        return -w * (model(y)[0] - model(y)[0].detach()) * g @ g
    if config.remedy in ("error", "spread", "held-out", "leave-one-out"):
        g = slope(y, True)
        return -w * overconfidence(models, y.detach(), known, config, slope) * g @ g
    if config.remedy == "none" or not known:
        return 0.0
    x, u = (torch.stack(part) for part in zip(*(row[:2] for row in known), strict=True))
    g = torch.stack([slope(row, False) for row in x])
    ridge = config.rm_decay + config.damping
    hessian = 2 / len(x) * g.T @ g + ridge * torch.eye(g.shape[1], dtype=g.dtype)
    missing = u - torch.stack([model(row)[0].detach() for row in x])
    delta = torch.linalg.solve(hessian, 2 / len(x) * g.T @ missing)
    here = slope(y, True)
    if config.remedy == "fitted":
        return 2 * w * (delta @ here) * (torch.linalg.solve(hessian, slope(theta, False)) @ here)
    width = here @ torch.linalg.solve(hessian, here)
    if config.remedy == "leverage":
        return -w * width
    inner = g @ g.T + len(x) * ridge / 2 * torch.eye(len(x), dtype=g.dtype)
    return -w * (missing @ torch.linalg.solve(inner, missing) / len(x) * ridge * width).sqrt()


def overconfidence(models, y, known, config, slope):
    """An estimate of r - U at an action, as a number."""
    model, count = models[0], config.new_samples
    if config.remedy == "error":
        return float(model(y)[0] - utility(y, config))
    if config.remedy == "spread":
        return float(torch.stack([each(y)[0] for each in models]).std(correction=0))
    if not known:
        return 0.0
    if config.remedy == "held-out":
        return float(np.mean([r for *_, r in known[-count:]]))
    x, u = (torch.stack(part) for part in zip(*(row[:2] for row in known), strict=True))
    g = torch.stack([slope(row, False) for row in x])
    inner = g @ g.T
    ridge = len(x) * (config.rm_decay + config.damping) / 2 * torch.eye(len(x), dtype=g.dtype)
    h = torch.diagonal(inner @ torch.linalg.inv(inner + ridge))
    missed = (torch.stack([model(row)[0].detach() for row in x]) - u) / (1 - h)
    return float(missed[-count:].mean())


def penalty(arm, model, y, theta, sampled, known, config):
    """gamma R(y) of one arm at one action (y carries a graph), with whole gradients and a dense Hessian."""
    if arm == "standard" or (arm == "exact" and not known):
        return 0.0
    parameters = list(model.parameters())

    def slope(x, graph):
        rows = torch.autograd.grad(model(x)[0], parameters, create_graph=graph, retain_graph=True)
        return torch.cat([row.flatten() for row in rows])

    g = slope(y, True)
    if arm == "practical":
        return -config.gamma_practical * g @ g
    at = y if config.utility_at == "sample" else y - sampled
    u = utility(at, config) + config.oracle_level + config.oracle_tilt * at[-1]
    error = model(y)[0] - (u if arm in config.through_oracle else u.detach())
    if arm == "relaxed":
        return -config.gamma_relaxed * error * (g @ g)
    hessian = (config.rm_decay + config.damping) * torch.eye(len(g), dtype=g.dtype)
    for x, *_ in known:
        row = slope(x, False)
        hessian += 2 * torch.outer(row, row) / len(known)
    a = torch.linalg.solve(hessian, slope(theta, False))
    return -2 * config.gamma_exact * error * (a @ g)


def answer(model, known, config):
    """What a follower of the labels adds to the RM at an action: nothing, the ridge's answer, or the labels' plane."""
    parameters = list(model.parameters())
    x, u = (torch.stack(part) for part in zip(*(row[:2] for row in known), strict=True))
    if config.follower == "labels":
        one = torch.cat([x - x.mean(0), torch.ones(len(x), 1, dtype=x.dtype)], 1)
        plane = torch.linalg.lstsq(one, u[:, None], driver="gelsd").solution[:-1, 0]
        return lambda y: plane @ y - model(y)[0]

    def slope(y, graph):
        rows = torch.autograd.grad(model(y)[0], parameters, create_graph=graph, retain_graph=True)
        return torch.cat([row.flatten() for row in rows])

    g = torch.stack([slope(y, False) for y in x])
    ridge = (config.rm_decay + config.damping) * torch.eye(g.shape[1], dtype=g.dtype)
    missing = u - torch.stack([model(y)[0].detach() for y in x])
    delta = torch.linalg.solve(2 / len(x) * g.T @ g + ridge, 2 / len(x) * g.T @ missing)
    return lambda y: delta @ slope(y, True)


def pulled(theta, known, weight, sigma):
    """The minimizer of |x - theta|^2 / 2 plus weight times the trust region's penalty, by its own linear equations."""
    x, u = (torch.stack(part) for part in zip(*(row[:2] for row in known), strict=True))
    width = torch.cov(x.T, correction=0).reshape(len(theta), -1) + sigma**2 * torch.eye(len(theta), dtype=x.dtype)
    precision = weight * u.std(correction=0) * torch.linalg.inv(width)
    return torch.linalg.solve(torch.eye(len(theta), dtype=x.dtype) + precision, theta + precision @ x.mean(0))


def run(seed, arm, config, iterations=None):
    """One seed of one arm, one action at a time, by autograd through the parameter gradients: utility, reward, noise.

    The random stream is the release's; under pairing="released" every arm but the standard one first passes over the
    standard run's part of it. The arrays have one entry for each iteration, or for the first few.
    """
    dtype = getattr(torch, config.precision)
    numbers = rng(seed, config)
    if config.pairing == "released" and arm != "standard":
        for _ in range(1 + config.outer_steps):
            next(numbers)
    model = sequence([layer.to(dtype) for layer in next(numbers)])
    adam = torch.optim.Adam(model.parameters(), lr=config.rm_lr, weight_decay=config.rm_decay)
    state = torch.get_rng_state()
    others = [member((seed + k * 2**24) % 2**32, config, dtype) for k in range(1, config.members)]
    torch.set_rng_state(state)
    models = [model, *(other for other, _ in others)]
    first = start(seed, config, dtype)
    center = {"zero": torch.full_like(first, config.offset), "start": first, "origin": 0 * first}[config.cost_center]
    theta, buffer, rows = first, [], []
    for t in range(config.outer_steps if iterations is None else iterations):
        f = 1 - (t / config.outer_steps) ** config.schedule_power
        sigma = config.sigma_end + (config.sigma - config.sigma_end) * f
        lr = config.policy_lr_end + (config.policy_lr - config.policy_lr_end) * f
        policy, more = next(numbers)
        for i, eps in enumerate(policy):
            before, after = (np.floor((t * config.inner_steps + k) * config.oracle_share) for k in (i, i + 1))
            silent = arm in ("relaxed", "exact") and before == after
            sampled = sigma * eps.to(dtype)
            y = (theta + sampled).requires_grad_()
            value = model(y)[0] - config.action_cost * ((y - center) @ (y - center))
            value = value + (0 if silent else penalty(arm, model, y, theta, sampled, buffer, config))
            value = value + beside(seed, models, y, theta, buffer, config)
            if config.follower != "own":
                value = value + answer(model, buffer, config)(y) if buffer else value
            uphill = torch.autograd.grad(value, y)[0]
            theta = theta + lr * uphill.clamp(-config.clip, config.clip)
            if config.trust and buffer:
                theta = pulled(theta, buffer, lr * config.trust, sigma)
        with torch.no_grad():
            noise = torch.linalg.norm((theta - config.offset)[config.signal_dimensions :])
            rows.append([float(utility(theta, config)), float(model(theta)[0]), float(noise)])
        wrong = np.random.RandomState([seed, t]).normal(size=config.new_samples)
        for i, eps in enumerate(more):
            wide = config.label_spread if i < (config.wide_labels or config.new_samples) else 1.0
            y = theta + wide * sigma * eps.to(dtype)
            u = utility(y, config) + config.label_noise * wrong[i]
            buffer.append((y, u, float(model(y)[0].detach() - u)))
        buffer = buffer[-config.buffer_size :]
        for step in range(config.rm_steps):
            some = buffer
            if 0 < config.replay < len(buffer):
                drawn = torch.Generator().manual_seed(t * config.rm_steps + step)
                # The game's buffer is a ring: the label of iteration i lies where i left it.
                first = (t + 1) * config.new_samples - len(buffer)
                places = torch.randint(len(buffer), (config.replay,), generator=drawn).tolist()
                some = [buffer[(place - first) % config.buffer_size] for place in places]
            for each, steps in ((model, adam), *others):
                steps.zero_grad()
                for y, u, _ in some:
                    ((each(y)[0] - u) ** 2 / len(some)).backward()
                steps.step()
    return np.array(rows).T
