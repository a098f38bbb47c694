"""The workbench: models are loaded once, and a run at a used one comes out as in a process of its own."""

import json
import random

import pytest
import torch
import transformers
from tools import llm as llm_tools
from tools.llm import learned, numbers, play, same

from fpo.llm import ModelError, Workbench, Writer, settings, train
from fpo.parameters import ParameterError


@pytest.fixture
def loaded(monkeypatch):
    """The models that transformers was asked to load, by the loader's name."""
    asked = []
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        loader = getattr(transformers, name)
        original = loader.from_pretrained

        def counting(*args, name=name, original=original, **kwargs):
            asked.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", counting)
    return asked


@pytest.fixture(scope="module")
def few(tiny):
    """Few prompts, so that to load them and to fit the head takes a blink."""
    return {**tiny, "prompt_count": 8, "steps": 4, "window": 2, "policy_lr": 1e-3, "lora_dropout": 0.1, "batch": 3}


@pytest.fixture(scope="module")
def bench(few):
    return Workbench(settings(**few))


# What a study varies, in an order in which each run finds what others have left.
STUDY = [
    {"rule": "exact"},
    {"rule": "exact", "seed": 7, "steps": 6},
    {"rule": "kl", "seed": 7, "head_start": "blind spot", "gamma": 3.0},
    {"rule": "standard", "oracle": "answer", "buffer_size": 3, "lora_rank": 2, "window": 3},
    {"rule": "random", "candidates": 2, "temperature": 1.2, "measure": "winner", "learn_from": "response"},
    {"rule": "exact", "head_lr": 0.1},
]


def test_a_used_workbench_plays_as_a_fresh_one(few, tmp_path, loaded):
    """Rules, seeds and other settings, to the last bit; the models are loaded once for all of them."""
    bench = Workbench(settings(**few))
    for number, changes in enumerate(STUDY):
        play(bench, tmp_path / f"used-{number}", **changes)
    # The packaged encoder is a third model, which the oracle `answer` needs beside a folder's.
    assert loaded == ["AutoModelForCausalLM", "AutoModel", "AutoModel"]
    for number, changes in enumerate(STUDY):
        used, fresh = (tmp_path / f"{kind}-{number}" for kind in ("used", "fresh"))
        train(settings(**{**few, **changes}), fresh)
        assert llm_tools.trace(used) == llm_tools.trace(fresh), changes
        assert same(learned(used), learned(fresh)), changes


def test_a_classifier_gets_its_own_head_back(few, tmp_path):
    chosen = settings(**{**few, "reward_model": llm_tools.make_classifier(tmp_path / "rm"), "steps": 2})
    own = chosen.replace(head_start="own", head_lr=0.1)
    bench = Workbench(chosen)
    for each in (own, chosen, own):
        assert numbers(train(each, bench=bench)) == numbers(train(each))


def noisy(prompts, responses):
    """An oracle that draws from the process's own streams."""
    return [random.random() + float(torch.rand(())) for _ in responses]


def test_an_oracle_that_draws_is_paired_too(few):
    """Whether its references are new or not moves none of the run's own numbers."""
    chosen = settings(**few)
    bench = Workbench(chosen, noisy)
    traces = [numbers(train(each, bench=bench)) for each in (chosen.replace(steps=2), chosen, chosen)]
    assert traces[1] == traces[2] == numbers(train(chosen, oracle=noisy))


def test_references_are_made_once(few, monkeypatch):
    bench, made, respond = Workbench(settings(**few)), [], Writer._respond
    monkeypatch.setattr(Writer, "_respond", lambda self, indices: made.append(len(indices)) or respond(self, indices))
    for rule in ("standard", "exact", "kl"):
        play(bench, rule=rule)
    assert made == [3, 1]
    play(bench, seed=1)
    assert made == [3, 1, 3, 1], "another seed draws others"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "elsewhere"}, "policy = 'elsewhere': this workbench was loaded with "),
        ({"prompt_count": 3}, "prompt_count = 3: this workbench was loaded with 8"),
        ({"dtype": "bfloat16", "system": ""}, "dtype = 'bfloat16': .*'float32'; system = '': "),
        ({"min_new_tokens": 12}, "min_new_tokens = 12: must be under max_new_tokens = 12"),
        ({"oracle": "nowhere:nothing"}, "oracle = 'nowhere:nothing': must be likelihood"),
    ],
    ids=range(5),
)
def test_what_a_workbench_refuses(bench, tmp_path, changes, message):
    with pytest.raises(ParameterError, match=message) as caught:
        play(bench, tmp_path / "run", **changes)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_random_weights_are_those_of_their_seed(few):
    bench = Workbench(settings(**{**few, "steps": 2}, weights="random"))
    with pytest.raises(ParameterError, match="seed = 1: this workbench was loaded with 42; other models"):
        play(bench, seed=1)
    assert len(play(bench, rule="kl")) == 2


def test_an_encoder_has_no_head_of_its_own(bench, tmp_path):
    with pytest.raises(ModelError, match="an encoder without a head of its own"):
        play(bench, tmp_path / "run", head_start="own")
    assert not list(tmp_path.iterdir())


def test_a_workbench_has_one_oracle_of_the_readers_own(bench):
    with pytest.raises(ParameterError, match="oracle: this workbench has another"):
        train(bench.settings, oracle=noisy, bench=bench)


def test_the_folder_names_the_workbenchs_oracle(few, tmp_path):
    play(Workbench(settings(**{**few, "steps": 2}), noisy), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))
    assert saved["oracle"] == "test_llm_workbench:noisy"


def test_parameters_are_checked_before_any_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("fpo.llm.workbench.Policy", None)
    cases = [
        ({"rule": "best"}, "rule = 'best': must be one of 'standard', 'relaxed'"),
        ({"gamma": -1.0}, "gamma = -1.0: must be None or a finite number from 0"),
        ({"top_p": 0.0}, "top_p = 0.0: must be a finite number from 0.01 to 1"),
        ({"stepz": 3}, "stepz = 3: no such parameter"),
        ({"min_new_tokens": 12}, "min_new_tokens = 12: must be under max_new_tokens = 12"),
        ({"oracle": "nowhere:nothing"}, "oracle = 'nowhere:nothing': must be likelihood, answer, or MODULE:FUNCTION"),
        ({"oracle": "math:pi"}, "not a function"),
    ]
    for changes, message in cases:
        with pytest.raises(ParameterError, match=message):
            train(settings(**{**tiny, **changes}), tmp_path / "run")
    with pytest.raises(ParameterError, match="profile = 'gpt': must be one of"):
        settings("gpt")
