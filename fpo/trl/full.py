"""A reward model (RM) whose whole network learns: the penalties without a gradient that is a feature."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fpo import rules
from fpo.llm.reading import is_decoder, pad_by
from fpo.parameters import ParameterError
from fpo.steering import gram_solver
from fpo.trl.head import Said, Texts, check_sizes

# Rules that read inner products of each sample's own gradient, and those of one direction for all.
OWN = ("relaxed", "practical", "relaxed-centered", "practical-centered", "relaxed-permuted")
DIRECTION = ("exact", "exact-centered")
NEITHER = ("standard", "overconfidence", "random-penalty", "random", "best-of-u")


class Pair(NamedTuple):
    """Texts that were compared, the reference last and once for all, and how much each is preferred to it, p*."""

    prompt: Said
    completions: list[Said]
    reference: Said
    preferences: list[float]


def group_mean(values: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Mean of values (P, n, p) over what is not empty in each group, (P, p); 0 where all is."""
    there = (~empty)[..., None].to(values)
    return (values * there).sum(1) / there.sum(1).clamp(min=1)


class FullReward:
    """An RM with one logit, all of which is retrained; phi are its parameters, m of them.

    The exact penalty needs one direction v = H^-1 g_bar for all candidates: <v, g_z> is the central difference of two
    forward passes, (r(phi + h v) - r(phi - h v)) / 2h with h |v| = `step`. H is that of the last comparisons, from a
    gradient of each. The relaxed and practical forms need each sample's own gradient; what that costs is said, as a
    warning, before it is done. `leverage` and `anchor-other` are not to be had.

    Parameters
    ----------
    model : transformers model
        A sequence classifier with one output.
    tokenizer
    parameters : "trainable" or sequence of str
        What learns: all parameters that ask for gradients, or those of them whose names hold one of these texts.
    step : float
        Length of the step that r is differenced over.
    chat_template, reads, max_length, batch
        As in `HeadReward`.

    Raises
    ------
    ParameterError
        If nothing would learn, the model has not one output, or a number is out of its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        parameters: Literal["trainable"] | Sequence[str] = "trainable",
        step: float = 1e-3,
        chat_template: bool = True,
        reads: Literal["prompt and response", "response"] = "prompt and response",
        max_length: int = 1024,
        batch: int = 32,
    ) -> None:
        if not 0 < step < math.inf:
            raise ParameterError(f"step = {step!r}: must be a finite number above 0")
        check_sizes(max_length=max_length, batch=batch)
        if getattr(model.config, "num_labels", 0) != 1 or not hasattr(model, "num_labels"):
            raise ParameterError(f"model = {type(model).__name__}: must be a sequence classifier with one output")
        self._model, self._tokenizer, self._step = model.eval(), tokenizer, step
        self._longest, self._batch = max_length, batch
        pad_by(model, tokenizer)
        self._texts = Texts(tokenizer, is_decoder(model), chat_template, reads)
        asked = [""] if isinstance(parameters, str) else list(parameters)
        self.learns = {
            name: value
            for name, value in model.named_parameters()
            if value.requires_grad and any(part in name for part in asked)
        }
        if not self.learns:
            raise ParameterError(f"parameters = {parameters!r}: no parameter of the model is meant, or none learns")
        self.size = sum(value.numel() for value in self.learns.values())
        self.kept: list[Pair] = []
        self._told: set[str] = set()
        # What is read of a text is its reward itself, and the head leaves it as it is.
        self.head = torch.nn.Linear(1, 1, bias=False, device=model.device).requires_grad_(False)
        torch.nn.init.ones_(self.head.weight)

    def check(self, rule: str) -> None:
        """Refuse a rule that would need a solve for each candidate.

        Raises
        ------
        ParameterError
            If it would.
        """
        if rule not in (*OWN, *DIRECTION, *NEITHER):
            raise ParameterError(
                f"rule = {rule!r}: of a whole network must be one of {', '.join((*NEITHER, *DIRECTION, *OWN))}"
            )

    def _logits(self, prompts: Sequence[Said], completions: Sequence[Said]) -> torch.Tensor:
        texts, beside, how = self._texts(prompts, completions)
        pairs = [texts] if beside is None else [beside, texts]
        read = self._tokenizer(
            *pairs, padding=True, truncation=True, max_length=self._longest, return_tensors="pt", padding_side="right",
            **how,
        ).to(self._model.device)  # fmt: skip
        return self._model(**read).logits[:, 0].float()

    def _parts(self, count: int) -> list[slice]:
        return [slice(start, start + self._batch) for start in range(0, count, self._batch)]

    @torch.no_grad()
    def read(self, prompts: Sequence[Said], completions: Sequence[Said]) -> torch.Tensor:
        """r of each completion, (n, 1)."""
        found = [self._logits(prompts[part], completions[part]) for part in self._parts(len(prompts))]
        return torch.cat(found)[:, None]

    def rewards(self, features: torch.Tensor) -> torch.Tensor:
        """r, (...,), of what was read, (..., 1)."""
        return features[..., 0]

    def gradient(
        self, prompts: Sequence[Said], completions: Sequence[Said], text_weights: Sequence[float] | torch.Tensor
    ) -> torch.Tensor:
        """Sum over texts of their weights times grad_phi r, (m,)."""
        total = torch.zeros(self.size, device=self._model.device)
        text_weights = torch.as_tensor(text_weights, dtype=torch.float32, device=total.device)
        for part in self._parts(len(prompts)):
            loss = (text_weights[part] * self._logits(prompts[part], completions[part])).sum()
            found = torch.autograd.grad(loss, list(self.learns.values()), allow_unused=True)
            total += torch.cat(
                [
                    torch.zeros_like(value).flatten() if each is None else each.flatten().float()
                    for each, value in zip(found, self.learns.values(), strict=True)
                ]
            )
        return total

    def along(self, direction: torch.Tensor, prompts: Sequence[Said], completions: Sequence[Said]) -> torch.Tensor:
        """<v, grad_phi r> of each text, (n,), for a direction v, (m,): two forward passes."""
        length = float(direction.norm())
        if not length:
            return torch.zeros(len(prompts), device=self._model.device)
        h = self._step / length
        with self._shifted(direction, h):
            above = self.read(prompts, completions)[:, 0].double()
        with self._shifted(direction, -h):
            below = self.read(prompts, completions)[:, 0].double()
        return ((above - below) / (2 * h)).float()

    @contextmanager
    def _shifted(self, direction: torch.Tensor, h: float) -> Iterator[None]:
        before = [value.detach().clone() for value in self.learns.values()]
        parts = direction.split([value.numel() for value in self.learns.values()])
        try:
            with torch.no_grad():
                for value, part in zip(self.learns.values(), parts, strict=True):
                    value.add_(part.view_as(value).to(value.dtype), alpha=h)
            yield
        finally:
            with torch.no_grad():
                for value, old in zip(self.learns.values(), before, strict=True):
                    value.copy_(old)

    def inputs(
        self,
        seen: rules.Candidates,
        rule: str,
        prompts: Sequence[Said],
        completions: Sequence[Said],
        references: Sequence[Said] | None,
        ridge: float,
    ) -> rules.Candidates:
        """Candidates with what the rule reads in place of their gradients: coordinates with the same inner products.

        Raises
        ------
        ValueError
            If there are several processes.
        """
        if PartialState().num_processes > 1:
            raise ValueError("FullReward computes in one process")
        shape = seen.rewards.shape
        firsts = prompts[:: shape[1]]
        if rule in DIRECTION:
            v = self._direction(seen, rule, prompts, completions, references, ridge)
            own = self.along(v, prompts, completions).view(*shape, 1)
            first = group_mean(own, seen.empty)
            if references is not None:
                first = self.along(v, firsts, references)[:, None]
            one = torch.ones(1, device=own.device)
            return replace(
                seen, features=own, reference=replace(seen.reference, features=first), mean_gradient=one,
                mean_difference=one, solve=lambda v: v,
            )  # fmt: skip
        if rule not in OWN:
            return seen
        rows = shape[1] + (references is not None)
        self._tell(rule, f"{rows} backward passes and {rows * self.size * 4 / 2**30:.2g} GB a prompt")
        coordinates = []
        for group, prompt in enumerate(firsts):
            said = list(completions[group * shape[1] : (group + 1) * shape[1]])
            said += [] if references is None else [references[group]]
            gradients = torch.stack([self.gradient([prompt], [text], [1.0]) for text in said]).double()
            values, vectors = torch.linalg.eigh(gradients @ gradients.mT)
            coordinates.append(vectors * values.clamp(min=0).sqrt())
        found = torch.stack(coordinates).to(seen.rewards)
        own = found[:, : shape[1]]
        first = group_mean(own, seen.empty) if references is None else found[:, -1]
        return replace(seen, features=own, reference=replace(seen.reference, features=first))

    def _direction(
        self,
        seen: rules.Candidates,
        rule: str,
        prompts: Sequence[Said],
        completions: Sequence[Said],
        references: Sequence[Said] | None,
        ridge: float,
    ) -> torch.Tensor:
        """v = H^-1 g_bar, (m,); 0 while there are no comparisons."""
        there = (~seen.empty).flatten().float()
        text_weights = there / there.sum()
        if rule == "exact-centered" and references is None:  # the mean of a group has the mean gradient
            return torch.zeros(self.size, device=text_weights.device)
        mean = self.gradient(prompts, completions, text_weights)
        if rule == "exact-centered" and references is not None:
            mean -= self.gradient(
                prompts[:: seen.empty.shape[1]], references, text_weights.view(seen.empty.shape).sum(1)
            )
        if not self.kept:
            return torch.zeros_like(mean)
        count = sum(len(pair.completions) for pair in self.kept)
        self._tell(rule, f"{count} backward passes and {count * self.size * 4 / 2**30:.2g} GB a step for H")
        rows, curvature = [], []
        for pair in self.kept:
            for said in pair.completions:
                texts = [said, pair.reference]
                rows.append(self.gradient([pair.prompt] * 2, texts, [1.0, -1.0]))
                read = self.read([pair.prompt] * 2, texts)[:, 0]
                p = (read[0] - read[1]).sigmoid()
                curvature.append(p * (1 - p) / count)
        return gram_solver(torch.stack(rows), torch.stack(curvature), ridge)(mean[None])[0]

    def _tell(self, rule: str, cost: str) -> None:
        if rule not in self._told:
            warnings.warn(f"rule = {rule!r} on a network of {self.size:,} parameters: {cost}", stacklevel=2)
            self._told.add(rule)

    def backward(self, pairs: Sequence[Pair]) -> float:
        """Set the gradient of the mean over prompts of the mean of BCE(r_z - r_ref, p*); returns that loss."""
        total = 0.0
        for pair in pairs:
            texts = [*pair.completions, pair.reference]
            read = self._logits([pair.prompt] * len(texts), texts)
            wanted = torch.tensor(pair.preferences, device=read.device)
            loss = F.binary_cross_entropy_with_logits(read[:-1] - read[-1], wanted) / len(pairs)
            loss.backward()
            total += float(loss.detach())
        return total

    def state_dict(self) -> dict[str, Any]:
        """What learns, by name, and the comparisons."""
        learned = {name: value.detach().clone() for name, value in self.learns.items()}
        return {"learned": learned, "kept": [list(pair) for pair in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a `state_dict`."""
        with torch.no_grad():
            for name, value in self.learns.items():
                value.copy_(state["learned"][name])
        self.kept = [Pair(*each) for each in state["kept"]]
