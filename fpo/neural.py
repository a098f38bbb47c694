"""The neural game: a Gaussian policy against a small neural reward model, for many seeds and arms at once.

The policy draws actions y = theta + sigma eps in R^d, eps standard normal; the reward model (RM) r_phi is an MLP with
Softplus; people's true utility is

    U(y) = utility_scale * exp(-utility_sharpness * |y - t|^2),     t = (target, ..., target, 0, ..., 0).

One iteration (Gauthier, Bach and Jordan 2026, arXiv:2605.04266, the neural environment) is `inner_steps` policy steps,
then `new_samples` labeled actions into a buffer of the last `buffer_size`, then one Adam step of the RM on the mean
squared error over the buffer, with weight decay in the gradient. A policy step draws one action y and moves

    theta <- theta + lr * clip(grad_y [ r(y) - action_cost |y|^2 + penalty(y) ], -1, 1).

With g(y) = grad_phi r(y) the penalties are

    standard     0
    relaxed      -gamma (r(y) - U(y)) |g(y)|^2
    practical    -gamma |g(y)|^2
    exact        -2 gamma (r(y) - U(y)) <a, g(y)>,    a = H^-1 g(theta) held constant

where H is the Gauss-Newton Hessian of the loss on the buffer, mean of 2 g g^T, plus (rm_decay + damping) I. The last
one is gamma <g_bar, I(y)> with the influence I(y) = -H^-1 grad_phi (r(y) - U(y))^2 and the mean gradient g_bar taken at
the policy's mean. In the first iteration the buffer is empty and the exact arm plays without penalty.

Here R runs (arms x seeds) are one batch, and n actions of each are rows: tensors (R, n, d).
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch.nn.functional import softplus
from tqdm import tqdm

from fpo import files, steering
from fpo.games import ByArm
from fpo.parameters import Distinct, Parameters, Seeds, Signal, arm_list, as_tuple, real, seed_list, signal, whole
from fpo.steering import Factors, Layers

Arm = Literal["standard", "relaxed", "practical", "exact"]
ARMS: tuple[Arm, ...] = get_args(Arm)

# With a coordinate of theta, or a reward in units of the best utility, beyond this a run counts as diverged.
DIVERGED = 1e6


class Config(Parameters):
    """Settings of the neural game; the defaults are the paper's, for the exact arm the theory's.

    Raises
    ------
    fpo.parameters.ParameterError
        For a value outside its range, an unknown name, or the wrong type.
    """

    seeds: Seeds = seed_list((0, 1), "torch's CPU generator")
    arms: Distinct[Arm] = arm_list(ARMS)
    gamma_relaxed: float = real(0.005, 0, 1e6, "weight of the relaxed arm's penalty")
    gamma_practical: float = real(0.005, 0, 1e6, "weight of the practical arm's penalty")
    gamma_exact: float = real(1.0, 0, 1e6, "weight of the exact arm's penalty; the theorem's is 1")
    damping: float = real(0.0, 0, 1e6, "added to the diagonal of the exact arm's Hessian")
    through_oracle: Distinct[Arm] = arm_list(
        ("exact",), ARMS, 0, "arms whose penalty's gradient sees how U changes with y"
    )
    utility_at: Literal["sample", "mean"] = Field(
        "sample", description="where the penalty reads U: at the sampled action or at the policy's mean"
    )
    pairing: Literal["paired", "released"] = Field(
        "paired",
        description="whether the arms of a seed share initial RM and noise, or all but the standard one go on with its "
        "random stream, as in the release",
    )
    outer_steps: int = whole(4000, 1, 1_000_000, "iterations")
    inner_steps: int = whole(15, 1, 10_000, "policy steps in an iteration")
    new_samples: int = whole(5, 1, 10_000, "actions labeled in an iteration")
    buffer_size: int = Field(
        50,
        le=10_000,
        description="latest labels that the RM is fitted to",
        json_schema_extra={"allowed": "a whole number from new_samples to 10,000"},
    )
    action_cost: float = real(0.01, 0, 1e6, "weight of |y|^2 in every arm's objective")
    policy_lr: float = real(0.05, 0, 1e3, "length of a policy step per unit of gradient at the start")
    policy_lr_end: float = real(0.001, 0, 1e3, "the same at the end")
    sigma: float = real(0.1, 0, 1e3, "the policy's standard deviation at the start")
    sigma_end: float = real(0.001, 0, 1e3, "the same at the end")
    schedule_power: float = real(4.0, 0.01, 100, "p in f = 1 - (t / outer_steps)^p, from start (1) to end (0)")
    clip: float = real(1.0, 1e-6, 1e6, "largest gradient of a policy step in a coordinate")
    rm_lr: float = real(1e-3, 0, 1e3, "the RM's learning rate (Adam)")
    rm_decay: float = Field(
        1e-3,
        ge=0,
        le=1e3,
        allow_inf_nan=False,
        description="the RM's weight decay, added to the gradient",
        json_schema_extra={"allowed": "a finite number from 0 to 1000, and with damping 1e-6 or more in the exact arm"},
    )
    hidden: Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=4096)], ...], BeforeValidator(as_tuple)] = Field(
        (32, 32),
        strict=False,
        min_length=1,
        max_length=8,
        description="widths of the RM's hidden layers",
        json_schema_extra={"allowed": "a list of 1 to 8 whole numbers from 1 to 4,096"},
    )
    initial_scale: float = real(0.1, 0, 100, "standard deviation of the first RM's weights")
    dimensions: int = whole(10, 1, 10_000, "length d of an action")
    signal_dimensions: Signal = signal(2)
    target: float = real(2.5, -100, 100, "the target's value in the signal coordinates")
    utility_scale: float = real(10.0, 1e-6, 1e6, "the best possible utility")
    utility_sharpness: float = real(0.2, 1e-6, 1e3, "how fast the utility falls with squared distance from the target")
    gradient: Literal["autograd", "closed-form", "compiled"] = Field(
        "autograd",
        description="the policy's gradient: the readable route, the fast one, or that compiled (not in the exact arm)",
    )
    precision: Literal["float32", "float64"] = Field("float32", description="floating point numbers of the game")
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where the game is played",
        json_schema_extra={"allowed": "'cpu', or 'cuda' where torch finds such a device"},
    )
    threads: int = whole(1, 1, 1024, "threads of a CPU; more than 1 pays from some hundred runs on")

    @field_validator("buffer_size")
    @classmethod
    def _holds(cls, value, info: ValidationInfo):
        if value < info.data.get("new_samples", value):
            raise ValueError("the new samples do not fit")
        return value

    @field_validator("rm_decay")
    @classmethod
    def _ridge(cls, value, info: ValidationInfo):
        if "exact" in info.data.get("arms", ()) and value + info.data.get("damping", 1.0) < 1e-6:
            raise ValueError("the exact arm's Hessian would be singular")
        return value

    @field_validator("device")
    @classmethod
    def _there(cls, value):
        if value == "cuda" and not torch.cuda.is_available():
            raise ValueError("no such device")
        return value


@dataclass(frozen=True)
class Result(ByArm):
    """What `simulate` returns. Axes: iterations (outer_steps), arms, seeds.

    Attributes
    ----------
    config : Config
        The settings that made it.
    utility, reward, noise : arrays (outer_steps, arms, seeds)
        U(theta), r(theta) and the norm of theta's coordinates without signal, each after the policy steps and before
        the RM step of its iteration. NaN from the iteration of a divergence on.
    diverged_at : int array (arms, seeds)
        The iteration at which a coordinate of theta, or r(theta) / utility_scale, exceeded `DIVERGED`, or -1.
    kept : tuple of int
        The iterations at which policy and RM were kept.
    actions : array (kept, arms, seeds, d)
        theta there.
    reward_models : list of (weight, bias)
        The RM that the policy had climbed there, each array with leading axes (kept, arms, seeds).
    seconds : float
        Wall time of the game, over all calls that an interrupted one took.
    """

    config: Config
    utility: np.ndarray
    reward: np.ndarray
    noise: np.ndarray
    diverged_at: np.ndarray
    kept: tuple[int, ...]
    actions: np.ndarray
    reward_models: list[tuple[np.ndarray, np.ndarray]]
    seconds: float

    def reward_model(self, arm: str, seed: int, iteration: int) -> Layers:
        """The RM of one run at a kept iteration."""
        at = self.kept.index(iteration), self.config.arms.index(arm), self.config.seeds.index(seed)
        return [(torch.from_numpy(weight[at]), torch.from_numpy(bias[at])) for weight, bias in self.reward_models]


def target(config: Config) -> torch.Tensor:
    """t, the action that people like best: shape (d,)."""
    signal = torch.arange(config.dimensions) < config.signal_dimensions
    return (config.target * signal).to(config.device, getattr(torch, config.precision))


def utility(y: torch.Tensor, config: Config) -> torch.Tensor:
    """U(y) = utility_scale * exp(-utility_sharpness * |y - t|^2) for y of shape (..., d)."""
    return _bell(y, target(config).to(y.dtype), config.utility_scale, config.utility_sharpness)


def _bell(y: torch.Tensor, center: torch.Tensor, scale: float, sharpness: float) -> torch.Tensor:
    return scale * torch.exp(-sharpness * (y - center).square().sum(-1))


def reward(layers: Layers, y: torch.Tensor) -> torch.Tensor:
    """r(y) of one RM, or of a batch of them, for y of shape (..., n, d): shape (..., n)."""
    for weight, bias in layers[:-1]:
        y = softplus((y @ weight.mT).add_(bias[..., None, :]))
    weight, bias = layers[-1]
    return (y @ weight.mT + bias[..., None, :])[..., 0]


class Objective(NamedTuple):
    """What R runs climb: r - cost |y|^2 - (value (r - U) + flat) M, where M is |g|^2 or <a, g>.

    `cost`, `value` and `flat` have shape (R, 1), and so has `through`, which says in which runs the gradient sees how U
    changes (None: in none).
    """

    cost: torch.Tensor
    value: torch.Tensor
    flat: torch.Tensor
    through: torch.Tensor | None
    target: torch.Tensor
    scale: float
    sharpness: float
    clip: float
    at_mean: bool

    def utility(self, y: torch.Tensor) -> torch.Tensor:
        return _bell(y, self.target, self.scale, self.sharpness)


class Direction(NamedTuple):
    """a = sum_j coefficients_j g(x_j) of R runs: coefficients (R, 1, k) and the factors of k gradients."""

    coefficients: torch.Tensor
    factors: Factors


def gradient_by_autograd(
    layers: Layers, y: torch.Tensor, offset: torch.Tensor | None, objective: Objective, a: Direction | None = None
) -> torch.Tensor:
    """grad_y of the objective of R runs at y (R, 1, d), with U read at y - offset, or at y: the readable route."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        cost = objective.cost * (y * y).sum(-1)
        r, factors = steering.mlp_factors(layers, y, softplus, torch.sigmoid)
        u = objective.utility((y if objective.through is not None else y.detach()) - (0 if offset is None else offset))
        if objective.through is not None:
            u = torch.where(objective.through, u, u.detach())
        if a is None:
            m = steering.mlp_gradient_norms(factors)
        else:
            m = (a.coefficients * steering.mlp_gradient_products(factors, a.factors)).sum(-1)
        return torch.autograd.grad((r - cost - (objective.value * (r - u) + objective.flat) * m).sum(), y)[0]


