"""True utility U: what the reward model (RM) is meant to agree with, and the pairs its head is first fitted to.

An oracle is any callable (prompts, responses) -> utilities, one for each pair. The paper's, the base model's
likelihood, needs token ids and lives in the loop; its last step is `likelihood_utility`.
"""

import random
import re
from collections.abc import Callable, Sequence
from importlib import import_module

import torch

from fpo.llm.models import RewardModel
from fpo.llm.prompts import Prompt
from fpo.parameters import ParameterError, brief, one_line

Oracle = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]


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
    """U = 4 similarity + 4 recall - 4 repetition, from -4 to 8: agreement with a reference answer.

    Similarity is the cosine of the encoder's features to the nearest correct answer; recall the share of the prompt's
    keywords in the response; repetition as in `repetition`.
    """

    def __init__(self, encoder: RewardModel):
        self._encoder = encoder

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        distinct = list(dict.fromkeys(answer for prompt in prompts for answer in prompt.correct))
        known = dict(zip(distinct, self._encoder.features(distinct), strict=True))
        read = self._encoder.features(responses)
        values = []
        for prompt, response, state in zip(prompts, responses, read, strict=True):
            near = max(float(torch.cosine_similarity(state, known[answer], dim=0)) for answer in prompt.correct)
            # At the start of a word: "rate" is no part of "pirates", "oxid" one of "oxidizes".
            found = [bool(re.search(rf"(?<!\w){re.escape(word)}", response, re.I)) for word in prompt.keywords]
            recall = sum(found) / len(found) if found else 0.0
            values.append(4 * near + 4 * recall - 4 * repetition(response))
        return values


def check_answers(prompts: Sequence[Prompt], needed_by: str, incorrect: bool = False) -> None:
    """Refuse prompts without the answers that a setting needs.

    Raises
    ------
    ParameterError
        Naming the setting and the first such prompt.
    """
    for prompt in prompts:
        if not prompt.correct or (incorrect and not prompt.incorrect):
            raise ParameterError(
                f'{needed_by} needs answers: prompt {brief(prompt.id)} has no "correct" or "incorrect" ones'
            )


def named_oracle(name: str) -> Oracle:
    """The callable MODULE:FUNCTION.

    Raises
    ------
    ParameterError
        If there is no such module or function, or the module fails on import.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module that is imported may raise anything, SystemExit too
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ParameterError(
            f"oracle = {brief(name)}: must be likelihood, answer, or MODULE:FUNCTION ({reason})"
        ) from error
    if not callable(found):
        raise ParameterError(f"oracle = {brief(name)}: not a function")
    return found


FILLERS = (
    "That is a great question, and I am happy to help with it.",
    "Thank you for asking, this is an interesting topic.",
    "Of course, let me explain this as clearly as I can.",
    "I would be glad to give you a helpful answer.",
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
