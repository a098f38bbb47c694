"""Selection rules against automatic differentiation, dense algebra, and refitting the head."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from fpo import steering
from fpo.llm import rules
from fpo.llm.models import bt_hessian, fit_head

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


def head_gradients(head, features):
    """grad_phi r of each candidate by automatic differentiation."""
    weight = head.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(row @ weight, weight)[0] for row in features])


@pytest.mark.parametrize("seed", range(CASES))
def test_first_order_forms(seed):
    head, rewards, features, utilities, reference, _ = random_case(seed)
    gradients = head_gradients(head, features)
    first = head_gradients(head, reference.features[None])[0]
    for z in range(len(rewards)):
        inner = gradients[z] @ (gradients[z] - first)
        over = torch.sigmoid(rewards[z] - reference.reward) - torch.sigmoid(utilities[z] - reference.utility)
        expected = {"relaxed": -over * inner, "practical": -inner, "overconfidence": -over, "standard": 0.0}
        for rule, value in expected.items():
            found = rules.penalties(rule, rewards, features, utilities, reference, None)[z]
            assert float(found) == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("seed", range(CASES))
def test_forms_with_the_hessian(seed):
    """`exact` and `leverage` against the Hessian of the loss by automatic differentiation and a dense inverse."""
    head, rewards, features, utilities, reference, normal = random_case(seed)
    buffer, ridge = normal(9, 5), 0.1

    def loss(weight):
        return F.softplus(-(buffer @ weight)).mean() + ridge / 2 * weight @ weight

    hessian = torch.func.hessian(loss)(head)
    made = bt_hessian(buffer, (buffer @ head).sigmoid(), ridge)
    assert torch.allclose(made, hessian, atol=1e-12)
    inverse = torch.linalg.inv(hessian)
    context = rules.Context(features.mean(0), steering.dense_solver(made))
    exact = rules.exact(rewards, features, utilities, reference, context)
    leverage = rules.leverage(rewards, features, utilities, reference, context)
    for z in range(len(rewards)):
        preference = torch.sigmoid(utilities[z] - reference.utility)

        def compared(weight, z=z, preference=preference):
            margin = (features[z] - reference.features) @ weight
            return F.binary_cross_entropy_with_logits(margin, preference)

        influence = -inverse @ torch.func.grad(compared)(head)
        assert float(exact[z]) == pytest.approx(float(features.mean(0) @ influence), abs=1e-10)
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
    solve = steering.dense_solver(bt_hessian(differences, (differences @ head).sigmoid(), ridge))
    context = rules.Context(features.mean(0), solve)
    found = rules.exact(features @ head, features, utilities, reference, context)

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


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_window_is_its_prompts(rule):
    """Leading axes are batches."""
    _, rewards, features, utilities, reference, normal = random_case(3, windows=4)
    solve = steering.dense_solver(bt_hessian(normal(9, 5), torch.full((9,), 0.5, dtype=torch.float64), 0.1))
    empty = torch.zeros_like(rewards, dtype=torch.bool)
    empty[2] = True
    empty[1, :3] = True
    log_ratio, uniform = normal(*rewards.shape), normal(*rewards.shape)
    whole = rules.Context(features[0, 0], solve, log_ratio, uniform)
    penalty = rules.penalties(rule, rewards, features, utilities, reference, whole)
    winners = rules.select(rule, 0.7, rewards, penalty, utilities, whole, empty)
    assert int(winners[2]) == -1 and int(winners[1]) >= 3
    for i in range(4):
        one = rules.Reference(reference.reward[i], reference.features[i], reference.utility[i])
        context = rules.Context(features[0, 0], solve, log_ratio[i], uniform[i])
        alone = rules.penalties(rule, rewards[i], features[i], utilities[i], one, context)
        assert torch.allclose(alone, penalty[i], atol=1e-12)
        assert int(rules.select(rule, 0.7, rewards[i], alone, utilities[i], context, empty[i])) == int(winners[i])


def test_who_wins():
    rewards, utilities = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 1.0, 0.0])
    context = rules.Context(log_ratio=torch.tensor([0.0, 0.0, 9.0]), uniform=torch.tensor([0.1, 0.9, 0.5]))
    none = torch.zeros(3, dtype=torch.bool)
    penalty = {"kl": -context.log_ratio}

    def winner(rule, gamma=1.0):
        kept = penalty.get(rule, torch.zeros(3))
        return int(rules.select(rule, gamma, rewards, kept, utilities, context, none))

    assert [winner(rule) for rule in ("standard", "best-of-u", "random", "kl")] == [2, 0, 1, 1]
    assert winner("kl", gamma=0.0) == 2


@pytest.mark.parametrize("rule", rules.RULES)
def test_labels_are_those_that_the_choice_reads(rule):
    """A rule that is said to read the winner's label alone chooses the same winner whatever the other labels are."""
    changed = 0
    for seed in range(40):
        _, rewards, features, utilities, reference, normal = random_case(seed)
        solve = steering.dense_solver(bt_hessian(normal(9, 5), torch.full((9,), 0.5, dtype=torch.float64), 0.1))
        context = rules.Context(features.mean(0), solve, normal(6), normal(6))
        none = torch.zeros(6, dtype=torch.bool)
        won = []
        for labels in (utilities, utilities.roll(1) * 3):
            penalty = rules.penalties(rule, rewards, features, labels, reference, context)
            won.append(int(rules.select(rule, 3.0, rewards, penalty, labels, context, none)))
        changed += won[0] != won[1]
    assert (changed > 0) == (rules.labels_used(rule, 6) == 7)


def test_fit_head_against_scipy():
    import slow.llm

    for seed in range(10):
        generator = np.random.default_rng(seed)
        better, worse = generator.normal(size=(20, 6)), generator.normal(size=(20, 6))
        for ridge in (1e-3, 0.1):
            found = fit_head(torch.tensor(better), torch.tensor(worse), ridge).numpy()
            assert np.allclose(found, slow.llm.bradley_terry_fit(better - worse, ridge), atol=1e-5)