def gradient_in_closed_form(
    layers: Layers, y: torch.Tensor, offset: torch.Tensor | None, objective: Objective, a: Direction | None = None
) -> torch.Tensor:
    """The same gradient by hand, in three passes through the layers.

    The product rule leaves grad r and grad M:

        (1 - value M) grad r + value M grad U - (value (r - U) + flat) grad M - 2 cost y.

    M is a function of the activations a_l and the deltas d_l. Its derivatives in them, one at a time, go up through
    the recursion of the deltas, d_l = (d_(l+1) W_(l+1)) * s_l, and then down through that of the activations.
    """
    x, s, q = [y], [], []
    for weight, bias in layers[:-1]:
        z = (x[-1] @ weight.mT).add_(bias[:, None])
        x.append(softplus(z))
        s.append(torch.sigmoid(z))
    weight, bias = layers[-1]
    r = x[-1] @ weight.mT + bias[:, None]
    d = [torch.ones_like(r)]
    for (weight, _), slope in zip(layers[:0:-1], s[::-1], strict=True):
        q.insert(0, weight if len(d) == 1 else d[0] @ weight)
        d.insert(0, q[0] * slope)
    grad_r = d[0] @ layers[0][0]
    cost = 2 * objective.cost[..., None] * y

    if a is None:
        n = [(x_l * x_l).sum(-1, keepdim=True) + 1 for x_l in x]
        k = [(d_l * d_l).sum(-1, keepdim=True) for d_l in d]
        m = sum(n_l * k_l for n_l, k_l in zip(n, k, strict=True))
        by_x = [2 * x_l * k_l for x_l, k_l in zip(x, k, strict=True)]
        by_d = [2 * d_l * n_l for d_l, n_l in zip(d, n, strict=True)]
    else:
        n = [a.coefficients * (x_l @ there.mT + 1) for x_l, (_, there) in zip(x, a.factors, strict=True)]
        k = [d_l @ there.mT for d_l, (there, _) in zip(d, a.factors, strict=True)]
        m = sum((n_l * k_l).sum(-1, keepdim=True) for n_l, k_l in zip(n, k, strict=True))
        by_x = [(a.coefficients * k_l) @ there for k_l, (_, there) in zip(k, a.factors, strict=True)]
        by_d = [n_l @ there for n_l, (there, _) in zip(n, a.factors, strict=True)]

    by_s = []
    for i, slope in enumerate(s):
        by_s.append(by_d[i] * q[i])
        # The last delta is the constant 1: nothing depends on it.
        if i + 1 < len(s):
            by_d[i + 1] = by_d[i + 1] + (by_d[i] * slope) @ layers[i + 1][0].mT
    grad_m = by_x[-1]
    for i in reversed(range(len(s))):
        by_z = grad_m * s[i] + by_s[i] * s[i] * (1 - s[i])
        grad_m = by_x[i] + by_z @ layers[i][0]

    value, flat = objective.value[..., None], objective.flat[..., None]
    at = y if offset is None else y - offset
    u = objective.utility(at)[..., None]
    uphill = (1 - value * m) * grad_r - (value * (r - u) + flat) * grad_m - cost
    if objective.through is None:
        return uphill
    grad_u = -2 * objective.sharpness * u * (at - objective.target)
    return uphill + objective.through[..., None] * value * m * grad_u


