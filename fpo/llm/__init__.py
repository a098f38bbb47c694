"""The loop of iterative RLHF on language models, with every selection rule of the book.

    python -m fpo.llm FOLDER --set rule=relaxed --set steps=8

plays one run in FOLDER, or goes on with the one that is there; so does `accelerate launch -m fpo.llm` on several
processes, which share the prompts.
"""

from fpo.llm.candidates import TrainingError, Window, Writer
from fpo.llm.loop import train
from fpo.llm.models import Policy, RewardModel
from fpo.llm.prompts import Prompt, load_prompts
from fpo.llm.runs import FolderError
from fpo.llm.settings import Settings, settings
from fpo.llm.weights import ModelError, parameter_count
from fpo.llm.workbench import Workbench

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
