"""Rewards and callbacks for somebody else's trainer, as plain functions: no trainer is needed here."""

import os
import pickle
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from fpo import rules
from fpo.llm import Workbench, Writer, settings, train
from fpo.llm.decoding import uniforms
from fpo.llm.head import Comparisons, comparison_solver
from fpo.monitor import Monitor
from fpo.parameters import ParameterError
from fpo.trl import HeadReward, MonitorCallback, RetrainReward, SteeredReward
from fpo.trl.callbacks import check_trainer, known
from fpo.trl.options import USABLE

QUESTIONS = ["Why is the sky blue?", "What do cats eat?", "Name a river."]
WORDS = ["light", "air", "", "mice and fish", "the Nile", "a very long answer that says little", "no", "blue blue blue"]


def rows(groups=3, size=4, seed=0):
    """Prompts, completions and references, a prompt's rows next to each other; one completion is empty."""
    generator = np.random.default_rng(seed)
    prompts = [QUESTIONS[i % 3] for i in range(groups) for _ in range(size)]
    completions = [" ".join(generator.choice(WORDS, 3)) + f" {i}" for i in range(groups * size)]
    completions[1] = " "
    return prompts, completions, [f"It is {prompt.split()[-1]}" for prompt in prompts]


def utility(prompts, completions, **columns):
    """Points for letters, as a reward function of TRL gives them."""
    return [0.3 * len(set(said)) - 0.01 * len(said) for said in completions]


@pytest.fixture(scope="module")
def encoder(tiny):
    return AutoModel.from_pretrained(tiny["reward_model"]), AutoTokenizer.from_pretrained(tiny["reward_model"])


def made(encoder, rule="practical", **how):
    model, words = encoder
    head = torch.from_numpy(np.random.default_rng(1).normal(size=32)).float()
    rm = HeadReward(model, words, head=how.pop("head", head), reads=how.pop("reads", "prompt and response"))
    return SteeredReward(rm, rule, **{"oracle": utility, **how})


def judged(reward, prompts, completions, references, size=4):
    """The same window for `fpo.rules`, by hand."""
    rm = reward.rm
    features = rm.read(prompts, completions).view(-1, size, 32)
    reference = rm.read(prompts[::size], references[::size])
    empty = torch.tensor([not said.strip() for said in completions]).view(-1, size)
    labels = torch.tensor(utility(prompts, completions)).view(-1, size)
    own = torch.tensor(utility(prompts[::size], references[::size]))
    there = features[~empty]
    return rules.Candidates(
        features @ rm.head.weight[0], features, torch.where(empty, own[:, None], labels), empty,
        rules.Reference(reference @ rm.head.weight[0], reference, own),
        mean_gradient=there.mean(0), mean_difference=(features - reference[:, None])[~empty].mean(0),
        solve=comparison_solver(reward.comparisons().differences, rm.head.weight[0], reward.options.ridge),
        uniform=torch.from_numpy(np.stack([uniforms(0, "winner", i, (size,)) for i in range(len(features))])),
        other=reference.roll(1, 0),
    )  # fmt: skip


@pytest.mark.parametrize("rule", USABLE)
def test_scores_and_winners_are_those_of_the_rules(encoder, rule):
    prompts, completions, references = rows()
    reward = made(encoder, rule, gamma=0.7)
    reward.add(QUESTIONS, ["good", "better", "best"], ["bad", "worse", "worst"])
    seen = judged(reward, prompts, completions, references)
    wanted = rules.choose(rule, seen, 0.7 if rules.RULES[rule].gamma else 0.0)
    found = reward(prompts=prompts, completions=completions, reference=references)
    assert [value is None for value in found] == seen.empty.flatten().tolist()
    values = torch.tensor([np.nan if value is None else value for value in found]).view(3, 4)
    assert torch.allclose(values[~seen.empty], wanted.scores[~seen.empty], atol=1e-5)
    assert not torch.allclose(values[~seen.empty], seen.rewards[~seen.empty]) or not wanted.penalty.any()
    for group, winner in enumerate(wanted.winner.tolist()):
        (difference,), (preference,) = (
            (part[None] if part.dim() < 2 else part for part in [*reward.fresh[group]][:1]),
            (reward.fresh[group].preferences),
        )
        assert torch.allclose(difference, seen.features[group, winner] - seen.reference.features[group], atol=1e-6)
        assert float(preference) == pytest.approx(float(seen.preferences()[group, winner]), abs=1e-6)