class Memory(NamedTuple):
    """What H^-1 needs of a buffer of n actions, prepared once for an iteration.

    `factors` has n + 1 rows, the last one free for theta; `inverse` (R, n, n) is the matrix of `solve`.
    """

    factors: Factors
    inverse: torch.Tensor
    ridge: float


def remember(layers: Layers, y: torch.Tensor, weights: torch.Tensor, ridge: float) -> Memory:
    """Prepare H = sum_i 2 weights_i g_i g_i^T + ridge I, g_i = g(y_i), through its n x n Gram matrix.

    Shapes: y (R, n, d), weights (n,). A run whose matrix has no Cholesky factor gets NaN.
    """
    _, factors = steering.mlp_factors(layers, torch.cat([y, y[:, :1]], 1), softplus, torch.sigmoid)
    gram = steering.mlp_gradient_products(factors, factors)[:, :-1, :-1]
    root = (2 * weights).sqrt()
    inner = root[:, None] * gram * root
    inner.diagonal(dim1=-2, dim2=-1).add_(ridge)
    cholesky, info = torch.linalg.cholesky_ex(inner)
    cholesky[info != 0] = torch.nan
    return Memory(factors, root[:, None] * torch.cholesky_inverse(cholesky) * root, ridge)


def solve(layers: Layers, theta: torch.Tensor, memory: Memory) -> Direction:
    """a = H^-1 g(theta) as a sum of gradients, for theta (R, 1, d).

    The Woodbury identity of `steering.gram_solver` in function space. With D = 2 diag(weights), the buffer's Gram
    matrix K, and k = (<g_i, g(theta)>)_i,

        a = (g(theta) - sum_i b_i g_i) / ridge,    b = D^(1/2) (D^(1/2) K D^(1/2) + ridge I)^-1 D^(1/2) k.

    g(theta) takes the last row of the memory.
    """
    _, here = steering.mlp_factors(layers, theta, softplus, torch.sigmoid)
    for (d, x), (d_all, x_all) in zip(here, memory.factors, strict=True):
        d_all[:, -1:], x_all[:, -1:] = d, x
    k = steering.mlp_gradient_products(here, memory.factors)
    b = k[..., :-1] @ memory.inverse
    return Direction(torch.cat([-b, torch.ones_like(b[..., :1])], -1) / memory.ridge, memory.factors)


