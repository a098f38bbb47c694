"""Selection rules: which of a prompt's candidates wins, each rule's facts in one record.

A candidate z is scored r_z + gamma R(z), or by something else entirely in a control; the best score wins and the
reward model (RM) is trained on its comparison with the reference. The RM's head is linear, so grad_phi r is the
features. Shapes: rewards, utilities, log-ratios (..., n), features (..., n, p), the reference's without the n.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

# Torch takes seconds to load, and who asks for a rule's name or weight has no need of it.
if TYPE_CHECKING:
    import torch

    from fpo.steering import Solve

Input = Literal["labels", "mean_gradient", "mean_difference", "solve", "log_ratio", "uniform", "other"]


@dataclass(frozen=True)
class Reference:
    """The base model's response that the candidates are compared with: reward and utility (...), features (..., p)."""

    reward: torch.Tensor
    features: torch.Tensor
    utility: torch.Tensor


@dataclass(frozen=True)
class Candidates:
    """What a rule may read of n candidates to each prompt; what no chosen rule reads may be None.

    Attributes
    ----------
    rewards, utilities : tensors (..., n)
        r_z, and U with NaN where nothing was asked.
    features : tensor (..., n, p)
        g_z = grad_phi r.
    empty : bool tensor (..., n)
        Responses without text: they never win.
    reference : Reference
    mean_gradient, mean_difference : tensors (p,)
        g_bar, the mean of g_z over the policy's candidates, and that of g_z - g_ref.
    solve : callable
        v -> H^-1 v; 0 while the RM has no comparisons, so that the penalties which need it are 0.
    log_ratio : tensor (..., n)
        log pi(z) - log pi_base(z).
    uniform : tensor (..., n)
        Random numbers for the random controls.
    other : tensor (..., p)
        The features of another prompt's reference.
    scale : float
        Of utilities in p*.
    """

    rewards: torch.Tensor
    features: torch.Tensor
    utilities: torch.Tensor
    empty: torch.Tensor
    reference: Reference
    mean_gradient: torch.Tensor | None = None
    mean_difference: torch.Tensor | None = None
    solve: Solve | None = None
    log_ratio: torch.Tensor | None = None
    uniform: torch.Tensor | None = None
    other: torch.Tensor | None = None
    scale: float = 1.0

    def given(self, what: Input) -> Any:
        """What a rule reads beside rewards, features and utilities.

        Raises
        ------
        ValueError
            If these candidates do not have it.
        """
        value = getattr(self, what)
        if value is None:
            raise ValueError(f"the rule reads {what}, which these candidates were not given")
        return value

    def margins(self) -> torch.Tensor:
        """r_z - r_ref, (..., n)."""
        return self.rewards - self.reference.reward[..., None]

    def reference_features(self) -> torch.Tensor:
        """g_ref beside every g_z, (..., 1, p)."""
        return self.reference.features[..., None, :]

    def preferences(self) -> torch.Tensor:
        """p* = sigmoid(scale (U_z - U_ref)), (..., n)."""
        return (self.scale * (self.utilities - self.reference.utility[..., None])).sigmoid()


def standard(seen: Candidates) -> torch.Tensor:
    """R = 0, (..., n): the reward alone."""
    return seen.rewards.new_zeros(seen.rewards.shape)


def relaxed(seen: Candidates) -> torch.Tensor:
    """R = -(p_phi - p*) <g_z, g_z - g_ref>, (..., n) (Gauthier et al. 2026, relaxed form for comparisons)."""
    from fpo import steering

    return steering.bt_relaxed_penalty(seen.margins(), seen.preferences(), seen.features, seen.reference_features())


def practical(seen: Candidates) -> torch.Tensor:
    """R = -<g_z, g_z - g_ref>, (..., n) (Gauthier et al. 2026, practical form for comparisons)."""
    from fpo import steering

    return steering.bt_practical_penalty(seen.features, seen.reference_features())


def relaxed_centered(seen: Candidates) -> torch.Tensor:
    """R = -(p_phi - p*) |g_z - g_ref|^2, (..., n): the relaxed form for the gradient of the margin r_z - r_ref.

    For gradients of equal length it is twice `relaxed`: |g_z - g_ref|^2 = 2 <g_z, g_z - g_ref>.
    """
    return -(seen.margins().sigmoid() - seen.preferences()) * _squared_distance(seen)


def practical_centered(seen: Candidates) -> torch.Tensor:
    """R = -|g_z - g_ref|^2, (..., n): for gradients of equal length twice `practical`."""
    return -_squared_distance(seen)


def _squared_distance(seen: Candidates) -> torch.Tensor:
    return (seen.features - seen.reference_features()).square().sum(-1)


def exact(seen: Candidates) -> torch.Tensor:
    """R = <g_bar, I(z)>, I = -H^-1 (p_phi - p*) (g_z - g_ref), (..., n): the steering term itself."""
    return _steering(seen, seen.given("mean_gradient"))


def exact_centered(seen: Candidates) -> torch.Tensor:
    """R = <mean of g_z - g_ref, I(z)>, (..., n): the steering term of a leader that maximizes E[r_z - r_ref].

    To the policy's own gradient r_ref is a constant. To what the head does to the objective it is not: a head that
    rates every text higher by as much gains the leader nothing here.
    """
    return _steering(seen, seen.given("mean_difference"))


def _steering(seen: Candidates, gradient: torch.Tensor) -> torch.Tensor:
    from fpo import steering

    losses = steering.bt_loss_gradients(seen.margins(), seen.preferences(), seen.features, seen.reference_features())
    # H is symmetric: one solve serves every candidate.
    return -(losses @ seen.given("solve")(gradient[None])[0])