def test_the_rules_that_a_reward_cannot_have(encoder):
    assert set(rules.RULES) - set(USABLE) == {"kl"}
    with pytest.raises(ParameterError, match="rule = 'kl': must be one of"):
        made(encoder, "kl")


def test_the_head_after_one_update_is_the_loops(tiny):
    """The loop's own texts, read and labeled by the reward, move its head to where the loop moves it."""

    def loud(prompts, responses):
        return [0.1 * len(text) for text in responses]

    bench = Workbench(settings(**tiny, steps=3, window=3, head_lr=0.01), loud)
    for rule, update in [("leverage", "step"), ("exact", "step"), ("relaxed", "refit")]:
        chosen = bench.settings.replace(rule=rule, gamma=0.3, head_update=update)
        writer = Writer(bench, chosen)
        writer.make_references(range(3))
        window = writer.window(range(3))
        before = bench.reward_model.head.weight.detach().clone()
        rm = HeadReward(
            AutoModel.from_pretrained(tiny["reward_model"]), bench.reward_model.tokenizer, head=before[0],
            reads="response", max_length=128,
        )  # fmt: skip
        reward = SteeredReward(rm, rule, 0.3, oracle=lambda prompts, completions, **_: loud(prompts, completions))
        first = writer.first_comparisons
        reward._kept = Comparisons(first.differences, first.preferences)
        prompts = [prompt.text for prompt in window.prompts for _ in range(3)]
        said = [text for group in window.texts for text in group]
        references = [text for text in window.reference_texts for _ in range(3)]
        found = reward(prompts=prompts, completions=said, reference=references)
        scores = torch.tensor([np.nan if value is None else value for value in found]).view(3, 3)
        assert scores.nan_to_num(-1e9).argmax(1).tolist() == window.winner.tolist()
        RetrainReward(reward, lr=0.01, replay=0.0, fit=update).update()
        train(chosen, bench=bench)
        after = bench.reward_model.head.weight
        assert float((after - before).detach().abs().max()) > 1e-3
        assert torch.allclose(rm.head.weight, after, atol=1e-5 if update == "step" else 1e-3), rule


def test_rows_of_online_dpo_are_put_together(encoder):
    """Rows i and i + rows / 2 are one prompt's: the same rewards in another order."""
    prompts, completions, references = rows(size=2)
    near, far = made(encoder, gamma=1.0), made(encoder, gamma=1.0, order="strided")
    wanted = near(prompts=prompts, completions=completions, reference=references)
    order = [0, 2, 4, 1, 3, 5]
    found = far(**{
        name: [values[i] for i in order]
        for name, values in [("prompts", prompts), ("completions", completions), ("reference", references)]
    })  # fmt: skip
    assert found == [wanted[i] for i in order]
    with pytest.raises(ValueError, match=r"no groups of equal size .*2, 2, 1\): see order"):
        near(prompts=prompts[:5], completions=completions[:5], reference=references[:5])
    with pytest.raises(ValueError, match="5 rows in order = 'strided'"):
        far(prompts=prompts[:5], completions=completions[:5], reference=references[:5])