def climb(
    gradient: Callable,
    layers: Layers,
    theta: torch.Tensor,
    noise: torch.Tensor,
    lr: torch.Tensor,
    objective: Objective,
    memory: Memory | None = None,
) -> torch.Tensor:
    """The policy steps of an iteration: theta (R, d) after one step for each noise (R, steps, d), sigma included.

    `layers`, `objective` and `memory` are float64 in the exact arm, whatever theta's precision: |H| / ridge digits
    cancel in its direction.
    """
    kind = layers[0][0].dtype
    for eps in noise.unbind(1):
        offset = eps[:, None].to(kind) if objective.at_mean else None
        a = None if memory is None else solve(layers, theta[:, None].to(kind), memory)
        uphill = gradient(layers, (theta + eps)[:, None].to(kind), offset, objective, a)[:, 0].to(theta.dtype)
        theta = theta + lr * uphill.clamp(-objective.clip, objective.clip)
    return theta


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False)


def rm_gradient(layers: Layers, y: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> Layers:
    """Gradient of sum_i weights_i (r(y_i) - labels_i)^2 in the weights and biases of R reward models.

    Shapes: y (R, n, d), labels (R, n), weights (n,).
    """
    with torch.enable_grad():
        free = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
        loss = (weights * (reward(free, y) - labels).square()).sum()
        slopes = iter(torch.autograd.grad(loss, [tensor for layer in free for tensor in layer]))
        return list(zip(slopes, slopes, strict=True))


class Stream:
    """The random numbers of one seed, drawn as the release draws them: first a reward model, then the noise.

    torch's stream depends on the shapes that are asked for: the policy's noise comes one action at a time and the
    buffer's in one piece. Everything is drawn in float32, so both precisions play the same game.
    """

    def __init__(self, seed: int, config: Config):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def reward_model(self) -> Layers:
        """Torch's own initial layers, which use up random numbers too, and then normal weights and zero biases."""
        widths = (self.config.dimensions, *self.config.hidden, 1)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.generator.get_state())
            layers = [torch.nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)]
            for layer in layers:
                torch.nn.init.normal_(layer.weight, 0.0, self.config.initial_scale)
                torch.nn.init.normal_(layer.bias, 0.0, 0.0)
            self.generator.set_state(torch.get_rng_state())
        return [(layer.weight.detach(), layer.bias.detach()) for layer in layers]

    def noise(self, policy: torch.Tensor, buffer: torch.Tensor) -> None:
        """Fill one iteration's eps: policy (inner_steps, d), a tensor with gaps as `room` makes it, and buffer."""
        if self.config.dimensions < 16:
            policy.normal_(generator=self.generator)
        else:
            for row in policy.unbind():
                row.copy_(torch.randn(len(row), generator=self.generator))
        buffer.normal_(generator=self.generator)


