"""What was written and how it was judged: candidates and reference responses."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fpo import rules
from fpo.llm import decoding
from fpo.llm.head import comparison_solver
from fpo.llm.labels import OracleError
from fpo.llm.oracles import Oracle, likelihood_utility
from fpo.llm.prompts import Prompt, order
from fpo.llm.settings import Settings
from fpo.llm.team import Clock, seed_streams
from fpo.llm.workbench import ReferenceResponse, Workbench

# Neither a reference nor what is written before the first update depends on these.
LATER = {
    *("profile", "rule", "gamma", "measure", "steps", "window", "save_every", "policy_lr", "head_lr", "optimizer"),
    *("learn_from", "head_start", "head_prompts", "head_ridge", "head_update", "head_learns", "buffer_size"),
    *("reward_dropout", "measure_kl", "reference_labels", "scale", "labels", "label_timeout", "label_tries"),
}


class TrainingError(RuntimeError):
    """The run cannot go on; what it had written stays, and it resumes from its last checkpoint."""


@dataclass(frozen=True)
class Window:
    """What the policy wrote to P prompts and how it was judged; N candidates a prompt.

    Attributes
    ----------
    positions, prompts, reference_texts : lists of P
        The steps, their prompts and the reference responses.
    tokens, texts : P lists of N
    scored : Candidates
        What any of the rules reads that the window was written for; U is NaN where nothing was asked.
    kl : tensor (P,)
        log pi(z) - log pi_base(z) of the first candidate, one sample's estimate of KL(pi, pi_base); NaN where it is
        not measured.
    penalty : tensor (P, N)
    winner : tensor (P,)
        On the CPU; -1 where nobody can win.
    """

    positions: list[int]
    prompts: list[Prompt]
    reference_texts: list[str]
    tokens: list[list[list[int]]]
    texts: list[list[str]]
    scored: rules.Candidates
    kl: torch.Tensor
    penalty: torch.Tensor
    winner: torch.Tensor


def beginning(settings: Settings) -> tuple:
    """What references and the first candidates depend on: runs in which it is equal share them."""
    return tuple(settings.model_dump(exclude=LATER).items())


class Writer:
    """Has a run's responses written by the models of a workbench, and judges them; nothing is learned here.

    Made, it sets the models to where the run starts, as if they were newly loaded for it; there is one at a time.

    Parameters
    ----------
    bench : Workbench
    settings : Settings
        Of the run.

    Attributes
    ----------
    first_comparisons : Comparisons
        The latest of those that the head was fitted to.
    oracle : callable, optional
        U; None: the base's likelihood.
    references : dict
        The reference response to each prompt (by its index) that `make_references` was asked for.

    Raises
    ------
    ParameterError
        If the run cannot be played, or needs other models or prompts.
    ModelError
        If the RM is to have a head of its own, or the oracle an encoder, that is not there.
    """

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        bench.check(settings)
        self.bench, self.settings = bench, settings
        bench.policy.initialize(settings)
        comparisons = bench.first_fits(settings.head_start, settings.head_ridge, settings.seed, settings.head_prompts)
        self.first_comparisons = comparisons.and_latest([], settings.buffer_size)
        self.references: dict[int, ReferenceResponse] = {}
        self.oracle = bench.chosen_oracle(settings)
        self._order: list[int] = []
        self._key = beginning(settings)
        bench.writer = self

    def prompt_indices(self, positions: Iterable[int]) -> list[int]:
        """Which prompt each of these steps takes."""
        positions = list(positions)
        if (last := max(positions, default=-1)) >= len(self._order):
            # A longer order begins with the shorter one.
            self._order = order(len(self.bench.prompts), 2 * last + 1, self.settings.seed)
        return [self._order[position] for position in positions]

    def prompt_ids(self, positions: Iterable[int]) -> list[list[int]]:
        """The tokens of each step's prompt."""
        return [self.bench.prompt_ids[index] for index in self.prompt_indices(positions)]

    def make_references(
        self,
        positions: Iterable[int],
        known: Mapping[int, ReferenceResponse] | None = None,
        save: Callable[[Mapping[int, ReferenceResponse]], None] | None = None,
    ) -> None:
        """Have the base respond to the prompts of these steps, unless it did so for another run at this workbench.

        A batch is always made of the same prompts, since its size moves the last digits: what a run gets does not
        depend on what others asked for.

        Parameters
        ----------
        positions : iterable of int
            The steps.
        known : mapping, optional
            References that this run made before.
        save : callable, optional
            Gets all of them, after each batch.
        """
        bench, found, size = self.bench, self.references, self.settings.batch
        found |= known or {}
        indices = list(dict.fromkeys(self.prompt_indices(positions)))
        batches = [tuple(indices[start : start + size]) for start in range(0, len(indices), size)]
        missing = [batch for batch in batches if not found.keys() >= set(batch)]
        new = [batch for batch in missing if (self._key, batch) not in bench.references]
        for batch in bench.team.bar(iterable=new, desc="references", leave=False) if new else ():
            # For an oracle that draws: what it draws here is no other batch's and none of the run's.
            seed_streams(self.settings.seed, batch[0])
            own = bench.team.share(batch)
            bench.references[self._key, batch] = bench.team.gather(self._respond(own) if own else [])
            found |= zip(batch, bench.references[self._key, batch], strict=True)
            if save is not None:
                save(found)
        for batch in missing:
            found |= zip(batch, bench.references[self._key, batch], strict=True)
        if save is not None and len(new) < len(missing):
            save(found)

    def _respond(self, indices: Sequence[int]) -> list[ReferenceResponse]:
        s, bench = self.settings, self.bench
        ids = [bench.prompt_ids[index] for index in indices]
        stream = np.stack([decoding.uniforms(s.seed, "reference", index, (1, s.max_new_tokens)) for index in indices])
        with bench.policy.base():
            tokens = self._decode(ids, stream).tokens
            nll = [(float("nan"), float("nan"))] * len(ids)
            if self.oracle is None:
                nll = decoding.split_nll(bench.policy.model, ids, [row[0] for row in tokens], s.chunk)
        texts = [[bench.policy.text(row) for row in group] for group in tokens]
        prompts = [bench.prompts[index] for index in indices]
        features = self.features(prompts, [group[0] for group in texts])
        prompt_nll, own_nll = (list(part) for part in zip(*nll, strict=True))
        base_nll = torch.tensor(own_nll, dtype=torch.float64)[:, None]
        utilities = self._utilities(indices, tokens, texts, prompt_nll, base_nll)[:, 0].tolist()
        return [
            ReferenceResponse(text=text, prompt_nll=before, features=feature.cpu(), utility=utility)
            for (text,), before, feature, utility in zip(texts, prompt_nll, features, utilities, strict=True)
        ]

    def _decode(self, ids: Sequence[decoding.Ids], stream: np.ndarray) -> decoding.Continuations:
        s, policy = self.settings, self.bench.policy
        sampling: dict[str, Any] = {name: getattr(s, name) for name in ("min_new_tokens", "temperature", "top_p")}
        return decoding.decode(policy.model, ids, stream, policy.ends, **sampling)

    def features(self, prompts: Sequence[Prompt], texts: Sequence[str], dropout: bool = False) -> torch.Tensor:
        """What the RM's head reads of each response, (n, p)."""
        shown = [prompt.text for prompt in prompts] if self.settings.reward_reads == "prompt and response" else None
        return self.bench.reward_model.features(texts, shown, dropout)

    def _base_nll(self, indices: Sequence[int], tokens: Sequence[Sequence[decoding.Ids]]) -> torch.Tensor:
        bench = self.bench
        ids = [bench.prompt_ids[index] for index in indices]
        with bench.policy.base():
            found = decoding.response_nll(bench.policy.model, ids, tokens, self.settings.chunk)
        return torch.tensor(found, dtype=torch.float64)

    def _utilities(
        self,
        indices: Sequence[int],
        tokens: Sequence[Sequence[decoding.Ids]],
        texts: Sequence[Sequence[str]],
        prompt_nll: Sequence[float],
        base_nll: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """U, (P, n), of n responses to each prompt; `base_nll` (P, n) if it is known already.

        Raises
        ------
        TrainingError
            If it is not a finite number.
        """
        if self.oracle is not None:
            known = [self.references.get(index) for index in indices]
            prompts = [
                replace(self.bench.prompts[index], reference=reference["text"] if reference else None)
                for index, reference in zip(indices, known, strict=True)
            ]
            return asked(self.oracle, prompts, texts).to(self.bench.policy.device)
        base_nll = self._base_nll(indices, tokens) if base_nll is None else base_nll
        if not bool(base_nll.isfinite().all()):
            raise TrainingError("the base's likelihood is not a finite number: try dtype = 'float32'")
        ids = [self.bench.prompt_ids[index] for index in indices]
        return likely(ids, prompt_nll, base_nll.tolist(), tokens).to(self.bench.policy.device)

    def stream(self, positions: Sequence[int]) -> np.ndarray:
        """The random numbers that the candidates of these steps are drawn with, (P, N, T)."""
        shape = (self.settings.candidates, self.settings.max_new_tokens)
        return np.stack([decoding.uniforms(self.settings.seed, "candidate", position, shape) for position in positions])

    def write(self, positions: Sequence[int]) -> decoding.Continuations:
        """The candidates of these steps."""
        # Runs from the same start write the same until their first update.
        known, key = self.bench.first_written, (self._key, tuple(positions))
        if self.bench.policy.untrained and key in known:
            return known[key]
        written = self._decode(self.prompt_ids(positions), self.stream(positions))
        if self.bench.policy.untrained:
            known[key] = written
        return written

    def window(
        self,
        positions: Iterable[int],
        also: Collection[str] = (),
        comparisons: torch.Tensor | None = None,
        clock: Clock | None = None,
        written: decoding.Continuations | None = None,
    ) -> Window:
        """Let the policy write to the prompts of these steps, and choose the winners of the settings' rule.

        Parameters
        ----------
        positions : iterable of int
            Steps; their references have been made.
        also : names of rules
            To be chosen by later: what they read is there too.
        comparisons : tensor (n, p)
            For H; None: those that the head was fitted to.
        clock : Clock, optional
            Gets the seconds of decode, reward, oracle and select.
        written : Continuations, optional
            What the policy wrote, where it has written already.

        Raises
        ------
        ValueError
            If a reference is missing, or another run has started at this workbench since.
        TrainingError
            If U is not a finite number.
        """
        s, bench, positions, clock = self.settings, self.bench, list(positions), clock or Clock()
        if bench.writer is not self:
            raise ValueError("another run has started at this workbench: make a Writer for this one again")
        indices = self.prompt_indices(positions)
        if lacking := [bench.prompts[index].id for index in indices if index not in self.references]:
            raise ValueError(f"prompt {lacking[0]} has no reference: make_references comes before its window")
        references = [self.references[index] for index in indices]
        prompts = [bench.prompts[index] for index in indices]
        names = {s.rule, *also}
        read = rules.reads(names)
        with clock("decode"):
            written = self.write(positions) if written is None else written
            texts = [[bench.policy.text(row) for row in group] for group in written.tokens]
        with clock("reward"):
            noisy = s.reward_dropout == "update and standard scores" and names == {"standard"}
            scored = self._rewarded(prompts, texts, references, noisy)
        with clock("oracle"):
            all_labels = "candidates" in (s.measure, s.head_learns) or "labels" in read
            all_nll = "log_ratio" in read or (self.oracle is None and all_labels)
            log_pi = torch.tensor(written.logprobs, dtype=torch.float64)
            log_pi = log_pi[:, : s.candidates if all_nll else 1]
            if all_nll or s.measure_kl:
                base_nll = self._base_nll(indices, [group[: log_pi.shape[1]] for group in written.tokens])
            else:
                base_nll = torch.full_like(log_pi, torch.nan)
            log_ratio = (log_pi + base_nll).to(scored.rewards)
            prompt_nll = [each["prompt_nll"] for each in references]
            if all_labels:
                known = base_nll if all_nll else None
                utilities = self._utilities(indices, written.tokens, texts, prompt_nll, known)
                scored = replace(scored, utilities=utilities)
        with clock("select"):
            scored = replace(scored, log_ratio=log_ratio if all_nll else None)
            scored = self._with_inputs(scored, read, positions, comparisons)
            choice = rules.choose(s.rule, scored, s.gamma)
            winner = choice.winner.cpu()
        if not all_labels:
            with clock("oracle"):
                won = winner.clamp(min=0).tolist()
                rows = [[group[z]] for group, z in zip(written.tokens, won, strict=True)]
                told = [[group[z]] for group, z in zip(texts, won, strict=True)]
                utilities = scored.utilities.clone()
                utilities[torch.arange(len(won)), won] = self._utilities(indices, rows, told, prompt_nll)[:, 0]
                scored = replace(scored, utilities=utilities)
        return Window(
            positions, prompts, [each["text"] for each in references], written.tokens, texts, scored, log_ratio[:, 0],
            choice.penalty, winner,
        )  # fmt: skip

    def _rewarded(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        references: Sequence[ReferenceResponse],
        dropout: bool,
    ) -> rules.Candidates:
        rewards, count = self.bench.reward_model.rewards, len(texts[0])
        flat = [text for group in texts for text in group]
        features = self.features([prompt for prompt in prompts for _ in range(count)], flat, dropout)
        features = features.view(len(texts), count, -1)
        reference_features = torch.stack([each["features"] for each in references]).to(features)
        reference_utilities = torch.tensor([each["utility"] for each in references], device=features.device)
        return rules.Candidates(
            rewards=rewards(features),
            features=features,
            utilities=torch.full(features.shape[:2], torch.nan, device=features.device),
            empty=torch.tensor([[not text for text in group] for group in texts], device=features.device),
            reference=rules.Reference(rewards(reference_features), reference_features, reference_utilities),
            scale=self.settings.scale,
        )

    def _with_inputs(
        self,
        scored: rules.Candidates,
        read: Collection[str],
        positions: Sequence[int],
        comparisons: torch.Tensor | None,
    ) -> rules.Candidates:
        s, team = self.settings, self.bench.team
        found: dict[str, Any] = {}

        def mean(values: torch.Tensor) -> torch.Tensor:
            return team.add(values[~scored.empty].sum(0)) / team.add((~scored.empty).sum()).clamp(min=1)

        if "mean_gradient" in read:
            found["mean_gradient"] = mean(scored.features)
        if "mean_difference" in read:
            found["mean_difference"] = mean(scored.features - scored.reference_features())
        if "other" in read:
            # The neighbor in the window, whoever that is: every reference serves once.
            found["other"] = scored.reference.features.roll(1, 0)
        if "solve" in read:
            comparisons = self.first_comparisons.differences if comparisons is None else comparisons
            found["solve"] = comparison_solver(comparisons, self.bench.reward_model.head.weight[0], s.head_ridge)
        if "uniform" in read:
            drawn = [decoding.uniforms(s.seed, "winner", position, (s.candidates,)) for position in positions]
            found["uniform"] = torch.from_numpy(np.stack(drawn)).to(scored.features)
        return replace(scored, **found)


def likely(
    ids: Sequence[decoding.Ids],
    prompt_nll: Sequence[float],
    nll: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[decoding.Ids]],
) -> torch.Tensor:
    """U by the base's likelihood, (P, n), from its summed NLL of each prompt and of n responses to it."""
    return torch.tensor(
        [
            [likelihood_utility(before + own, len(prompt) - 1 + len(row)) for own, row in zip(group, rows, strict=True)]
            for prompt, before, group, rows in zip(ids, prompt_nll, nll, tokens, strict=True)
        ]
    )


def asked(oracle: Oracle, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> torch.Tensor:
    """What an oracle says, (P, n), of n responses to each prompt.

    Raises
    ------
    TrainingError
        If these are too few, or not finite numbers, or do not come.
    """
    count = len(texts[0])
    repeated = [prompt for prompt in prompts for _ in range(count)]
    try:
        values = torch.tensor(oracle(repeated, [text for group in texts for text in group]), dtype=torch.float32)
    except OracleError as error:
        raise TrainingError(str(error)) from error
    if values.shape != (len(repeated),) or not bool(values.isfinite().all()):
        raise TrainingError(f"the oracle gave {tuple(values.shape)} values or some that are not finite numbers")
    return values.view(-1, count)
