"""The neural game: a Gaussian policy against a small neural reward model, for many seeds and arms at once.

The policy draws actions y = theta + sigma eps in R^d, eps standard normal; the reward model (RM) r_phi is an MLP with
Softplus; people's true utility is

    U(y) = utility_scale * exp(-utility_sharpness * |y - t|^2),     t = (target, ..., target, 0, ..., 0),

or, as a variant, one with another t, with a sharpness for each coordinate, or with a second peak. With an `offset` the
RM sees y + offset, and this is what the game calls the action: start, t and peaks move along.

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

Not in the paper: `rm_steps` Adam steps in an iteration, each on `replay` labels drawn from the buffer; a standard arm
that climbs, in place of r, the RM's exact answer to the buffer (`mlp.refit`) or the slope of the labels themselves
(`label_slope`); a trust region around the labels (`Trust`); what `fpo.remedies` puts beside the RM's reward; and a
penalty that reads U + `oracle_level` + `oracle_tilt` y_d in place of U, or does so at a share of the policy steps only.

Here R runs (arms x seeds) are one batch, and n actions of each are rows: tensors (R, n, d).
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from tqdm import tqdm

from fpo import files, games, mlp, moves, remedies
from fpo.landscapes import Biased
from fpo.mlp import Layers
from fpo.parameters import Distinct, Seeds, arm_list, as_tuple, real, seed_list, whole
from fpo.remedies import Remedy, Trust, label_slope, trust_region

Arm = Literal["standard", "relaxed", "practical", "exact"]
ARMS: tuple[Arm, ...] = get_args(Arm)

# The loss of a label is (r - U)^2: its gradient in the RM's parameters is 2 (r - U) g, and so the exact penalty has a
# factor 2 that the other forms, which replace more than H^-1, do not have.
LOSS_SLOPE = 2.0

# Settings that are numbers of a run, in which games that are played as one batch may differ: see `simulate_each`.
WEIGHTS = (
    *("action_cost", "gamma_relaxed", "gamma_practical", "gamma_exact", "remedy_weight", "trust"),
    *("label_spread", "sigma", "sigma_end", "oracle_level", "oracle_tilt"),
)


class Config(moves.Settings):
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
    oracle_level: float = real(0.0, -1e6, 1e6, "added to the U that a penalty reads")
    oracle_tilt: float = real(0.0, -1e6, 1e6, "slope, in the last coordinate, of what is added to it")
    oracle_share: float = real(1.0, 0, 1, "share of policy steps that have a penalty, of those that read U")
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
        le=100_000,
        description="latest labels that the RM is fitted to",
        json_schema_extra={"allowed": "a whole number from new_samples to 100,000"},
    )
    rm_steps: int = whole(1, 1, 10_000, "Adam steps of the RM in an iteration")
    replay: int = whole(0, 0, 100_000, "labels that each of them draws from the buffer; 0: it takes all")
    follower: Literal["own", "refit", "labels"] = Field(
        "own",
        description="what the policy climbs: the RM's own reward, its exact answer to the buffer, or the labels' slope",
        json_schema_extra={"allowed": "'own', or with the standard arm alone 'refit' or 'labels'"},
    )
    trust: float = real(0.0, 0, 1e6, "weight of the trust region, in standard deviations of the labels; 0: none")
    remedy: Remedy = Field(
        "none",
        description="what a standard policy climbs beside its RM's reward: see `fpo.remedies`",
        json_schema_extra={"allowed": "'none', or with the standard arm alone " + ", ".join(get_args(Remedy)[1:])},
    )
    remedy_weight: float = real(1.0, 0, 1e6, "its weight, where it has one")
    members: int = whole(1, 1, 100, "reward models of a run; with more than one the policy climbs an ensemble")
    action_cost: float = games.setting("action_cost", 0.01)
    cost_center: Literal["zero", "start", "origin"] = Field(
        "zero",
        description="where an action costs nothing: at 0, where the policy starts, or where what the RM sees is 0",
    )
    policy_lr: float = real(0.05, 0, 1e3, "length of a policy step per unit of gradient at the start")
    policy_lr_end: float = real(0.001, 0, 1e3, "the same at the end")
    sigma: float = real(0.1, 0, 1e3, "the policy's standard deviation at the start")
    sigma_end: float = real(0.001, 0, 1e3, "the same at the end")
    label_spread: float = real(1.0, 0, 1e3, "standard deviation of the labeled actions, in units of the policy's")
    wide_labels: int = whole(0, 0, 10_000, "how many of an iteration's labels have this spread; 0: all")
    label_noise: float = real(0.0, 0, 1e6, "standard deviation of the noise of a label")
    schedule_power: float = real(4.0, 0.01, 100, "p in f = 1 - (t / outer_steps)^p, from start (1) to end (0)")
    clip: float = real(1.0, 1e-6, 1e6, "largest gradient of a policy step in a coordinate")
    rm_lr: float = real(1e-3, 0, 1e3, "the RM's learning rate (Adam)")
    rm_decay: float = Field(
        1e-3,
        ge=0,
        le=1e3,
        allow_inf_nan=False,
        description="the RM's weight decay, added to the gradient",
        json_schema_extra={
            "allowed": "a finite number from 0 to 1000, and with damping 1e-6 or more where H is solved"
        },
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
    def _holds(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("new_samples", value):
            raise ValueError("the new samples do not fit")
        return value

    @field_validator("follower")
    @classmethod
    def _alone(cls, value: str, info: ValidationInfo) -> str:
        if value != "own" and info.data.get("arms", ("standard",)) != ("standard",):
            raise ValueError("the other arms have a direction of their own")
        return value

    @field_validator("remedy")
    @classmethod
    def _fits(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("arms", ("standard",)) != ("standard",):
            raise ValueError("the other arms have a direction of their own")
        if value not in ("none", "bound") and info.data.get("follower", "own") != "own":
            raise ValueError("this one needs the RM's own reward")
        if value == "bound" and info.data.get("follower") == "labels":
            raise ValueError("labels alone have no bound")
        return value

    @field_validator("members")
    @classmethod
    def _several(cls, value: int, info: ValidationInfo) -> int:
        if (value > 1) != (info.data.get("remedy", "none") in remedies.SEVERAL):
            raise ValueError("an ensemble has two members or more, and nothing else has")
        return value

    @field_validator("rm_decay")
    @classmethod
    def _ridge(cls, value: float, info: ValidationInfo) -> float:
        solved = "exact" in info.data.get("arms", ()) or info.data.get("follower") == "refit"
        solved = solved or info.data.get("remedy") in (*remedies.SOLVED, "leave-one-out")
        if solved and value + info.data.get("damping", 1.0) < 1e-6:
            raise ValueError("the Hessian would be singular")
        return value

    @field_validator("device")
    @classmethod
    def _there(cls, value: str) -> str:
        if value == "cuda" and not torch.cuda.is_available():
            raise ValueError("no such device")
        return value

    def schedule(self, t: int) -> tuple[float, float]:
        """The policy's standard deviation and its learning rate in iteration t: f of the start, 1 - f of the end."""
        f = 1 - (t / self.outer_steps) ** self.schedule_power
        sigma = self.sigma_end + (self.sigma - self.sigma_end) * f
        return sigma, self.policy_lr_end + (self.policy_lr - self.policy_lr_end) * f


