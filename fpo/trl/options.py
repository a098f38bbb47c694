"""The numbers and choices of the reward and of its callback, validated."""

from typing import Literal

from pydantic import Field

from fpo import rules
from fpo.parameters import Parameters, real, whole

# A reward function is not told the policy's likelihood: the KL penalty is the trainer's own, its `beta`.
USABLE = tuple(name for name, rule in rules.RULES.items() if "log_ratio" not in rule.reads)


class Options(Parameters):
    """The numbers and choices of a `SteeredReward`."""

    rule: Literal[*USABLE] = Field("leverage", description="see fpo.rules")  # type: ignore[valid-type]
    gamma: float | None = real(None, 0, 1e6, "weight of the penalty; None: set by `ratio`")
    ratio: float = real(0.5, 0.0, 1e3, "spread of gamma R over that of r, within a group")
    scale: float = real(1.0, 1e-6, 1e6, "of utilities: p* = sigmoid(scale (U_z - U_ref))")
    reference: Literal["reference", "group"] = Field("reference", description="what candidates are compared with")
    order: Literal["consecutive", "strided"] = Field("consecutive", description="how a prompt's rows lie")
    pairs: Literal["winner", "all"] = Field("winner", description="which comparisons the RM is trained on")
    buffer: int = whole(512, 1, 1_000_000, "comparisons that H is taken over")
    ridge: float = real(1e-2, 1e-8, 1e3, "of the head's loss, in H and in a refit")
    warmup: int = whole(32, 1, 1_000_000, "groups that `ratio` is measured over")


class Retraining(Parameters):
    """The numbers and choices of a `RetrainReward`."""

    lr: float = real(5e-5, 0.0, 1.0, "AdamW")
    every: int = whole(1, 1, 1_000_000, "steps of the trainer between updates")
    fit: Literal["step", "refit"] = Field("step", description="one AdamW step, or the minimum over the comparisons")
    replay: float = real(0.5, 0.0, 0.99, "share of a step that earlier comparisons have")
