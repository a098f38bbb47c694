"""What runs share and is loaded once: models, prompts, oracles, and what was made on the way."""

from collections.abc import Sequence
from typing import TypedDict

import torch

from fpo.llm.decoding import Continuations
from fpo.llm.head import FITTED, FirstFits, check_answers
from fpo.llm.models import Policy, RewardModel
from fpo.llm.oracles import Agreement, Kept, Oracle, Pairwise, judged, named_oracle
from fpo.llm.prompts import Prompt, load_prompts
from fpo.llm.settings import PAIRWISE, Settings
from fpo.llm.team import Team
from fpo.llm.weights import packaged_encoder
from fpo.parameters import ParameterError, brief
from fpo.rules import reads

# What models and prompts are loaded with; random weights depend on the seed too.
LOADED = (
    *("policy", "policy_revision", "reward_model", "reward_revision", "weights", "dtype", "reward_dtype"),
    *("quantization", "device", "threads", "lora_targets", "reward_tokens", "batch"),
    *("prompts", "prompt_count", "system", "max_prompt_tokens", "long_prompts"),
)


class ReferenceResponse(TypedDict):
    """The base's response to a prompt: its features, (p,), and its U.

    With the base's NLL of the prompt where U is the base's likelihood, else NaN.
    """

    text: str
    prompt_nll: float
    features: torch.Tensor
    utility: float


class Workbench:
    """What runs share and is loaded once: models, prompts, references, and what is first written from the same start.

    A run at a workbench that others have used comes out as in a process of its own, to the last bit.

    Parameters
    ----------
    settings : Settings
        Of any of the runs. Those in `LOADED` are the same for all of them.
    oracle : callable, optional
        (prompts, responses) -> utilities, in place of the one that the settings name.

    Attributes
    ----------
    first_written, references : dict
        By what they depend on: candidates from before a run's first update, and batches of reference responses.
    writer : Writer
        Whose run the models are in.

    Raises
    ------
    ParameterError, ModelError
        Before any work, for prompts, oracles or models that cannot be used.
    """

    def __init__(self, settings: Settings, oracle: Oracle | None = None) -> None:
        self.settings, self.oracle, self.team = settings, oracle, Team()
        _check_numbers(settings, self.team)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.prompts = load_prompts(settings.prompts, settings.prompt_count)
        self.check(settings)
        self.policy = Policy(settings)
        self.prompt_ids = encoded(self.policy, self.prompts, settings)
        self.reward_model = RewardModel(settings)
        self.first_fits = FirstFits(self.reward_model, self.prompts)
        self.first_written: dict[tuple, Continuations] = {}
        self.references: dict[tuple, list[ReferenceResponse]] = {}
        self.writer: object = None
        self._encoder: RewardModel | None = None

    def check(self, settings: Settings) -> None:
        """See whether a run can be played here, before any work.

        Raises
        ------
        ParameterError
            If it needs other models or prompts than these, or cannot be played at all.
        """
        fixed = (*LOADED, "seed") if settings.weights == "random" else LOADED
        mine, other = dict(self.settings), dict(settings)
        if wrong := [
            f"{name} = {brief(other[name])}: this workbench was loaded with {brief(mine[name])}"
            for name in fixed
            if other[name] != mine[name]
        ]:
            raise ParameterError(f"{'; '.join(wrong)}; other models or prompts need a workbench of their own")
        _check_numbers(settings, self.team)
        if settings.head_start in FITTED:
            check_answers(
                self.prompts, f"head_start = {settings.head_start!r}", settings.head_start == "answers",
                "; a head that needs none is head_start = 'own', of a classifier, or 'zero'",
            )  # fmt: skip
        if self.oracle is None and settings.oracle == "answer":
            check_answers(self.prompts, "oracle = 'answer'")
        elif self.oracle is None and settings.oracle != "likelihood":
            named_oracle(settings.oracle)
        elif self.oracle is None and settings.labels:
            raise ParameterError("labels keeps what an oracle says: oracle = 'likelihood' is computed, must be another")

    def chosen_oracle(self, settings: Settings) -> Oracle | None:
        """The reader's own oracle, or the one that the settings name; None: the base's likelihood."""
        found = self.oracle
        pairwise = found is None and settings.oracle.startswith(PAIRWISE)
        if found is None and settings.oracle == "answer":
            found = Agreement(self.sentence_encoder())
        elif found is None and settings.oracle != "likelihood":
            found = named_oracle(settings.oracle)
            found = judged(found) if pairwise else found
        if found is not None and settings.labels:
            found = Kept(found, settings.labels, settings.label_timeout, settings.label_tries, pairwise)
        return Pairwise(found, settings.scale) if pairwise and found is not None else found

    def sentence_encoder(self) -> RewardModel:
        """An encoder whose features are made for cosines, as a classifier's are not: the packaged one."""
        if self.settings.reward_model == "packaged" and self.settings.weights == "pretrained":
            return self.reward_model
        if self._encoder is None:
            plain = {"reward_model": str(packaged_encoder()), "weights": "pretrained", "head_start": "zero"}
            self._encoder = RewardModel(self.settings.replace(**plain))
        return self._encoder


def _check_numbers(settings: Settings, team: Team) -> None:
    if settings.min_new_tokens >= settings.max_new_tokens:
        raise ParameterError(
            f"min_new_tokens = {settings.min_new_tokens}: must be under max_new_tokens = {settings.max_new_tokens}"
        )
    if "other" in reads([settings.rule]) and settings.window < 2 * team.size:
        raise ParameterError(
            f"window = {settings.window}: must be at least 2 a process for rule = {settings.rule!r}, which reads the "
            "reference of another prompt of the window"
        )
    for name in ("window", "steps"):
        if getattr(settings, name) % team.size:
            raise ParameterError(f"{name} = {getattr(settings, name)}: must be a multiple of the {team.size} processes")


def encoded(policy: Policy, prompts: Sequence[Prompt], settings: Settings) -> list[list[int]]:
    """Each prompt's ids under the chat template, cut where the settings say so.

    Raises
    ------
    ParameterError
        If a prompt, or the template alone, is too long.
    """
    limit, system = settings.max_prompt_tokens, settings.system
    found = [policy.encode(prompt.text, system, prompt.turns) for prompt in prompts]
    long = [index for index, ids in enumerate(found) if len(ids) > limit]
    if long and settings.long_prompts == "refuse":
        names = ", ".join(f"{prompts[index].id} ({len(found[index])})" for index in long[:5])
        raise ParameterError(
            f"max_prompt_tokens = {limit}: {len(long)} of {len(found)} prompts are longer, as {names}; "
            "raise it, or set long_prompts = 'truncate'"
        )
    for index in long:
        # The text is cut, not the template: its end is what asks for an answer.
        words = policy.tokenizer(prompts[index].text, add_special_tokens=False).input_ids
        length = len(words)
        while len(found[index]) > limit and length > 0:
            length = max(0, length - max(1, len(found[index]) - limit))
            short = str(policy.tokenizer.decode(words[:length]))
            found[index] = policy.encode(short, system, prompts[index].turns)
        if len(found[index]) > limit:
            raise ParameterError(f"max_prompt_tokens = {limit}: the chat template alone is longer")
    return found
