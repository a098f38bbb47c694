"""Selection rules against automatic differentiation, dense algebra, and refitting the head."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from fpo import rules, steering
from fpo.llm.head import fit_head

CASES = 60


def random_case(seed, n=6, p=5, windows=None):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    head = normal(p)
    lead = () if windows is None else (windows,)
    features, first = normal(*lead, n, p), normal(*lead, p)
    reference = rules.Reference(first @ head, first, normal(*lead))
    return head, features @ head, features, normal(*lead, n), reference, normal


def scored(rewards, features, utilities, reference, **inputs):
    """Candidates, none of them empty, with what some rules read."""
    empty = torch.zeros_like(rewards, dtype=torch.bool)
    return rules.Candidates(rewards, features, utilities, empty, reference, **inputs)


def everything(features, reference, solve, normal):
    """What any rule reads beside labels."""
    means = {"mean_gradient": features.mean(0), "mean_difference": features.mean(0) - reference.features}
    return {**means, "solve": solve, "log_ratio": normal(6), "uniform": normal(6), "other": normal(5)}


def head_gradients(head, features):
    """grad_phi r of each candidate by automatic differentiation."""
    weight = head.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(row @ weight, weight)[0] for row in features])


@pytest.mark.parametrize("seed", range(CASES))
def test_first_order_forms(seed):
    head, rewards, features, utilities, reference, normal = random_case(seed)
    other, uniform = normal(5), normal(6)
    gradients = head_gradients(head, features)
    first = head_gradients(head, reference.features[None])[0]
    for z in range(len(rewards)):
        inner = gradients[z] @ (gradients[z] - first)
        over = torch.sigmoid(rewards[z] - reference.reward) - torch.sigmoid(utilities[z] - reference.utility)
        apart = (gradients[z] - first) @ (gradients[z] - first)
        expected = {"relaxed": -over * inner, "practical": -inner, "overconfidence": -over, "standard": 0.0}
        expected |= {"relaxed-centered": -over * apart, "practical-centered": -apart}
        expected |= {"anchor-other": -gradients[z] @ (gradients[z] - other), "random-penalty": uniform[z]}
        shuffled = utilities[uniform.argsort()[z]]
        permuted = torch.sigmoid(rewards[z] - reference.reward) - torch.sigmoid(shuffled - reference.utility)
        expected["relaxed-permuted"] = -permuted * inner
        inputs = {"other": other, "uniform": uniform}
        for rule, value in expected.items():
            found = rules.choose(rule, scored(rewards, features, utilities, reference, **inputs)).penalty[z]
            assert float(found) == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("seed", range(CASES))
def test_forms_with_the_hessian(seed):
    """`exact` and `leverage` against the Hessian of the loss by automatic differentiation and a dense inverse."""
    head, rewards, features, utilities, reference, normal = random_case(seed)
    buffer, ridge = normal(9, 5), 0.1

    def loss(weight):
        return F.softplus(-(buffer @ weight)).mean() + ridge / 2 * weight @ weight

    hessian = torch.func.hessian(loss)(head)
    made = steering.bt_hessian(buffer, (buffer @ head).sigmoid(), ridge)
    assert torch.allclose(made, hessian, atol=1e-12)
    inverse = torch.linalg.inv(hessian)
    difference = features.mean(0) - reference.features
    inputs = {"mean_gradient": features.mean(0), "solve": steering.dense_solver(made), "mean_difference": difference}
    seen = scored(rewards, features, utilities, reference, **inputs)
    exact, leverage, centered = rules.exact(seen), rules.leverage(seen), rules.exact_centered(seen)
    for z in range(len(rewards)):
        preference = torch.sigmoid(utilities[z] - reference.utility)

        def compared(weight, z=z, preference=preference):
            margin = (features[z] - reference.features) @ weight
            return F.binary_cross_entropy_with_logits(margin, preference)

        influence = -inverse @ torch.func.grad(compared)(head)
        assert float(exact[z]) == pytest.approx(float(features.mean(0) @ influence), abs=1e-10)
        assert float(centered[z]) == pytest.approx(float(difference @ influence), abs=1e-10)
        expected = -features[z] @ inverse @ (features[z] - reference.features)
        assert float(leverage[z]) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_exact_form_is_what_refitting_does_to_the_mean_reward(seed):
    """Weigh one more comparison by a little, fit the head again, and see how the mean reward moves."""
    _, _, features, utilities, reference, normal = random_case(seed)
    better, worse, ridge = normal(12, 5), normal(12, 5), 0.1
    head = fit_head(better, worse, ridge)
    differences = better - worse
    reference = rules.Reference(reference.features @ head, reference.features, reference.utility)
    solve = steering.dense_solver(steering.bt_hessian(differences, (differences @ head).sigmoid(), ridge))
    inputs = {"mean_gradient": features.mean(0), "solve": solve}
    found = rules.exact(scored(features @ head, features, utilities, reference, **inputs))

    def refit(z, weight):
        preference = float(torch.sigmoid(utilities[z] - reference.utility))
        d, extra = differences.numpy(), (features[z] - reference.features).numpy()

        def value(w):
            own = np.logaddexp(0, -d @ w).mean() + ridge / 2 * w @ w
            return own + weight * (np.logaddexp(0, extra @ w) - preference * (extra @ w))

        return minimize(value, head.numpy(), method="BFGS", options={"gtol": 1e-9}).x

    for z in range(3):
        moved = (refit(z, 1e-3) - refit(z, -1e-3)) / 2e-3
        assert float(found[z]) == pytest.approx(float(features.mean(0).numpy() @ moved), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_for_gradients_of_equal_length_the_centered_forms_are_twice_the_others(seed):
    """As for every encoder whose features are normalized: what centering changes there is the weight alone."""
    head, _, features, utilities, reference, _ = random_case(seed)
    features = F.normalize(features, dim=-1)
    first = F.normalize(reference.features, dim=-1)
    reference = rules.Reference(first @ head, first, reference.utility)
    seen = scored(features @ head, features, utilities, reference)
    assert torch.allclose(rules.practical_centered(seen), 2 * rules.practical(seen), atol=1e-12)
    assert torch.allclose(rules.relaxed_centered(seen), 2 * rules.relaxed(seen), atol=1e-12)


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_window_is_its_prompts(rule):
    """Leading axes are batches."""
    _, rewards, features, utilities, reference, normal = random_case(3, windows=4)
    solve = steering.dense_solver(steering.bt_hessian(normal(9, 5), torch.full((9,), 0.5, dtype=torch.float64), 0.1))
    empty = torch.zeros_like(rewards, dtype=torch.bool)
    empty[2] = True
    empty[1, :3] = True
    shared = {"mean_gradient": features[0, 0], "mean_difference": features[0, 1], "solve": solve}
    own = {"log_ratio": normal(*rewards.shape), "uniform": normal(*rewards.shape), "other": normal(4, 5)}
    whole = rules.Candidates(rewards, features, utilities, empty, reference, **shared, **own)
    choice = rules.choose(rule, whole, 0.7)
    assert int(choice.winner[2]) == -1 and int(choice.winner[1]) >= 3
    for i in range(4):
        one = rules.Reference(reference.reward[i], reference.features[i], reference.utility[i])
        rows = {name: value[i] for name, value in own.items()}
        alone = rules.Candidates(rewards[i], features[i], utilities[i], empty[i], one, **shared, **rows)
        again = rules.choose(rule, alone, 0.7)
        assert torch.allclose(again.penalty, choice.penalty[i], atol=1e-12)
        assert int(again.winner) == int(choice.winner[i])


def test_who_wins():
    rewards, utilities = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 1.0, 0.0])
    inputs = {"log_ratio": torch.tensor([0.0, 0.0, 9.0]), "uniform": torch.tensor([0.1, 0.9, 0.5])}
    reference = rules.Reference(torch.tensor(0.0), torch.zeros(2), torch.tensor(0.0))
    seen = scored(rewards, torch.zeros(3, 2), utilities, reference, **inputs)

    def winner(rule, gamma=1.0):
        return int(rules.choose(rule, seen, gamma).winner)

    assert [winner(rule) for rule in ("standard", "best-of-u", "random", "kl")] == [2, 0, 1, 1]
    assert winner("kl", gamma=0.0) == 2
    assert winner("kl", gamma=None) == 2, "its own weight of 0.1 does not outdo the reward"


@pytest.mark.parametrize("rule", rules.RULES)
def test_labels_are_those_that_the_choice_reads(rule):
    """A rule that is said to read the winner's label alone chooses the same winner whatever the other labels are."""
    changed = 0
    for seed in range(40):
        _, rewards, features, utilities, reference, normal = random_case(seed)
        solve = steering.dense_solver(
            steering.bt_hessian(normal(9, 5), torch.full((9,), 0.5, dtype=torch.float64), 0.1)
        )
        inputs = everything(features, reference, solve, normal)
        won = []
        for labels in (utilities, utilities.roll(1) * 3):
            seen = scored(rewards, features, labels, reference, **inputs)
            won.append(int(rules.choose(rule, seen, 3.0).winner))
        changed += won[0] != won[1]
    assert (changed > 0) == (rules.RULES[rule].labels(6) == 7) == ("labels" in rules.RULES[rule].reads)


