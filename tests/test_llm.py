"""The loop: against its slow twin, what it records, its controls, and several processes."""

import json
import math

import llm_tools
import oracles
import pytest
import torch
import yaml

from fpo.llm import Pipeline, rules, settings, train
from fpo.llm.loop import Team, claimed, kept_settings
from fpo.llm.oracles import Agreement, distinct_2, head_pairs, repetition
from fpo.llm.prompts import Prompt, load_prompts, order


class Recorded(Pipeline):
    """A pipeline that keeps its windows."""

    def window(self, *args, **kwargs):
        made = super().window(*args, **kwargs)
        self.windows = [*getattr(self, "windows", []), made]
        return made


def compare_with_twin(chosen):
    """The fast loop and the slow twin on the same settings; returns the largest differences seen."""
    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    slow = oracles.SlowLoop(chosen)
    rows = [slow.step(position) for position in range(chosen.steps)]
    fast = Recorded(chosen)
    trace = fast.train()
    far = {"utility": 0.0, "score": 0.0, "loss": 0.0}
    for window in fast.windows:
        scores = window.rewards + chosen.weight() * window.penalties
        for i, position in enumerate(window.positions):
            row = rows[position]
            assert window.tokens[i] == row["tokens"], f"step {position}"
            assert int(window.winners[i]) == row["winner"]
            gaps = (window.utilities[i] - torch.tensor(row["utilities"])).abs().max()
            known = abs(float(window.reference.utility[i]) - row["reference_utility"])
            far["utility"] = max(far["utility"], float(gaps), known)
            far["score"] = max(far["score"], float((scores[i] - torch.tensor(row["scores"])).abs().max()))
            for name in ("head_loss", "policy_loss"):
                far["loss"] = max(far["loss"], abs(trace[position][name] - row[name]))
    learned = [value.detach() for value in fast.policy.adapter.values()]
    far["adapter"] = max(float((a - b.detach()).abs().max()) for a, b in zip(learned, slow.trained, strict=True))
    moved = max(float((a - b).abs().max()) for a, b in zip(learned, fast._start, strict=False))
    assert moved > 1e-5, "the policy did not learn: nothing was compared"
    far["head"] = float((slow.head.weight - fast.reward_model.head.weight).detach().abs().max())
    return far


def assert_agree(far):
    assert far["utility"] <= 1e-4
    assert max(far["score"], far["loss"], far["adapter"], far["head"]) <= 1e-5, far


@pytest.mark.parametrize("rule", ["standard", "relaxed", "practical"])
def test_agrees_with_the_slow_twin(tiny, rule):
    assert_agree(compare_with_twin(settings(**tiny, steps=8, rule=rule)))


def test_agrees_with_the_slow_twin_on_the_default_profile():
    """The packaged models, eight prompts; fewer and shorter candidates than the default's, for time's sake."""
    shorter = {"candidates": 2, "max_new_tokens": 8, "threads": 1}
    assert_agree(compare_with_twin(settings(rule="relaxed", steps=8, **shorter)))


# What a run records


@pytest.fixture(scope="module")
def pipeline(tiny):
    return Pipeline(settings(**tiny, steps=6))


