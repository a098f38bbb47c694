"""True utility U, what the reward model (RM) is meant to agree with, and measures of texts.

An oracle is any callable (prompts, responses) -> utilities, one for each pair. The paper's, the base model's
likelihood, needs token ids, which `candidates` has; its last step is `likelihood_utility`.
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module

import torch

from fpo.llm.labels import Labels, OracleError
from fpo.llm.models import RewardModel
from fpo.llm.prompts import Prompt
from fpo.llm.settings import PAIRWISE
from fpo.parameters import ParameterError, brief, one_line

Oracle = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
Preference = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Sequence[float]]

SURE = 1e-6  # a judge's preference is kept so far from 0 and 1: its log-odds are finite


def log_odds(preferences: Sequence[float]) -> torch.Tensor:
    """log(p / (1 - p)) in double precision, of p kept `SURE` away from 0 and 1.

    Examples
    --------
    >>> log_odds([0.5, 0.0]).round(decimals=3).tolist()
    [0.0, -13.816]
    """
    return torch.tensor(preferences, dtype=torch.float64).clamp(SURE, 1 - SURE).logit()


def likelihood_utility(nll: float, tokens: int) -> float:
    """U = clip(5 - nll / tokens, -15, 5) for the summed NLL of prompt and response (Gauthier et al. 2026).

    Examples
    --------
    >>> likelihood_utility(30.0, 10), likelihood_utility(300.0, 10)
    (2.0, -15.0)
    """
    return min(5.0, max(-15.0, 5.0 - nll / tokens))


def repetition(text: str) -> float:
    """Share of a text's words that stood in it before.

    Examples
    --------
    >>> repetition("yes yes yes no")
    0.5
    """
    words = text.lower().split()
    return 1 - len(set(words)) / len(words) if words else 0.0


def distinct_2(texts: Sequence[str]) -> float:
    """Share of distinct pairs of neighboring words among all such pairs of several texts; 0 if there is none.

    Examples
    --------
    >>> distinct_2(["a b c", "a b d"])
    0.75
    """
    pairs = [pair for text in texts for words in [text.lower().split()] for pair in zip(words, words[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


class Agreement:
    """U = 4 similarity + 4 recall - 4 repetition, at most 8: agreement with a reference answer.

    Similarity is the cosine of the encoder's features to the nearest correct answer; recall the share of the prompt's
    keywords in the response; repetition as in `repetition`.
    """

    def __init__(self, encoder: RewardModel) -> None:
        self._encoder = encoder
        self._answers: dict[tuple[str, ...], torch.Tensor] = {}

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """U of each response to its prompt."""
        distinct = list(dict.fromkeys(answer for prompt in prompts for answer in prompt.correct))
        read = self._encoder.features(responses)
        if tuple(distinct) not in self._answers:
            self._answers[tuple(distinct)] = self._encoder.features(distinct)
        known = dict(zip(distinct, self._answers[tuple(distinct)], strict=True))
        values = []
        for prompt, response, state in zip(prompts, responses, read, strict=True):
            near = max(float(torch.cosine_similarity(state, known[answer], dim=0)) for answer in prompt.correct)
            # At the start of a word: "rate" is no part of "pirates", "oxid" one of "oxidizes".
            found = [bool(re.search(rf"(?<!\w){re.escape(word)}", response, re.I)) for word in prompt.keywords]
            recall = sum(found) / len(found) if found else 0.0
            values.append(4 * near + 4 * recall - 4 * repetition(response))
        return values


class Kept:
    """An oracle whose labels are kept in a file by prompt and text, with a time-out and a limit on retries.

    `against_reference`: its labels depend on the prompt's reference too.

    Raises
    ------
    ParameterError
        If the file is no cache of labels.
    """

    def __init__(self, oracle: Oracle, path: str, timeout: float, tries: int, against_reference: bool = False) -> None:
        self._oracle, self._against_reference = oracle, against_reference
        try:
            self._labels = Labels(path, timeout, tries)
        except ValueError as error:
            raise ParameterError(str(error)) from None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """U of each response to its prompt."""
        asked = [
            [prompt.text, response, *([prompt.reference or ""] if self._against_reference else [])]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self._labels(asked, lambda new: self._oracle([prompts[i] for i in new], [responses[i] for i in new]))


class Pairwise:
    """U = log(p / (1 - p)) / scale from p, a judge's probability that a response beats its prompt's reference.

    With the reference's own U at 0, what the RM learns is p again: sigmoid(scale (U_z - U_ref)) = p (Bradley-Terry).
    A text that is the reference is judged by nobody.

    Parameters
    ----------
    judge : Oracle
        (prompts, responses) -> p, each in [0, 1], against `prompt.reference`: see `judged`.
    scale : float
        The run's.
    """

    def __init__(self, judge: Oracle, scale: float) -> None:
        self._judge, self._scale = judge, scale

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """U of each response to its prompt.

        Raises
        ------
        OracleError
            If the judge does not give a probability for each.
        """
        at = [
            i
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
            if prompt.reference not in (None, response)
        ]
        found = self._judge([prompts[i] for i in at], [responses[i] for i in at]) if at else []
        if len(found) != len(at) or any(not 0 <= p <= 1 for p in found):
            raise OracleError(f"the judge of pairs must give a number from 0 to 1 for each of {len(at)} pairs")
        utilities = torch.zeros(len(prompts), dtype=torch.float64)
        utilities[at] = log_odds(found) / self._scale
        return utilities.tolist()


def judged(preference: Preference) -> Oracle:
    """(prompts, responses) -> preference(prompts, responses, the prompts' references)."""

    def against_reference(prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        return preference(prompts, responses, [prompt.reference or "" for prompt in prompts])

    return against_reference


def named_oracle(name: str) -> Callable[..., Sequence[float]]:
    """The callable MODULE:FUNCTION, which may come after `pairwise:`.

    Raises
    ------
    ParameterError
        If there is no such module or function, or the module fails on import.
    KeyboardInterrupt
        If it comes while the module is imported.
    """
    module, _, function = name.removeprefix(PAIRWISE).partition(":")
    try:
        found = getattr(import_module(module), function)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module that is imported may raise anything, SystemExit too
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ParameterError(
            f"oracle = {brief(name)}: must be likelihood, answer, or MODULE:FUNCTION, as it is or "
            f"after {PAIRWISE} ({reason})"
        ) from error
    if not callable(found):
        raise ParameterError(f"oracle = {brief(name)}: not a function")
    return found
