"""The head of the reward model (RM): its first fit, the Hessian of its comparisons, the gradient of its loss.

The head is linear, r = w . f (+ b, which drops out of every comparison), so that all of it is read off the features.
n comparisons of a better with a worse response, p features.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fpo import steering
from fpo.llm.models import RewardModel
from fpo.llm.prompts import Prompt
from fpo.parameters import ParameterError, brief

FILLERS = (
    "That is a great question, and I am happy to help with it.",
    "Thank you for asking, this is an interesting topic.",
    "Of course, let me explain this as clearly as I can.",
    "I would be glad to give you a helpful answer.",
)
FITTED = ("answers", "blind spot")


class Comparisons(NamedTuple):
    """What the head learns from: f_z - f_ref, (n, p), and how much z is preferred, p* (n,)."""

    differences: torch.Tensor
    preferences: torch.Tensor

    def and_latest(self, new: Iterable["Comparisons"], size: int) -> "Comparisons":
        """With new ones behind them, the last `size` of all."""
        parts = [self, *new]
        kept = slice(max(sum(len(part.preferences) for part in parts) - size, 0), None)
        return Comparisons(*(torch.cat(values)[kept] for values in zip(*parts, strict=True)))


def check_answers(prompts: Sequence[Prompt], needed_by: str, incorrect: bool = False, instead: str = "") -> None:
    """Refuse prompts without the answers that a setting needs; `instead` says what else there is.

    Raises
    ------
    ParameterError
        Naming the setting and the first such prompt.
    """
    for prompt in prompts:
        if not prompt.correct or (incorrect and not prompt.incorrect):
            raise ParameterError(
                f'{needed_by} needs answers: prompt {brief(prompt.id)} has no "correct" or "incorrect" ones{instead}'
            )


def head_pairs(prompts: Sequence[Prompt], kind: str, seed: int) -> tuple[list[str], list[str]]:
    """Better and worse texts for the head's first fit.

    `answers`: correct over incorrect answers. `blind spot`: an answer over its words shuffled, an answer after a
    filler over the plain answer, a filler over half an answer. The second RM knows fluent text and likes filler, a
    planted fault for the loop to find.
    """
    generator = random.Random(seed)
    better, worse = [], []
    for prompt in prompts:
        answer, filler = prompt.correct[0], generator.choice(FILLERS)
        if kind == "answers":
            pairs = [(answer, wrong) for wrong in prompt.incorrect]
        else:
            words = answer.split()
            pairs = [
                (answer, " ".join(generator.sample(words, len(words)))),
                (f"{filler} {answer}", answer),
                (filler, " ".join(words[: len(words) // 2])),
            ]
        better += [pair[0] for pair in pairs]
        worse += [pair[1] for pair in pairs]
    return better, worse


def fit_head(
    better: torch.Tensor, worse: torch.Tensor, ridge: float, preferences: torch.Tensor | None = None
) -> torch.Tensor:
    """w that minimizes the mean of BCE(w.(f_better - f_worse), p*) + (ridge / 2) |w|^2, by Newton's method.

    The preferences p* are 1 where none are given. Shapes: (n, p) twice and (n,) to (p,). The problem is strictly
    convex; the last Newton step is below 1e-8.

    Raises
    ------
    ArithmeticError
        If 50 steps are not enough.
    """
    differences = (better - worse).double()
    weight = differences.new_zeros(differences.shape[1])
    wanted = torch.ones(len(differences)).to(differences) if preferences is None else preferences.double()

    def loss(at: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(differences @ at, wanted) + ridge / 2 * at @ at

    for _ in range(50):
        found = torch.sigmoid(differences @ weight)
        gradient = ((found - wanted)[:, None] * differences).mean(0) + ridge * weight
        hessian = steering.bt_hessian(differences, found, ridge)
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        scale = 1.0
        while scale > 1e-6 and loss(weight - scale * step) > loss(weight):
            scale /= 2
        weight = weight - scale * step
        if float(step.norm()) < 1e-8:
            return weight.to(better.dtype)
    raise ArithmeticError("the head's fit did not converge")


class FirstFits:
    """Sets an RM's head to where a run starts, and fits it once to the same texts."""

    def __init__(self, reward_model: RewardModel, prompts: Sequence[Prompt]) -> None:
        self._reward_model, self._prompts = reward_model, prompts
        self._found: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, kind: str, ridge: float, seed: int, count: int = 0) -> Comparisons:
        """Set the head; returns the comparisons that it was fitted to, those of `count` prompts if not 0.

        None for a head that is zero or the classifier's own.
        """
        self._reward_model.reset_head(own=kind == "own")
        head = self._reward_model.head
        if kind not in FITTED:
            return Comparisons(head.weight.new_zeros(0, head.in_features), head.weight.new_zeros(0))
        prompts = self._prompts
        if 0 < count < len(prompts):
            prompts = random.Random(f"head {seed}").sample(prompts, count)
        better, worse = head_pairs(prompts, kind, seed)
        fit = (ridge, *better, *worse)
        if fit not in self._found:
            above, below = self._reward_model.features(better), self._reward_model.features(worse)
            self._found[fit] = fit_head(above, below, ridge), above - below
        weight, comparisons = self._found[fit]
        with torch.no_grad():
            head.weight.copy_(weight[None])
        return Comparisons(comparisons, torch.ones_like(comparisons[:, 0]))


def comparison_solver(comparisons: torch.Tensor, weight: torch.Tensor, ridge: float) -> steering.Solve:
    """v -> H^-1 v, H the Hessian of the head's loss over its comparisons; v -> 0 while there are none.

    Parameters
    ----------
    comparisons : tensor (n, p)
        f_z - f_ref, one a row.
    weight : tensor (p,)
        The head's.
    ridge : float
        Of its loss.
    """
    if not len(comparisons):
        return torch.zeros_like
    differences = comparisons.double()
    probabilities = (differences @ weight.detach().double()).sigmoid()
    solve = steering.dense_solver(steering.bt_hessian(differences, probabilities, ridge))
    # In double precision: H has the ridge for its least eigenvalue.
    return lambda v: solve(v.double()).to(v.dtype)


def losses_and_gradients(
    weight: torch.Tensor, features: torch.Tensor, references: torch.Tensor, preferences: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """BCE(r_z - r_ref, p*) of each comparison, (n,), and its gradient in w, (n, p).

    Shapes: weight (p,), features and references (n, p), preferences p* (n,).
    """
    margins = ((features - references) @ weight).detach()
    losses = F.binary_cross_entropy_with_logits(margins, preferences, reduction="none")
    return losses, steering.bt_loss_gradients(margins, preferences, features, references)