@dataclass(frozen=True)
class Result(games.Result):
    """What `simulate` returns: see `games.Result`. Iterations are 0 to `outer_steps` - 1.

    Each is recorded after its policy steps and before its RM step, at the policy's mean. A kept RM is the one that the
    policy had climbed: `reward_models` is a list of (weight, bias), each with leading axes (keep, arms, seeds).
    `buffers` (keep, arms, seeds, buffer_size, d) holds the labeled actions that this RM was fitted to; see `labeled`.
    `over` (keep, arms, seeds) is a remedy's estimate of r - U at the policy's mean, NaN where it makes none.
    """

    buffers: Any = None
    over: Any = None

    def labeled(self, arm: str, iteration: int) -> np.ndarray:
        """The labeled actions that one arm's RMs had at an iteration that was kept: (seeds, known, d)."""
        known = min(iteration * self.config.new_samples, self.config.buffer_size)
        return self.buffers[self.keep.index(iteration), self.config.arms.index(arm)][:, :known]

    def reward_model(self, arm: str, seed: int, iteration: int) -> Layers:
        """The RM of one run at an iteration that was kept."""
        at = self.keep.index(iteration), self.config.arms.index(arm), self.config.seeds.index(seed)
        return [(torch.from_numpy(weight[at]), torch.from_numpy(bias[at])) for weight, bias in self.reward_models]


