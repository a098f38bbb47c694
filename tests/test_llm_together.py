"""Many runs as one batch: each of them is what it is alone; it can be stopped and gone on with; panels measure."""

import numpy as np
import pytest
import torch
from tools.interrupts import interrupting
from tools.llm import same

from fpo import files
from fpo.llm import Policy, Workbench, Writer, decoding, settings, train
from fpo.llm import together as playing
from fpo.llm.head import fit_head
from fpo.llm.panels import Panel
from fpo.llm.together import Group, train_together
from fpo.parameters import ParameterError

# What the runs of a study differ in: rules with all they read, seeds, and how the RM learns.
RUNS = [
    {"rule": "standard"},
    {"rule": "exact-centered", "seed": 7},
    {"rule": "kl", "gamma": 3.0, "head_start": "blind spot", "head_prompts": 3},
    {"rule": "anchor-other", "seed": 7, "head_update": "refit"},
    {"rule": "random-penalty", "head_learns": "candidates", "measure": "winner", "reference_labels": "as they come"},
]


@pytest.fixture(scope="module")
def few(tiny):
    return {**tiny, "prompt_count": 8, "steps": 8, "window": 3, "policy_lr": 1e-2, "head_lr": 1e-2, "oracle": "answer"}


@pytest.fixture(scope="module")
def bench(few):
    return Workbench(settings(**few))


@pytest.fixture(scope="module")
def runs(few):
    return [settings(**{**few, **changes}) for changes in RUNS]


@pytest.fixture(scope="module")
def together(bench, runs):
    return train_together(runs, bench)


def near(a, b):
    """Equal words and choices, numbers to single precision."""
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, abs=2e-3)
    return a == b


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_each_run_is_what_it_is_alone(bench, runs, together, run):
    trace = train(runs[run], bench=bench)
    for alone, beside in zip(trace, together.traces[run], strict=True):
        assert {name for name in beside if not near(alone[name], beside[name])} == set()
    learned = bench.policy.adapter
    for name, value in learned.items():
        assert torch.allclose(value, together.adapters[name][run], atol=2e-3), name
    moved = [value - first for value, first in zip(learned.values(), untrained(bench, runs[run]), strict=True)]
    assert max(float(value.detach().abs().max()) for value in moved) > 0.01
    assert torch.allclose(bench.reward_model.head.weight[0], together.heads[run], atol=1e-4)


def untrained(bench, chosen):
    before = [value.detach().clone() for value in bench.policy.adapter.values()]
    bench.policy.initialize(chosen)
    first = [value.detach().clone() for value in bench.policy.adapter.values()]
    with torch.no_grad():
        for value, old in zip(bench.policy.adapter.values(), before, strict=True):
            value.copy_(old)
    return first


def test_the_head_that_is_refitted_minimizes_its_loss(together):
    """Over all comparisons so far, the first fit's and the loop's; by a few steps of plain gradient descent from it."""
    differences, preferences = together.comparisons[3]
    ridge, head = together.runs[3].head_ridge, together.heads[3].detach().double().requires_grad_()
    margins = differences.double() @ head
    loss = torch.nn.functional.binary_cross_entropy_with_logits(margins, preferences.double())
    (slope,) = torch.autograd.grad(loss + ridge / 2 * head @ head, head)
    assert float(slope.norm()) < 1e-6
    again = fit_head(differences, torch.zeros_like(differences), ridge, preferences)
    assert torch.allclose(again, together.heads[3], atol=1e-5)


def test_a_group_that_was_stopped_goes_on_to_the_same_numbers(bench, runs, together, tmp_path, monkeypatch):
    seen = []

    def watch(group):
        seen.append(group.position)
        return [{"head": float(head.sum())} for head in group.heads]

    class Stop(Exception):
        pass

    def stop(steps):
        if len(seen) == 2:
            raise Stop

    file = tmp_path / "group.pt"
    chosen = [each.replace(save_every=2) for each in runs]
    with pytest.raises(Stop):
        train_together(chosen, bench, watch, (0, 3, 8), file, told=stop)
    before = files.load(file)["spent"]
    seldom = [each.replace(save_every=9) for each in chosen]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, torch.optim.AdamW, "step", 6, False)  # the last window's policy is updated, its head is not
        train_together(seldom, bench, watch, (0, 3, 8), file)
    assert files.load(file)["position"] == 6, "Control-C saves what the last whole window left"
    again = train_together(seldom, bench, watch, (0, 3, 8), file)
    assert all(again.spent[name] > spent > 0 for name, spent in before.items()), "what it took so far counts too"
    # After the watch at 3 the group had gone on to 6 and was stopped there, its checkpoint being that of 6 or earlier.
    assert seen[-1] == 8 and [each["position"] for each in again.watched[0]] == [0, 3, 8]
    strip = [[{k: v for k, v in line.items() if k != "machine"} for line in trace] for trace in again.traces]
    assert strip == [[{k: v for k, v in line.items() if k != "machine"} for line in t] for t in together.traces]
    assert same(again.heads.detach(), together.heads.detach())
    assert all(same(again.adapters[name].detach(), value.detach()) for name, value in together.adapters.items())
    with pytest.raises(ValueError, match="of other runs"):
        train_together([each.replace(seed=1) for each in chosen], bench, checkpoint=file)
    with pytest.raises(ValueError, match="of other runs"):
        train_together(chosen[:1], bench, checkpoint=file)
    monkeypatch.setattr(playing, "code", lambda module: "0123456789abcdef")
    with pytest.raises(ValueError, match="of other code, which would not go on to the same numbers"):
        train_together(chosen, bench, checkpoint=file)


