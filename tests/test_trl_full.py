"""A reward model whose whole network learns, against one with a linear head and against automatic differentiation."""

import warnings

import numpy as np
import pytest
import torch
from tools.llm import make_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fpo.parameters import ParameterError
from fpo.rules import RULES
from fpo.trl import FullReward, HeadReward, RetrainReward, SteeredReward
from fpo.trl.full import DIRECTION, NEITHER, OWN

QUESTIONS = ["Why is the sky blue?", "What do cats eat?"]
SAID = [
    "light and air",
    "",
    "because",
    "it is blue as the sea",
    "mice",
    "mice and fish",
    "fish or mice",
    "cats eat a lot",
]
REFERENCES = ["It is the air."] * 4 + ["They eat mice."] * 4
ROWS = {"prompts": [each for each in QUESTIONS for _ in range(4)], "completions": SAID}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("classifier"))


def load(folder):
    """Wide weights, so that rewards and features differ."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.mul_(10)
        for name, value in model.named_parameters():
            if "LayerNorm" not in name and value.dim() > 1:
                value.mul_(5)
    return model, AutoTokenizer.from_pretrained(folder)


def utility(prompts, completions, **columns):
    return [0.2 * len(said) for said in completions]


def gradients(rm, prompts, completions):
    return torch.stack([rm.gradient([a], [b], [1.0]) for a, b in zip(prompts, completions, strict=True)])


def test_a_direction_by_two_forwards_by_jvp_and_by_autograd(folder):
    model, words = load(folder)
    rm = FullReward(model, words, parameters=["encoder", "classifier"])
    torch.manual_seed(0)
    v = torch.randn(rm.size)
    before = {name: value.detach().clone() for name, value in rm.learns.items()}
    found = rm.along(v, ROWS["prompts"], SAID)
    assert all(torch.equal(value, before[name]) for name, value in rm.learns.items())
    by_autograd = gradients(rm, ROWS["prompts"], SAID)
    size = float(by_autograd.norm(dim=1).max() * v.norm())
    assert float((found - by_autograd @ v).abs().max()) < 1e-3 * size
    read = words(ROWS["prompts"], SAID, padding=True, return_tensors="pt")
    parts = dict(zip(rm.learns, v.split([value.numel() for value in rm.learns.values()]), strict=True))
    tangents = {name: parts[name].view_as(value) for name, value in rm.learns.items()}

    def rewards(learned):
        return torch.func.functional_call(model, learned, kwargs=dict(read)).logits[:, 0]

    primals = {name: value.detach() for name, value in rm.learns.items()}
    _, by_jvp = torch.func.jvp(rewards, (primals,), (tangents,))
    assert float((by_jvp - by_autograd @ v).detach().abs().max()) < 1e-4 * size
    assert not rm.along(torch.zeros(rm.size), QUESTIONS, SAID[:2]).any()


def test_every_rule_is_played_or_known_not_to_be():
    """A new rule of `fpo.rules` is not refused here without anybody having thought of it."""
    refused = {"kl", "leverage", "anchor-other"}
    assert {*OWN, *DIRECTION, *NEITHER} == set(RULES) - refused


@pytest.mark.parametrize("rule", [*NEITHER, *DIRECTION, *OWN])
def test_with_the_head_alone_it_is_the_reward_with_a_head(folder, rule):
    """Of the classifier's own layer gradients are features: each score, comparison and update comes to the same."""
    head, full = (
        SteeredReward(kind, rule, 30.0, oracle=utility, pairs="all")
        for kind in (HeadReward(*load(folder)), FullReward(*load(folder), parameters=["classifier"], step=1e-1))
    )
    for reward in (head, full):
        reward.add(["Why?", "What?"], ["yes, as it should be", "good"], ["no", "something else"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        first, second = (reward(**ROWS, reference=REFERENCES) for reward in (head, full))
    assert second[1] is None and first[1] is None
    values = [np.array([x for x in each if x is not None]) for each in (first, second)]
    plain = np.array([x for x in SteeredReward(head.rm, "standard", oracle=utility)(**ROWS, reference=REFERENCES) if x])
    moved = np.abs(values[0] - plain).max()
    assert np.abs(values[0] - values[1]).max() < 5e-3 * moved + 1e-5
    assert moved > 0.1 or rule == "standard"
    for reward in (head, full):
        RetrainReward(reward, lr=0.01, replay=0.0).update()
    layer = full.rm.learns["classifier.weight"]
    assert torch.allclose(head.rm.head.weight, layer, atol=1e-4)
    assert not torch.allclose(layer, load(folder)[0].classifier.weight, atol=1e-3)


def test_the_whole_network_learns_and_goes_back(folder):
    reward = SteeredReward(FullReward(*load(folder)), "exact", 1.0, oracle=utility, buffer=2)
    retrain = RetrainReward(reward, lr=1e-3, replay=0.0)
    losses = []
    with pytest.warns(UserWarning, match=r"rule = 'exact' on a network of [\d,]+ parameters: 2 backward passes and"):
        for _ in range(4):
            reward(**ROWS, reference=REFERENCES)
            retrain.update()
            losses.append(reward.metrics["head_loss"])
    assert losses[-1] < losses[0]
    state = reward.state_dict()
    assert len(state["head"]["kept"]) == 2
    other = SteeredReward(FullReward(*load(folder)), "exact", 1.0, oracle=utility, buffer=2)
    other.load_state_dict(state)
    assert other(**ROWS, reference=REFERENCES) == reward(**ROWS, reference=REFERENCES)


def test_what_each_gradient_costs_is_said_first(folder):
    reward = SteeredReward(FullReward(*load(folder), parameters=["classifier"]), "practical", 1.0)
    with pytest.warns(
        UserWarning, match=r"rule = 'practical' on a network of 33 parameters: 5 backward passes and .* GB"
    ):
        reward(**ROWS, reference=REFERENCES)


def test_what_a_whole_network_cannot_do_is_refused(folder, tiny):
    model, words = load(folder)
    for faulty, message in [
        ({"step": 0.0}, "step = 0.0: must be a finite number above 0"),
        ({"batch": 0}, "batch = 0: must be a whole number, 1 or more"),
        ({"parameters": ["nothing"]}, "no parameter of the model is meant"),
        ({"reads": "all"}, "reads = 'all'"),
    ]:
        with pytest.raises(ParameterError, match=message):
            FullReward(model, words, **faulty)
    rm = FullReward(model, words)
    with pytest.raises(ParameterError, match="rule = 'leverage': of a whole network must be one of standard"):
        SteeredReward(rm, "leverage", oracle=utility)
    with pytest.raises(ParameterError, match="a whole network is trained on pairs of texts"):
        SteeredReward(rm, "practical", oracle=utility, reference="group")
    with pytest.raises(ParameterError, match="fit and replay: of a whole network must be 'step' and 0"):
        RetrainReward(SteeredReward(rm, "practical", oracle=utility))
    from transformers import AutoModel

    with pytest.raises(ParameterError, match="must be a sequence classifier with one output"):
        FullReward(AutoModel.from_pretrained(tiny["reward_model"]), words)
