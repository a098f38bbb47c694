"""Callbacks: the reward model is retrained inside the run and kept with its checkpoints; a monitor looks on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fpo import files
from fpo.llm.head import Comparisons, losses_and_gradients
from fpo.llm.loop import refitted
from fpo.parameters import ParameterError
from fpo.trl.full import FullReward
from fpo.trl.options import Retraining
from fpo.trl.steered import SteeredReward

FILE = "{}.pt"  # in each of the trainer's checkpoints, by the reward's name


class RetrainReward(TrainerCallback):
    """Trains the head of a `SteeredReward` while the policy learns, as the loop of `fpo.llm` does.

    A step is one of AdamW on the mean over groups of the mean of BCE(r_z - r_ref, p*) over their comparisons; a refit
    goes to the minimum of that loss plus (ridge / 2) |w|^2 over the whole buffer. Of a `FullReward` all is trained,
    by steps alone. Each of the trainer's checkpoints gets the head, its optimizer and the reward's state, in a file by
    the reward's `__name__`, and a run that resumes goes on from there.

    Parameters
    ----------
    reward : SteeredReward
        With an oracle or a preference.
    lr : float
        Of AdamW.
    every : int
        Steps of the trainer between updates; what came in between is learned at once.
    fit : {"step", "refit"}
    replay : float
        Share of the gradient that as many earlier comparisons of the buffer get, drawn at random.

    Raises
    ------
    ParameterError
        For a value that is not allowed, or a reward that nobody labels anything for.
    """

    def __init__(
        self,
        reward: SteeredReward,
        *,
        lr: float = 5e-5,
        every: int = 1,
        fit: Literal["step", "refit"] = "step",
        replay: float = 0.5,
    ) -> None:
        self.options = Retraining(lr=lr, every=every, fit=fit, replay=replay)
        if not reward.teaches:
            raise ParameterError("the reward has neither an oracle nor a preference: nothing tells it what is better")
        if isinstance(reward.rm, FullReward) and (fit == "refit" or replay):
            raise ParameterError("fit and replay: of a whole network must be 'step' and 0")
        self.reward, self._updates = reward, 0
        learns = reward.rm.learns.values() if isinstance(reward.rm, FullReward) else reward.rm.head.parameters()
        self._optimizer = torch.optim.AdamW(learns, lr=lr)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a trainer that the reward cannot be used in, and settings under which its weight means nothing."""
        check_trainer(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what `on_init_end` refuses and a second reward of this name, and go on where a run that resumes was.

        Raises
        ------
        ParameterError
            For either.
        """
        check_trainer(args)  # a callback may have been added later
        kept = state.__dict__.setdefault("fpo_kept", {})  # all callbacks are handed the same state
        if kept.setdefault(self._file, self) is not self:
            raise ParameterError(
                f"two rewards are kept in {self._file} of a checkpoint: give one of them another `__name__`, as in "
                f"reward.__name__ = '{self.reward.__name__}_2'"
            )
        self.reward.learning = not args.eval_on_start
        if state.global_step:
            self._restore(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Train the head, if it is time."""
        if state.global_step % self.options.every == 0:
            self.update()
        self.reward.learning = not control.should_evaluate

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation that comes now is no training."""
        self.reward.learning = not control.should_evaluate

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What is written from here on is learned from again."""
        self.reward.learning = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the head and all that it depends on into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            kept = {"reward": self.reward.state_dict(), "optimizer": self._optimizer.state_dict()}
            files.save(folder / self._file, kept | {"updates": self._updates})

    @property
    def _file(self) -> str:
        return FILE.format(self.reward.__name__)

    def _restore(self, folder: Path) -> None:
        path = folder / self._file
        kept = files.load(path)
        if kept is None:
            raise FileNotFoundError(
                f"{path} is not there: the checkpoint was not finished, is no run's with this reward, or lies outside "
                "output_dir. Resume from another one in output_dir"
            )
        self.reward.load_state_dict(kept["reward"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self._updates = kept["updates"]

    def update(self) -> None:
        """One update of the head from the comparisons that are new, which are then old; none without any."""
        reward, head = self.reward, self.reward.rm.head
        if not reward.fresh:
            return
        fresh, reward.fresh = reward.fresh, []
        if isinstance(reward.rm, FullReward):
            self._optimizer.zero_grad()
            reward.metrics["head_loss"] = reward.rm.backward(fresh)
            self._optimizer.step()
        elif self.options.fit == "refit":
            with torch.no_grad():
                head.weight.copy_(refitted(reward.comparisons(), reward.options.ridge)[None])
        else:
            loss, gradient = _mean_loss(head.weight[0], fresh)
            if replayed := self._replayed(sum(len(each.preferences) for each in fresh)):
                share = self.options.replay
                gradient = (1 - share) * gradient + share * _mean_loss(head.weight[0], replayed)[1]
            head.weight.grad = gradient[None]
            if head.bias is not None:  # it drops out of every comparison
                head.bias.grad = torch.zeros_like(head.bias)
            self._optimizer.step()
            reward.metrics["head_loss"] = loss
        self._updates += 1
        reward.metrics["head_updates"] = float(self._updates)

    def _replayed(self, new: int) -> list[Comparisons]:
        kept = self.reward.comparisons()
        old = len(kept.preferences) - new
        if not self.options.replay or old < 1:
            return []
        # A stream of its own for each update: a run that resumes draws what it would have drawn.
        rows = np.random.default_rng([self._updates, 0]).choice(old, size=min(new, old), replace=False)
        return [Comparisons(kept.differences[rows], kept.preferences[rows])]


def _mean_loss(weight: torch.Tensor, groups: Sequence[Comparisons]) -> tuple[float, torch.Tensor]:
    """Mean over groups of the mean of BCE(d . w, p*), and its gradient, (p,)."""
    losses, gradients = [], []
    for each in groups:
        found = losses_and_gradients(weight, each.differences, torch.zeros_like(each.differences), each.preferences)
        losses.append(float(found[0].mean()))
        gradients.append(found[1].mean(0))
    return sum(losses) / len(losses), torch.stack(gradients).mean(0)


def check_trainer(args: Any) -> None:
    """Refuse a trainer whose rewards are computed elsewhere, and settings under which a penalty's weight means nothing.

    Both callbacks do so when the trainer is made; a reward without either is not told the settings.

    Raises
    ------
    ParameterError
        For AsyncGRPO; if each reward function is divided by its own spread before the sum, and this one is not alone;
        if of two completions a group only the sign of their difference is left.
    """
    if any(kind.__name__.startswith("AsyncGRPO") for kind in type(args).__mro__):
        raise ParameterError(
            "AsyncGRPO computes rewards in another process, where a head that is retrained here would stay as it is: "
            "must be GRPO, RLOO or OnlineDPO"
        )
    reward_weights = getattr(args, "reward_weights", None)
    others = reward_weights is None or sum(each != 0 for each in reward_weights) > 1
    if getattr(args, "multi_objective_aggregation", None) == "normalize_then_sum" and others:
        raise ParameterError(
            "multi_objective_aggregation = 'normalize_then_sum' divides r + gamma R by its own spread beside other "
            "rewards, so that gamma loses its meaning: must be 'sum_then_normalize', or reward_weights with 0 for all "
            "others"
        )
    scaled = getattr(args, "scale_rewards", None)
    if scaled in ("group", True) and getattr(args, "num_generations", 3) == 2:
        raise ParameterError(
            "scale_rewards = 'group' leaves only the sign of the difference of two completions, and gamma loses its "
            "meaning: must be 'batch' or 'none', or num_generations above 2"
        )


class Monitor(Protocol):
    """What `MonitorCallback` asks of a monitor: see `fpo.monitor`."""

    def record(self, step: int, *, rewards: np.ndarray, **more: Any) -> list[Any]:
        """Alarms."""


class MonitorCallback(TrainerCallback):
    """Shows each window of a `SteeredReward` to a monitor, and reports its alarms.

    One process records and tells the others, so that all of them stop together. An alarm is printed and put into
    `state.log_history`, which checkpoints keep; with the reward's next call the number of alarms so far goes through
    `log_metric` as `fpo/alarms`, and so to every `report_to`.

    Parameters
    ----------
    monitor : fpo.monitor.Monitor
    stop : bool
        Whether an alarm ends the run.

    Attributes
    ----------
    alarms : list
        All so far.

    Raises
    ------
    ParameterError
        When the trainer is made, for one that the reward cannot be used in.
    """

    def __init__(self, monitor: Monitor, *, stop: bool = False) -> None:
        self.monitor, self.stop, self.alarms = monitor, stop, list[Any]()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a trainer that the reward cannot be used in, and settings under which its weight means nothing."""
        check_trainer(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same, for a callback that was added later."""
        check_trainer(args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record what was written since the last step, if anything was.

        Raises
        ------
        RuntimeError
            In the other processes, if the monitor raises an error in the main one.
        """
        window = state.__dict__.pop("fpo_window", None)
        shown = None if window is None else known(window)
        if shown is None:
            return
        told: list[list[Any] | None] = [None]
        try:
            if state.is_world_process_zero:
                told[0] = self._recorded(state.global_step, shown)
        finally:
            if PartialState().num_processes > 1:  # the others wait for it, whatever happens here
                broadcast_object_list(told)
        if told[0] is None:
            raise RuntimeError("the monitor of the main process raised an error: see there")
        self.alarms += told[0]
        state.__dict__["fpo_alarms"] = len(self.alarms)  # for the reward, which is handed the same object
        for alarm in told[0]:
            state.log_history.append({"step": state.global_step, "fpo/alarm": str(alarm)})
            if state.is_world_process_zero:
                tqdm.write(f"step {state.global_step}: {alarm}")
        if told[0] and self.stop:
            control.should_training_stop = True

    def _recorded(self, step: int, shown: dict[str, Any]) -> list[Any]:
        seen = getattr(self.monitor, "step", None)
        # A run that resumes comes again to steps that were recorded before it was killed.
        return [] if seen is not None and step <= seen else self.monitor.record(step, **shown)


def known(window: dict[str, Any]) -> dict[str, Any] | None:
    """What a monitor takes of a window: without groups that are wholly empty, and without labels that nobody gave.

    What the first record has says what is watched, so an empty group must not take p_phi and p_star with it. None if
    all groups are empty.
    """
    written = np.isfinite(window["p_phi"])  # a winner there is in each group that is not empty
    if not written.any():
        return None
    kept = {name: values for name, values in window.items() if name != "texts"}
    kept |= {name: values[written] for name, values in kept.items() if name != "frozen_rewards"}
    kept["texts"] = [texts for texts, some in zip(window["texts"], written, strict=True) if some]
    for name in ("p_star", "utilities"):
        if np.isnan(kept[name]).all():
            del kept[name]
    return kept
