"""The two models: kinds that are refused, and an adapter that is made anew."""

import json
import shutil

import pytest
import torch
from tools import llm as llm_tools
from tools.llm import play

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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [True, False])
def test_a_decoder_as_reward_model(tiny, tmp_path, side, padding):
    """A decoder with a classifier's head scores each token: the last one's score is the text's, as transformers has it.

    Also of a tokenizer that has no token to pad with.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    words = AutoTokenizer.from_pretrained(tiny["policy"])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    pad = words.pad_token_id if padding else None
    config = LlamaConfig(**shape, vocab_size=len(words), num_labels=1, pad_token_id=pad, initializer_range=0.3)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    words.padding_side = side
    words.pad_token = words.pad_token if padding else None
    words.save_pretrained(tmp_path)
    made = RewardModel(settings(**{**tiny, "reward_model": str(tmp_path)}, head_start="own"))
    texts = ["a text", "a longer text of several words", "yes", "a text that is the longest of all that there are"]
    found = made.rewards(made.features(texts))
    for text, reward in zip(texts, found, strict=True):
        with torch.no_grad():
            alone = model(**words(text, return_tensors="pt")).logits
        assert float(reward) == pytest.approx(float(alone), abs=1e-5)


def test_a_policy_without_a_chat_template(tiny, tmp_path):
    """It works and says what it does."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny["policy"], folder)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        if name.endswith("json"):
            content = json.loads(path.read_text())
            content.pop("chat_template", None)
            path.write_text(json.dumps(content))
        else:
            path.unlink(missing_ok=True)
    chosen = settings(**{**tiny, "policy": str(folder)}, prompt_count=4, steps=4)
    with pytest.warns(UserWarning, match="has no chat template: prompts are the system message, the text and a new"):
        bench = Workbench(chosen)
    shown = bench.policy.tokenizer.decode(bench.prompt_ids[0])
    assert shown == f"{chosen.system}\n{bench.prompts[0].text}\n"
    assert len(play(bench)) == 4


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