@pytest.mark.parametrize("rule", rules.RULES)
def test_candidates_that_lack_what_a_rule_reads_are_refused(rule):
    _, rewards, features, utilities, reference, normal = random_case(0)
    inputs = everything(features, reference, torch.zeros_like, normal)
    whole = scored(rewards, features, utilities, reference, **inputs)
    for name in inputs:
        without = dataclasses.replace(whole, **{name: None})
        if name in rules.RULES[rule].reads:
            with pytest.raises(ValueError, match=f"the rule reads {name}, which these candidates were not given"):
                rules.choose(rule, without)
        else:
            assert torch.equal(rules.choose(rule, without).winner, rules.choose(rule, whole).winner)


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_rule_that_reads_labels_is_refused_where_not_all_were_asked_for(rule):
    _, rewards, features, utilities, reference, normal = random_case(0)
    inputs = everything(features, reference, lambda v: v, normal)
    asked = utilities.clone()
    asked[2] = torch.nan
    some = scored(rewards, features, asked, reference, **inputs)
    if "labels" in rules.RULES[rule].reads:
        with pytest.raises(ValueError, match="the rule reads labels, which not all of these candidates were given"):
            rules.choose(rule, some)
    else:
        whole = scored(rewards, features, utilities, reference, **inputs)
        assert torch.equal(rules.choose(rule, some).winner, rules.choose(rule, whole).winner)


def test_a_rule_that_there_is_not():
    _, rewards, features, utilities, reference, _ = random_case(0)
    with pytest.raises(ValueError, match="rule = 'best': must be one of standard, relaxed, practical"):
        rules.choose("best", scored(rewards, features, utilities, reference))


def test_a_rule_s_facts_are_asked_without_torch():
    script = "import sys, fpo.rules; print(fpo.rules.RULES['relaxed'].labels(8), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["9", "False"]
