"""Many runs as one batch: one base, the adapters side by side, the rows of all runs in one matrix product.

A token of 16 rows reads all weights for little arithmetic; the rows of several runs share that reading. Every run
draws what it draws alone, and learns with its own adapter, head and optimizer states.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpo import files, rules
from fpo.llm import decoding
from fpo.llm.candidates import TrainingError, Writer
from fpo.llm.head import Comparisons
from fpo.llm.loop import Learned, head_gradient, line, refitted
from fpo.llm.runs import add_lines, code, other_settings, saved_settings
from fpo.llm.settings import Settings
from fpo.llm.workbench import Workbench
from fpo.parameters import ParameterError, brief

# What the runs of a group may differ in.
OWN = {
    *("rule", "gamma", "seed", "measure", "measure_kl", "reference_labels"),
    *("head_start", "head_prompts", "head_ridge", "head_update", "head_learns", "buffer_size"),
}
# The update takes each run's winners in so many parts, by length: short ones are not filled up to long ones.
PARTS = 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Watch = Callable[["Group"], list[dict[str, Any]]]


class Group:
    """Runs that are played in lockstep; at every moment each is what it would be alone, but for the last digits.

    To be used in `playing`, where the policy has the adapters of all.

    Parameters
    ----------
    bench : Workbench
    runs : sequence of Settings
        That differ in `OWN` alone.
    observed : names of rules
        Whose penalties' spread within a prompt the traces hold, `spreads`, beside that of the reward.

    Attributes
    ----------
    position : int
        Steps that have been played.
    spent : dict
        Seconds that the group took so far, `wall` and `cpu`, the interrupted ones included.
    writers : list of Writer
    adapters : dict of tensors (R, ...)
        By the names of `Policy.adapter`.
    heads, first_heads : tensors (R, p)
        The RM's now and at the start.
    comparisons : list of Comparisons
    traces : list of lists
        One entry a step, as those of `train`.
    watched : list of lists
        What was watched in each run.

    Raises
    ------
    ParameterError
        If the runs cannot be played together.
    """

    def __init__(self, bench: Workbench, runs: Sequence[Settings], observed: Sequence[str] = ()) -> None:
        check_group(runs)
        self.bench, self.runs, self.observed, self.position = bench, list(runs), list(observed), 0
        self.spent = dict.fromkeys(CLOCKS, 0.0)
        self.writers, adapters, heads = [], [], []
        for settings in runs:
            self.writers.append(Writer(bench, settings))
            adapters.append([value.detach().clone() for value in bench.policy.adapter.values()])
            heads.append(bench.reward_model.head.weight.detach()[0].clone())
        stacked = (torch.stack(values).requires_grad_() for values in zip(*adapters, strict=True))
        self.adapters = dict(zip(bench.policy.adapter, stacked, strict=True))
        self.heads = torch.stack(heads).requires_grad_()
        self.first_heads = self.heads.detach().clone()
        first = runs[0]
        self.optimizers = {
            "policy": torch.optim.AdamW(self.adapters.values(), lr=first.policy_lr),
            "head": torch.optim.AdamW([self.heads], lr=first.head_lr),
        }
        self.comparisons = [writer.first_comparisons for writer in self.writers]
        self.traces: list[list[dict[str, Any]]] = [[] for _ in runs]
        self.watched: list[list[dict[str, Any]]] = [[] for _ in runs]

    @contextmanager
    def playing(self) -> Iterator["Group"]:
        """The policy has all adapters."""
        with self.bench.policy.side_by_side(self.adapters):
            yield self

    @contextmanager
    def turn(self, run: int) -> Iterator[Writer]:
        """It is this run's turn: the RM has its head."""
        self.bench.writer = self.writers[run]
        with torch.no_grad():
            self.bench.reward_model.head.weight.copy_(self.heads[run][None])
        yield self.writers[run]

    def decode(self, prompts: Sequence[Sequence[decoding.Ids]], stream: np.ndarray, **how: Any) -> list:
        """Continuations of every run's own prompts, as many of each: stream (R, P, N, T)."""
        policy, count = self.bench.policy, len(prompts[0])
        flat = [ids for own in prompts for ids in own]
        found = decoding.decode(policy.model, flat, stream.reshape(-1, *stream.shape[2:]), policy.ends, **how)
        parts = [slice(i * count, (i + 1) * count) for i in range(len(prompts))]
        return [decoding.Continuations(found.tokens[part], found.logprobs[part]) for part in parts]

    def step(self) -> None:
        """One window of every run: write, judge, choose, and update head and adapter.

        Raises
        ------
        TrainingError
            If a gradient is not a finite number, or a run has no winner: only alone can a run pass over an update.
        """
        first = self.runs[0]
        positions = range(self.position, min(self.position + first.window, first.steps))
        for run, writer in enumerate(self.writers):
            with self.turn(run):
                writer.make_references(
                    range(first.steps) if writer.settings.reference_labels == "at once" else positions
                )
        sampling = {name: getattr(first, name) for name in ("min_new_tokens", "temperature", "top_p")}
        prompts = [writer.prompt_ids(positions) for writer in self.writers]
        written = self.decode(prompts, np.stack([writer.stream(positions) for writer in self.writers]), **sampling)
        self.heads.grad = torch.zeros_like(self.heads)
        windows, fought, learned = [], [], []
        for run, own in enumerate(written):
            with self.turn(run) as writer:
                comparisons = self.comparisons[run].differences
                window = writer.window(positions, self.observed, comparisons, written=own)
                windows.append(window)
                fought.append([i for i, winner in enumerate(window.winner.tolist()) if winner >= 0])
                if not fought[run]:
                    raise TrainingError(f"step {self.position}: no candidate of run {run} has text: play it alone")
                gradient, lessons = head_gradient(writer, window, fought[run])
                self.heads.grad[run] = gradient / len(fought[run])
                learned.append(lessons)
        losses = self._policy_gradient(prompts, windows, fought)
        for name, optimizer in self.optimizers.items():
            values = [value for group in optimizer.param_groups for value in group["params"]]
            if not all(bool(value.grad.isfinite().all()) for value in values):
                raise TrainingError(
                    f"step {self.position}: a gradient of the {name} is not finite; nothing was updated"
                )
            optimizer.step()
        for run, window in enumerate(windows):
            self._record(run, window, learned[run], dict(zip(fought[run], losses[run], strict=True)))
        self.position = positions.stop

    def _policy_gradient(self, prompts: Sequence, windows: Sequence, fought: Sequence[Sequence[int]]) -> list:
        """Set the gradient of the mean of the winners' NLL in each run; returns each NLL of those who fought."""
        policy, first = self.bench.policy, self.runs[0]
        for value in self.adapters.values():
            value.grad = None
        rows = []  # of each run: prompt, response, share and place of each sequence, short ones first
        for ids, window, there in zip(prompts, windows, fought, strict=True):
            own = [
                (ids[i], window.tokens[i][max(int(window.winner[i]), 0)], (i in there) / len(there), i)
                for i in range(len(ids))
            ]
            rows.append(sorted(own, key=lambda row: len(row[0]) + len(row[1])))
        found: list[dict[int, float]] = [{} for _ in rows]
        count = len(rows[0])
        size = -(-count // PARTS)
        for start in range(0, count, size):
            part = [row[start : start + size] for row in rows]
            flat = [row for own in part for row in own]
            values = decoding.backward_nll(
                policy.model, [row[0] for row in flat], [row[1] for row in flat], first.chunk,
                whole=first.learn_from == "sequence", share=[row[2] for row in flat],
            )  # fmt: skip
            places = [(run, row[3]) for run, own in enumerate(part) for row in own]
            for (run, place), value in zip(places, values, strict=True):
                found[run][place] = value
        return [[own[i] for i in there] for own, there in zip(found, fought, strict=True)]

    def _record(self, run: int, window: Any, learned: dict[int, Learned], losses: dict[int, float]) -> None:
        with self.turn(run) as writer:
            lines = [line(writer, window, i, learned.get(i), losses.get(i)) for i in range(len(window.positions))]
        if self.observed:
            seen = {"reward": window.scored.rewards}
            seen |= {name: rules.choose(name, window.scored).penalty for name in self.observed}
            for i, each in enumerate(lines):
                there = ~window.scored.empty[i]
                each["spreads"] = {name: float(values[i][there].std(correction=0)) for name, values in seen.items()}
        add_lines(self.traces[run], lines)
        s = writer.settings
        new = [each.comparisons for each in learned.values()]
        self.comparisons[run] = self.comparisons[run].and_latest(new, s.buffer_size)
        if s.head_update == "refit":
            with torch.no_grad():
                self.heads[run] = refitted(self.comparisons[run], s.head_ridge)

    def state(self) -> dict[str, Any]:
        """All that the next window depends on, and what was found; its tensors are the living ones."""
        return {
            "runs": [saved_settings(settings) for settings in self.runs],
            "code": code(__name__),
            "position": self.position,
            "spent": self.spent,
            "adapters": {name: value.detach() for name, value in self.adapters.items()},
            "heads": self.heads.detach(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "comparisons": [list(each) for each in self.comparisons],
            "references": [writer.references for writer in self.writers],
            "traces": self.traces,
            "watched": self.watched,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same runs.

        Raises
        ------
        ValueError
            If it is of others, or of other code.
        """
        saved = [saved_settings(settings) for settings in self.runs]
        if len(state["runs"]) != len(saved) or any(map(other_settings, state["runs"], saved)):
            raise ValueError("this checkpoint is of other runs")
        if state.get("code") != code(__name__):
            raise ValueError("this checkpoint is of other code, which would not go on to the same numbers")
        with torch.no_grad():
            for name, value in self.adapters.items():
                value.copy_(state["adapters"][name])
            self.heads.copy_(state["heads"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.comparisons = [Comparisons(*each) for each in state["comparisons"]]
        for writer, references in zip(self.writers, state["references"], strict=True):
            writer.references |= references
        self.position, self.spent = state["position"], state["spent"]
        self.traces, self.watched = state["traces"], state["watched"]


def check_group(runs: Sequence[Settings]) -> None:
    """See whether runs can be played together.

    Raises
    ------
    ParameterError
        If there are none, they differ in more than `OWN`, or one needs what a group has not.
    """
    if not runs:
        raise ParameterError("runs: none are given")
    first = dict(runs[0])
    for other in map(dict, runs):
        if wrong := [name for name in first if name not in OWN and other[name] != first[name]]:
            raise ParameterError(
                f"{wrong[0]} = {brief(other[wrong[0]])}: all runs of a group have the same, {brief(first[wrong[0]])}"
            )
    for name, wanted in (
        ("lora_dropout", 0.0), ("reward_dropout", "off"), ("gradient_checkpointing", False), ("optimizer", "adamw"),
    ):  # fmt: skip
        if first[name] != wanted:
            raise ParameterError(f"{name} = {brief(first[name])}: must be {brief(wanted)} for runs played together")
    if first["weights"] == "random" and len({each.seed for each in runs}) > 1:
        raise ParameterError("seed: random weights depend on it, and all runs of a group share them")


def train_together(
    runs: Sequence[Settings],
    bench: Workbench,
    watch: Watch | None = None,
    watch_at: Sequence[int] = (),
    checkpoint: str | Path | None = None,
    observed: Sequence[str] = (),
    told: Callable[[int], None] = lambda steps: None,
) -> Group:
    """Play runs in lockstep to their end.

    Parameters
    ----------
    runs : sequence of Settings
        That differ in `OWN` alone.
    bench : Workbench
        Theirs.
    watch : callable, optional
        Gets the group, returns for each run what is to be kept.
    watch_at : positions
        When: 0 is before the first step.
    checkpoint : path, optional
        A file to go on from; renewed every `save_every` windows.
    observed : names of rules
        As in `Group`.
    told : callable
        Gets the number of steps that each run has just taken.

    Raises
    ------
    ParameterError
        Before any work, if the runs cannot be played together, or not at this workbench.
    ValueError
        If the checkpoint is damaged, of other runs or of other code.
    TrainingError
        If a run cannot go on; the checkpoint stands.
    KeyboardInterrupt
        When what the last whole window left is saved.
    """
    group = Group(bench, runs, observed)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and (state := files.load(file)) is not None:
        group.restore(state)
        told(group.position)
    at, first = sorted(watch_at), runs[0]
    before = {name: clock() for name, clock in CLOCKS.items()}
    with group.playing():
        while True:
            due = group.position in at and len(group.watched[0]) <= at.index(group.position)
            if watch is not None and due:
                for kept, new in zip(group.watched, watch(group), strict=True):
                    kept.append({"position": group.position, **new})
            now = {name: clock() for name, clock in CLOCKS.items()}
            group.spent = {name: spent + now[name] - before[name] for name, spent in group.spent.items()}
            before = now
            saved = -(-group.position // first.window) % first.save_every == 0
            if file is not None and saved:
                files.save(file, group.state())
            if group.position >= first.steps:
                return group
            start = group.position
            # Control-C may come anywhere in a window, which changes tensors in place: a copy of what the file lacks.
            whole = None if file is None or saved else copy.deepcopy(group.state())
            try:
                group.step()
            except KeyboardInterrupt:
                if file is not None and whole is not None:
                    files.save(file, whole)
                raise
            told(group.position - start)