def climb(
    gradient: Callable,
    layers: Layers,
    theta: torch.Tensor,
    noise: torch.Tensor,
    lr: torch.Tensor,
    objective: mlp.Objective,
    clip: float,
    at_mean: bool = False,
    hessian: mlp.GaussNewton | None = None,
    held: mlp.Direction | None = None,
    trust: Trust | None = None,
    asked: tuple[bool, ...] | None = None,
) -> torch.Tensor:
    """The policy steps of an iteration: theta (R, d) after one step for each noise (R, steps, d), sigma included.

    `at_mean`: whether the penalty reads U at the policy's mean, and not at the sampled action. The objective's a is
    `hessian`'s at the policy, or else `held`. `asked`: the steps at which U may be read; at the others a penalty that
    reads it is left out (None: at all).

    `layers`, `objective` and `hessian` are float64 in the exact arm, whatever theta's precision: |H| / ridge digits
    cancel in its direction.
    """
    kind = layers[0][0].dtype
    silent = objective
    if asked is not None:
        silent = objective._replace(error_weight=torch.zeros_like(objective.error_weight))
    for i, eps in enumerate(noise.unbind(1)):
        here = objective if asked is None or asked[i] else silent
        offset = eps[:, None].to(kind) if at_mean else None
        a = held
        if hessian is not None and here is objective:
            a = mlp.inverse_times_gradient(layers, theta[:, None].to(kind), hessian)
        uphill = gradient(layers, (theta + eps)[:, None].to(kind), offset, here, a)[:, 0].to(theta.dtype)
        theta = theta + lr * uphill.clamp(-clip, clip)
        if trust is not None:
            theta = (trust.mean + (theta[:, None] - trust.mean) @ trust.shrink)[:, 0]
    return theta


def asked(share: float, first: int, count: int) -> np.ndarray:
    """Which steps, `count` from number `first` of a run on, have a call: k if floor((k + 1) share) > floor(k share).

    Examples
    --------
    >>> asked(0.5, 0, 4).tolist()
    [False, True, False, True]
    """
    return np.diff(np.floor(np.arange(first, first + count + 1) * share)) > 0


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False)


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
        """Fill one iteration's eps: policy (inner_steps, d), with gaps as `noise_tensors` makes it, and buffer."""
        if self.config.dimensions < 16:
            policy.normal_(generator=self.generator)
        else:
            for row in policy.unbind():
                row.copy_(torch.randn(len(row), generator=self.generator))
        buffer.normal_(generator=self.generator)