FIELDS = {
    "step", "prompt", "rule", "reward", "utility", "winner", "winner_reward", "winner_utility", "reference_reward",
    "reference_utility", "p_phi", "p_star", "penalty_mean", "penalty_spread", "kl", "length", "distinct_2",
    "repetition", "empty", "head_loss", "policy_loss", "text", "labels", "machine",
}  # fmt: skip


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_plays(pipeline, rule, tmp_path):
    trace = pipeline.train(tmp_path / "run", rule=rule)
    assert trace == [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert [line["step"] for line in trace] == list(range(6))
    for line in trace:
        assert set(line) == FIELDS
        assert line["p_phi"] == pytest.approx(
            1 / (1 + math.exp(line["reference_reward"] - line["winner_reward"])), abs=1e-6
        )
        assert set(line["machine"]["seconds"]) == {"decode", "reward", "oracle", "select", "head", "policy"}
        assert 0 < line["machine"]["peak_gib"] < 100
    assert [line["labels"] for line in trace] == [rules.labels_used(rule, 3) * (i + 1) for i in range(6)]
    assert all(abs(line["kl"]) < 1e-3 for line in trace[:4]), "the adapter starts at zero: the policy is the base"


def test_all_rules_start_alike(pipeline):
    """Paired arms: the first window has the same candidates, whatever the rule."""
    first = {}
    for rule in ("standard", "practical", "random"):
        trace = pipeline.train(rule=rule)
        first[rule] = [(line["prompt"], line["reward"], line["utility"], line["length"]) for line in trace[:4]]
    assert first["standard"] == first["practical"] == first["random"]


def test_training_again_starts_again(pipeline):
    def numbers(trace):
        return [{key: value for key, value in line.items() if key != "machine"} for line in trace]

    assert numbers(pipeline.train(rule="relaxed")) == numbers(pipeline.train(rule="relaxed"))


def test_the_head_learns_the_preference(tiny):
    """With a large rate the RM comes to agree with the oracle on the comparisons it saw."""
    trace = train(settings(**tiny, steps=24, head_lr=0.05, policy_lr=0.0, prompt_count=4, head_ridge=1e-3))
    assert sum(line["head_loss"] for line in trace[-4:]) < sum(line["head_loss"] for line in trace[:4])


def test_measuring_the_winner_alone(pipeline):
    """The same winners and updates, fewer oracle values; a rule that reads all labels is not spared them."""
    full, spared = pipeline.train(rule="practical"), pipeline.train(rule="practical", measure="winner")
    assert [line["winner"] for line in full] == [line["winner"] for line in spared]
    assert [line["policy_loss"] for line in full] == [line["policy_loss"] for line in spared]
    assert all(line["utility"] is None for line in spared)
    for a, b in zip(full, spared, strict=True):
        assert a["winner_utility"] == pytest.approx(b["winner_utility"], abs=1e-5)
    relaxed = pipeline.train(rule="relaxed", measure="winner")
    assert [line["winner"] for line in relaxed] == [line["winner"] for line in pipeline.train(rule="relaxed")]


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
    made = Pipeline(chosen)
    texts = ["a text", "another and longer text", ""]
    found = made.reward_model.rewards(made.reward_model.features(texts))
    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, reward in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = model.eval()(**words(text, return_tensors="pt")).logits[0, 0]
        assert float(reward) == pytest.approx(float(expected), abs=1e-5)
    before = made.reward_model.head.weight.clone()
    made.train()
    assert not torch.equal(before, made.reward_model.head.weight)


# Oracles and prompts


def shout(prompts, responses):
    """An oracle of the reader's own: as many points as letters."""
    return [float(len(response)) for response in responses]


def test_an_oracle_of_ones_own(tiny):
    by_name = train(settings(**tiny, steps=4, oracle="test_llm:shout"))
    by_hand = train(settings(**tiny, steps=4), oracle=shout)
    assert [line["utility"] for line in by_name] == [line["utility"] for line in by_hand]
    assert all(line["winner_utility"] == len(line["text"]) for line in by_hand)


def test_another_oracle_is_another_run(tiny, tmp_path):
    from fpo.llm import FolderError

    chosen = settings(**tiny, steps=2, window=2)
    train(chosen, tmp_path / "run", oracle=shout)
    with pytest.raises(FolderError, match="oracle = 'test_llm:shout' there, 'likelihood' now"):
        train(chosen, tmp_path / "run")


def test_a_prompt_that_comes_again_costs_no_reference(tiny):
    trace = train(settings(**tiny, steps=6, prompt_count=4, window=2))
    assert [line["labels"] for line in trace] == [2, 4, 6, 8, 9, 10]


def test_agreement_ranks_answers():
    """A correct answer above a wrong one, and above itself repeated: on nearly all packaged prompts."""
    from fpo.llm import RewardModel

    judge = Agreement(RewardModel(settings()))
    prompts = load_prompts("packaged", 500)
    right = judge(prompts, [prompt.correct[1] for prompt in prompts])
    wrong = judge(prompts, [prompt.incorrect[0] for prompt in prompts])
    twice = judge(prompts, [f"{prompt.correct[1]} {prompt.correct[1]}" for prompt in prompts])
    nothing = judge(prompts, ["" for _ in prompts])
    assert sum(a > b for a, b in zip(right, wrong, strict=True)) >= 0.97 * len(prompts)
    assert all(a > b for a, b in zip(right, twice, strict=True))
    assert all(-4 <= value < min(a, 8) for value, a in zip(nothing, right, strict=True))


def test_text_measures():
    assert repetition("") == 0 and repetition("one two three") == 0
    assert distinct_2(["one"]) == 0 and distinct_2(["a b a b"]) == pytest.approx(2 / 3)


def test_head_pairs_have_the_planted_fault():
    prompt = Prompt("1", "Why?", ("Because it is so.",), ("Because not.", "No reason."))
    better, worse = head_pairs([prompt], "answers", seed=0)
    assert better == ["Because it is so."] * 2 and worse == ["Because not.", "No reason."]
    better, worse = head_pairs([prompt], "blind spot", seed=0)
    assert better[1].endswith(worse[1]) and len(better[1]) > len(worse[1])
    assert sorted(worse[0].split()) == sorted(better[0].split())


def test_packaged_prompts():
    train_set, held_out = load_prompts("packaged", 10**6), load_prompts("packaged:heldout", 10**6)
    assert len(train_set) >= 160 and len(held_out) >= 80
    texts = [prompt.text.lower() for prompt in (*train_set, *held_out)]
    assert len(set(texts)) == len(texts)
    for prompt in (*train_set, *held_out):
        assert len(prompt.correct) >= 2 and len(prompt.incorrect) >= 2 and prompt.keywords, prompt.id
        assert not set(prompt.correct) & set(prompt.incorrect)
        for answer in (*prompt.correct, *prompt.incorrect):
            assert 3 <= len(answer.split()) <= 22, (prompt.id, answer)


def test_every_prompt_once_before_any_again():
    taken = order(5, 13, seed=3)
    assert sorted(taken[:5]) == sorted(taken[5:10]) == list(range(5)) and len(taken) == 13
    assert taken != order(5, 13, seed=4)


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
    for a, b in zip(one, two, strict=True):
        assert (a["prompt"], a["winner"], a["text"], a["labels"]) == (b["prompt"], b["winner"], b["text"], b["labels"])
        for name in ("reward", "utility", "penalty_mean", "head_loss", "policy_loss"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")]
    for key, value in states[0]["adapter"].items():
        assert torch.allclose(value, states[1]["adapter"][key], atol=1e-5), key
    assert torch.allclose(states[0]["head"]["weight"], states[1]["head"]["weight"], atol=1e-5)


def test_a_folder_is_claimed_once(tiny, tmp_path):
    from fpo.llm import FolderError

    with claimed(tmp_path / "run", kept_settings(settings(**tiny)), Team()):
        with pytest.raises(FolderError, match="in use"):
            train(settings(**tiny), tmp_path / "run")
