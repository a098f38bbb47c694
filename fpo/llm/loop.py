"""Iterative RLHF on a language model: write, score, choose, retrain the reward model (RM), update the policy.

The loop is that of Gauthier et al. 2026 (language-model experiment). A step is one prompt; a window of steps shares one
batch and ends in one update of the RM's head and one of the policy's adapter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fpo.llm import decoding, runs
from fpo.llm.candidates import TrainingError, Window, Writer
from fpo.llm.head import Comparisons, fit_head, losses_and_gradients
from fpo.llm.oracles import Oracle, Pairwise, distinct_2, repetition
from fpo.llm.runs import Optimizers
from fpo.llm.settings import Settings
from fpo.llm.team import Clock, Team, peak_gib, seed_streams
from fpo.llm.weights import ModelError
from fpo.llm.workbench import Workbench
from fpo.parameters import ParameterError
from fpo.rules import RULES


def train(
    settings: Settings,
    folder: str | Path | None = None,
    oracle: Oracle | None = None,
    bench: Workbench | None = None,
) -> list[dict[str, Any]]:
    """Play a run and return its trace, one entry a step.

    Parameters
    ----------
    settings : Settings
        With all that makes the run what it is.
    folder : path, optional
        Keep the run there, and go on with the one that is there.
    oracle : callable, optional
        (prompts, responses) -> utilities, in place of the one that the settings name.
    bench : Workbench, optional
        What other runs have loaded and made; without one the run loads its own.

    Raises
    ------
    ParameterError
        Before any work, for settings that cannot be played, or not at this workbench.
    ModelError
        If a model cannot be had.
    FolderError
        Before a model is loaded, if the folder is in use, holds a run with other settings or of other code, or is
        damaged.
    TrainingError
        If a loss or gradient is not a finite number, or the disk is full.
    KeyboardInterrupt
        With a folder, the run is first saved as its last whole window left it.
    """
    if bench is not None:
        if oracle not in (None, bench.oracle):
            raise ParameterError("oracle: this workbench has another; what is judged by it needs one of its own")
        oracle = bench.oracle
        bench.check(settings)
    saved = runs.saved_settings(settings, oracle)
    if folder is not None and Team().leads:
        runs.check_folder(folder, saved)
        runs.check_free(folder)
    bench = bench or Workbench(settings, oracle)
    writer = Writer(bench, settings)
    team, policy, reward_model = bench.team, bench.policy, bench.reward_model
    trained: dict[str, list[torch.Tensor]] = {
        "policy": list(policy.adapter.values()),
        "head": list(reward_model.head.parameters()),
    }
    if folder is not None and team.leads:
        runs.check_room(folder, [value for values in trained.values() for value in values])
    rates = {"policy": settings.policy_lr, "head": settings.head_lr}
    optimizers = {name: _optimizer(settings.optimizer, values, rates[name]) for name, values in trained.items()}
    with runs.claimed(folder, saved, team) as run:
        checkpoint = run.resume()
        first = settings.steps if settings.reference_labels == "at once" else 0
        writer.make_references(range(first), run.references(), run.save_references)
        seed_streams(settings.seed)
        comparisons = writer.first_comparisons
        if checkpoint:
            comparisons = runs.restore(checkpoint, policy, reward_model, optimizers)
        done, every = len(run.trace), settings.window * settings.save_every
        with team.bar(total=settings.steps, initial=done, desc=settings.rule) as bar, run.saved_if_interrupted():
            for start in range(done, settings.steps, settings.window):
                clock = Clock()
                positions = range(start, min(start + settings.window, settings.steps))
                if settings.reference_labels == "as they come":
                    writer.make_references(positions, save=run.save_references)
                lines, comparisons = _step(writer, positions, optimizers, comparisons, clock)
                machine = _machine(clock, len(positions))
                run.extend([line | {"machine": machine} for line in lines])
                if run.writes:
                    due = positions.stop == settings.steps or positions.stop % every == 0
                    run.keep(runs.snapshot(policy, reward_model, optimizers, comparisons), due)
                bar.set_postfix({name: lines[-1][name] for name in ("reward", "utility")})
                bar.update(len(positions))
    return run.trace


def _optimizer(kind: str, values: Sequence[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(values, lr=rate)
    try:
        from bitsandbytes.optim import PagedAdamW8bit
    except ImportError:
        raise ModelError(f"optimizer = {kind!r} needs the package bitsandbytes and CUDA") from None
    return PagedAdamW8bit(values, lr=rate)


def _step(
    writer: Writer, positions: Sequence[int], optimizers: Optimizers, comparisons: Comparisons, clock: Clock
) -> tuple[list[dict[str, Any]], Comparisons]:
    """One window: its trace lines, and the comparisons with those of all processes."""
    s, team, policy = writer.settings, writer.bench.team, writer.bench.policy
    window = writer.window(team.share(positions), comparisons=comparisons.differences, clock=clock)
    fought = [i for i, winner in enumerate(window.winner.tolist()) if winner >= 0]
    total = int(team.add(torch.tensor(len(fought), device=policy.device)))
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    learned: dict[int, Learned] = {}
    policy_losses: list[float] = []
    with clock("head"):
        if fought:
            weight = writer.bench.reward_model.head.weight
            gradient, learned = head_gradient(writer, window, fought)
            # A bias drops out of every comparison: its gradient stays 0.
            weight.grad = gradient[None] / total
    with clock("policy"):
        if fought:
            policy_losses = _policy_gradient(writer, window, fought, total)
        if total:
            _update(writer, optimizers, positions[0])
    losses = dict(zip(fought, policy_losses, strict=True))
    lines = [line(writer, window, i, learned.get(i), losses.get(i)) for i in range(len(window.positions))]
    new = [each for each in team.gather([learned.get(i) for i in range(len(lines))]) if each is not None]
    device = comparisons.differences.device
    comparisons = comparisons.and_latest(
        [Comparisons(*(values.to(device) for values in each.comparisons)) for each in new], s.buffer_size
    )
    with clock("head"):
        if s.head_update == "refit" and new:
            writer.bench.reward_model.head.weight.data.copy_(refitted(comparisons, s.head_ridge)[None])
    return team.gather(lines), comparisons


class Learned(NamedTuple):
    """What the RM learns from one prompt: its comparisons, on the CPU, and their mean loss."""

    comparisons: Comparisons
    loss: float


def head_gradient(writer: Writer, window: Window, fought: Sequence[int]) -> tuple[torch.Tensor, dict[int, Learned]]:
    """Sum over prompts of the gradient of the mean of BCE(r_z - r_ref, p*) over z, (p,), and what each prompt gives.

    z is the winner, or each candidate that is not empty.
    """
    s, scored = writer.settings, window.scored
    texts = [
        [int(window.winner[i])] if s.head_learns == "winner" else (~scored.empty[i]).nonzero()[:, 0].tolist()
        for i in fought
    ]
    pairs = [(i, z) for i, group in zip(fought, texts, strict=True) for z in group]
    rows, chosen = (torch.tensor(values) for values in zip(*pairs, strict=True))
    features, references = scored.features[rows, chosen], scored.reference.features[rows]
    if s.reward_dropout != "off":
        prompts = [window.prompts[i] for i, _ in pairs]
        read = [window.texts[i][z] for i, z in pairs] + [window.reference_texts[i] for i, _ in pairs]
        features, references = writer.features(prompts * 2, read, dropout=True).split(len(pairs))
    weight = writer.bench.reward_model.head.weight
    preferences = scored.preferences()[rows, chosen]
    losses, gradients = losses_and_gradients(weight[0], features, references, preferences)
    shares = torch.tensor([1 / len(group) for group in texts for _ in group]).to(gradients)
    learned = {}
    for i, group in zip(fought, texts, strict=True):
        own = rows == i
        comparisons = Comparisons((features - references)[own].cpu(), preferences[own].cpu())
        learned[i] = Learned(comparisons, float(losses[own].sum()) / len(group))
    return (shares[:, None] * gradients).sum(0), learned


def refitted(comparisons: Comparisons, ridge: float) -> torch.Tensor:
    """The head that minimizes its loss over all of them, (p,): the follower of the theorem, which has converged."""
    differences, preferences = comparisons
    return fit_head(differences, torch.zeros_like(differences), ridge, preferences)


def _policy_gradient(writer: Writer, window: Window, fought: Sequence[int], total: int) -> list[float]:
    """Set the gradient of the mean of the winners' NLL; returns each NLL."""
    s, policy = writer.settings, writer.bench.policy
    prompts = writer.prompt_ids(window.positions[i] for i in fought)
    responses = [window.tokens[i][int(window.winner[i])] for i in fought]
    with policy.learning():
        return decoding.backward_nll(
            policy.model, prompts, responses, s.chunk, whole=s.learn_from == "sequence", share=1 / total
        )