def test_the_mean_of_a_group_as_reference(encoder):
    prompts, completions, _ = rows()
    reward = made(encoder, "practical-centered", gamma=2.0, reference="group")
    found = reward(prompts=prompts, completions=completions)
    features = reward.rm.read(prompts, completions).view(3, 4, 32)
    keep = torch.tensor([[i for i in range(4) if (group, i) != (0, 1)][:3] for group in range(3)])
    first = features[0, keep[0]]
    wanted = reward.rm.rewards(first) - 2.0 * (first - first.mean(0)).square().sum(-1)
    assert [found[i] for i in (0, 2, 3)] == pytest.approx(wanted.tolist(), abs=1e-5)
    labels = torch.tensor(utility(prompts, completions))[[0, 2, 3]]
    winner = int(wanted.argmax())
    assert float(reward.fresh[0].preferences) == pytest.approx(float((labels[winner] - labels.mean()).sigmoid()))
    with pytest.raises(ValueError, match="a group of one completion has no mean"):
        reward(prompts=QUESTIONS, completions=["a", "b", "c"])


def test_all_pairs_are_learned(encoder):
    prompts, completions, references = rows()
    reward = made(encoder, gamma=0.0, pairs="all")
    reward(prompts=prompts, completions=completions, reference=references)
    assert [len(each.preferences) for each in reward.fresh] == [3, 4, 4]
    assert len(reward.comparisons().preferences) == 11
    short = made(encoder, gamma=0.0, pairs="all", buffer=5)
    short(prompts=prompts, completions=completions, reference=references)
    assert torch.equal(short.comparisons().preferences, reward.comparisons().preferences[-5:])


def test_a_judge_of_pairs_takes_the_oracles_place(encoder):
    """The log-odds of its preferences stand for utilities, the reference's being 0."""
    prompts, completions, references = rows()
    asked = []

    def judge(prompts, completions, references, **columns):
        asked.extend(zip(prompts, completions, references, strict=True))
        return [1 / (1 + np.exp(-0.1 * (len(a) - len(b)))) for a, b in zip(completions, references, strict=True)]

    reward = made(encoder, "relaxed", gamma=1.0, oracle=None, preference=judge)
    found = reward(prompts=prompts, completions=completions, reference=references)
    by_length = made(encoder, "relaxed", gamma=1.0, scale=0.1, oracle=lambda completions, **_: map(len, completions))
    wanted = by_length(prompts=prompts, completions=completions, reference=references)
    assert [x for x in found if x] == pytest.approx([x for x in wanted if x], abs=1e-5)
    assert len(asked) == len(set(asked)) == 11 and {c for _, _, c in asked} == set(references)
    with pytest.raises(RuntimeError, match="a preference of 2: must be from 0 to 1"):
        labels = {"labels": quick()}
        made(encoder, "relaxed", oracle=None, preference=lambda prompts, **_: [2.0] * len(prompts), **labels)(
            prompts=prompts, completions=completions, reference=references
        )


def quick():
    from fpo.llm.labels import Labels

    return Labels(wait=0.0)


def test_the_weight_is_set_by_the_spreads_and_freezes(encoder):
    reward = made(encoder, "practical", ratio=0.5, warmup=5)
    spreads = np.zeros(2)
    for seed in range(3):
        prompts, completions, references = rows(seed=seed)
        seen = judged(reward, prompts, completions, references)
        found = reward(prompts=prompts, completions=completions, reference=references)
        if seed < 2:
            assert found[0] == pytest.approx(float(seen.rewards[0, 0]), abs=1e-6)
            for place, values in enumerate([seen.rewards, rules.practical(seen)]):
                spreads[place] += sum(float(v[~e].std(correction=0)) for v, e in zip(values, seen.empty, strict=True))
            assert (reward.gamma is None) == (seed == 0)  # 3 groups, then 6: at least 5
    assert reward.gamma == pytest.approx(0.5 * spreads[0] / spreads[1], rel=1e-4)
    wanted = float(seen.rewards[0, 0] + reward.gamma * rules.practical(seen)[0, 0])
    assert found[0] == pytest.approx(wanted, abs=1e-5)


def test_a_penalty_that_does_not_vary_yet_does_not_count(encoder):
    """Leverage is 0 before the first comparison: no weight can be read off it."""
    prompts, completions, references = rows()
    reward = made(encoder, "leverage", warmup=2)
    reward(prompts=prompts, completions=completions, reference=references)
    assert reward.gamma is None
    reward(prompts=prompts, completions=completions, reference=references)
    assert reward.gamma > 0


