"""Which candidate wins: pure functions of rewards, features, oracle values and the reference response.

A candidate z is scored r_z + gamma R(z), or by something else entirely in a control; the best score wins and the
reward model (RM) is trained on its comparison with the reference. The RM's head is linear, so grad_phi r is the
features. Shapes: rewards, utilities, log ratios (..., n), features (..., n, p), the reference's without the n.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fpo import steering


@dataclass(frozen=True)
class Reference:
    """The base model's response that the candidates are compared with: reward and utility (...), features (..., p)."""

    reward: torch.Tensor
    features: torch.Tensor
    utility: torch.Tensor


@dataclass(frozen=True)
class Context:
    """What only some rules read.

    `mean_gradient` (p,) is g_bar over the policy's candidates and `solve` is v -> H^-1 v, for the exact and the
    leverage form, or None while the RM has no comparisons; `log_ratio` (..., n) is log pi(z) - log pi_base(z), for the
    KL penalty; `uniform` (..., n) is for the random winner.
    """

    mean_gradient: torch.Tensor | None = None
    solve: steering.Solve | None = None
    log_ratio: torch.Tensor | None = None
    uniform: torch.Tensor | None = None


def _compared(rewards, utilities, reference):
    margins = rewards - reference.reward[..., None]
    return margins, (utilities - reference.utility[..., None]).sigmoid()


def standard(rewards, features, utilities, reference, context=None):
    """No penalty: R = 0."""
    return torch.zeros_like(rewards)


def relaxed(rewards, features, utilities, reference, context=None):
    """R = -(p_phi - p*) <g_z, g_z - g_ref> (Gauthier et al. 2026, relaxed form for comparisons)."""
    margins, preferences = _compared(rewards, utilities, reference)
    return steering.bt_relaxed_penalty(margins, preferences, features, reference.features[..., None, :])


def practical(rewards, features, utilities, reference, context=None):
    """R = -<g_z, g_z - g_ref> (Gauthier et al. 2026, practical form for comparisons)."""
    return steering.bt_practical_penalty(features, reference.features[..., None, :])


def exact(rewards, features, utilities, reference, context):
    """R = <g_bar, I(z)>, I = -H^-1 (p_phi - p*) (g_z - g_ref): the steering term itself; 0 while there is no H."""
    if context.solve is None:
        return torch.zeros_like(rewards)
    margins, preferences = _compared(rewards, utilities, reference)
    losses = steering.bt_loss_gradients(margins, preferences, features, reference.features[..., None, :])
    # H is symmetric: one solve for g_bar serves every candidate.
    return -(losses @ context.solve(context.mean_gradient[None])[0])


def overconfidence(rewards, features, utilities, reference, context=None):
    """R = -(p_phi - p*): the relaxed form without its gradient factor."""
    margins, preferences = _compared(rewards, utilities, reference)
    return preferences - margins.sigmoid()


def leverage(rewards, features, utilities, reference, context):
    """R = -<g_z, H^-1 (g_z - g_ref)>: the practical form in the metric of H^-1; 0 while there is no H."""
    if context.solve is None:
        return torch.zeros_like(rewards)
    differences = features - reference.features[..., None, :]
    return -(features * context.solve(differences.flatten(0, -2)).view_as(differences)).sum(-1)


def kl(rewards, features, utilities, reference, context):
    """R = -(log pi(z) - log pi_base(z)): best-of-n under a KL penalty, one sample's estimate of it a candidate."""
    return -context.log_ratio


PENALTIES: dict[str, Callable] = {
    "standard": standard,
    "relaxed": relaxed,
    "practical": practical,
    "exact": exact,
    "overconfidence": overconfidence,
    "leverage": leverage,
    "kl": kl,
}
CONTROLS = ("random", "best-of-u")  # their winner does not depend on the reward
RULES = (*PENALTIES, *CONTROLS)

# Oracle labels that a rule reads to choose a winner. Beside these, the RM's update reads the winner's and the
# reference's, whatever the rule.
READS_ALL_CANDIDATES = frozenset({"relaxed", "exact", "overconfidence", "best-of-u"})


def labels_used(rule: str, candidates: int) -> int:
    """Oracle labels that a new prompt costs: all candidates' or the winner's, and the reference's.

    Examples
    --------
    >>> labels_used("standard", 8), labels_used("relaxed", 8)
    (2, 9)
    """
    return (candidates if rule in READS_ALL_CANDIDATES else 1) + 1


def penalties(rule, rewards, features, utilities, reference, context) -> torch.Tensor:
    """R(z) of a rule, (..., n); 0 for the controls that have none."""
    return PENALTIES.get(rule, standard)(rewards, features, utilities, reference, context)


def select(rule, gamma, rewards, penalty, utilities, context, empty) -> torch.Tensor:
    """The winner's place among the candidates, (...); -1 where all candidates are `empty`.

    Examples
    --------
    >>> rewards, none = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, False, True])
    >>> int(select("standard", 0.0, rewards, torch.zeros(3), rewards, None, none))
    1
    """
    if rule == "random":
        scores = context.uniform
    elif rule == "best-of-u":
        scores = utilities
    else:
        scores = rewards + gamma * penalty
    scores = scores.masked_fill(empty, -torch.inf)
    return torch.where(empty.all(-1), -1, scores.argmax(-1))
