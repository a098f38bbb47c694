"""Iterative RLHF on a language model: write, score, choose, retrain the reward model (RM), update the policy.

The loop is that of Gauthier et al. 2026 (language-model experiment). A step is one prompt; a window of steps shares one
batch and ends in one update of the RM's head and one of the policy's adapter.
"""

import copy
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from tqdm import tqdm

from fpo import files, steering
from fpo.llm import decoding, rules
from fpo.llm.models import ModelError, Policy, RewardModel, bt_hessian, fit_head, packaged_encoder
from fpo.llm.oracles import (
    Agreement,
    Oracle,
    check_answers,
    distinct_2,
    head_pairs,
    likelihood_utility,
    named_oracle,
    repetition,
)
from fpo.llm.prompts import Prompt, load_prompts, order
from fpo.llm.settings import Settings
from fpo.parameters import ParameterError

# Free space a run asks for, in sizes of what it trains: a checkpoint holds it and AdamW's two moments, is written
# beside the one it replaces, and as much again is kept in hand.
FREE = 9


class TrainingError(RuntimeError):
    """The run cannot go on; what it had written stays, and it resumes from its last checkpoint."""


class FolderError(RuntimeError):
    """A run's folder is in use, belongs to another run, is damaged or cannot be made."""


class Team:
    """The processes that share a run: one, or those that `accelerate launch` started."""

    def __init__(self):
        self.size, self.rank = 1, 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=not torch.cuda.is_available())
            self.size, self.rank = state.num_processes, state.process_index

    def gather(self, items: list) -> list:
        """Every process's items, in the order in which positions were dealt out."""
        if self.size == 1:
            return items
        from accelerate.utils import gather_object

        found = gather_object([items])
        return [found[i % self.size][i // self.size] for i in range(sum(map(len, found)))]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, reduction="sum")


class Clock:
    """Seconds by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def peak_gib() -> float:
    """Most memory this process has held so far: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass
class Window:
    """What the policy wrote to P prompts and how it was judged; N candidates a prompt.

    `tokens`, `texts` (P lists of N); `rewards`, `utilities`, `penalties`, `log_ratio`, `empty` (P, N), with NaN where
    nothing was asked; `features` (P, N, p); `reference`, `reference_texts`; `winners` (P,), -1 where nobody can win.
    """

    positions: list[int]
    prompts: list[Prompt]
    tokens: list[list[list[int]]]
    texts: list[list[str]]
    rewards: torch.Tensor
    features: torch.Tensor
    utilities: torch.Tensor
    penalties: torch.Tensor
    log_ratio: torch.Tensor
    empty: torch.Tensor
    reference: rules.Reference
    reference_texts: list[str]
    winners: torch.Tensor


class Pipeline:
    """Models, prompts and reference responses, loaded once; `train` plays a run from the start or from a checkpoint.

    Parameters
    ----------
    settings : Settings
    oracle : callable, optional
        (prompts, responses) -> utilities, in place of the one that the settings name.

    Raises
    ------
    ParameterError, ModelError
        Before any work, for prompts, oracles or models that cannot be used.
    """

    def __init__(self, settings: Settings, oracle: Oracle | None = None):
        self.settings, self.team, self._own_oracle = settings, Team(), oracle
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if settings.min_new_tokens >= settings.max_new_tokens:
            raise ParameterError(
                f"min_new_tokens = {settings.min_new_tokens}: must be under max_new_tokens = {settings.max_new_tokens}"
            )
        self._check_team(settings)
        self.prompts = load_prompts(settings.prompts, settings.prompt_count)
        if settings.head_start in ("answers", "blind spot"):
            check_answers(self.prompts, f"head_start = {settings.head_start!r}", settings.head_start == "answers")
        if oracle is None and settings.oracle == "answer":
            check_answers(self.prompts, "oracle = 'answer'")
        if oracle is None and settings.oracle not in ("likelihood", "answer"):
            oracle = named_oracle(settings.oracle)
        self.policy = Policy(settings)
        self.ids = self._encoded()
        self.reward_model = RewardModel(settings)
        if oracle is None and settings.oracle == "answer":
            oracle = Agreement(self.sentence_encoder())
        self.oracle = oracle
        self._order: list[int] = []
        self._fit_head()
        self._start = [value.detach().clone() for value in self._trained()]
        self._references: dict[int, dict[str, Any]] = {}
        self._fresh, self._opening = True, {}

    def _kept(self) -> dict[str, Any]:
        return kept_settings(self.settings, self._own_oracle)

    def _check_team(self, settings: Settings) -> None:
        for name in ("window", "steps"):
            if getattr(settings, name) % self.team.size:
                raise ParameterError(
                    f"{name} = {getattr(settings, name)}: must be a multiple of the {self.team.size} processes"
                )

    def _place(self, position: int) -> int:
        """Which prompt a step takes."""
        if position >= len(self._order):
            # A longer order begins with the shorter one.
            self._order = order(len(self.prompts), 2 * position + 1, self.settings.seed)
        return self._order[position]

    def _head(self) -> list[torch.Tensor]:
        return list(self.reward_model.head.parameters())

    def sentence_encoder(self) -> RewardModel:
        """An encoder whose features are made for cosines, as a classifier's are not: the packaged one."""
        if self.settings.reward_model == "packaged" and self.settings.weights == "pretrained":
            return self.reward_model
        plain = {"reward_model": str(packaged_encoder()), "weights": "pretrained", "head_start": "zero"}
        return RewardModel(self.settings.replace(**plain))

    def _encoded(self) -> list[list[int]]:
        limit, system = self.settings.max_prompt_tokens, self.settings.system
        found = [self.policy.encode(prompt.text, system) for prompt in self.prompts]
        long = [place for place, ids in enumerate(found) if len(ids) > limit]
        if long and self.settings.long_prompts == "refuse":
            names = ", ".join(f"{self.prompts[i].id} ({len(found[i])})" for i in long[:5])
            raise ParameterError(
                f"max_prompt_tokens = {limit}: {len(long)} of {len(found)} prompts are longer, as {names}; "
                "raise it, or set long_prompts = 'truncate'"
            )
        for place in long:
            # The text is cut, not the template: its end is what asks for an answer.
            words = self.policy.tokenizer(self.prompts[place].text, add_special_tokens=False).input_ids
            keep = len(words)
            while len(found[place]) > limit and keep > 0:
                keep -= max(1, len(found[place]) - limit)
                text = self.policy.tokenizer.decode(words[: max(keep, 0)])
                found[place] = self.policy.encode(text, system)
            if len(found[place]) > limit:
                raise ParameterError(f"max_prompt_tokens = {limit}: the chat template alone is longer")
        return found

    def _fit_head(self) -> None:
        kind, head = self.settings.head_start, self.reward_model.head
        width = head.in_features
        self._first_buffer = torch.zeros(0, width, device=self.policy.device)
        if kind not in ("answers", "blind spot"):
            return
        better, worse = head_pairs(self.prompts, kind, self.settings.seed)
        above, below = self.reward_model.features(better), self.reward_model.features(worse)
        with torch.no_grad():
            head.weight.copy_(fit_head(above, below, self.settings.head_ridge)[None])
        self._first_buffer = self._latest(above - below)

    def _latest(self, comparisons: torch.Tensor) -> torch.Tensor:
        return comparisons[max(len(comparisons) - self.settings.buffer_size, 0) :]

    # References: made once, in batches, from the base

    def references(self, folder: Path | None = None, positions: Sequence[int] | None = None) -> None:
        """Make the base's responses to all prompts that the run (or these of its steps) will meet, with U of each."""
        wanted = [
            self._place(position) for position in (range(self.settings.steps) if positions is None else positions)
        ]
        path = folder / "references.pt" if folder else None
        if path and (kept := _load(path, self._kept())):
            self._references |= kept["references"]
        missing = [place for place in dict.fromkeys(wanted) if place not in self._references]
        batches = [missing[i : i + self.settings.batch] for i in range(0, len(missing), self.settings.batch)]
        for batch in self._bar(iterable=batches, desc="references", leave=False) if batches else []:
            mine = batch[self.team.rank :: self.team.size]
            made = self.team.gather(self._refer(mine) if mine else [])
            self._references |= dict(zip(batch, made, strict=True))
            if path and self.team.rank == 0:
                files.save(path, {"run": self._kept(), "references": self._references})

    def _bar(self, **how) -> tqdm:
        # Without a word on it, tqdm heeds TQDM_DISABLE.
        return tqdm(**how, disable=True) if self.team.rank else tqdm(**how)

    def _refer(self, places: list[int]) -> list[dict[str, Any]]:
        s = self.settings
        ids = [self.ids[place] for place in places]
        stream = np.stack([decoding.uniforms(s.seed, "reference", i, (1, s.max_new_tokens)) for i in places])
        with self.policy.base():
            tokens = self._decode(ids, stream).tokens
            nll = decoding.split_nll(self.policy.model, ids, [row[0] for row in tokens], s.chunk)
        texts = [self.policy.text(row[0]) for row in tokens]
        features = self._features([self.prompts[place] for place in places], texts)
        before, after = (list(part) for part in zip(*nll, strict=True))
        own_nll = torch.tensor(after, dtype=torch.float64)[:, None]
        utilities = self._utilities(places, [[text] for text in texts], tokens, own_nll, before)[:, 0].tolist()
        return [
            {"text": text, "prompt_nll": prompt_nll, "features": feature.cpu(), "utility": utility}
            for text, prompt_nll, feature, utility in zip(texts, before, features, utilities, strict=True)
        ]

    # One window

    def _decode(self, ids, stream) -> decoding.Continuations:
        s = self.settings
        sampling = {"min_new_tokens": s.min_new_tokens, "temperature": s.temperature, "top_p": s.top_p}
        return decoding.decode(self.policy.model, ids, stream, self.policy.ends, **sampling)

    def _features(self, prompts, texts, dropout: bool = False) -> torch.Tensor:
        seen = [prompt.text for prompt in prompts] if self.settings.reward_reads == "prompt and response" else None
        return self.reward_model.features(texts, seen, dropout)

    def _base_nll(self, places, tokens) -> torch.Tensor:
        with self.policy.base():
            found = decoding.response_nll(
                self.policy.model, [self.ids[place] for place in places], tokens, self.settings.chunk
            )
        return torch.tensor(found, dtype=torch.float64)

    def _utilities(self, places, texts, tokens, base_nll, prompt_nll=None) -> torch.Tensor:
        """U, (P, n), of n responses to each prompt; `base_nll` (P, n) if it is known already.

        `prompt_nll` (P) is that of the prompts; by default their references have it.
        """
        if self.oracle is None:
            base_nll = self._base_nll(places, tokens) if base_nll is None else base_nll
            if not bool(base_nll.isfinite().all()):
                raise TrainingError("the base's likelihood is not a finite number: try dtype = 'float32'")
            prompt_nll = prompt_nll or [self._references[place]["prompt_nll"] for place in places]
            values = [
                [
                    likelihood_utility(before + float(nll), len(self.ids[place]) - 1 + len(row))
                    for nll, row in zip(group, rows, strict=True)
                ]
                for place, before, group, rows in zip(places, prompt_nll, base_nll, tokens, strict=True)
            ]
            return torch.tensor(values, device=self.policy.device)
        count = len(texts[0])
        prompts = [self.prompts[place] for place in places for _ in range(count)]
        values = torch.tensor(self.oracle(prompts, [text for group in texts for text in group]), dtype=torch.float32)
        if values.shape != (len(prompts),) or not bool(values.isfinite().all()):
            raise TrainingError(f"the oracle gave {tuple(values.shape)} values or some that are not finite numbers")
        return values.view(-1, count).to(self.policy.device)

    def window(
        self, positions: Sequence[int], buffer: torch.Tensor | None = None, clock: Clock | None = None
    ) -> Window:
        """Let the policy write to the prompts of these steps and choose the winners; nothing is updated.

        `buffer` holds the comparisons for H, (n, p); by default those that the head was fitted to.
        """
        s, clock = self.settings, clock or Clock()
        buffer = self._first_buffer if buffer is None else buffer
        places = [self._place(position) for position in positions]
        self.references(positions=positions)
        prompts, ids = [self.prompts[place] for place in places], [self.ids[place] for place in places]
        shape = (s.candidates, s.max_new_tokens)
        with clock("decode"):
            # Runs from the same start write the same until their first update.
            written = self._opening.get(tuple(positions)) if self._fresh else None
            if written is None:
                stream = np.stack([decoding.uniforms(s.seed, "candidate", position, shape) for position in positions])
                written = self._decode(ids, stream)
            if self._fresh:
                self._opening[tuple(positions)] = written
            texts = [[self.policy.text(row) for row in group] for group in written.tokens]
        flat = [text for group in texts for text in group]
        empty = torch.tensor([[not text for text in group] for group in texts], device=self.policy.device)
        with clock("reward"):
            noisy = s.reward_dropout == "update and standard scores" and s.rule == "standard"
            features = self._features([p for p in prompts for _ in range(s.candidates)], flat, noisy)
            features = features.view(len(places), s.candidates, -1)
            rewards = self.reward_model.rewards(features)
        kept = [self._references[place] for place in places]
        reference_features = torch.stack([each["features"] for each in kept]).to(features)
        reference = rules.Reference(
            self.reward_model.rewards(reference_features),
            reference_features,
            torch.tensor([each["utility"] for each in kept], device=features.device),
        )
        log_pi = torch.tensor(written.logprobs, dtype=torch.float64)
        unknown = torch.full_like(rewards, torch.nan)
        all_labels = s.measure == "candidates" or s.rule in rules.READS_ALL_CANDIDATES
        with clock("oracle"):
            whole = s.rule == "kl" or (self.oracle is None and all_labels)
            shown = written.tokens if whole else [group[:1] for group in written.tokens]
            base_nll = self._base_nll(places, shown)
            width = base_nll.shape[1]
            log_ratio = unknown.clone()
            log_ratio[:, :width] = (log_pi[:, :width] + base_nll).to(log_ratio)
            utilities = unknown
            if all_labels:
                utilities = self._utilities(places, texts, written.tokens, base_nll if whole else None)
        with clock("select"):
            context = self._context(s.rule, positions, features, empty, log_ratio, buffer)
            penalties = rules.penalties(s.rule, rewards, features, utilities, reference, context)
            winners = rules.select(s.rule, s.weight(), rewards, penalties, utilities, context, empty).cpu()
        if not all_labels:
            with clock("oracle"):
                places_won = winners.clamp(min=0).tolist()
                rows = [[group[i]] for group, i in zip(written.tokens, places_won, strict=True)]
                told = [[group[i]] for group, i in zip(texts, places_won, strict=True)]
                utilities = unknown.clone()
                utilities[torch.arange(len(places)), places_won] = self._utilities(places, told, rows, None)[:, 0]
        references = [each["text"] for each in kept]
        return Window(
            list(positions), prompts, written.tokens, texts, rewards, features, utilities, penalties, log_ratio, empty,
            reference, references, winners,
        )  # fmt: skip

    def context(self, window: Window, rule: str) -> rules.Context:
        """What a rule reads beside rewards, features and utilities, to judge a window that another rule has judged."""
        return self._context(
            rule, window.positions, window.features, window.empty, window.log_ratio, self._first_buffer
        )

    def _context(self, rule, positions, features, empty, log_ratio, buffer) -> rules.Context:
        s, mean, solve = self.settings, None, None
        if rule == "exact":
            total, count = self.team.add(features[~empty].sum(0)), self.team.add((~empty).sum())
            mean = total / count.clamp(min=1)
        if rule in ("exact", "leverage") and len(buffer):
            differences = buffer.double()
            margins = differences @ self.reward_model.head.weight[0].detach().double()
            dense = steering.dense_solver(bt_hessian(differences, margins.sigmoid(), s.head_ridge))

            def solve(v):
                return dense(v.double()).to(v.dtype)

        chance = [decoding.uniforms(s.seed, "winner", position, (s.candidates,)) for position in positions]
        return rules.Context(mean, solve, log_ratio, torch.from_numpy(np.stack(chance)).to(features))

    # Training

    def train(self, folder: str | Path | None = None, **changes: Any) -> list[dict[str, Any]]:
        """Play the run and return its trace, one entry a step; with a folder, keep it there and resume what is there.

        `changes` replace settings that need no other model, prompt or reference: rule, gamma, measure, steps, window,
        learning rates, save_every.

        Raises
        ------
        FolderError
            If the folder is in use, holds a run with other settings, or is damaged.
        TrainingError
            If a loss or gradient is not a finite number, or the disk is full.
        KeyboardInterrupt
            With a folder, the run is first saved as its last whole window left it.
        """
        if wrong := set(changes) - CHANGEABLE:
            raise ParameterError(f"{', '.join(sorted(wrong))}: needs a Pipeline of its own")
        before, self.settings = self.settings, self.settings.replace(**changes)
        try:
            self._check_team(self.settings)
            if folder is not None and self.team.rank == 0:
                self._check_room(Path(folder))
            with claimed(folder, self._kept(), self.team) as path:
                return self._train(path)
        finally:
            self.settings = before

    def _trained(self) -> list[torch.Tensor]:
        return [*self.policy.adapter.values(), *self._head()]

    def _check_room(self, folder: Path) -> None:
        size = FREE * sum(value.numel() * value.element_size() for value in self._trained())
        if shutil.disk_usage(_there(folder)).free < size:
            raise TrainingError(f"{folder}: less than {size / 2**20:.0f} MiB free, too little for checkpoints")

    def _train(self, folder: Path | None) -> list[dict[str, Any]]:
        s = self.settings
        with torch.no_grad():
            for value, start in zip(self._trained(), self._start, strict=True):
                value.copy_(start)
        self._fresh = True
        optimizers = {
            "policy": _optimizer(s.optimizer, list(self.policy.adapter.values()), s.policy_lr),
            "head": _optimizer(s.optimizer, self._head(), s.head_lr),
        }
        buffer, trace, position, labels = self._first_buffer, [], 0, 0
        written, digest = 0, hashlib.sha256()
        # Dropout draws from torch's stream; an oracle of the reader's own may draw from any.
        torch.manual_seed(s.seed)
        np.random.seed(s.seed)
        random.seed(s.seed)
        if folder and self.team.rank == 0:
            with _disk(folder, 0):
                files.save_json(folder / "settings.json", self._kept())
        if folder and (state := _load(folder / "checkpoint.pt", self._kept())):
            known = _read_trace(folder, state)
            trace, written, digest = _lines(known), len(known), hashlib.sha256(known)
            if self.team.rank == 0:
                # What a killed run had written after its checkpoint is going to be played again.
                os.truncate(folder / "trace.jsonl", written)
            self._restore(state, optimizers)
            position, labels, buffer = state["position"], state["labels"], state["buffer"].to(buffer)
        elif folder and self.team.rank == 0:
            # Killed before its first checkpoint, a run leaves lines that are going to be written again.
            (folder / "trace.jsonl").unlink(missing_ok=True)
        with _disk(folder, position):
            self.references(folder)
        bar = self._bar(total=s.steps, initial=position, desc=s.rule)
        saved, reached = position, None
        try:
            while position < s.steps:
                clock = Clock()
                positions = list(range(position, min(position + s.window, s.steps)))
                mine = positions[self.team.rank :: self.team.size]
                lines, duels = self._step(mine, optimizers, buffer, clock, position)
                buffer = self._latest(torch.cat([buffer, *duels]))
                for line in lines:
                    labels += line.pop("used")
                    line["labels"] = labels
                    line["machine"] = {
                        "seconds": {name: round(value / len(positions), 4) for name, value in clock.seconds.items()},
                        "peak_gib": round(peak_gib(), 3),
                    }
                trace += lines
                position = positions[-1] + 1
                if folder and self.team.rank == 0:
                    with _disk(folder, position):
                        more = _append(folder / "trace.jsonl", lines)
                        written += len(more)
                        digest.update(more)
                        due = position == s.steps or (position // s.window) % s.save_every == 0
                        state = self._state(optimizers, buffer, position, labels, written, digest.hexdigest())
                        # An interrupt may come anywhere in a window, which changes tensors in place: what it finds half
                        # done is left alone, and a copy of what the last whole window left is saved.
                        reached = state if due else copy.deepcopy(state)
                        if due:
                            files.save(folder / "checkpoint.pt", reached)
                            saved = position
                bar.set_postfix({name: lines[-1][name] for name in ("reward", "utility")})
                bar.update(len(positions))
        except KeyboardInterrupt:
            if reached and reached["position"] > saved:
                with _disk(folder, saved):
                    files.save(folder / "checkpoint.pt", reached)
            raise
        bar.close()
        return trace

    def _step(self, positions, optimizers, buffer, clock, start) -> tuple[list[dict], list[torch.Tensor]]:
        """One window: its trace lines and its comparisons, of all processes."""
        s = self.settings
        window = self.window(positions, buffer, clock)
        fought = [i for i in range(len(positions)) if int(window.winners[i]) >= 0]
        total = int(self.team.add(torch.tensor(len(fought), device=self.policy.device)))
        head_losses, policy_losses, differences = {}, {}, []
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=False)
        with clock("head"):
            if fought:
                differences, head_losses = self._head_gradient(window, fought, total)
        with clock("policy"):
            if fought:
                prompts = [self.ids[self._place(positions[i])] for i in fought]
                responses = [window.tokens[i][int(window.winners[i])] for i in fought]
                with self.policy.learning():
                    losses = decoding.backward_nll(
                        self.policy.model, prompts, responses, s.chunk,
                        whole=s.learn_from == "sequence", share=1 / total,
                    )  # fmt: skip
                policy_losses = dict(zip(fought, losses, strict=True))
            self._update(optimizers, total, start)
        lines = [self._line(window, i, head_losses.get(i), policy_losses.get(i)) for i in range(len(positions))]
        own = {i: difference.cpu() for i, difference in zip(fought, differences, strict=True)}
        duels = self.team.gather([own.get(i) for i in range(len(lines))])
        kept = [duel[None].to(buffer) for duel in duels if duel is not None]
        return self.team.gather(lines), kept

    def _head_gradient(self, window, fought, total):
        """The gradient of the mean of BCE(r_win - r_ref, p*), read off the features."""
        rows = torch.tensor(fought)
        won = window.winners[rows]
        features, reference = window.features[rows, won], window.reference.features[rows]
        if self.settings.reward_dropout != "off":
            prompts = [window.prompts[i] for i in fought]
            texts = [window.texts[i][int(window.winners[i])] for i in fought]
            texts += [window.reference_texts[i] for i in fought]
            features, reference = self._features(prompts * 2, texts, dropout=True).split(len(fought))
        differences = features - reference
        weight = self.reward_model.head.weight
        margins = (differences @ weight[0]).detach()
        preferences = (window.utilities[rows, won] - window.reference.utility[rows]).sigmoid()
        losses = F.binary_cross_entropy_with_logits(margins, preferences, reduction="none")
        gradients = steering.bt_loss_gradients(margins, preferences, features, reference)
        # A bias drops out of every comparison: its gradient stays 0.
        weight.grad = gradients.sum(0, keepdim=True) / total
        return differences, dict(zip(fought, losses.tolist(), strict=True))

    def _update(self, optimizers, total, start) -> None:
        if not total:
            return
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                for value in group["params"]:
                    if value.grad is None:
                        value.grad = torch.zeros_like(value)
                    if self.team.size > 1:
                        value.grad = self.team.add(value.grad)
                    if not bool(value.grad.isfinite().all()):
                        raise TrainingError(
                            f"step {start}: the gradient of the {name} is not finite; nothing was updated, "
                            "and the last checkpoint stands. Try a smaller learning rate, or dtype = 'float32'"
                        )
        self._fresh = False
        for optimizer in optimizers.values():
            optimizer.step()

    def _line(self, window: Window, i: int, head_loss, policy_loss) -> dict[str, Any]:
        s = self.settings
        won, position = int(window.winners[i]), window.positions[i]
        there = ~window.empty[i]
        fought = won >= 0

        def mean(values):
            kept = values[there & ~values.isnan()]
            return float(kept.mean()) if len(kept) else None

        margin = float(window.rewards[i, won] - window.reference.reward[i]) if fought else None
        gap = float(window.utilities[i, won] - window.reference.utility[i]) if fought else None
        penalties = window.penalties[i][there]
        return {
            "step": position,
            "prompt": window.prompts[i].id,
            "rule": s.rule,
            "reward": mean(window.rewards[i]),
            "utility": mean(window.utilities[i]) if s.measure == "candidates" else None,
            "winner": won if fought else None,
            "winner_reward": float(window.rewards[i, won]) if fought else None,
            "winner_utility": float(window.utilities[i, won]) if fought else None,
            "reference_reward": float(window.reference.reward[i]),
            "reference_utility": float(window.reference.utility[i]),
            "p_phi": _sigmoid(margin),
            "p_star": _sigmoid(gap),
            "penalty_mean": float(penalties.mean()) if len(penalties) else None,
            "penalty_spread": float(penalties.std(correction=0)) if len(penalties) else None,
            "kl": float(window.log_ratio[i, 0]),
            "length": float(np.mean([len(row) for row in window.tokens[i]])),
            "distinct_2": distinct_2(window.texts[i]),
            "repetition": float(np.mean([repetition(text) for text in window.texts[i]])),
            "empty": int(window.empty[i].sum()),
            "head_loss": head_loss,
            "policy_loss": policy_loss,
            "text": window.texts[i][won] if fought else None,
            # A prompt that comes again brings its reference's label along.
            "used": rules.labels_used(s.rule, s.candidates) - (position >= len(self.prompts)) if fought else 0,
        }

    # Checkpoints

    def _state(self, optimizers, buffer, position, labels, trace_bytes, trace_sha256) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state()
        return {
            "run": self._kept(),
            "adapter": {key: value.detach() for key, value in self.policy.adapter.items()},
            "head": self.reward_model.head.state_dict(),
            "optimizers": {key: value.state_dict() for key, value in optimizers.items()},
            "buffer": buffer.cpu(),
            "position": position,
            "labels": labels,
            "trace_bytes": trace_bytes,
            "trace_sha256": trace_sha256,
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "numpy": (name, keys.tolist(), *rest),
                "python": random.getstate(),
            },
        }

    def _restore(self, state, optimizers) -> None:
        self._fresh = False
        with torch.no_grad():
            for key, value in self.policy.adapter.items():
                value.copy_(state["adapter"][key])
        self.reward_model.head.load_state_dict(state["head"])
        for key, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][key])
        kept = state["random"]
        torch.set_rng_state(kept["torch"])
        if kept["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(kept["cuda"])
        name, keys, *rest = kept["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        random.setstate(kept["python"])


CHANGEABLE = frozenset({"rule", "gamma", "measure", "steps", "window", "policy_lr", "head_lr", "save_every"})


def _sigmoid(value: float | None) -> float | None:
    return None if value is None else float(torch.tensor(value, dtype=torch.float64).sigmoid())


def _optimizer(kind: str, values: list[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(values, lr=rate)
    try:
        from bitsandbytes.optim import PagedAdamW8bit
    except ImportError:
        raise ModelError(f"optimizer = {kind!r} needs the package bitsandbytes and CUDA") from None
    return PagedAdamW8bit(values, lr=rate)


# Folders


def kept_settings(settings: Settings, oracle: Oracle | None = None) -> dict[str, Any]:
    """What a run's folder remembers of it: a run with anything else is another run."""
    kept = settings.model_dump(mode="json", exclude={"save_every"})
    if oracle is not None:
        kept["oracle"] = f"{oracle.__module__}:{getattr(oracle, '__qualname__', type(oracle).__qualname__)}"
    return kept


def _there(folder: Path) -> Path:
    """The folder, or what there is of the path to it."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _check_folder(folder: str | Path, own: dict[str, Any]) -> None:
    """Raise FolderError for a folder that this run cannot be kept in; nothing is made or changed."""
    if not str(folder):
        raise FolderError("the folder has no name: give it one ('.' is the current folder)")
    path = Path(folder)
    try:
        nearest = _there(path)
        if not nearest.is_dir():
            raise FolderError(f"{folder} cannot be made a folder ({nearest} is none)")
        if not os.access(nearest, os.W_OK):
            raise FolderError(f"{folder} cannot be written to: choose another folder")
        kept = path / "settings.json"
        if kept.exists():
            try:
                before = json.loads(kept.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                before = None
            if not isinstance(before, dict):
                raise FolderError(f"{kept} is damaged: remove {folder} to play the run anew, or choose another folder")
            other = [key for key in own if before.get(key) != own[key]]
            if other:
                listed = "; ".join(f"{key} = {before.get(key)!r} there, {own[key]!r} now" for key in other)
                raise FolderError(f"{folder} holds a run with other settings: {listed}. Choose another folder")
        _load(path / "references.pt", own)
        if state := _load(path / "checkpoint.pt", own):
            _read_trace(path, state)
    except OSError as error:
        raise FolderError(f"{folder} cannot be used ({error}): choose another folder") from error


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderError(f"{folder} is in use by another run: choose another folder, or wait for it") from None
    return lock


@contextmanager
def claimed(folder: str | Path | None, own: dict[str, Any], team: Team) -> Iterator[Path | None]:
    """A run's folder for this run alone, locked while it plays.

    The file `lock` is made when nothing is left to be refused, and stays: who removed it might take it away from a run
    that has opened and is about to lock it, and a third one could then make and lock another.

    Raises
    ------
    FolderError
        If another run holds it, it holds a run with other settings, is damaged or cannot be made.
    """
    if folder is None or team.rank:
        yield None if folder is None else Path(folder)
        return
    _check_folder(folder, own)
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} cannot be made a folder ({error})") from error
    try:
        # Another run may have come and gone since.
        _check_folder(folder, own)
        yield path
    finally:
        lock.release()


@contextmanager
def _disk(folder: Path | None, position: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written to after step {position} ({error.strerror or error}): make room and start "
            "again; the run resumes from its last checkpoint"
        ) from error


def _load(path: Path, own: dict[str, Any]) -> dict[str, Any] | None:
    try:
        state = files.load(path)
    except ValueError as error:
        raise FolderError(str(error)) from error
    if state is not None and state.get("run") != own:
        raise FolderError(f"{path} belongs to another run: remove it to start afresh")
    return state


def _append(path: Path, lines: list[dict]) -> bytes:
    # In ASCII: a lone surrogate has no UTF-8, and other programs take some characters for the end of a line.
    content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return content


def _read_trace(folder: Path, state: dict[str, Any]) -> bytes:
    """The trace up to a checkpoint."""
    path = folder / "trace.jsonl"
    content = path.read_bytes()[: state["trace_bytes"]] if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != state["trace_sha256"]:
        raise FolderError(
            f"{path} is not as the run left it: put it back, or remove {folder / 'checkpoint.pt'} to start afresh"
        )
    return content


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().split("\n")[:-1]]


def train(settings: Settings, folder: str | Path | None = None, oracle: Oracle | None = None) -> list[dict[str, Any]]:
    """One run from its settings: see `Pipeline`. A folder that cannot be had is refused before any model is loaded."""
    if folder is not None and Team().rank == 0:
        _check_folder(folder, kept_settings(settings, oracle))
        if Path(folder, "lock").exists():
            _lock(Path(folder)).release()
    return Pipeline(settings, oracle).train(folder)
