"""The loop: against its slow twin, what it records, its controls, and several processes."""

import json
import math
import subprocess
import sys

import pytest
import slow.llm
import torch
import yaml
from tools import llm as llm_tools
from tools.llm import numbers, play

from fpo.llm import FolderError, Policy, Workbench, Writer, settings, train
from fpo.rules import RULES


def compare_with_twin(chosen, monkeypatch):
    """The fast loop and the slow twin on the same settings; returns the largest differences seen."""
    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    twin = slow.llm.SlowLoop(chosen)
    rows = [twin.step(position) for position in range(chosen.steps)]
    fast, windows, write = Workbench(chosen), [], Writer.window

    def recorded(*args, **kwargs):
        windows.append(write(*args, **kwargs))
        return windows[-1]

    monkeypatch.setattr(Writer, "window", recorded)
    trace = train(chosen, bench=fast)
    far = {"utility": 0.0, "score": 0.0, "loss": 0.0}
    for window in windows:
        scored = window.scored
        scores = scored.rewards + chosen.weight() * window.penalty
        for i, position in enumerate(window.positions):
            row = rows[position]
            assert window.tokens[i] == row["tokens"], f"step {position}"
            assert int(window.winner[i]) == row["winner"]
            gaps = (scored.utilities[i] - torch.tensor(row["utilities"])).abs().max()
            known = abs(float(scored.reference.utility[i]) - row["reference_utility"])
            far["utility"] = max(far["utility"], float(gaps), known)
            far["score"] = max(far["score"], float((scores[i] - torch.tensor(row["scores"])).abs().max()))
            for name in ("head_loss", "policy_loss"):
                far["loss"] = max(far["loss"], abs(trace[position][name] - row[name]))
    learned = [value.detach() for value in fast.policy.adapter.values()]
    first = [value.detach() for value in Policy(chosen).adapter.values()]
    apart = torch.cat([(a - b.detach()).flatten() for a, b in zip(learned, twin.trained, strict=True)])
    moved = torch.cat([(a - b).flatten() for a, b in zip(learned, first, strict=True)])
    assert moved.abs().max() > 1e-5, "the policy did not learn: nothing was compared"
    # But for one weight in 100,000: AdamW divides a gradient by its size, so rounding can turn a step that was next to
    # none. What is left out counts in the distance of all together.
    far["adapter"] = float(apart.abs().kthvalue(len(apart) - len(apart) // 100_000).values)
    far["together"] = float(apart.norm() / moved.norm())
    far["head"] = float((twin.head.weight - fast.reward_model.head.weight).detach().abs().max())
    return far


def assert_agree(far):
    assert far["utility"] <= 1e-4
    assert max(far["score"], far["loss"], far["adapter"], far["head"]) <= 1e-5, far
    assert far["together"] <= 2e-3, far


@pytest.mark.parametrize("rule", ["standard", "relaxed", "practical"])
def test_agrees_with_the_slow_twin(tiny, rule, monkeypatch):
    assert_agree(compare_with_twin(settings(**tiny, steps=8, rule=rule), monkeypatch))


def test_agrees_with_the_slow_twin_on_the_default_profile(monkeypatch):
    """The packaged models, two windows; fewer prompts and candidates than by default, and shorter, for time's sake."""
    shorter = {"prompt_count": 24, "steps": 4, "window": 2, "candidates": 2, "max_new_tokens": 8, "threads": 1}
    assert_agree(compare_with_twin(settings(rule="relaxed", **shorter), monkeypatch))


# What a run records


@pytest.fixture(scope="module")
def bench(tiny):
    return Workbench(settings(**tiny, steps=6))


FIELDS = {
    "step", "prompt", "rule", "reward", "utility", "winner", "winner_reward", "winner_utility", "reference_reward",
    "reference_utility", "p_phi", "p_star", "penalty_mean", "penalty_spread", "kl", "length", "distinct_2",
    "repetition", "empty", "head_loss", "policy_loss", "text", "labels_asked", "labels_needed", "machine",
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_plays(bench, rule, tmp_path):
    trace = play(bench, tmp_path / "run", rule=rule)
    assert trace == [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert [line["step"] for line in trace] == list(range(6))
    for line in trace:
        assert set(line) == FIELDS
        assert line["p_phi"] == pytest.approx(
            1 / (1 + math.exp(line["reference_reward"] - line["winner_reward"])), abs=1e-6
        )
        assert set(line["machine"]["seconds"]) == {"decode", "reward", "oracle", "select", "head", "policy"}
        assert 0 < line["machine"]["peak_gib"] < 100
    assert [line["labels_needed"] for line in trace] == [RULES[rule].labels(3) * (i + 1) for i in range(6)]
    assert all(abs(line["kl"]) < 1e-3 for line in trace[:4]), "the adapter starts at zero: the policy is the base"


def test_all_rules_start_alike(bench):
    """Paired arms: the first window has the same candidates, whatever the rule."""
    first = {}
    for rule in ("standard", "practical", "random"):
        trace = play(bench, rule=rule)
        first[rule] = [(line["prompt"], line["reward"], line["utility"], line["length"]) for line in trace[:4]]
    assert first["standard"] == first["practical"] == first["random"]


def test_training_again_starts_again(bench):
    assert numbers(play(bench, rule="relaxed")) == numbers(play(bench, rule="relaxed"))


def test_the_head_learns_the_preference(tiny):
    """With a large rate the RM comes to agree with the oracle on the comparisons it saw."""
    trace = train(settings(**tiny, steps=24, head_lr=0.05, policy_lr=0.0, prompt_count=4, head_ridge=1e-3))
    assert sum(line["head_loss"] for line in trace[-4:]) < sum(line["head_loss"] for line in trace[:4])


def test_measuring_the_winner_alone(bench):
    """The same winners and updates, fewer oracle values; a rule that reads all labels is not spared them."""
    full, spared = play(bench, rule="practical"), play(bench, rule="practical", measure="winner")
    assert [line["winner"] for line in full] == [line["winner"] for line in spared]
    assert [line["policy_loss"] for line in full] == [line["policy_loss"] for line in spared]
    assert all(line["utility"] is None for line in spared)
    for a, b in zip(full, spared, strict=True):
        assert a["winner_utility"] == pytest.approx(b["winner_utility"], abs=1e-5)
    relaxed = play(bench, rule="relaxed", measure="winner")
    assert [line["winner"] for line in relaxed] == [line["winner"] for line in play(bench, rule="relaxed")]


def test_a_window_that_is_cut_short(tiny):
    assert len(train(settings(**tiny, steps=5, window=4))) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"reward_reads": "prompt and response"},
        {"oracle": "answer"},
        {"oracle": "answer", "head_start": "blind spot", "learn_from": "response"},
        {"head_start": "zero", "rule": "exact"},
        {"lora_dropout": 0.1, "reward_dropout": "update and standard scores"},
        {"gradient_checkpointing": True},
        {"dtype": "bfloat16"},
        {"weights": "random"},
        {"system": ""},
        {"buffer_size": 0, "rule": "leverage"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_settings_play(tiny, changes):
    trace = train(settings(**{**tiny, "steps": 4, "window": 2, **changes}))
    assert all(math.isfinite(line["policy_loss"]) for line in trace)


def test_reading_the_prompt_changes_the_reward(tiny):
    first = [
        train(settings(**tiny, steps=1, reward_reads=reads))[0]["reward"]
        for reads in ("response", "prompt and response")
    ]
    assert first[0] != first[1]


def test_gradient_checkpointing_changes_nothing(tiny):
    both = [train(settings(**tiny, steps=8, gradient_checkpointing=on)) for on in (False, True)]
    for a, b in zip(*both, strict=True):
        assert a["policy_loss"] == pytest.approx(b["policy_loss"], abs=1e-5)


def test_a_classifier_keeps_its_head(tiny, tmp_path):
    """The features times the kept head are the classifier's own output, and the head is what learns."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = llm_tools.make_classifier(tmp_path)
    chosen = settings(**{**tiny, "reward_model": folder}, head_start="own", steps=4, rule="relaxed")
    made = Workbench(chosen)
    texts = ["a text", "another and longer text", ""]
    found = made.reward_model.rewards(made.reward_model.features(texts))
    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, reward in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = model.eval()(**words(text, return_tensors="pt")).logits[0, 0]
        assert float(reward) == pytest.approx(float(expected), abs=1e-5)
    before = made.reward_model.head.weight.clone()
    train(chosen, bench=made)
    assert not torch.equal(before, made.reward_model.head.weight)


def shout(prompts, responses):
    """An oracle of the reader's own: as many points as letters."""
    return [float(len(response)) for response in responses]


def test_an_oracle_of_ones_own(tiny):
    by_name = train(settings(**tiny, steps=4, oracle="test_llm:shout"))
    by_hand = train(settings(**tiny, steps=4), oracle=shout)
    assert [line["utility"] for line in by_name] == [line["utility"] for line in by_hand]
    assert all(line["winner_utility"] == len(line["text"]) for line in by_hand)


def test_another_oracle_is_another_run(tiny, tmp_path):
    chosen = settings(**tiny, steps=2, window=2)
    train(chosen, tmp_path / "run", oracle=shout)
    with pytest.raises(FolderError, match="oracle = 'test_llm:shout' there, 'likelihood' now"):
        train(chosen, tmp_path / "run")


@pytest.mark.parametrize("when", ["at once", "as they come"])
def test_labels_are_counted_as_asked_and_as_needed(tiny, when):
    """What the trace measures is asked for and not needed; a prompt that comes again costs no reference."""
    chosen = settings(**tiny, steps=6, prompt_count=4, window=2, reference_labels=when)
    trace = train(chosen)
    assert [line["labels_needed"] for line in trace] == [2, 4, 6, 8, 9, 10]
    asked = {"at once": [7, 10, 13, 16, 19, 22], "as they come": [4, 8, 12, 16, 19, 22]}
    assert [line["labels_asked"] for line in trace] == asked[when]
    lean = train(chosen.replace(measure="winner"))
    assert lean[-1]["labels_asked"] == lean[-1]["labels_needed"] == 10
    every = train(chosen.replace(measure="winner", head_learns="candidates"))
    assert every[-1]["labels_asked"] == every[-1]["labels_needed"] == 22


# Several processes


def test_two_processes_agree_with_one(tiny, tmp_path):
    values = {**tiny, "steps": 8, "rule": "exact"}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    # Rank 0 of the launcher needs a free port; 0 lets it choose one.
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "fpo.llm"]
    code, told = llm_tools.finish(llm_tools.start([*launch, str(tmp_path / "two"), "--file", str(file)]))
    assert code == 0, told
    one = train(settings(**values), tmp_path / "one")
    two = llm_tools.trace(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(8))
    same = ("prompt", "winner", "text", "labels_asked", "labels_needed")
    for a, b in zip(one, two, strict=True):
        assert [a[name] for name in same] == [b[name] for name in same]
        for name in ("reward", "utility", "penalty_mean", "head_loss", "policy_loss"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")]
    for key, value in states[0]["adapter"].items():
        assert torch.allclose(value, states[1]["adapter"][key], atol=1e-5), key
    assert torch.allclose(states[0]["head"]["weight"], states[1]["head"]["weight"], atol=1e-5)


def test_the_module_is_not_needed_for_the_rest():
    """The controlled games do without transformers."""
    script = "import sys, fpo.linear, fpo.neural, fpo.steering, fpo.results; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