@pytest.mark.parametrize("rule", ["standard", "random", "best-of-u"])
def test_a_rule_without_a_weight_needs_no_warm_up(encoder, rule):
    assert made(encoder, rule).gamma == 0.0


def test_columns_reach_the_oracle_and_every_text_is_paid_for_once(encoder, tmp_path):
    prompts, completions, references = rows()
    paid = []

    def oracle(prompts, completions, topic, reference, **columns):
        paid.extend(zip(prompts, completions, topic, strict=True))
        return [float(len(said)) for said in completions]

    topics = [prompt[:3] for prompt in prompts]
    for _ in range(2):
        reward = made(encoder, "relaxed", gamma=1.0, oracle=oracle, labels=tmp_path / "labels.sqlite")
        for _ in range(2):
            reward(prompts=prompts, completions=completions, reference=references, topic=topics)
    assert len(paid) == len(set(paid)) == 11 + 3
    assert all(topic == prompt[:3] for prompt, _, topic in paid)


def test_a_probe_shares_the_labels(encoder):
    """What the reward has paid for the probe does not ask for, and the other way round; nobody pays for silence."""
    prompts, completions, references = rows()
    paid = []

    def oracle(prompts, completions, topic, **columns):
        paid.extend(zip(prompts, completions, topic, strict=True))
        return [float(len(said)) for said in completions]

    reward = made(encoder, "practical", gamma=1.0, oracle=oracle)
    window = {"prompts": prompts, "completions": completions, "reference": references, "topic": prompts}
    reward(**window)
    assert len(paid) == 6
    for _ in range(2):
        found = reward.probe(**window, completion_ids=[[1]] * 12, log_metric=None)
        assert found == [None if not said.strip() else float(len(said)) for said in completions]
        reward(**window)
        assert len(paid) == len(set(paid)) == 11 + 3
    assert reward.probe.__name__ == "probe"
    with pytest.raises(ParameterError, match="the reward has no oracle"):
        made(encoder, oracle=None).probe(prompts, completions)


def test_only_the_winners_are_labeled_where_nothing_else_is_read(encoder):
    prompts, completions, references = rows()
    paid = []

    def oracle(prompts, completions, **columns):
        paid.extend(completions)
        return [float(len(said)) for said in completions]

    made(encoder, "practical", gamma=1.0, oracle=oracle)(prompts=prompts, completions=completions, reference=references)
    assert len(paid) == 6 and set(references) < set(paid)


def test_what_is_logged_and_shown(encoder):
    prompts, completions, references = rows()
    logged, extra, state = {}, {}, SimpleNamespace(global_step=1, is_world_process_zero=True, log_history=[])
    reward = made(encoder, "practical", gamma=0.5)
    found = reward(
        prompts=prompts, completions=completions, completion_ids=[[1, 2]] * 12, reference=references,
        trainer_state=state, log_metric=logged.__setitem__, log_extra=extra.__setitem__,
    )  # fmt: skip
    assert {"fpo/reward", "fpo/penalty_spread", "fpo/gamma", "fpo/winner_utility", "fpo/p_star"} <= set(logged)
    rewards = state.fpo_window["rewards"].flatten()
    assert found[0] == pytest.approx(rewards[0] + 0.5 * extra["fpo_penalty"][0], abs=1e-5)
    assert extra["fpo_penalty"][1] is None and state.fpo_window["lengths"].tolist() == [[2.0] * 4] * 3
    seen = []
    monitor = SimpleNamespace(record=lambda step, **window: seen.append((step, window)) or ["an alarm"])
    control = SimpleNamespace(should_training_stop=False)
    for stop in (False, True):
        state.fpo_window = reward_window(encoder)
        MonitorCallback(monitor, stop=stop).on_step_end(None, state, control)
        assert control.should_training_stop is stop
    assert state.log_history == [{"step": 1, "fpo/alarm": "an alarm"}] * 2
    reward(prompts, completions, reference=references, trainer_state=state, log_metric=logged.__setitem__)
    assert logged["fpo/alarms"] == 1.0 and len(seen) == 2
    del state.fpo_window
    MonitorCallback(monitor).on_step_end(None, state, control)  # nothing new was written
    assert len(seen) == 2 and set(seen[0][1]) <= {
        *("rewards", "utilities", "p_phi", "p_star", "kl", "lengths", "texts", "features", "frozen_rewards")
    }
    monitor.step = 1
    state.fpo_window = reward_window(encoder)
    MonitorCallback(monitor).on_step_end(None, state, control)  # a step that was recorded before
    assert len(seen) == 2