def overconfidence(seen: Candidates) -> torch.Tensor:
    """R = -(p_phi - p*), (..., n): the relaxed form without its gradient factor."""
    return seen.preferences() - seen.margins().sigmoid()


def leverage(seen: Candidates) -> torch.Tensor:
    """R = -<g_z, H^-1 (g_z - g_ref)>, (..., n): the practical form in the metric of H^-1."""
    differences = seen.features - seen.reference_features()
    solved = seen.given("solve")(differences.flatten(0, -2)).view_as(differences)
    return -(seen.features * solved).sum(-1)


def kl(seen: Candidates) -> torch.Tensor:
    """R = -(log pi(z) - log pi_base(z)), (..., n): best-of-n under a KL penalty, one sample's estimate of it each."""
    return -seen.given("log_ratio")


def anchor_other(seen: Candidates) -> torch.Tensor:
    """R = -<g_z, g_z - g_other>, (..., n): the practical form with another prompt's reference, a control."""
    from fpo import steering

    return steering.bt_practical_penalty(seen.features, seen.given("other")[..., None, :])


def random_penalty(seen: Candidates) -> torch.Tensor:
    """R uniform in [0, 1), (..., n): a penalty that knows nothing."""
    return seen.given("uniform")


def relaxed_permuted(seen: Candidates) -> torch.Tensor:
    """`relaxed` with U permuted at random among a prompt's candidates, (..., n): a placebo."""
    return relaxed(replace(seen, utilities=seen.utilities.gather(-1, seen.given("uniform").argsort(-1))))


@dataclass(frozen=True)
class Rule:
    """One selection rule.

    Attributes
    ----------
    name : str
    penalty : callable
        `Candidates` -> R, (..., n).
    gamma : float
        The rule's own weight of R in the score r + gamma R.
    reads : tuple of str
        What it reads beside rewards, features and reference: `labels` (U of all candidates), or other entries of
        `Candidates` by their names.
    score : callable, optional
        For the controls whose winner does not depend on the reward: `Candidates` -> scores, (..., n).
    """

    name: str
    penalty: Callable[[Candidates], torch.Tensor] = standard
    gamma: float = 0.0
    reads: tuple[Input, ...] = ()
    score: Callable[[Candidates], torch.Tensor] | None = None

    def labels(self, candidates: int) -> int:
        """Oracle labels that a new prompt costs: all candidates' or the winner's, and the reference's.

        Beside what a rule reads, the RM's update reads the winner's label and the reference's, whatever the rule.

        Examples
        --------
        >>> RULES["standard"].labels(8), RULES["relaxed"].labels(8)
        (2, 9)
        """
        return (candidates if "labels" in self.reads else 1) + 1


# The paper uses the weight 10 for both of its forms; the theorem's own weight is 1; the others are of the size that a
# first look at the packaged models called for.
RULES = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            Rule("standard"),
            Rule("relaxed", relaxed, 10.0, ("labels",)),
            Rule("practical", practical, 10.0),
            Rule("exact", exact, 1.0, ("labels", "mean_gradient", "solve")),
            Rule("relaxed-centered", relaxed_centered, 5.0, ("labels",)),
            Rule("practical-centered", practical_centered, 5.0),
            Rule("exact-centered", exact_centered, 1.0, ("labels", "mean_difference", "solve")),
            Rule("overconfidence", overconfidence, 10.0, ("labels",)),
            Rule("leverage", leverage, 0.01, ("solve",)),
            Rule("kl", kl, 0.1, ("log_ratio",)),
            Rule("anchor-other", anchor_other, 10.0, ("other",)),
            Rule("random-penalty", random_penalty, 1.0, ("uniform",)),
            Rule("relaxed-permuted", relaxed_permuted, 10.0, ("labels", "uniform")),
            Rule("random", reads=("uniform",), score=lambda seen: seen.given("uniform")),
            Rule("best-of-u", reads=("labels",), score=lambda seen: seen.utilities),
        )
    }
)


@dataclass(frozen=True)
class Choice:
    """R of every candidate and its score, (..., n), and the winner's index, (...), -1 where all are empty."""

    penalty: torch.Tensor
    winner: torch.Tensor
    scores: torch.Tensor


def reads(names: Collection[str]) -> frozenset[Input]:
    """What any of the named rules reads.

    Examples
    --------
    >>> sorted(reads(["standard", "exact"]))
    ['labels', 'mean_gradient', 'solve']
    """
    return frozenset().union(*(RULES[name].reads for name in names))


def choose(name: str, candidates: Candidates, gamma: float | None = None) -> Choice:
    """Penalty and winner of a rule.

    Parameters
    ----------
    name : str
        One of `RULES`.
    candidates : Candidates
        With all that the rule reads.
    gamma : float, optional
        Weight of the penalty; None: the rule's own.

    Raises
    ------
    ValueError
        If there is no such rule, or the candidates lack what it reads, a label too.
    """
    if name not in RULES:
        raise ValueError(f"rule = {name!r}: must be one of {', '.join(RULES)}")
    rule = RULES[name]
    if "labels" in rule.reads and bool(candidates.utilities.isnan().any()):
        raise ValueError("the rule reads labels, which not all of these candidates were given")
    penalty = rule.penalty(candidates)
    if rule.score:
        scores = rule.score(candidates)
    else:
        scores = candidates.rewards + (rule.gamma if gamma is None else gamma) * penalty
    winner = scores.masked_fill(candidates.empty, float("-inf")).argmax(-1)
    return Choice(penalty, winner.masked_fill(candidates.empty.all(-1), -1), scores)
