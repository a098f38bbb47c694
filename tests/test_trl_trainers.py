"""The same rewards and callbacks in TRL's own trainers, with a policy of a few layers."""

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[trl]'")

import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from fpo import files
from fpo.parameters import ParameterError
from fpo.trl import HeadReward, MonitorCallback, RetrainReward, SteeredReward

QUESTIONS = ["Why is the sky blue?", "What do cats eat?", "Name a river.", "Who wrote it?"]
TRAINERS = {
    "RLOO": (trl.RLOOConfig, trl.RLOOTrainer),
    "GRPO": (trl.GRPOConfig, trl.GRPOTrainer),
    "OnlineDPO": (OnlineDPOConfig, OnlineDPOTrainer),
}


def letters(prompts, completions, **columns):
    """A reward function, and so an oracle: distinct letters."""
    return [0.3 * len(set(str(said))) for said in completions]


class Notes:
    """A stand-in for a monitor."""

    def __init__(self):
        self.seen = []

    def record(self, step, **window):
        self.seen.append((step, window))
        return []


def made(tiny, folder, trainer="RLOO", callbacks=(), **how):
    """A trainer, its reward and its monitor: a new process would make no other."""
    torch.manual_seed(0)
    strided = trainer == "OnlineDPO"
    rm = HeadReward(
        AutoModel.from_pretrained(tiny["reward_model"]), AutoTokenizer.from_pretrained(tiny["reward_model"])
    )
    reward = SteeredReward(
        rm, "leverage", oracle=letters, warmup=2, pairs="all", order="strided" if strided else "consecutive"
    )
    retrain, notes = RetrainReward(reward, lr=0.01), Notes()
    config, kind = TRAINERS[trainer]
    shape = {} if strided else {"num_generations": 4, "max_completion_length": 6, "reward_weights": [1.0, 0.0]}
    args = config(
        output_dir=str(folder), use_cpu=True, bf16=False, max_steps=4, save_steps=2, logging_steps=1, report_to=[],
        per_device_train_batch_size=8 if not strided else 2, gradient_checkpointing=False, disable_tqdm=True,
        learning_rate=1e-3, **shape, **({"max_new_tokens": 6} if strided else {}), **how,
    )  # fmt: skip
    words = AutoTokenizer.from_pretrained(tiny["policy"])
    rows = [{"prompt": [{"role": "user", "content": text}], "reference": f"It is {text}"} for text in QUESTIONS * 4]
    made = kind(
        model=AutoModelForCausalLM.from_pretrained(tiny["policy"]), processing_class=words, args=args,
        reward_funcs=[reward] if strided else [reward, reward.probe], train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        callbacks=[retrain, MonitorCallback(notes), *callbacks],
    )  # fmt: skip
    return made, reward, notes


def learned(folder):
    """Adapter and reward of the last checkpoint."""
    last = folder / "checkpoint-4"
    return load_file(last / "adapter_model.safetensors"), files.load(last / "fpo_leverage.pt")


class Killed(TrainerCallback):
    """Ends a run as a signal would, in the middle of its third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rloo")
    trainer, reward, notes = made(tiny, folder)
    trainer.train()
    return trainer, reward, notes, folder


def test_rloo_trains_policy_and_head(run):
    trainer, reward, notes, folder = run
    assert [step for step, _ in notes.seen] == [1, 2, 3, 4]
    assert notes.seen[0][1]["rewards"].shape == (2, 4) and len(notes.seen[0][1]["texts"][0]) == 4
    logs = [line for line in trainer.state.log_history if "fpo/reward" in line]
    assert len(logs) == 4 and logs[-1]["fpo/head_updates"] == 3.0
    assert "fpo/gamma" not in logs[0] and logs[-1]["fpo/gamma"] == pytest.approx(reward.gamma)
    assert logs[0]["rewards/probe/mean"] > 0 and logs[0]["reward"] == pytest.approx(
        logs[0]["rewards/fpo_leverage/mean"]
    )
    assert reward.rm.head.weight.abs().max() > 0.005
    assert any(value.abs().max() > 0 for name, value in learned(folder)[0].items() if "lora_B" in name)


def test_a_killed_run_resumes_to_the_same_head_and_adapter(tiny, run, tmp_path):
    trainer, *_ = made(tiny, tmp_path, callbacks=[Killed()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (tmp_path / "checkpoint-4").exists()
    trainer, reward, _ = made(tiny, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (adapter, kept), (wanted, uninterrupted) = learned(tmp_path), learned(run[3])
    assert all(torch.equal(value, wanted[name]) for name, value in adapter.items()) and adapter.keys() == wanted.keys()
    assert torch.equal(kept["reward"]["head"]["weight"], uninterrupted["reward"]["head"]["weight"])
    assert torch.equal(kept["reward"]["comparisons"][0], uninterrupted["reward"]["comparisons"][0])
    assert kept["reward"]["gamma"] == uninterrupted["reward"]["gamma"]
    (tmp_path / "checkpoint-2" / "fpo_leverage.pt").unlink()
    trainer, *_ = made(tiny, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"fpo_leverage.pt is not there: the checkpoint was not finished"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_merged_adapter_reloads(tiny, run, tmp_path):
    """The policy that comes out of a run is an ordinary PEFT folder; merged, it is an ordinary model."""
    base = AutoModelForCausalLM.from_pretrained(tiny["policy"])
    adapted = PeftModel.from_pretrained(base, run[3] / "checkpoint-4").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        adapted.merge_and_unload().save_pretrained(tmp_path)
        found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
        bare = AutoModelForCausalLM.from_pretrained(tiny["policy"]).eval()(input_ids=ids).logits
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, bare, atol=1e-4)


def test_rewards_in_another_process_are_refused():
    """The class of TRL's own settings is known by its name, in the version that is pinned and in newer ones."""
    from trl.experimental.async_grpo import AsyncGRPOConfig

    with pytest.raises(ParameterError, match="must be GRPO, RLOO or OnlineDPO"):
        MonitorCallback(Notes()).on_init_end(object.__new__(AsyncGRPOConfig), None, None)


@pytest.mark.parametrize("trainer", ["GRPO", "OnlineDPO"])
def test_the_reward_works_unchanged(tiny, tmp_path, trainer):
    """OnlineDPO hands over two rows a prompt, the second ones after all first ones, and takes no metrics."""
    trainer, reward, notes = made(tiny, tmp_path, trainer)
    trainer.args.max_steps = 1
    trainer.train()
    assert len(notes.seen) == 1 and reward.rm.head.weight.abs().max() > 0
    assert notes.seen[0][1]["rewards"].shape == (2, 4 if isinstance(trainer, trl.GRPOTrainer) else 2)
