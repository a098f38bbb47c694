"""Foresight in a trainer that is in use already: rewards and callbacks for TRL's GRPO, RLOO and OnlineDPO.

    rm = HeadReward(model, tokenizer)
    reward = SteeredReward(rm, "leverage", oracle=my_oracle, labels="labels.sqlite")
    RLOOTrainer(..., reward_funcs=[reward, reward.probe], args=RLOOConfig(reward_weights=[1, 0], ...),
                callbacks=[RetrainReward(reward), MonitorCallback(Monitor())])

The probe is the oracle with the weight 0: logged, not optimized, and no label of it is paid for twice. Penalties,
weights and what a rule reads are those of `fpo.rules`; what the head learns is what it learns in `fpo.llm`.
"""

from fpo.trl.callbacks import MonitorCallback, RetrainReward
from fpo.trl.full import FullReward
from fpo.trl.head import HeadReward
from fpo.trl.steered import SteeredReward

__all__ = ["FullReward", "HeadReward", "MonitorCallback", "RetrainReward", "SteeredReward"]
