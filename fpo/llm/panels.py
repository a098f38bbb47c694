"""Panels: prompts that nothing is trained on, and what the responses of several runs to them are like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fpo.llm import decoding
from fpo.llm.candidates import asked, likely
from fpo.llm.loop import refitted
from fpo.llm.oracles import distinct_2, repetition
from fpo.llm.prompts import Prompt, load_prompts
from fpo.llm.together import Group
from fpo.llm.workbench import Workbench, encoded

ROWS = 192  # responses that are written together
SHOWN = 7  # the texts of one held-out prompt in so many are kept
PROBES = 4  # responses to each prompt of the probe


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


class Watcher:
    """What is looked at in a run: held-out prompts, a probe of training prompts, and the RM on answers."""

    def __init__(self, bench: Workbench) -> None:
        heldout, probe = load_prompts("packaged:heldout", 10**6), load_prompts("packaged:probe", 10**6)
        self._heldout = Panel(bench, heldout, "heldout", 1)
        self._probe = Panel(bench, probe, "probe", PROBES, log_ratios=False)
        pairs = [pair for prompt in heldout for pair in zip(prompt.correct, prompt.incorrect, strict=True)]
        right, wrong = (bench.reward_model.features([pair[k] for pair in pairs]) for k in (0, 1))
        self._answers = right - wrong

    def probe(self, group: Group) -> list[dict[str, Any]]:
        """For each run, what tuning may look at: no held-out prompt."""
        found = self._probe.respond(group)
        return [{"probe": self._pairs(group, run, found[run])} for run in range(len(group.runs))]

    def everything(self, group: Group) -> list[dict[str, Any]]:
        """For each run, what the file of a judged run keeps."""
        found = self._heldout.respond(group)
        return [
            {
                "heldout": self._summary(group, run, found[run]),
                "accuracy": float((self._answers @ group.heads[run].detach() > 0).double().mean()),
                **probe,
            }
            for run, probe in enumerate(self.probe(group))
        ]

    def _summary(self, group: Group, run: int, found: Responses) -> dict[str, Any]:
        texts = [row[0] for row in found.texts]
        return {
            "utility": found.utilities[:, 0].round(3).tolist(),
            "reward": float(found.rewards(group.heads[run]).mean()),
            "first_reward": float(found.rewards(group.first_heads[run]).mean()),
            "kl": round(float(found.log_ratios.mean()), 3) + 0.0,  # the rest is single precision
            "length": float(np.mean([len(row[0]) for row in found.tokens])),
            "distinct_2": distinct_2(texts),
            "repetition": float(np.mean([repetition(text) for text in texts])),
            "texts": {self._heldout.prompts[i].id: texts[i] for i in range(0, len(texts), SHOWN)},
        }

    @staticmethod
    def _pairs(group: Group, run: int, found: Responses) -> dict[str, Any]:
        refit = refitted(group.comparisons[run], group.runs[run].head_ridge)
        heads = {"reward": group.heads[run], "refit_reward": refit}
        rewards = {name: found.rewards(head).astype(float).round(4).tolist() for name, head in heads.items()}
        return {"utility": found.utilities.round(3).tolist(), **rewards}
