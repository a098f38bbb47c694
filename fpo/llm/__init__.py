"""The loop of iterative RLHF on language models, with every selection rule of the book.

    python -m fpo.llm FOLDER --set rule=relaxed --set steps=8

plays one run in FOLDER, or goes on with the one that is there; so does `accelerate launch -m fpo.llm` on several
processes, which share the prompts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fpo.llm.prompts import Prompt, load_prompts
from fpo.llm.settings import Settings, settings

if TYPE_CHECKING:
    from fpo.llm.candidates import TrainingError, Window, Writer
    from fpo.llm.loop import train
    from fpo.llm.models import Policy, RewardModel
    from fpo.llm.runs import FolderError
    from fpo.llm.weights import ModelError, parameter_count
    from fpo.llm.workbench import Workbench

# PyTorch, transformers and peft take seconds to load. A refusal, the list of settings and the prompts do without.
_LAZY = {
    **dict.fromkeys(("TrainingError", "Window", "Writer"), "candidates"),
    **dict.fromkeys(("Policy", "RewardModel"), "models"),
    **dict.fromkeys(("ModelError", "parameter_count"), "weights"),
    **{"train": "loop", "FolderError": "runs", "Workbench": "workbench"},
}

__all__ = [
    "FolderError",
    "ModelError",
    "Policy",
    "Prompt",
    "RewardModel",
    "Settings",
    "TrainingError",
    "Window",
    "Workbench",
    "Writer",
    "load_prompts",
    "parameter_count",
    "settings",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