def test_an_empty_group_takes_no_signal_away(encoder, tmp_path):
    """Not from the first record, which says what is watched, and not from a later one; nobody's labels are none."""
    prompts, completions, references = rows()
    empty = [""] * 4
    windows = [empty + completions[4:], completions, empty * 3, completions[:8] + empty]
    for oracle, signals in [(utility, {"gap", "agreement"}), (None, set())]:
        reward, monitor = made(encoder, oracle=oracle, pairs="all"), Monitor(path=tmp_path / f"{not oracle}.npz")
        callback = MonitorCallback(monitor)
        for step, said in enumerate([empty * 3, *windows]):
            state = SimpleNamespace(global_step=step, is_world_process_zero=True, log_history=[])
            reward(prompts=prompts, completions=said, reference=references, trainer_state=state)
            assert (known(state.fpo_window) is None) is (said == empty * 3)
            callback.on_step_end(None, state, SimpleNamespace(should_training_stop=False))
        assert monitor.step == 4
        found = monitor.report()["signals"]
        assert {name: found[name]["values"] for name in signals} == dict.fromkeys(signals, 3)
        assert ("gap" in found) is bool(oracle) and found["drift"]["values"] == 2


def reward_window(encoder):
    state = SimpleNamespace()
    prompts, completions, references = rows()
    made(encoder)(prompts=prompts, completions=completions, reference=references, trainer_state=state)
    return state.fpo_window


def test_replay_mixes_in_what_was_learned_before(encoder):
    """The gradient is the share's mean of new and old; with none of it, or no old ones, the new alone."""
    prompts, completions, references = rows()
    reward = made(encoder, gamma=0.0, pairs="all")
    callback = RetrainReward(reward, lr=0.0, replay=0.25)
    reward(prompts=prompts, completions=completions, reference=references)
    callback.update()
    alone = reward.rm.head.weight.grad.clone()
    reward(prompts=prompts, completions=completions, reference=references)
    callback.update()  # new and old are the same 11 comparisons, and all of them are drawn
    d, p = (values[:11] for values in reward.comparisons())
    every = (((d @ reward.rm.head.weight[0]).sigmoid() - p)[:, None] * d).mean(0)
    assert torch.allclose(reward.rm.head.weight.grad, 0.75 * alone + 0.25 * every, atol=1e-6)
    assert not torch.allclose(alone, every, atol=1e-4)


def test_a_decoders_own_logit_is_its_reward(tiny, tmp_path):
    """Also under the chat template, where texts end with what the tokenizer pads with."""
    words = AutoTokenizer.from_pretrained(tiny["policy"])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(3)
    config = LlamaConfig(
        **shape, vocab_size=len(words), num_labels=1, pad_token_id=words.pad_token_id, initializer_range=0.3
    )
    model = LlamaForSequenceClassification(config).eval()
    rm = HeadReward(model, words)
    chats = [[{"role": "user", "content": prompt}] for prompt in QUESTIONS]
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "a longer answer", "no answer at all")]
    shown = [words.apply_chat_template([*chat, *text], tokenize=False) for chat, text in zip(chats, said, strict=True)]
    joined = [a + b for a, b in zip(QUESTIONS, ["yes", "a longer answer", "no answer at all"], strict=True)]
    for found, texts in [
        (rm.read(chats, said), shown),
        (rm.read(QUESTIONS, ["yes", "a longer answer", "no answer at all"]), joined),
    ]:
        with torch.no_grad():
            read = words(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
            wanted = model(**read).logits[:, 0]
        assert torch.allclose(rm.rewards(found), wanted, atol=1e-5)
    bare = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(words))).eval()
    rm = HeadReward(bare, words, reads="response")
    with torch.no_grad():
        alone = bare.model(**words("a longer answer", return_tensors="pt")).last_hidden_state[0, -1]
    assert torch.allclose(rm.read(QUESTIONS, said)[1], alone, atol=1e-5) and not rm.head.weight.any()