def noise_tensors(count: int, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for one iteration's noise of `count` seeds: (count, inner_steps, d) and (count, new_samples, d).

    Torch draws fewer than 16 numbers one after the other, more of them in another order, and any number one after the
    other if the tensor has gaps. So all policy steps of an iteration can be drawn at once into a tensor with gaps.
    """
    gaps = torch.empty(count, config.inner_steps, config.dimensions, 2)
    return gaps[..., 0], torch.empty(count, config.new_samples, config.dimensions)


class Batch:
    """The exact arm, or all others, for all seeds: R runs as one batch, in rows of an arm and its settings."""

    def __init__(self, rows: Sequence[tuple[Arm, Config]], models: list[list[Layers]], start: np.ndarray):
        """`models` holds the first reward models, row by row and seed by seed; `start` (rows, seeds, d) the actions.

        The rows' settings differ in `WEIGHTS` alone.
        """
        self.rows, self.config = rows, (config := rows[0][1])
        arms = {arm for arm, _ in rows}
        kind = {"dtype": getattr(torch, config.precision), "device": config.device}
        runs = [model for row in models for model in row]
        for k in range(1, config.members):
            # An ensemble's others have first weights of their own; the runs' noise stays what it is.
            others = [Stream((seed + k * 2**24) % 2**32, config).reward_model() for seed in config.seeds]
            runs += len(rows) * others
        stacked = [[torch.stack([run[i][j] for run in runs]).to(**kind) for j in (0, 1)] for i in range(len(runs[0]))]
        self.layers: Layers = [(weight, bias) for weight, bias in stacked]
        self.tensors = [tensor for layer in self.layers for tensor in layer]
        self.optimizer = torch.optim.Adam(self.tensors, lr=config.rm_lr, weight_decay=config.rm_decay, fused=True)
        self.theta = torch.from_numpy(start).flatten(0, 1).to(**kind)
        self.buffer = torch.zeros(len(self.theta), config.buffer_size, config.dimensions, **kind)
        self.labels = torch.zeros(len(self.theta), config.buffer_size, **kind)
        self.diverged_at = torch.full((len(self.theta),), -1, device=config.device)
        self.over = torch.full_like(self.theta[:, 0], torch.nan)
        self.unseen = torch.zeros(len(self.theta), 1, **kind)  # mean r - label of the newest labels, not yet fitted to
        self.exact = "exact" in arms
        self.solves = self.exact or config.follower == "refit" or config.remedy in remedies.SOLVED
        # A gradient through H^-1 is worked out in float64: see `climb`.
        self.fine = torch.float64 if self.solves else kind["dtype"]
        self.utility = config.landscape().like(self.theta)
        self.first = torch.from_numpy(config.start()).repeat(len(rows), 1)[:, None]
        turned = config.remedy == "rotated"
        turns = (
            remedies.rotations(config.seeds, config.dimensions).repeat(len(rows), 1, 1) if turned else torch.empty(0)
        )
        self.turn = turns.to(**kind)
        self.objective = self._objective()
        self.remedy_weight = self._by_run(lambda arm, each: each.remedy_weight, self.fine)[..., None]
        closed = mlp.gradient_in_closed_form
        self.gradient = mlp.gradient_by_autograd if config.gradient == "autograd" else closed
        # Compiling the exact arm's steps made them slower.
        plain = not self.exact and config.follower == "own" and not config.trust and config.remedy == "none"
        plain = plain and config.oracle_share == 1
        self.climb = _compiled(climb) if config.gradient == "compiled" and plain else climb

    def _by_run(self, of_row: Callable[[Arm, Config], float], dtype: torch.dtype) -> torch.Tensor:
        """A number of each row for each of its runs, (R, 1)."""
        values = torch.tensor([of_row(arm, each) for arm, each in self.rows], dtype=dtype, device=self.config.device)
        return values.repeat_interleave(len(self.config.seeds))[:, None]

    def _objective(self) -> mlp.Objective:
        config = self.config

        def error_weight(arm: Arm, each: Config) -> float:
            return {"relaxed": each.gamma_relaxed, "exact": LOSS_SLOPE * each.gamma_exact}.get(arm, 0.0)

        def norm_weight(arm: Arm, each: Config) -> float:
            # A refit's r + <a, g> is a penalty of weight -1.
            return each.gamma_practical if arm == "practical" else -float(each.follower == "refit")

        through = self._by_run(lambda arm, each: arm in each.through_oracle, torch.bool)
        utility = config.landscape().like(self.theta.to(self.fine))
        if any(each.oracle_level or each.oracle_tilt for _, each in self.rows):
            last = torch.eye(config.dimensions, dtype=self.fine, device=config.device)[-1]
            tilt = self._by_run(lambda arm, each: each.oracle_tilt, self.fine)[..., None] * last
            utility = Biased(utility, self._by_run(lambda arm, each: each.oracle_level, self.fine), tilt)
        center = {"zero": torch.full_like(self.first, config.offset), "start": self.first}.get(config.cost_center)
        return mlp.Objective(
            cost=self._by_run(lambda arm, each: each.action_cost, self.fine),
            error_weight=self._by_run(error_weight, self.fine),
            norm_weight=self._by_run(norm_weight, self.fine),
            through_oracle=through if through.any() else None,
            utility=utility,
            center=None if center is None or not center.any() else center.to(self.theta.device, self.fine),
        )

    def step(self, t: int, policy: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """Iteration t with eps for the policy (R, inner_steps, d) and the buffer, up to its record (4, R)."""
        config, lr = self.config, self.config.schedule(t)[1]

        def of_runs(number: Callable[[Config], float]) -> torch.Tensor:
            """(R, 1, 1), rounded to the game's precision once."""
            return self._by_run(lambda arm, each: number(each), self.theta.dtype)[..., None]

        sigma, buffer = of_runs(lambda each: each.schedule(t)[0]), buffer.to(self.theta)
        policy = sigma * policy.to(self.theta)
        self.sampled = of_runs(lambda each: each.schedule(t)[0] * each.label_spread) * buffer
        if config.wide_labels:
            self.sampled[:, config.wide_labels :] = sigma * buffer[:, config.wide_labels :]
        objective, hessian, held, layers, gradient = self.objective, None, None, self.layers, self.gradient
        answers = None
        known = min(t * config.new_samples, config.buffer_size)
        weights, ridge = self._label_weights(max(known, 1)), config.rm_decay + config.damping
        if self.solves:
            layers = [(weight.to(self.fine), bias.to(self.fine)) for weight, bias in layers]
            labeled = self.buffer.to(self.fine), self.labels.to(self.fine), weights.to(self.fine)
            if config.remedy in remedies.SOLVED:
                some = labeled[0][:, :known], labeled[1][:, :known], labeled[2][:known]
                answers = remedies.answers(layers, *some, ridge) if known else None
            elif self.exact:
                hessian = mlp.gauss_newton(layers, labeled[0], labeled[2], ridge)
            else:
                held = mlp.refit(layers, *labeled, ridge)
        elif config.follower == "labels" and known:
            gradient = self._follow(label_slope(self.buffer, self.labels, weights))
        if self.solves and not known:
            none = torch.zeros_like(objective.error_weight)
            objective = objective._replace(error_weight=none, norm_weight=none)
        trust = None
        if config.trust and known:
            variance, weight = of_runs(lambda each: each.schedule(t)[0] ** 2), of_runs(lambda each: lr * each.trust)
            trust = trust_region(self.buffer, self.labels, weights, variance, weight)
        rate = torch.tensor(lr, dtype=self.theta.dtype, device=self.theta.device)
        at_mean = config.utility_at == "mean" or config.remedy == "fitted"
        over = self._overconfidence(t, known) if config.remedy in remedies.ESTIMATES else None
        if config.gradient == "closed-form" and gradient is self.gradient:
            own = self.own() if config.remedy == "spread" else layers
            gradient = partial(mlp.gradient_in_closed_form, ways=mlp.both_ways(own))
        if config.remedy != "none" and (known or config.remedy not in remedies.SOLVED):
            refitted = config.follower == "refit"
            gradient = remedies.gradient(
                config.remedy, self.remedy_weight, gradient, answers, refitted, self.turn, config.members, over
            )
        calls = None
        if config.oracle_share < 1:
            calls = tuple(asked(config.oracle_share, t * config.inner_steps, config.inner_steps))
        self.theta = self.climb(
            gradient, layers, self.theta, policy, rate, objective, config.clip, at_mean, hessian, held, trust, calls
        )
        if over is not None:
            self.over = over(layers, self.theta[:, None], objective)[:, 0]
        return self._record(t)

    def _overconfidence(self, t: int, known: int) -> remedies.Estimate:
        """What a remedy that estimates r - U asks at each policy step of iteration t."""
        config, found = self.config, self.unseen
        if config.remedy not in ("held-out", "leave-one-out"):
            return remedies.estimate(config.remedy, config.members, len(config.seeds))
        if config.remedy == "leave-one-out" and known:
            some = [(weight.double(), bias.double()) for weight, bias in self.layers]
            labeled = self.buffer[:, :known].double(), self.labels[:, :known].double()
            even = torch.full((known,), 1 / known, dtype=torch.float64, device=self.theta.device)
            missed = remedies.left_out(some, *labeled, even, config.rm_decay + config.damping)
            found = missed[:, self._newest(t - 1)].mean(1, keepdim=True).to(self.theta)
        return lambda *asked: found

    def _newest(self, t: int) -> torch.Tensor:
        """The buffer's rows for the labels of iteration t."""
        return (t * self.config.new_samples + torch.arange(self.config.new_samples)) % self.config.buffer_size

    def _follow(self, slope: torch.Tensor) -> Callable:
        """The gradient of a linear reward of this slope (R, d), less the action's cost."""

        def gradient(layers: Layers, y: torch.Tensor, *rest: Any) -> torch.Tensor:
            return slope[:, None] - 2 * self.objective.cost[..., None] * self.objective.away(y)

        return gradient

    def learn(self, t: int) -> None:
        """The rest of iteration t: new labels, the RM's steps."""
        config = self.config
        y = self.theta[:, None] + self.sampled
        rows = self._newest(t)
        self.buffer[:, rows], self.labels[:, rows] = y, self.utility(y) + self._label_noise(t)
        if config.remedy == "held-out":
            self.unseen = (mlp.reward(self.layers, y) - self.labels[:, rows]).mean(1, keepdim=True)
        known = min((t + 1) * config.new_samples, config.buffer_size)
        # A step that draws labels has a memory that may be far longer than what is known: the rest is left out.
        held = known if config.replay else config.buffer_size
        batch = self.buffer[:, :held], self.labels[:, :held], self._label_weights(known)[:held]
        for step in range(config.rm_steps):
            if 0 < config.replay < known:
                drawn = torch.Generator().manual_seed(t * config.rm_steps + step)
                some = torch.randint(known, (config.replay,), generator=drawn).to(self.theta.device)
                even = torch.full((config.replay,), 1 / config.replay).to(self.theta)
                batch = self.buffer[:, some], self.labels[:, some], even
            y, labels, weights = batch
            several = y.repeat(config.members, 1, 1), labels.repeat(config.members, 1)
            slopes = chain.from_iterable(mlp.rm_gradient(self.layers, *several, weights))
            for tensor, slope in zip(self.tensors, slopes, strict=True):
                # torch's fused Adam reads a gradient with another memory layout wrongly (2.13).
                tensor.grad = slope.contiguous()
            self.optimizer.step()

    def _label_noise(self, t: int) -> torch.Tensor | float:
        """One normal number a new label, of each seed's own: the same in all arms, and in whatever company."""
        config = self.config
        if not config.label_noise:
            return 0.0
        drawn = [np.random.RandomState([seed, t]).normal(size=config.new_samples) for seed in config.seeds]
        return config.label_noise * torch.from_numpy(np.stack(drawn)).to(self.theta).repeat(len(self.rows), 1)

    def own(self) -> Layers:
        """The runs' own reward models, without the others of an ensemble."""
        return [(weight[: len(self.theta)], bias[: len(self.theta)]) for weight, bias in self.layers]

    def _label_weights(self, known: int) -> torch.Tensor:
        """1 / known for the rows of the buffer that hold a label, 0 for the others."""
        rows = torch.arange(self.config.buffer_size, device=self.theta.device)
        return (rows < known).to(self.theta) / known

    def _record(self, t: int) -> torch.Tensor:
        u, r = self.utility(self.theta), mlp.reward(self.own(), self.theta[:, None])[:, 0]
        action = self.theta - self.config.offset
        parts = action.tensor_split([self.config.signal_dimensions], dim=-1)
        signal, noise = (torch.linalg.vector_norm(part, dim=-1) for part in parts)
        size = torch.maximum(self.theta.abs().amax(-1), r.abs() / self.config.utility_scale)
        lost = games.mark_lost(size, self.diverged_at, t)
        if bool(lost.any()):
            self.theta[lost] = 0.0
            for tensor in self.tensors:
                tensor[lost.repeat(self.config.members)] = 0.0
        return torch.where(self.diverged_at < 0, torch.stack([u, r, signal, noise]), torch.nan)

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        return {
            "theta": self.theta, "tensors": self.tensors, "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer, "labels": self.labels, "diverged_at": self.diverged_at, "unseen": self.unseen,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in ("buffer", "labels", "diverged_at", "unseen"):
            getattr(self, name).copy_(state[name])
        self.theta = state["theta"].to(self.theta)
        for tensor, values in zip(self.tensors, state["tensors"], strict=True):
            tensor.copy_(values)
        self.optimizer.load_state_dict(state["optimizer"])


class Play:
    """A game as it stands, or several side by side: batches, their random numbers, and the record."""

    def __init__(self, configs: Sequence[Config], keep: tuple[int, ...], start: np.ndarray, resumed: bool):
        """`start` (arms, seeds, d) is that of each game.

        A `resumed` one takes models and noise from its checkpoint: only shapes matter, and no stream is drawn.
        """
        self.configs, self.config, self.keep = configs, (config := configs[0]), keep
        self.stream_of = {arm: int(config.pairing == "released" and arm != "standard") for arm in config.arms}
        self.streams, models = {}, {}
        for key in sorted(set(self.stream_of.values())):
            self.streams[key] = [Stream(seed, config) for seed in config.seeds]
            if key and not resumed:
                self._pass_over_the_standard_run(self.streams[key])
            models[key] = [stream.reward_model() for stream in self.streams[key]]
        # Rows, with the places of their game and of their arm in it.
        places = [(g, i) for g, each in enumerate(configs) for i in range(len(each.arms))]
        groups = [[at for at in places if (config.arms[at[1]] == "exact") == exact] for exact in (False, True)]
        self.groups = [group for group in groups if group]
        self.batches = [
            Batch(
                [(config.arms[i], configs[g]) for g, i in group],
                [models[self.stream_of[config.arms[i]]] for _, i in group],
                start[[i for _, i in group]],
            )
            for group in self.groups
        ]
        self.eps = {key: noise_tensors(len(config.seeds), config) for key in self.streams}
        shape = (len(configs), len(config.arms), 4, config.outer_steps, len(config.seeds))
        self.record = np.full(shape, np.nan)
        self.snapshots: dict[int, list] = {}

    def _pass_over_the_standard_run(self, streams: list[Stream]) -> None:
        policy, buffer = (tensor[0] for tensor in noise_tensors(1, self.config))
        for stream in tqdm(streams, desc="passing over the standard run", unit="seed", leave=False):
            stream.reward_model()
            for _ in range(self.config.outer_steps):
                stream.noise(policy, buffer)

    def iteration(self, t: int) -> None:
        """Play iteration t in every batch and record it."""
        for key, streams in self.streams.items():
            for stream, policy, buffer in zip(streams, *self.eps[key], strict=True):
                stream.noise(policy, buffer)
        for group, batch in zip(self.groups, self.batches, strict=True):
            policy, buffer = (torch.cat([self.eps[self.stream_of[arm]][i] for arm, _ in batch.rows]) for i in (0, 1))
            rows = batch.step(t, policy, buffer)
            for at, values in zip(group, rows.cpu().split(len(self.config.seeds), dim=1), strict=True):
                self.record[at][:, t] = values
            if t in self.keep:
                model = [(weight.clone().cpu(), bias.clone().cpu()) for weight, bias in batch.own()]
                kept = (batch.theta.clone().cpu(), model, batch.buffer.clone().cpu(), batch.over.clone().cpu())
                self.snapshots.setdefault(t, []).append(kept)
            batch.learn(t)

    def state(self, t: int) -> dict[str, Any]:
        """A copy of all that iteration t has left and a later one will change, for a checkpoint."""
        return {
            "next": t + 1,
            "snapshots": dict(self.snapshots),
            "batches": copy.deepcopy([batch.state() for batch in self.batches]),
            "noise": {key: [stream.generator.get_state() for stream in row] for key, row in self.streams.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.snapshots = state["snapshots"]
        for batch, saved in zip(self.batches, state["batches"], strict=True):
            batch.load(saved)
        for key, saved in state["noise"].items():
            for stream, generator in zip(self.streams[key], saved, strict=True):
                stream.generator.set_state(generator)
        self.record[:] = state["record"].numpy()

    def result(self, game: int, seconds: float) -> Result:
        """What has been recorded of a game, arms in the order of its config."""
        config, keep = self.configs[game], self.keep
        found = {at: (b, i) for b, group in enumerate(self.groups) for i, at in enumerate(group)}

        def gather(tensors: list[torch.Tensor]) -> np.ndarray:
            """Per batch (R, ...) to (arms, seeds, ...)."""
            parts = [tensor.cpu().unflatten(0, (-1, len(config.seeds))) for tensor in tensors]
            return torch.stack([parts[b][i] for b, i in (found[game, arm] for arm in range(len(config.arms)))]).numpy()

        diverged_at = gather([batch.diverged_at for batch in self.batches])
        lost = np.array([(diverged_at >= 0) & (diverged_at <= t) for t in keep]).reshape(len(keep), *diverged_at.shape)

        def over_time(pick: Callable) -> np.ndarray:
            snapshots = [gather([pick(part) for part in self.snapshots[t]]) for t in keep]
            values = np.stack(snapshots) if keep else np.empty((0, *diverged_at.shape))
            return np.where(lost.reshape(lost.shape + (1,) * (values.ndim - lost.ndim)), np.nan, values)

        utility, reward, signal, noise = np.moveaxis(self.record[game], 0, 2)
        return Result(
            config,
            utility,
            reward,
            signal,
            noise,
            diverged_at,
            keep,
            over_time(lambda part: part[0]),
            [
                tuple(over_time(lambda part, i=i, j=j: part[1][i][j]) for j in (0, 1))
                for i in range(len(config.hidden) + 1)
            ],
            seconds,
            over_time(lambda part: part[2]),
            over_time(lambda part: part[3]),
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checkpoint_name(
    configs: Config | Sequence[Config], keep: Sequence[int] = (), start: np.ndarray | None = None
) -> str:
    """A file name for these settings and this code: a game of others never goes on from its checkpoint."""
    configs = [configs] if isinstance(configs, Config) else configs
    settings = " ".join(each.model_dump_json(include=set(Config.model_fields)) for each in configs)
    first = None if start is None else start.tolist()
    digest = hashlib.sha256(f"{settings} {list(keep)} {first} {torch.__version__}".encode())
    digest.update(files.code_digest(__name__).encode())
    return f"neural-{digest.hexdigest()[:16]}.pt"


def simulate(
    config: Config,
    keep: Sequence[int] = (),
    folder: Path | str | None = None,
    save_every: float = 30.0,
    start: Any = None,
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
    start : array, optional
        The policy's first mean, (d,), (seeds, d) or (arms, seeds, d), as the RM sees it; by default the config's.

    Returns
    -------
    Result
        A run that leaves every bound is marked in `diverged_at`, recorded as NaN from there on, and harms no other.

    Raises
    ------
    ValueError
        For an iteration outside the game, a start of another shape, a folder that does not exist, or a damaged
        checkpoint.
    OSError
        If a checkpoint cannot be written; the one before it stays.
    KeyboardInterrupt
        With a folder, the game is first saved as the last whole iteration left it.
    """
    return simulate_each([config], keep, folder, save_every, start)[0]


def shared(config: Config) -> str:
    """What games that are played as one batch have in common, as a text: all but `WEIGHTS`, and whether they trust."""
    return f"{config.model_dump_json(exclude=set(WEIGHTS))} {config.trust > 0}"


def batches(configs: Iterable[Config], most: int = 256) -> Iterator[list[Config]]:
    """Games in groups for `simulate_each`, each once: those that differ in `WEIGHTS` alone, `most` runs at most.

    A game with more runs than that is a group of its own.
    """
    groups: dict[str, list[Config]] = {}
    for each in dict.fromkeys(configs):
        groups.setdefault(shared(each), []).append(each)
    for group in groups.values():
        size = max(most // len(group[0].seeds), 1)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def simulate_each(
    configs: Sequence[Config],
    keep: Sequence[int] = (),
    folder: Path | str | None = None,
    save_every: float = 30.0,
    start: Any = None,
) -> list[Result]:
    """Games that differ in `WEIGHTS` alone, as one batch: what `simulate` returns of each, up to rounding.

    A batch of few runs costs nearly what one of a hundred does, so a weight's grid is several times cheaper at once.
    All parameters but the first, and the errors, are those of `simulate`; `seconds` of each Result is its even share.

    Raises
    ------
    ValueError
        Also for no game, for games that differ in something else, and for a `trust` of 0 beside another.
    """
    if len({shared(each) for each in configs}) != 1:
        raise ValueError("configs: must be one game or more that differ in nothing but " + ", ".join(WEIGHTS))
    config = configs[0]
    keep = games.iterations_kept(keep, config.outer_steps - 1)
    first = games.first_actions(
        config.start() if start is None else start, len(config.arms), len(config.seeds), config.dimensions
    )
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"folder = {str(folder)!r}: must be an existing folder")
    path = None
    if folder is not None:
        path = Path(folder, checkpoint_name(configs, keep, None if start is None else first))
    with _threads(config.threads), torch.no_grad():
        state = files.load(path) if path else None
        play = Play(configs, keep, first, resumed=state is not None)
        if state:
            play.load(state)
        seconds = _play(play, path, state, save_every) / len(configs)
        return [play.result(game, seconds) for game in range(len(configs))]


def _play(play: Play, path: Path | None, state: dict[str, Any] | None, save_every: float) -> float:
    """Play what is left of a game, with checkpoints; returns its seconds over all calls.

    Raises
    ------
    OSError
        As `simulate` says.
    KeyboardInterrupt
        When the last whole iteration has been saved.
    """
    steps, first, spent = play.config.outer_steps, state["next"] if state else 0, state["seconds"] if state else 0.0
    started = saved_at = monotonic()
    saved = first
    reached: dict[str, Any] | None = None

    def save(path: Path, reached: dict[str, Any]) -> None:
        # An iteration writes to its own entries of the record, and to all of them: no copy is needed.
        record = torch.from_numpy(play.record)
        try:
            files.save(path, reached | {"seconds": spent + monotonic() - started, "record": record})
        except OSError as error:
            reason = f"{error.strerror or error}: make room and start again; the game resumes from its last checkpoint"
            raise OSError(error.errno, reason, str(path)) from error

    try:
        for t in tqdm(range(first, steps), desc="neural", unit="iteration", initial=first, total=steps):
            play.iteration(t)
            if path:
                # An interrupt may come anywhere in an iteration, which changes tensors in place: what it finds half
                # done is left alone, and this copy of what the last whole iteration left is saved.
                reached = play.state(t)
                if t == steps - 1 or monotonic() - saved_at > save_every:
                    save(path, reached)
                    saved_at, saved = monotonic(), t + 1
    except KeyboardInterrupt:
        if path and reached and reached["next"] > saved:
            save(path, reached)
        raise
    return spent + monotonic() - started if first < steps else spent