def _update(writer: Writer, optimizers: Optimizers, start: int) -> None:
    team = writer.bench.team
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    value.grad = torch.zeros_like(value)
                if team.size > 1:
                    value.grad = team.add(value.grad)
                if not bool(value.grad.isfinite().all()):
                    raise TrainingError(
                        f"step {start}: the gradient of the {name} is not finite; nothing was updated, "
                        "and the last checkpoint stands. Try a smaller learning rate, or dtype = 'float32'"
                    )
    writer.bench.policy.untrained = False
    for optimizer in optimizers.values():
        optimizer.step()


# The trace


def line(writer: Writer, window: Window, i: int, learned: Learned | None, policy_loss: float | None) -> dict[str, Any]:
    """The trace's entry for the i-th prompt of a window; its labels are counted, not yet summed."""
    s, scored = writer.settings, window.scored
    won, position, texts = int(window.winner[i]), window.positions[i], window.texts[i]
    fought, there = won >= 0, ~scored.empty[i]
    reward, utility, penalty = scored.rewards[i], scored.utilities[i], window.penalty[i][there]
    first_reward, first_utility = scored.reference.reward[i], scored.reference.utility[i]
    pairs = isinstance(writer.oracle, Pairwise)  # it is asked nothing about a reference alone
    # A prompt that comes again brings its reference's label along.
    new = position < len(writer.bench.prompts) and not pairs
    needed = s.candidates if s.head_learns == "candidates" else RULES[s.rule].labels(s.candidates) - 1
    at_once = len(writer.references) * (position == 0 and not pairs)
    references = new if s.reference_labels == "as they come" else at_once
    return {
        "step": position,
        "prompt": window.prompts[i].id,
        "rule": s.rule,
        "reward": _mean(reward[there]),
        "utility": _mean(utility[there]) if s.measure == "candidates" else None,
        "winner": won if fought else None,
        "winner_reward": float(reward[won]) if fought else None,
        "winner_utility": float(utility[won]) if fought else None,
        "reference_reward": float(first_reward),
        "reference_utility": float(first_utility),
        "p_phi": _sigmoid(reward[won] - first_reward) if fought else None,
        "p_star": _sigmoid(s.scale * (utility[won] - first_utility)) if fought else None,
        "penalty_mean": float(penalty.mean()) if len(penalty) else None,
        "penalty_spread": float(penalty.std(correction=0)) if len(penalty) else None,
        "kl": float(window.kl[i]) if s.measure_kl else None,
        "length": float(np.mean([len(row) for row in window.tokens[i]])),
        "distinct_2": distinct_2(texts),
        "repetition": float(np.mean([repetition(text) for text in texts])),
        "empty": int(scored.empty[i].sum()),
        "head_loss": learned.loss if learned else None,
        "policy_loss": policy_loss,
        "text": texts[won] if fought else None,
        "labels_asked": int(utility.isfinite().sum()) + references,
        "labels_needed": needed + new if fought else 0,
    }


def _mean(values: torch.Tensor) -> float | None:
    values = values[~values.isnan()]
    return float(values.mean()) if len(values) else None


def _sigmoid(value: torch.Tensor) -> float:
    return float(value.double().sigmoid())


def _machine(clock: Clock, steps: int) -> dict[str, Any]:
    seconds = {phase: round(value / steps, 4) for phase, value in clock.seconds.items()}
    return {"seconds": seconds, "peak_gib": round(peak_gib(), 3)}
