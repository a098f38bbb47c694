"""The loop of iterative RLHF on language models, with every selection rule of the book.

    python -m fpo.llm FOLDER --set rule=relaxed --set steps=8

plays one run in FOLDER, or goes on with the one that is there; so does `accelerate launch -m fpo.llm` on several
processes, which share the prompts.
"""

from fpo.llm.loop import FolderError, Pipeline, TrainingError, Window, train
from fpo.llm.models import ModelError, Policy, RewardModel, parameter_count
from fpo.llm.prompts import Prompt, load_prompts
from fpo.llm.settings import Settings, settings

__all__ = [
    "FolderError",
    "ModelError",
    "Pipeline",
    "Policy",
    "Prompt",
    "RewardModel",
    "Settings",
    "TrainingError",
    "Window",
    "load_prompts",
    "parameter_count",
    "settings",
    "train",
]