@pytest.mark.parametrize(
    "faulty, message",
    [
        ({"ratio": -1.0}, "ratio = -1.0: must be a finite number from 0 to 1000"),
        ({"order": "random"}, "order = 'random': must be one of 'consecutive', 'strided'"),
        ({"oracle": None, "rule": "exact"}, "rule = 'exact' reads labels: give an oracle or a preference"),
        ({"preference": utility}, "oracle and preference are both given"),
        ({"oracle": None, "preference": utility, "reference": "group"}, "preference compares with a response"),
    ],
)
def test_a_bad_reward_is_refused(encoder, faulty, message):
    with pytest.raises(ParameterError, match=message):
        made(encoder, **faulty)


def test_other_bad_input_is_refused(encoder):
    model, words = encoder
    for faulty, message in [
        ({"reads": "all"}, "reads = 'all'"),
        ({"batch": 0}, "batch = 0: must be a whole number, 1 or more"),
        ({"head": torch.zeros(3)}, r"head of shape \(3,\): must be \(32,\)"),
    ]:
        with pytest.raises(ParameterError, match=message):
            HeadReward(model, words, **faulty)
    reward = made(encoder)
    with pytest.raises(ValueError, match="no column reference"):
        reward(prompts=["a"], completions=["b"])
    with pytest.raises(ParameterError, match="lr = 7.0"):
        RetrainReward(reward, lr=7.0)
    with pytest.raises(ParameterError, match="neither an oracle nor a preference"):
        RetrainReward(made(encoder, oracle=None))
    with pytest.raises(TypeError, match="AsyncGRPO"):
        pickle.dumps(reward)
    with pytest.raises(ValueError, match="rule = 'practical': the state is one of 'standard'"):
        reward.load_state_dict(made(encoder, "standard").state_dict())
    with pytest.raises(ValueError, match="2 prompts at a time"):
        made(encoder, "anchor-other")(prompts=["a"] * 2, completions=["b", "c"], reference=["d"] * 2)
    broken = made(encoder, head=torch.full((32,), torch.nan))
    with pytest.raises(ValueError, match="not a finite number"):
        broken(prompts=["a"] * 2, completions=["b", "c"], reference=["d"] * 2)


def test_a_trainer_in_which_the_weight_means_nothing_is_refused(encoder):
    good = SimpleNamespace(multi_objective_aggregation="normalize_then_sum", reward_weights=[1.0, 0.0])
    check_trainer(good)
    callbacks = [RetrainReward(made(encoder)), MonitorCallback(Monitor())]
    for faulty, message in [
        (type("AsyncGRPOConfig", (SimpleNamespace,), {})(), "AsyncGRPO computes rewards in another process"),
        (replace_in(good, reward_weights=[1.0, 0.5]), "'normalize_then_sum' divides"),
        (replace_in(good, reward_weights=None), "'normalize_then_sum' divides"),
        (SimpleNamespace(scale_rewards="group", num_generations=2), "scale_rewards = 'group' leaves only the sign"),
    ]:
        for callback in callbacks:
            for asked in (callback.on_init_end, callback.on_train_begin):
                with pytest.raises(ParameterError, match=message):
                    asked(faulty, SimpleNamespace(), None)