def room(count: int, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for one iteration's noise of `count` seeds: (count, inner_steps, d) and (count, new_samples, d).

    Torch draws fewer than 16 numbers one after the other, more of them in another order, and any number one after the
    other if the tensor has gaps. So all policy steps of an iteration can be drawn at once into a tensor with gaps.
    """
    gaps = torch.empty(count, config.inner_steps, config.dimensions, 2)
    return gaps[..., 0], torch.empty(count, config.new_samples, config.dimensions)


class Block:
    """The exact arm, or all others, for all seeds: one batch of runs."""

    def __init__(self, arms: Sequence[Arm], models: list[list[Layers]], config: Config):
        """`models` holds the first reward models, arm by arm and seed by seed."""
        self.arms, self.config = arms, config
        kind = {"dtype": getattr(torch, config.precision), "device": config.device}
        runs = [model for row in models for model in row]
        stacked = [[torch.stack([run[i][j] for run in runs]).to(**kind) for j in (0, 1)] for i in range(len(runs[0]))]
        self.layers: Layers = [(weight, bias) for weight, bias in stacked]
        self.tensors = [tensor for layer in self.layers for tensor in layer]
        self.optimizer = torch.optim.Adam(self.tensors, lr=config.rm_lr, weight_decay=config.rm_decay, fused=True)
        each, d = len(config.seeds), config.dimensions
        self.theta = torch.zeros(len(runs), d, **kind)
        self.buffer = torch.zeros(len(runs), config.buffer_size, d, **kind)
        self.labels = torch.zeros(len(runs), config.buffer_size, **kind)
        self.diverged_at = torch.full((len(runs),), -1, device=config.device)
        self.exact = "exact" in arms
        # The exact arm's gradient is worked out in float64: see `climb`.
        self.fine = torch.float64 if self.exact else kind["dtype"]
        gamma = {"relaxed": config.gamma_relaxed, "exact": 2 * config.gamma_exact}

        def of_arms(function, dtype=self.fine):
            values = [function(arm) for arm in arms for _ in range(each)]
            return torch.tensor(values, dtype=dtype, device=config.device)[:, None]

        through = set(arms) & set(config.through_oracle)
        self.objective = Objective(
            cost=of_arms(lambda arm: config.action_cost),
            value=of_arms(lambda arm: gamma.get(arm, 0.0)),
            flat=of_arms(lambda arm: config.gamma_practical if arm == "practical" else 0.0),
            through=of_arms(lambda arm: arm in config.through_oracle, torch.bool) if through else None,
            target=target(config).to(self.fine),
            scale=config.utility_scale,
            sharpness=config.utility_sharpness,
            clip=config.clip,
            at_mean=config.utility_at == "mean",
        )
        self.gradient = gradient_by_autograd if config.gradient == "autograd" else gradient_in_closed_form
        # Compiling the exact arm's steps made them slower.
        self.climb = _compiled(climb) if config.gradient == "compiled" and not self.exact else climb

    def step(self, t: int, policy: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """Iteration t with eps for the policy (R, inner_steps, d) and the buffer, up to its record (3, R)."""
        config = self.config
        f = 1 - (t / config.outer_steps) ** config.schedule_power
        sigma = config.sigma_end + (config.sigma - config.sigma_end) * f
        lr = config.policy_lr_end + (config.policy_lr - config.policy_lr_end) * f
        policy, self.sampled = sigma * policy.to(self.theta), sigma * buffer.to(self.theta)
        objective, memory, layers = self.objective, None, self.layers
        if self.exact:
            known = min(t * config.new_samples, config.buffer_size)
            layers = [(weight.to(self.fine), bias.to(self.fine)) for weight, bias in layers]
            ridge = config.rm_decay + config.damping
            memory = remember(layers, self.buffer.to(self.fine), self._weights(max(known, 1)).to(self.fine), ridge)
            if not known:
                objective = objective._replace(value=0 * objective.value)
        lr = torch.tensor(lr, dtype=self.theta.dtype, device=self.theta.device)
        self.theta = self.climb(self.gradient, layers, self.theta, policy, lr, objective, memory)
        return self._record(t)

    def learn(self, t: int) -> None:
        """The rest of iteration t: new labels, one step of the RM."""
        config = self.config
        y = self.theta[:, None] + self.sampled
        place = (t * config.new_samples + torch.arange(config.new_samples)) % config.buffer_size
        self.buffer[:, place], self.labels[:, place] = y, utility(y, config)
        weights = self._weights(min((t + 1) * config.new_samples, config.buffer_size))
        slopes = chain.from_iterable(rm_gradient(self.layers, self.buffer, self.labels, weights))
        for tensor, slope in zip(self.tensors, slopes, strict=True):
            # torch's fused Adam reads a gradient with another memory layout wrongly (2.13).
            tensor.grad = slope.contiguous()
        self.optimizer.step()

    def _weights(self, known: int) -> torch.Tensor:
        """1 / known for the rows of the buffer that hold a label, 0 for the others."""
        rows = torch.arange(self.config.buffer_size, device=self.theta.device)
        return (rows < known).to(self.theta) / known

    def _record(self, t: int) -> torch.Tensor:
        u, r = utility(self.theta, self.config), reward(self.layers, self.theta[:, None])[:, 0]
        noise = torch.linalg.vector_norm(self.theta[:, self.config.signal_dimensions :], dim=-1)
        # A comparison with NaN is false: such a run is lost too.
        size = torch.maximum(self.theta.abs().amax(-1), r.abs() / self.config.utility_scale)
        lost = ~(size <= DIVERGED)
        if bool(lost.any()):
            self.diverged_at[lost & (self.diverged_at < 0)] = t
            for tensor in (self.theta, *self.tensors):
                tensor[lost] = 0.0
        return torch.where(self.diverged_at < 0, torch.stack([u, r, noise]), torch.nan)

    def state(self) -> dict:
        """Everything that changes, for a checkpoint."""
        return {
            "theta": self.theta, "tensors": self.tensors, "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer, "labels": self.labels, "diverged_at": self.diverged_at,
        }  # fmt: skip

    def load(self, state: dict) -> None:
        """Go on from a checkpoint."""
        for name in ("buffer", "labels", "diverged_at"):
            getattr(self, name).copy_(state[name])
        self.theta = state["theta"].to(self.theta)
        for tensor, values in zip(self.tensors, state["tensors"], strict=True):
            tensor.copy_(values)
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checkpoint_name(config: Config, keep: Sequence[int]) -> str:
    """A file name for these settings and this code: a run of others never goes on from its checkpoint."""
    settings = config.model_dump_json(include=set(Config.model_fields))
    digest = hashlib.sha256(f"{settings} {list(keep)} {torch.__version__}".encode())
    for module in (Path(__file__), Path(steering.__file__)):
        digest.update(module.read_bytes())
    return f"neural-{digest.hexdigest()[:16]}.pt"


@torch.no_grad()
def simulate(
    config: Config, keep: Sequence[int] = (), folder: Path | str | None = None, save_every: float = 30.0
) -> Result:
    """Play the game for every arm and seed of `config` at once, with a progress bar.

    Parameters
    ----------
    config : Config
        The settings. A run's numbers do not depend on which others are played with it, up to rounding.
    keep : iterations, from 0 to outer_steps - 1
        When to keep policy and RM.
    folder : path, optional
        An existing folder for checkpoints. A call with the same settings goes on where an interrupted one was last
        saved, to the same numbers, and a finished one is read back.
    save_every : float
        Seconds between checkpoints.

    Returns
    -------
    Result
        A run that leaves every bound is marked in `diverged_at`, recorded as NaN from there on, and harms no other.

    Raises
    ------
    ValueError
        For an iteration outside the game, a folder that does not exist, or a damaged checkpoint.
    OSError
        If a checkpoint cannot be written; the one before it stays.
    KeyboardInterrupt
        With a folder, the game is first saved as the last whole iteration left it.
    """
    keep = tuple(keep)
    if any(not 0 <= t < config.outer_steps for t in keep) or len(set(keep)) < len(keep):
        raise ValueError(f"keep = {list(keep)}: must be distinct whole numbers from 0 to {config.outer_steps - 1}")
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"folder = {str(folder)!r}: must be an existing folder")
    path = Path(folder, checkpoint_name(config, keep)) if folder is not None else None
    with _threads(config.threads):
        return _play(config, keep, path, save_every)


def _play(config: Config, keep: tuple[int, ...], path: Path | None, save_every: float) -> Result:
    state = files.load(path) if path else None
    streams = {arm: int(config.pairing == "released" and arm != "standard") for arm in config.arms}
    blocks, noise = _start(config, streams, resumed=bool(state))
    steps, each = config.outer_steps, len(config.seeds)
    record = {arm: np.full((3, steps, each), np.nan) for arm in config.arms}
    kept: dict[int, list] = {}
    eps = {key: room(each, config) for key in noise}
    places = [
        place
        for key, row in noise.items()
        for place in zip(row, eps[key][0].unbind(), eps[key][1].unbind(), strict=True)
    ]
    first, spent, started = 0, 0.0, monotonic()
    if state:
        first, spent, kept = state["next"], state["seconds"], state["kept"]
        for block, saved in zip(blocks, state["blocks"], strict=True):
            block.load(saved)
        for key, saved in state["noise"].items():
            for stream, generator in zip(noise[key], saved, strict=True):
                stream.generator.set_state(generator)
        for arm in config.arms:
            record[arm][:] = state["record"][arm].numpy()

    def save(reached: dict) -> None:
        # An iteration writes to its own entries of the record, and to all of them: no copy is needed.
        more = {
            "seconds": spent + monotonic() - started,
            "record": {arm: torch.from_numpy(values) for arm, values in record.items()},
        }
        try:
            files.save(path, reached | more)
        except OSError as error:
            reason = f"{error.strerror or error}: make room and start again; the game resumes from its last checkpoint"
            raise OSError(error.errno, reason, str(path)) from error

    saved_at, saved, reached = started, first, None
    try:
        for t in tqdm(range(first, steps), desc="neural", unit="iteration", initial=first, total=steps):
            for stream, policy, buffer in places:
                stream.noise(policy, buffer)
            for block in blocks:
                policy, buffer = (torch.cat([eps[streams[arm]][i] for arm in block.arms]) for i in (0, 1))
                rows = block.step(t, policy, buffer)
                for arm, values in zip(block.arms, rows.cpu().split(each, dim=1), strict=True):
                    record[arm][:, t] = values
                if t in keep:
                    model = [(weight.clone().cpu(), bias.clone().cpu()) for weight, bias in block.layers]
                    kept.setdefault(t, []).append((block.theta.clone().cpu(), model))
                block.learn(t)
            if path:
                # An interrupt may come anywhere in an iteration, which changes tensors in place: what it finds half
                # done is left alone, and this copy of what the last whole iteration left is saved.
                reached = {
                    "next": t + 1,
                    "kept": dict(kept),
                    "blocks": copy.deepcopy([block.state() for block in blocks]),
                    "noise": {key: [stream.generator.get_state() for stream in row] for key, row in noise.items()},
                }
                if t == steps - 1 or monotonic() - saved_at > save_every:
                    save(reached)
                    saved_at, saved = monotonic(), t + 1
    except KeyboardInterrupt:
        if reached and reached["next"] > saved:
            save(reached)
        raise
    if first < steps:
        spent += monotonic() - started
    return _result(config, blocks, record, keep, kept, spent)


def _start(config: Config, streams: dict[Arm, int], resumed: bool) -> tuple[list[Block], dict[int, list[Stream]]]:
    """The blocks at the start, and for each stream in use its random numbers, seed by seed.

    A resumed game takes both from its checkpoint: only the shapes matter, and no stream is passed over.
    """
    noise, models = {}, {}
    for key in sorted(set(streams.values())):
        noise[key] = [Stream(seed, config) for seed in config.seeds]
        if key and not resumed:
            policy, buffer = (tensor[0] for tensor in room(1, config))
            for stream in tqdm(noise[key], desc="passing over the standard run", unit="seed", leave=False):
                stream.reward_model()
                for _ in range(config.outer_steps):
                    stream.noise(policy, buffer)
        models[key] = [stream.reward_model() for stream in noise[key]]
    groups = [[arm for arm in config.arms if (arm == "exact") == exact] for exact in (False, True)]
    return [Block(group, [models[streams[arm]] for arm in group], config) for group in groups if group], noise


def _result(
    config: Config, blocks: list[Block], record: dict, keep: tuple[int, ...], kept: dict, seconds: float
) -> Result:
    each, place = len(config.seeds), {arm: (b, i) for b, block in enumerate(blocks) for i, arm in enumerate(block.arms)}

    def gather(tensors: list[torch.Tensor]) -> np.ndarray:
        """Per block (R, ...) to (arms, seeds, ...) in the order of the config."""
        parts = [tensor.cpu().unflatten(0, (-1, each)) for tensor in tensors]
        return torch.stack([parts[place[arm][0]][place[arm][1]] for arm in config.arms]).numpy()

    diverged_at = gather([block.diverged_at for block in blocks])
    lost = np.array([(diverged_at >= 0) & (diverged_at <= t) for t in keep]).reshape(len(keep), *diverged_at.shape)

    def over_time(pick: Callable) -> np.ndarray:
        shape = (0, *diverged_at.shape)
        values = np.stack([gather([pick(part) for part in kept[t]]) for t in keep]) if keep else np.empty(shape)
        return np.where(lost.reshape(lost.shape + (1,) * (values.ndim - lost.ndim)), np.nan, values)

    depth = len(config.hidden) + 1
    return Result(
        config,
        *np.stack([record[arm] for arm in config.arms], axis=2),
        diverged_at,
        keep,
        over_time(lambda part: part[0]),
        [tuple(over_time(lambda part, i=i, j=j: part[1][i][j]) for j in (0, 1)) for i in range(depth)],
        seconds,
    )
