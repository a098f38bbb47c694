"""The reward r + gamma R as a reward function of a trainer, with the comparisons that the reward model learns from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from accelerate import PartialState

from fpo import rules
from fpo.llm.decoding import uniforms
from fpo.llm.head import Comparisons, comparison_solver
from fpo.llm.labels import Labels
from fpo.parameters import ParameterError
from fpo.trl.full import FullReward, Pair, group_mean
from fpo.trl.head import HeadReward, Said, plain
from fpo.trl.options import Options
from fpo.trl.rows import Judge, Oracle, Rows, gathered, places_of

FROZEN = 64  # texts of the first window whose rewards tell how far the head has moved


class SteeredReward:
    """r + gamma R of each completion, as a reward function of TRL: for GRPO and RLOO as it is, for OnlineDPO strided.

    What a rule compares a completion with is the base's response to the same prompt, from the data set's column
    `reference`, or the mean of its group. Empty completions get None: they win nothing, and teach nothing.

    Parameters
    ----------
    rm : HeadReward or FullReward
    rule : str
        One of `fpo.rules.RULES`, but for `kl`: that penalty is the trainer's own, by its `beta`.
    gamma : float, optional
        Weight of the penalty. None: after `warmup` groups in which r and R both vary it is set so that gamma R spreads
        `ratio` times as much as r within a group, and never moves again; until then the reward is r alone. As every
        weight it belongs to one RM and one rule.
    ratio, warmup
        See `gamma`.
    oracle : callable, optional
        True utility U, as TRL's reward functions: (prompts, completions, **columns) -> numbers, None for no answer.
    preference : callable, optional
        A judge of pairs in place of the oracle: (prompts, completions, references, **columns) -> p*, in [0, 1].
    scale : float
        p* = sigmoid(scale (U_z - U_ref)).
    reference : {"reference", "group"}
        `group` needs no references, but the labels of all candidates.
    order : {"consecutive", "strided"}
        `strided`: rows i and i + rows / 2 answer the same prompt, as OnlineDPO gives them.
    pairs : {"winner", "all"}
        Whether the RM is trained on the best completion against the reference, or on all of them.
    buffer, ridge
        The last so many comparisons make H, with this ridge.
    labels : path or Labels, optional
        A file that keeps the oracle's labels, so that none is asked for twice, or a cache with limits of its own.

    Attributes
    ----------
    gamma : float or None
        The weight, once it is set.
    learning : bool
        Whether comparisons are collected; off while a trainer evaluates.
    fresh : list of Comparisons, or of Pair for a `FullReward`
        One for each group since the RM was last trained.
    metrics : dict
        Logged with the next call.

    Raises
    ------
    ParameterError
        For a value that is not allowed, or a rule that reads labels where nobody gives any.
    """

    def __init__(
        self,
        rm: HeadReward | FullReward,
        rule: str = "leverage",
        gamma: float | None = None,
        *,
        ratio: float = 0.5,
        oracle: Oracle | None = None,
        preference: Oracle | None = None,
        scale: float = 1.0,
        reference: Literal["reference", "group"] = "reference",
        order: Literal["consecutive", "strided"] = "consecutive",
        pairs: Literal["winner", "all"] = "winner",
        buffer: int = 512,
        ridge: float = 1e-2,
        warmup: int = 32,
        labels: str | Path | Labels | None = None,
    ) -> None:
        self.options = Options(
            rule=rule, gamma=gamma, ratio=ratio, scale=scale, reference=reference, order=order, pairs=pairs,
            buffer=buffer, ridge=ridge, warmup=warmup,
        )  # fmt: skip
        self._reads = rules.RULES[rule].reads
        if oracle is None and preference is None and "labels" in self._reads:
            raise ParameterError(f"rule = {rule!r} reads labels: give an oracle or a preference")
        if isinstance(rm, FullReward) and reference == "group" and (oracle or preference):
            raise ParameterError("a whole network is trained on pairs of texts: must have reference = 'reference'")
        if preference is not None and reference == "group":
            raise ParameterError("preference compares with a response: must have reference = 'reference'")
        if isinstance(rm, FullReward):
            rm.check(rule)
        self._judge = Judge(oracle, preference, labels)
        self.__name__ = f"fpo_{rule}"
        self.rm = rm
        # A rule whose penalty has no weight, or whose score is not r + gamma R, has none to be measured.
        self.gamma = gamma if rules.RULES[rule].gamma else 0.0
        self.learning, self.metrics = True, dict[str, float]()
        self.fresh: list[Any] = []
        self._kept: Comparisons | None = None
        self._warm = [0.0, 0.0, 0.0]  # groups, their spreads of r, and of R
        self._groups = 0
        self._frozen: torch.Tensor | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "SteeredReward cannot be sent to another process, as AsyncGRPO does: its head would not learn there"
        )

    @property
    def teaches(self) -> bool:
        """Whether anybody says what is better, so that the RM can be trained."""
        return self._judge.there

    def comparisons(self) -> Comparisons:
        """The last comparisons, `buffer` at most: f_z - f_ref, (n, p), and p*, (n,)."""
        if self._kept is None:
            weight = self.rm.head.weight.detach()
            return Comparisons(weight.new_zeros(0, weight.shape[1]), weight.new_zeros(0))
        return self._kept

    def add(self, prompts: Sequence[Said], better: Sequence[Said], worse: Sequence[Said]) -> None:
        """Put what the RM was trained on before into the comparisons: p* = 1."""
        if isinstance(self.rm, FullReward):
            pairs = [Pair(a, [b], c, [1.0]) for a, b, c in zip(prompts, better, worse, strict=True)]
            self.rm.kept = [*self.rm.kept, *pairs][-self.options.buffer :]
            return
        differences = self.rm.read(prompts, better) - self.rm.read(prompts, worse)
        self._keep([Comparisons(differences, torch.ones_like(differences[:, 0]))])

    def _keep(self, new: Sequence[Comparisons]) -> None:
        self._kept = self.comparisons().and_latest(new, self.options.buffer)

    def __call__(
        self,
        prompts: Sequence[Said],
        completions: Sequence[Said],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The rewards, in the order of the rows; None for an empty completion.

        Raises
        ------
        ValueError
            If the rows are no whole groups, or lack the column `reference`.
        OracleError
            If the oracle gives no labels.
        """
        o = self.options
        if o.reference == "reference" and "reference" not in columns:
            raise ValueError(
                "the data set has no column reference, the base's response to each prompt: add it, or set "
                "reference = 'group'"
            )
        places = places_of(len(prompts), o.order)
        rows, first = gathered(Rows.of(places, prompts, completions, completion_ids, columns, self.rm.read))
        seen, choice = self._judged(rows)
        scores = choice.scores.masked_fill(seen.empty, math.nan).flatten().tolist()
        values: list[float | None] = [None] * len(prompts)
        penalties: list[float | None] = [None] * len(prompts)
        for place, row in zip(places, range(first, first + len(prompts)), strict=True):
            if not math.isnan(scores[row]):
                values[place] = scores[row]
                penalties[place] = float(choice.penalty.flatten()[row])
        told = self._learned(seen, choice, rows)
        if log_metric is not None:
            if trainer_state is not None and hasattr(trainer_state, "fpo_alarms"):  # from MonitorCallback
                told["metrics"]["alarms"] = float(trainer_state.fpo_alarms)
            for name, value in told["metrics"].items():
                log_metric(f"fpo/{name}", value)
        if log_extra is not None:
            log_extra("fpo_penalty", penalties)
        if trainer_state is not None:
            trainer_state.fpo_window = told["window"]  # for MonitorCallback, which is handed the same object
        return values

    def probe(self, prompts: Sequence[Said], completions: Sequence[Said], **columns: Any) -> list[float | None]:
        """The oracle's U of each completion, as a reward function to be logged, with the weight 0.

        It shares the reward's labels: what either has paid for the other does not ask for.
        """
        places, blank = list(range(len(prompts))), torch.zeros(len(prompts), 0)
        rows, first = gathered(Rows.of(places, prompts, completions, None, columns, lambda asked, told: blank))
        return self._judge.of_all(rows)[first : first + len(prompts)]

    def _judged(self, rows: Rows) -> tuple[rules.Candidates, rules.Choice]:
        """What the rule reads of a window of whole groups, and what it chooses.

        Raises
        ------
        ValueError
            If there is nothing to compare with, or a reward is no number.
        """
        o, size, references = self.options, rows.group_size(), None
        if o.reference == "group" and size < 2:
            raise ValueError("a group of one completion has no mean to be compared with: set reference = 'reference'")
        features = rows.features.to(self.rm.head.weight.device)
        features = features.view(-1, size, features.shape[-1])
        empty = torch.tensor([not plain(said).strip() for said in rows.completions]).view(-1, size).to(features.device)
        rewards = self.rm.rewards(features)
        if not bool(rewards.isfinite().all()):
            raise ValueError("the reward model gives a reward that is not a finite number")
        utilities = torch.full_like(rewards, math.nan)
        if o.reference == "reference":
            firsts = list(range(0, len(rows.prompts), size))
            references = [rows.columns["reference"][row] for row in firsts]
            read = self.rm.read([rows.prompts[row] for row in firsts], references).to(features)
            label = torch.tensor(self._judge.of_references(rows, firsts, references)).to(rewards)
            reference = rules.Reference(self.rm.rewards(read), read, label)
        else:
            read = group_mean(features, empty)
            reference = rules.Reference(self.rm.rewards(read), read, torch.zeros_like(rewards[:, 0]))
        scale = 1.0 if self._judge.pairs else o.scale
        seen = rules.Candidates(rewards, features, utilities, empty, reference, scale=scale)
        all_labels = "labels" in self._reads or (self.teaches and (o.pairs == "all" or o.reference == "group"))
        if all_labels:
            seen = self._labeled(seen, rows, ~empty)
        seen = self._with_inputs(seen, rows, references)
        choice = rules.choose(o.rule, seen, self.gamma or 0.0)
        if self.teaches and not all_labels:
            won = torch.arange(size, device=empty.device) == choice.winner[:, None]
            seen = self._labeled(seen, rows, won)
        return seen, choice

    def _labeled(self, seen: rules.Candidates, rows: Rows, which: torch.Tensor) -> rules.Candidates:
        """With the labels of some, (P, n); an empty response gets its reference's, and wins nothing."""
        asked = which.flatten().nonzero()[:, 0].tolist()
        utilities = seen.utilities.clone()
        utilities[which] = torch.tensor(self._judge(rows, asked)).to(utilities)
        reference = seen.reference
        if self.options.reference == "group":
            reference = replace(reference, utility=utilities.nanmean(-1).nan_to_num(0.0))
        filled = reference.utility[:, None].expand_as(utilities)
        utilities = torch.where(seen.empty, filled, utilities)
        return replace(seen, utilities=utilities, reference=reference)

    def _with_inputs(self, seen: rules.Candidates, rows: Rows, references: Sequence[Said] | None) -> rules.Candidates:
        """With what the rule reads.

        Raises
        ------
        ValueError
            If it reads another prompt's reference, and there is none.
        """
        found: dict[str, Any] = {}
        there = ~seen.empty
        full = isinstance(self.rm, FullReward)
        if isinstance(self.rm, FullReward):
            o = self.options
            seen = self.rm.inputs(seen, o.rule, rows.prompts, rows.completions, references, o.ridge)
        if "mean_gradient" in self._reads and not full:
            found["mean_gradient"] = seen.features[there].mean(0)
        if "mean_difference" in self._reads and not full:
            found["mean_difference"] = (seen.features - seen.reference_features())[there].mean(0)
        if "other" in self._reads:
            if len(seen.rewards) < 2:
                raise ValueError(f"rule = {self.options.rule!r} reads another prompt's reference: 2 prompts at a time")
            found["other"] = seen.reference.features.roll(1, 0)
        if "solve" in self._reads and not full:
            differences = self.comparisons().differences
            found["solve"] = comparison_solver(differences, self.rm.head.weight[0], self.options.ridge)
        if "uniform" in self._reads:
            groups, size = seen.rewards.shape
            drawn = [torch.from_numpy(uniforms(0, "winner", self._groups + i, (size,))) for i in range(groups)]
            found["uniform"] = torch.stack(drawn).to(seen.features)
        return replace(seen, **found)

    def _learned(self, seen: rules.Candidates, choice: rules.Choice, rows: Rows) -> dict[str, dict[str, Any]]:
        """Keep the window's comparisons and spreads; what it was, in numbers."""
        won = choice.winner
        fought, at = won >= 0, won.clamp(min=0)[:, None]
        picked = {name: getattr(seen, name).gather(1, at)[:, 0] for name in ("rewards", "utilities")}
        p_phi = (picked["rewards"] - seen.reference.reward).sigmoid().masked_fill(~fought, math.nan)
        p_star = seen.preferences().gather(1, at)[:, 0].masked_fill(~fought, math.nan)
        spreads = [_spreads(values, seen.empty) for values in (seen.rewards, choice.penalty)]
        if self.learning:
            self._groups += len(won)
            if self.teaches:
                self._collect(seen, won, rows)
            self._measure(*spreads)
        if self._frozen is None and isinstance(self.rm, HeadReward) and not seen.empty.all():
            self._frozen = seen.features[~seen.empty][:FROZEN].clone()
        metrics = {
            "reward": seen.rewards[~seen.empty].mean(),
            "reward_spread": spreads[0].nanmean(),
            "penalty_spread": spreads[1].nanmean(),
            "gamma": math.nan if self.gamma is None else self.gamma,
            "winner_reward": picked["rewards"][fought].mean(),
            "winner_utility": picked["utilities"][fought].mean(),
            "p_phi": p_phi.nanmean(),
            "p_star": p_star.nanmean(),
            "labels": self._judge.labels if PartialState().is_main_process else math.nan,  # who asks knows
            **self.metrics,
        }
        self.metrics = {}
        shape = seen.rewards.shape
        texts = [plain(said) for said in rows.completions]
        window = {
            "rewards": seen.rewards.cpu().numpy(),
            "utilities": seen.utilities.masked_fill(seen.empty, math.nan).cpu().numpy(),
            "p_phi": p_phi.cpu().numpy(),
            "p_star": p_star.cpu().numpy(),
            "lengths": torch.tensor(rows.lengths, dtype=torch.float64).view(shape).numpy(),
            "texts": [texts[start : start + shape[1]] for start in range(0, len(texts), shape[1])],
        }
        if self._frozen is not None:
            window["features"] = seen.features.cpu().numpy()
            window["frozen_rewards"] = self.rm.rewards(self._frozen).cpu().numpy()
        return {"metrics": {k: float(v) for k, v in metrics.items() if not math.isnan(v)}, "window": window}

    def _collect(self, seen: rules.Candidates, won: torch.Tensor, rows: Rows) -> None:
        differences, preferences = seen.features - seen.reference_features(), seen.preferences()
        size = seen.empty.shape[1]
        for group, winner in enumerate(won.tolist()):
            if winner < 0:
                continue
            which = [winner] if self.options.pairs == "winner" else (~seen.empty[group]).nonzero()[:, 0].tolist()
            if isinstance(self.rm, FullReward):
                first = group * size
                said = [rows.completions[first + z] for z in which]
                wanted = preferences[group][which].tolist()
                pair = Pair(rows.prompts[first], said, rows.columns["reference"][first], wanted)
                self.fresh.append(pair)
                self.rm.kept = [*self.rm.kept, pair][-self.options.buffer :]
            else:
                new = Comparisons(differences[group][which], preferences[group][which])
                self.fresh.append(new)
                self._keep([new])

    def _measure(self, rewards: torch.Tensor, penalties: torch.Tensor) -> None:
        if self.gamma is None:
            # A group in which either does not vary, as R before the first comparisons, tells nothing of their ratio.
            both = (rewards > 0) & (penalties > 0)
            self._warm[0] += int(both.sum())
            self._warm[1] += float(rewards[both].sum())
            self._warm[2] += float(penalties[both].sum())
            if self._warm[0] >= self.options.warmup:
                self.gamma = self.options.ratio * self._warm[1] / self._warm[2]

    def state_dict(self) -> dict[str, Any]:
        """All that the next window depends on: the head, the comparisons, the weight and how far it was measured."""
        return {
            "head": self.rm.head.state_dict() if isinstance(self.rm, HeadReward) else self.rm.state_dict(),
            "comparisons": list(self.comparisons()),
            "fresh": [list(each) for each in self.fresh],
            "gamma": self.gamma,
            "warm": list(self._warm),
            "groups": self._groups,
            "frozen": self._frozen,
            "metrics": dict(self.metrics),
            "rule": self.options.rule,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state_dict`.

        Raises
        ------
        ValueError
            If it is that of another rule.
        """
        if state["rule"] != self.options.rule:
            raise ValueError(f"rule = {self.options.rule!r}: the state is one of {state['rule']!r}")
        device = self.rm.head.weight.device
        if isinstance(self.rm, FullReward):
            self.rm.load_state_dict(state["head"])
            self.fresh = [Pair(*each) for each in state["fresh"]]
        else:
            self.rm.head.load_state_dict(state["head"])
            self._kept = Comparisons(*(values.to(device) for values in state["comparisons"]))
            self.fresh = [Comparisons(*(values.to(device) for values in each)) for each in state["fresh"]]
        self.gamma, self._warm, self._groups = state["gamma"], list(state["warm"]), state["groups"]
        self._frozen = None if state["frozen"] is None else state["frozen"].to(device)
        self.metrics = dict(state["metrics"])


def _spreads(values: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Standard deviation within each group, (P,), over what is not empty; NaN where all is."""
    there = (~empty).to(values)
    mean = (values * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    return (((values - mean).square() * there).sum(-1) / there.sum(-1)).sqrt()
