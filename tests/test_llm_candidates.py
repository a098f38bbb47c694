"""Windows and references: who can win, what is asked of whom, and in which order."""

import pytest
import torch
from tools.llm import play

from fpo import rules
from fpo.llm import Policy, Workbench, Writer, settings


def test_empty_candidates_cannot_win(tiny, monkeypatch):
    made = Workbench(settings(**tiny, steps=4, prompt_count=8))
    text, calls = made.policy.text, [0]

    def sometimes(tokens):
        calls[0] += 1
        return "" if calls[0] % 3 else text(tokens)

    Writer(made, made.settings).make_references(range(4))
    monkeypatch.setattr(made.policy, "text", sometimes)
    trace = play(made)
    assert all(line["empty"] == 2 and line["text"] for line in trace)
    monkeypatch.setattr(made.policy, "text", lambda tokens: "")
    trace = play(made)
    assert all(line["winner"] is None and line["policy_loss"] is None and line["labels_needed"] == 0 for line in trace)
    for value, first in zip(made.policy.adapter.values(), Policy(made.settings).adapter.values(), strict=True):
        assert torch.equal(value, first), "nothing was won, so nothing is learned"


@pytest.fixture(scope="module")
def bench(tiny):
    return Workbench(settings(**tiny, steps=4, prompt_count=8, policy_lr=1e-3, head_lr=5e-3))


def test_one_window_serves_every_rule(bench):
    """`choose` on a window written for all rules gives what a window of the rule's own gives."""
    writer = Writer(bench, bench.settings)
    writer.make_references(range(4))
    shared = writer.window(range(4), also=rules.RULES)
    assert torch.equal(shared.penalty, torch.zeros(4, 3))
    for rule in rules.RULES:
        own = Writer(bench, bench.settings.replace(rule=rule))
        own.make_references(range(4))
        window, choice = own.window(range(4)), rules.choose(rule, shared.scored)
        assert window.tokens == shared.tokens and torch.equal(window.scored.rewards, shared.scored.rewards)
        assert torch.equal(choice.penalty, window.penalty) and torch.equal(choice.winner, window.winner)
        assert bool(shared.scored.utilities.isfinite().all())


def test_a_window_has_what_its_rules_read_and_no_more(bench):
    for rule, record in rules.RULES.items():
        writer = Writer(bench, bench.settings.replace(rule=rule, measure="winner"))
        writer.make_references(range(4))
        window = writer.window(range(4))
        inputs = {"mean_gradient", "mean_difference", "solve", "uniform", "other"}
        assert {name for name in inputs if getattr(window.scored, name) is not None} == set(record.reads) & inputs
        assert (window.scored.log_ratio is not None) == bool({"log_ratio", "labels"} & set(record.reads))
        labels = window.scored.utilities.isfinite().sum(-1).tolist()
        assert labels == [3 if "labels" in record.reads else 1] * 4


def test_references_come_before_the_window(bench):
    writer = Writer(bench, bench.settings)
    writer.make_references([0, 1])
    asked = bench.prompts[writer.prompt_indices([3])[0]].id
    with pytest.raises(ValueError, match=f"prompt {asked} has no reference: make_references comes before"):
        writer.window([1, 3])
    assert len(writer.window([0, 1]).texts) == 2


def test_a_window_is_written_by_the_run_that_was_started_last(bench):
    first = Writer(bench, bench.settings)
    first.make_references(range(4))
    Writer(bench, bench.settings.replace(seed=1))
    with pytest.raises(ValueError, match="another run has started at this workbench"):
        first.window(range(4))


def test_the_settings_of_a_workbench_stay_as_they_are(bench):
    before = bench.settings
    play(bench, rule="exact", seed=3)
    assert bench.settings is before and before.seed == 42
