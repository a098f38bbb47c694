"""The two models: kinds that are refused, and an adapter that is made anew."""

import pytest
import torch
from tools import llm as llm_tools

from fpo.llm import ModelError, Policy, RewardModel, Workbench, settings


def test_wrong_kinds_of_models(tiny, tmp_path):
    three = llm_tools.make_classifier(tmp_path / "three", outputs=3)
    cases = [
        ({"policy": tiny["reward_model"]}, "a causal language model is needed"),
        ({"reward_model": tiny["policy"]}, "an encoder or a sequence classifier is needed"),
        ({"reward_model": three}, "has 3 outputs: a reward model has one"),
        ({"head_start": "own"}, "an encoder without a head of its own"),
        ({"lora_targets": "nothing"}, "no modules named nothing: set lora_targets"),
        ({"lora_targets": "q_proj k_porj v_proj proj"}, "no modules named k_porj or proj: set lora_targets"),
        ({"lora_targets": " "}, "no modules named so: set lora_targets"),
        ({"lora_targets": "self_attn"}, "lora_targets = 'self_attn': no adapter fits there"),
        ({"policy": str(tmp_path)}, "without config.json"),
        ({"policy": "./nowhere"}, "./nowhere is not a folder"),
    ]
    if not torch.cuda.is_available():
        cases += [
            ({"device": "cuda"}, "no CUDA device"),
            ({"quantization": "4bit"}, "needs CUDA and the package bitsandbytes"),
        ]
    for changes, message in cases:
        with pytest.raises(ModelError, match=message):
            Workbench(settings(**{**tiny, **changes}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(ModelError, match="does not know this kind of model"):
        Workbench(settings(**{**tiny, "policy": str(tmp_path / "odd")}))


def test_a_reward_model_that_reads_every_token(tiny, tmp_path):
    """A decoder with a classifier's head scores each token: it is refused, not averaged in silence."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    words = AutoTokenizer.from_pretrained(tiny["policy"])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, vocab_size=len(words), num_labels=1, pad_token_id=words.pad_token_id)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads every token"):
        RewardModel(settings(**{**tiny, "reward_model": str(tmp_path)}, head_start="own")).features(["a text"])


@pytest.mark.parametrize(
    "changes", [{"seed": 7}, {"lora_rank": 4, "lora_dropout": 0.1}, {"gradient_checkpointing": True}]
)
def test_an_adapter_made_anew_is_that_of_a_policy_newly_loaded(tiny, changes):
    """To the last bit, whatever was learned before, and so are its outputs and gradients."""
    first, other = settings(**tiny), settings(**tiny, **changes)
    made = Policy(first)
    for chosen in (other, first, other):
        with torch.no_grad():
            for value in made.adapter.values():
                value.add_(1.0)
        made.untrained = False
        made.initialize(chosen)
        fresh = Policy(chosen)
        assert made.untrained and str(made.model) == str(fresh.model)
        assert [*made.adapter] == [*fresh.adapter]
        assert all(torch.equal(made.adapter[key], value) for key, value in fresh.adapter.items())
        ids, found = torch.tensor([[5, 6, 7, 8]]), []
        for policy in (made, fresh):
            for value in policy.adapter.values():
                value.grad = None
            with policy.learning():
                torch.manual_seed(0)
                logits = policy.model(input_ids=ids).logits
                logits.square().mean().backward()
            found.append([logits, *(value.grad for value in policy.adapter.values())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