def test_the_policy_is_its_own_again_afterwards(bench, runs):
    """Hooks are gone, also after an error, and the base is the base within."""
    fresh, ids = Policy(runs[0]), torch.tensor([[5, 6, 7]])
    group = Group(bench, runs[:2])
    with torch.no_grad():
        for value in group.adapters.values():
            value.add_(0.05 * torch.randn(value.shape))

    def logits(policy):
        with torch.inference_mode():
            return policy.model(input_ids=ids.repeat(2, 1)).logits

    bench.policy.initialize(runs[0])
    plain = logits(bench.policy)
    with pytest.raises(KeyError), group.playing():
        assert not torch.allclose(logits(bench.policy)[0], logits(bench.policy)[1])
        with bench.policy.base():
            assert torch.equal(logits(bench.policy), plain)
        raise KeyError
    assert torch.equal(logits(bench.policy), plain)
    assert torch.equal(logits(fresh), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_lr": 0.5}, "policy_lr = 0.5: all runs of a group have the same, 0.01"),
        ({"temperature": 0.5}, "temperature = 0.5: all runs of a group have the same, 0.8"),
    ],
)
def test_runs_that_do_not_go_together(bench, runs, changes, message):
    with pytest.raises(ParameterError, match=message):
        train_together([runs[0], runs[1].replace(**changes)], bench)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout = 0.1: must be 0.0 for runs played together"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing = True: must be False"),
        ({"reward_dropout": "update"}, "reward_dropout = 'update': must be 'off'"),
    ],
)
def test_settings_that_a_group_has_not(bench, runs, changes, message):
    with pytest.raises(ParameterError, match=message):
        train_together([runs[0].replace(**changes)], bench)
    with pytest.raises(ParameterError, match="runs: none are given"):
        train_together([], bench)


# Panels


def test_a_panel_against_one_text_at_a_time(bench, few):
    """Each response drawn alone, its log-ratio from whole distributions, U and features asked for apart."""
    chosen = [settings(**{**few, "seed": seed, "steps": 3}) for seed in (1, 2)]
    group = Group(bench, chosen)
    panel = Panel(bench, bench.prompts[:5], "panel", 2)
    with group.playing():
        group.step()
        found = panel.respond(group)
    for run, s in enumerate(chosen):
        Writer(bench, s)
        with torch.no_grad():
            for name, value in bench.policy.adapter.items():
                value.copy_(group.adapters[name][run])
        for p, prompt in enumerate(panel.prompts):
            ids = bench.policy.encode(prompt.text, s.system)
            for n in range(2):
                stream = decoding.uniforms(s.seed, "panel", p, (2, s.max_new_tokens))[n]
                how = {"min_new_tokens": 0, "temperature": s.temperature, "top_p": 1.0}
                drawn = decoding.decode(bench.policy.model, [ids], stream[None, None], bench.policy.ends, **how)
                assert found[run].tokens[p][n] == drawn.tokens[0][0]
                ratio = log_probability(bench.policy, ids, drawn.tokens[0][0], s.temperature)
                with bench.policy.base():
                    ratio -= log_probability(bench.policy, ids, drawn.tokens[0][0], s.temperature)
                assert found[run].log_ratios[p, n] == pytest.approx(ratio, abs=1e-3)
                text = bench.policy.text(drawn.tokens[0][0])
                assert found[run].texts[p][n] == text
                value = bench.chosen_oracle(s)([prompt], [text])[0]
                assert found[run].utilities[p, n] == pytest.approx(value, abs=1e-4)
                reward = float(bench.reward_model.features([text])[0] @ group.heads[run])
                assert found[run].rewards(group.heads[run])[p, n] == pytest.approx(reward, abs=1e-4)


def log_probability(policy, ids, response, temperature):
    whole = torch.tensor([[*ids, *response]])
    with torch.no_grad():
        logits = policy.model(input_ids=whole).logits[0, len(ids) - 1 : -1].double() / temperature
    return float(logits.log_softmax(-1)[range(len(response)), response].sum())


def test_the_likelihood_of_a_panel(tiny):
    """U by the oracle `likelihood`: of prompt and response, as the loop has it."""
    s = settings(**tiny, prompt_count=4, steps=2, window=2, oracle="likelihood")
    bench = Workbench(s)
    group = Group(bench, [s])
    with group.playing():
        found = Panel(bench, bench.prompts, "panel", 1).respond(group)[0]
    for p, ids in enumerate(bench.prompt_ids):
        whole = torch.tensor([[*ids, *found.tokens[p][0]]])
        with torch.no_grad(), bench.policy.base():
            nll = torch.nn.functional.cross_entropy(bench.policy.model(input_ids=whole).logits[0, :-1], whole[0, 1:])
        assert found.utilities[p, 0] == pytest.approx(max(-15.0, 5 - float(nll)), abs=1e-4)


def test_before_the_first_step_runs_of_a_seed_share_the_base_s_responses(bench, few):
    chosen = [settings(**{**few, "seed": seed, "rule": rule}) for seed in (1, 2) for rule in ("standard", "exact")]
    group = Group(bench, chosen)
    with group.playing():
        first = Panel(bench, bench.prompts, "panel", 2).respond(group)
    assert first[0] is first[1] and first[2] is first[3]
    assert first[0].tokens != first[2].tokens
    assert np.abs(first[0].log_ratios).max() < 1e-3
