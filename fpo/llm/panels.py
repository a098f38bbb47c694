"""Panels: prompts that nothing is trained on, and what the responses of several runs to them are like."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fpo.llm import decoding
from fpo.llm.candidates import asked, likely
from fpo.llm.prompts import Prompt
from fpo.llm.together import Group
from fpo.llm.workbench import Workbench, encoded

ROWS = 192  # responses that are written together


@dataclass(frozen=True)
class Responses:
    """N responses of a run to each of P prompts, drawn at the run's temperature from all words, to their end.

    Attributes
    ----------
    tokens, texts : P lists of N
    utilities : array (P, N)
    log_ratios : array (P, N)
        log pi(z) - log pi_base(z) at that temperature, whose mean is an unbiased estimate of KL(pi, pi_base); NaN where
        the panel does not ask for it.
    features : tensor (P, N, p)
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    utilities: np.ndarray
    log_ratios: np.ndarray
    features: torch.Tensor

    def rewards(self, head: torch.Tensor) -> np.ndarray:
        """r under a head (p,), without its bias: (P, N)."""
        return (self.features @ head.detach()).cpu().numpy()


def joined(parts: Sequence[Responses], order: np.ndarray) -> Responses:
    """Several batches' responses as one, their prompts in this order."""
    tokens = [rows for part in parts for rows in part.tokens]
    texts = [rows for part in parts for rows in part.texts]
    return Responses(
        [tokens[i] for i in order],
        [texts[i] for i in order],
        np.concatenate([part.utilities for part in parts])[order],
        np.concatenate([part.log_ratios for part in parts])[order],
        torch.cat([part.features for part in parts])[torch.from_numpy(order)],
    )


class Panel:
    """Prompts and the random numbers that responses to them are drawn with: the same at every time and in every arm.

    Parameters
    ----------
    bench : Workbench
    prompts : sequence of Prompt
    purpose : str
        Part of the address of the random numbers; the seed of a run is another.
    count : int
        Responses to each prompt.
    log_ratios : bool
        Whether the base scores them.
    """

    def __init__(
        self, bench: Workbench, prompts: Sequence[Prompt], purpose: str, count: int, log_ratios: bool = True
    ) -> None:
        self.bench, self.prompts, self.purpose, self.count = bench, prompts, purpose, count
        self._log_ratios = log_ratios
        self._ids = encoded(bench.policy, prompts, bench.settings)
        # Of one length, as near as may be, in a batch.
        self._order = sorted(range(len(prompts)), key=lambda i: len(self._ids[i]))

    def respond(self, group: Group) -> list[Responses]:
        """Every run's responses as it is now; before the first step, runs of one seed share those of the base."""
        if group.position:
            return self._respond(group, range(len(group.runs)))
        seeds = [settings.seed for settings in group.runs]
        with self.bench.policy.base():
            distinct = list(dict.fromkeys(seeds))
            found = dict(zip(distinct, self._respond(group, [seeds.index(seed) for seed in distinct]), strict=True))
            return [found[seed] for seed in seeds]

    def _respond(self, group: Group, runs: Sequence[int]) -> list[Responses]:
        size = max(1, ROWS // (len(runs) * self.count))
        parts = [self._order[start : start + size] for start in range(0, len(self._order), size)]
        found = [self._part(group, runs, part) for part in parts]
        back = np.argsort(self._order)
        return [joined([part[i] for part in found], back) for i in range(len(runs))]

    def _part(self, group: Group, runs: Sequence[int], indices: Sequence[int]) -> list[Responses]:
        bench, s, count = self.bench, group.runs[0], self.count
        writer = group.writers[0]  # what it is asked for here is the same in all runs of a group
        ids, prompts = [self._ids[i] for i in indices], [self.prompts[i] for i in indices]
        stream = np.stack(
            [
                [decoding.uniforms(group.runs[run].seed, self.purpose, i, (count, s.max_new_tokens)) for i in indices]
                for run in runs
            ]
        )
        # From all words and to any end, or the log-ratio would be that of other distributions.
        how = {"min_new_tokens": 0, "temperature": s.temperature, "top_p": 1.0, "scored_at": s.temperature}
        written = group.decode([ids] * len(runs), stream, **how)
        beside = [[row for own in written for row in own.tokens[p]] for p in range(len(ids))]
        with bench.policy.base():
            base = self._nll(ids, beside, s.temperature) if self._log_ratios else np.full((len(ids), 1), np.nan)
            if writer.oracle is None:
                first = [rows[0] for rows in beside]
                before = [nll for nll, _ in decoding.split_nll(bench.policy.model, ids, first, s.chunk)]
                after = self._nll(ids, beside, 1.0)
        found = []
        for i, own in enumerate(written):
            columns = slice(i * count, (i + 1) * count)
            texts = [[bench.policy.text(row) for row in rows] for rows in own.tokens]
            flat = [text for rows in texts for text in rows]
            repeated = [prompt for prompt in prompts for _ in range(count)]
            features = writer.features(repeated, flat)
            if writer.oracle is not None:
                utilities = asked(writer.oracle, prompts, texts)
            else:
                utilities = likely(ids, before, after[:, columns].tolist(), own.tokens)
            log_ratios = np.array(own.logprobs) + (base[:, columns] if self._log_ratios else base)
            found.append(
                Responses(own.tokens, texts, utilities.double().numpy(), log_ratios, features.view(len(ids), count, -1))
            )
        return found

    def _nll(self, ids: Sequence[decoding.Ids], rows: Sequence[Sequence[decoding.Ids]], at: float) -> np.ndarray:
        return np.array(decoding.response_nll(self.bench.policy.model, ids, rows, self.bench.settings.chunk, at))
