"""The reward model's head: its first fit, the Hessian of its comparisons, the gradient of its loss."""

import numpy as np
import slow.llm
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from fpo.llm.head import Comparisons, comparison_solver, fit_head, head_pairs, losses_and_gradients
from fpo.llm.prompts import Prompt


def test_head_pairs_have_the_planted_fault():
    prompt = Prompt("1", "Why?", ("Because it is so.",), ("Because not.", "No reason."))
    better, worse = head_pairs([prompt], "answers", seed=0)
    assert better == ["Because it is so."] * 2 and worse == ["Because not.", "No reason."]
    better, worse = head_pairs([prompt], "blind spot", seed=0)
    assert better[1].endswith(worse[1]) and len(better[1]) > len(worse[1])
    assert sorted(worse[0].split()) == sorted(better[0].split())


def test_fit_head_against_scipy():
    for seed in range(10):
        generator = np.random.default_rng(seed)
        better, worse = generator.normal(size=(20, 6)), generator.normal(size=(20, 6))
        for ridge in (1e-3, 0.1):
            found = fit_head(torch.tensor(better), torch.tensor(worse), ridge).numpy()
            assert np.allclose(found, slow.llm.bradley_terry_fit(better - worse, ridge), atol=1e-5)


def test_fit_head_to_preferences_against_scipy():
    """Preferences between 0 and 1, as the loop has them."""
    for seed in range(10):
        generator = np.random.default_rng(seed)
        d, wanted, ridge = generator.normal(size=(20, 6)), generator.random(20), 0.05

        def value(w, d=d, wanted=wanted, ridge=ridge):
            return (np.logaddexp(0, d @ w) - wanted * (d @ w)).mean() + ridge / 2 * w @ w

        found = fit_head(torch.tensor(d), torch.zeros(20, 6).double(), ridge, torch.tensor(wanted)).numpy()
        best = minimize(value, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
        assert np.allclose(found, best, atol=1e-5)


def a_head(seed=0, n=7, p=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((p,), (n, p), (n, p), (n,))]


def test_the_solver_against_the_hessian_by_automatic_differentiation():
    weight, better, worse, _ = a_head()
    comparisons, ridge = better - worse, 0.1

    def loss(w):
        return F.softplus(-(comparisons @ w)).mean() + ridge / 2 * w @ w

    expected = torch.linalg.solve(torch.func.hessian(loss)(weight), worse.T).T
    assert torch.allclose(comparison_solver(comparisons, weight, ridge)(worse), expected, atol=1e-12)
    single = comparison_solver(comparisons.float(), weight.float(), ridge)(worse.float())
    assert single.dtype == torch.float32 and torch.allclose(single, expected.float(), atol=1e-5)


def test_without_comparisons_there_is_no_influence():
    weight, better, _, _ = a_head()
    assert torch.equal(comparison_solver(better[:0], weight, 0.1)(better), torch.zeros_like(better))


def test_losses_and_gradients_against_automatic_differentiation():
    weight, features, references, scores = a_head()
    preferences = scores.sigmoid()
    losses, gradients = losses_and_gradients(weight, features, references, preferences)
    for i, preference in enumerate(preferences):

        def loss(w, i=i, preference=preference):
            return F.binary_cross_entropy_with_logits((features[i] - references[i]) @ w, preference)

        assert torch.allclose(losses[i], loss(weight), atol=1e-12)
        assert torch.allclose(gradients[i], torch.func.grad(loss)(weight), atol=1e-12)


def test_the_latest_comparisons():
    def some(*values):
        numbers = torch.tensor(values)
        return Comparisons(numbers[:, None], numbers / 10)

    for size, kept in ((0, []), (2, [3, 4]), (4, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])):
        found = some(0, 1, 2).and_latest([some(3), some(4)], size)
        assert found.differences.flatten().tolist() == kept
        assert torch.equal(found.preferences, torch.tensor(kept) / 10)