def test_two_rewards_of_one_name_do_not_share_a_file(encoder, tmp_path):
    first, second = (made(encoder, "practical", gamma=gamma) for gamma in (1.0, 2.0))
    args = SimpleNamespace(output_dir=tmp_path, eval_on_start=False)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    with pytest.raises(ParameterError, match=r"two rewards are kept in fpo_practical.pt .* give one of them another"):
        for reward in (first, second):
            RetrainReward(reward).on_train_begin(args, state, None)
    second.__name__ = "fpo_practical_2"
    callbacks, state = [RetrainReward(reward) for reward in (first, second)], SimpleNamespace(**vars(state))
    del state.fpo_kept
    for callback in callbacks * 2:  # a trainer may train twice
        callback.on_train_begin(args, state, None)
    state.global_step = 2
    (tmp_path / "checkpoint-2").mkdir()
    for callback in callbacks:
        callback.on_save(args, state, None)
    first.gamma = second.gamma = 0.0
    for callback in callbacks:
        callback.on_train_begin(args, state, None)
    assert (first.gamma, second.gamma) == (1.0, 2.0)


def replace_in(settings, **changes):
    return SimpleNamespace(**{**vars(settings), **changes})


def test_processes_that_cannot_be_reached_are_refused(encoder, monkeypatch):
    prompts, completions, references = rows()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="processes that cannot be reached"):
        made(encoder)(prompts=prompts, completions=completions, reference=references)


def test_two_processes_agree_with_one(encoder, tmp_path):
    """A group that is split over them too; oracle and monitor are asked in one alone, and both stop at its alarm."""
    prompts, completions, references = rows()
    reward = made(encoder, "exact", gamma=1.0, labels=tmp_path / "one.sqlite")
    wanted = reward(prompts=prompts, completions=completions, reference=references)
    parts = [slice(0, 6), slice(6, 12)]  # the second group of four is split
    children = []
    for rank, part in enumerate(parts):
        child = os.fork()  # torch is loaded already
        if not child:
            status = 1
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # asked for, but they meet in a file
                PartialState._reset_state()
                torch.distributed.init_process_group(
                    "gloo", init_method=f"file://{tmp_path}/meeting", rank=rank, world_size=2
                )
                PartialState(cpu=True)
                asked = []

                def oracle(prompts, completions, asked=asked, **columns):
                    asked.extend(completions)
                    return utility(prompts, completions)

                reward = made(encoder, "exact", gamma=1.0, oracle=oracle)
                state = SimpleNamespace(global_step=1, is_world_process_zero=not rank, log_history=[])
                found = reward(
                    prompts=prompts[part], completions=completions[part], reference=references[part],
                    trainer_state=state,
                )  # fmt: skip
                window, control, shown = state.fpo_window, SimpleNamespace(should_training_stop=False), []
                alarming = SimpleNamespace(record=lambda step, shown=shown, **window: shown.append(step) or ["alarm"])
                MonitorCallback(alarming, stop=True).on_step_end(None, state, control)
                state.fpo_window = window
                try:  # a monitor that fails in the one ends the other too
                    MonitorCallback(SimpleNamespace()).on_step_end(None, state, control)
                except (AttributeError, RuntimeError) as error:
                    shown.append(type(error).__name__)
                probed = reward.probe(prompts[part], completions[part])
                callback = RetrainReward(reward, lr=0.01)
                callback.update()
                told = [control.should_training_stop, shown, probed]
                torch.save([found, len(asked), reward.rm.head.weight.detach(), *told], tmp_path / f"{rank}.pt")
                torch.distributed.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    told = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    both = told[0][0] + told[1][0]
    assert [value is None for value in both] == [value is None for value in wanted]
    assert [x for x in both if x] == pytest.approx([x for x in wanted if x], abs=1e-5)
    assert [each[1] for each in told] == [14, 0]
    assert told[0][5] + told[1][5] == pytest.approx(reward.probe(prompts, completions), nan_ok=True)
    assert [each[3:5] for each in told] == [[True, [1, "AttributeError"]], [True, ["RuntimeError"]]]
    RetrainReward(reward, lr=0.01).update()
    assert all(torch.allclose(each[2], reward.rm.head.weight, atol=1e-5) for each in told)
