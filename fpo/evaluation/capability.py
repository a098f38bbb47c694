"""Capability: multiple-choice tasks by lm-evaluation-harness on a policy with its adapter."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpo.llm.models import Policy
from fpo.parameters import ParameterError

# Gauthier et al. 2026: zero-shot, 50 questions of each subtask.
PAPER: dict[str, Any] = {"tasks": ("mmlu", "arc_challenge"), "limit": 50, "shots": 0}


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Put back every random state, and each layer's mode (dropout), as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    modes = [(layer, layer.training) for layer in model.modules()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
            for layer, training in modes:
                layer.training = training


def capability(
    policy: Policy,
    tasks: Sequence[str] = PAPER["tasks"],
    limit: int | None = PAPER["limit"],
    shots: int = PAPER["shots"],
    own_tasks: Path | None = None,
    batch: int = 4,
) -> dict[str, dict[str, float]]:
    """Accuracy of a policy on tasks of lm-evaluation-harness, without dropout; random states stay as they are.

    Parameters
    ----------
    policy : Policy
        With its adapter on.
    tasks : names
        The default, with `limit` and `shots`, is the paper's.
    limit : int, optional
        Questions of each subtask; None: all.
    shots : int
        Examples in the prompt.
    own_tasks : path, optional
        A folder of task files; only these are then known, and nothing is fetched.
    batch : int
        Questions at once.

    Returns
    -------
    dict
        By task and by group of tasks: the harness's measures, such as `acc` and `acc_stderr`, and `sample_len`, how
        many questions they rest on.

    Raises
    ------
    ParameterError
        If the harness is not installed or knows no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ParameterError(f"this needs the extra capability: pip install 'fpo[capability]' ({error})") from None
    known = TaskManager(include_path=None if own_tasks is None else str(own_tasks), include_defaults=own_tasks is None)
    if unknown := [task for task in tasks if task not in known.all_tasks]:
        raise ParameterError(f"tasks: the harness knows no {unknown[0]!r}")
    with untouched(policy.model):
        policy.model.eval()
        # Made anew each time: a used one keeps what it has seen.
        model = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=batch)
        found = simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=known, log_samples=False
        )
    return {
        name: {key.removesuffix(",none"): float(value) for key, value in row.items() if isinstance(value, int | float)}
        for name, row in found["results"].items()
    }
