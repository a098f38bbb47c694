"""The steering terms: every route against the others, ill-conditioned and degenerate cases, refusals."""

import pytest
import slow.softmax
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fpo import steering

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 6))  # actions, parameters of the RM


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    """float64 on one thread, for this file alone: the doctests show float32."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def close(actual, expected, tolerance):
    """Relative to the larger of what is compared, whatever its size."""
    size = max(float(expected.abs().max()), float(actual.abs().max()), 1e-300)
    return float((actual - expected).abs().max()) <= tolerance * size or size < 1e-12


def positive(p, condition, seed):
    """A random symmetric matrix with the given condition number and smallest eigenvalue 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(p, p, generator=generator))
    eigenvalues = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), p)
    h = q @ torch.diag(eigenvalues) @ q.T
    return (h + h.T) / 2


@pytest.mark.parametrize("feedback", ["regression", "bradley-terry"])
@pytest.mark.parametrize("goal", ["reward", "margin"])
@given(shape=SHAPES, seed=st.integers(0, 10**6), ridge=st.floats(0.3, 2))
@settings(max_examples=20)
def test_all_routes_to_the_total_gradient_agree(feedback, goal, shape, seed, ridge):
    game = slow.softmax.SoftmaxGame.random(*shape, feedback, ridge, seed, goal)
    theta = game.theta
    phi = game.fit(theta)
    rows = game.at(theta, phi)
    hessian = game.hessian(theta, phi)
    routes = {
        "dense": steering.dense_solver(hessian),
        "gram": steering.gram_solver(rows["differences"], rows["curvature"], ridge),
        "cg": steering.cg_solver(lambda v: hessian @ v),
    }
    unrolled, differences = game.unrolled_gradient(theta), game.difference_gradient(theta)
    for name, solve in routes.items():
        standard, term = steering.total_gradient(
            rows["probabilities"], rows["scores"], rows["rewards"], rows["gradients"], rows["loss_gradients"], solve
        )
        total = standard + term
        scale = max(float(unrolled.abs().max()), float(standard.abs().max()), 1e-3)
        assert float((total - unrolled).abs().max()) <= 1e-9 * scale, name
        assert float((total - differences).abs().max()) <= 1e-6 * scale, name
        # The same number as the expectation of the effective reward times the score.
        mean = rows["probabilities"] @ rows["gradients"]
        effective = steering.effective_reward(rows["rewards"], mean, steering.influence(rows["loss_gradients"], solve))
        expected = (rows["probabilities"] * effective) @ rows["scores"]
        assert float((total - expected).abs().max()) <= 1e-10 * scale, name


@given(p=st.integers(1, 8), log_condition=st.floats(0, 8), seed=st.integers(0, 10**6))
def test_solvers_up_to_condition_1e8(p, log_condition, seed):
    condition = 10**log_condition if p > 1 else 1.0
    h = positive(p, condition, seed)
    truth = torch.randn(3, p, generator=torch.Generator().manual_seed(seed + 1))
    right = truth @ h
    # Backward stability: the error is at most a small multiple of condition times machine precision.
    bound = 1e3 * condition * torch.finfo(torch.float64).eps
    assert close(steering.dense_solver(h)(right), truth, bound)
    residual = steering.cg_solver(lambda v: h @ v)(right) @ h - right
    assert float(residual.norm()) <= 1e-10 * float(right.norm())


@given(n=st.integers(1, 6), p=st.integers(1, 40), log_ridge=st.floats(-6, 1), seed=st.integers(0, 10**6))
def test_gram_route_is_the_dense_route(n, p, log_ridge, seed):
    generator = torch.Generator().manual_seed(seed)
    g, d, ridge = torch.randn(n, p, generator=generator), torch.rand(n, generator=generator), 10**log_ridge
    v = torch.randn(4, p, generator=generator)
    dense = g.T @ torch.diag(d) @ g + ridge * torch.eye(p)
    # The difference in Woodbury's identity cancels by as much as |H| / ridge, whatever the condition number.
    amplification = float(torch.linalg.matrix_norm(dense, 2)) / ridge
    gram = steering.gram_solver(g, d, ridge)(v)
    assert close(gram, steering.dense_solver(dense)(v), 1e2 * amplification * torch.finfo(torch.float64).eps)


@given(p=st.integers(1, 6), log_condition=st.floats(0, 4), seed=st.integers(0, 10**6))
def test_float32_loses_what_the_condition_number_says(p, log_condition, seed):
    condition = 10**log_condition if p > 1 else 1.0
    h = positive(p, condition, seed)
    v = torch.randn(3, p, generator=torch.Generator().manual_seed(seed + 1))
    exact = steering.dense_solver(h)(v)
    single = steering.dense_solver(h.float())(v.float())
    bound = 10 * p * condition * torch.finfo(torch.float32).eps
    assert single.dtype == torch.float32 and close(single.double(), exact, bound)


def test_batches_are_what_the_single_cases_are():
    generator = torch.Generator().manual_seed(0)
    h = torch.stack([positive(4, 10.0, s) for s in range(6)]).reshape(2, 3, 4, 4)
    g, losses = torch.randn(2, 2, 3, 5, 4, generator=generator)
    solve = steering.dense_solver(h)
    probabilities, scores = torch.rand(2, 3, 5), torch.randn(2, 3, 5, 2)
    rewards = torch.randn(2, 3, 5)
    whole = steering.total_gradient(probabilities, scores, rewards, g, losses, solve)
    gram = steering.gram_solver(g, torch.ones(2, 3, 5), 0.5)(losses)
    for i in range(2):
        for j in range(3):
            one = steering.dense_solver(h[i, j])
            part = steering.total_gradient(probabilities[i, j], scores[i, j], rewards[i, j], g[i, j], losses[i, j], one)
            for a, b in zip(whole, part, strict=True):
                torch.testing.assert_close(a[i, j], b)
            torch.testing.assert_close(gram[i, j], steering.gram_solver(g[i, j], torch.ones(5), 0.5)(losses[i, j]))
            torch.testing.assert_close(steering.leverage(g, solve)[i, j], steering.leverage(g[i, j], one))


def parts_of(game):
    """Policy gradient and steering term of a game by the dense route."""
    phi = game.fit(game.theta)
    names = ("probabilities", "scores", "rewards", "gradients", "loss_gradients")
    rows = game.at(game.theta, phi)
    solve = steering.dense_solver(game.hessian(game.theta, phi))
    return steering.total_gradient(*(rows[name] for name in names), solve)


@pytest.mark.parametrize("feedback", ["regression", "bradley-terry"])
def test_one_action_leaves_nothing_to_steer(feedback):
    game = slow.softmax.SoftmaxGame.random(1, 3, feedback, 0.5, 0)
    assert all(float(part.abs().max()) == 0 for part in parts_of(game))


def test_zero_reward_leaves_no_gradient():
    game = slow.softmax.SoftmaxGame.random(4, 3, "regression", 0.5, 0)
    game.utilities = torch.zeros(4)
    assert all(float(part.abs().max()) == 0 for part in parts_of(game))


def test_a_response_identical_to_its_reference_has_no_influence():
    g = torch.randn(3, 4)
    loss = steering.bt_loss_gradients(torch.zeros(3), torch.full((3,), 0.5), g, g)
    assert float(loss.abs().max()) == 0
    assert float(steering.bt_relaxed_penalty(torch.zeros(3), torch.ones(3), g, g).abs().max()) == 0
    assert float(steering.bt_practical_penalty(g, g).abs().max()) == 0


def test_duplicated_samples_share_their_weight():
    game = slow.softmax.SoftmaxGame.random(3, 4, "regression", 0.3, 1)
    doubled = slow.softmax.SoftmaxGame(
        game.features.repeat(2, 1), game.utilities.repeat(2), game.theta.repeat(2), "regression", 0.3, game.reference
    )
    for phi, phi2 in [(game.fit(game.theta), doubled.fit(doubled.theta))]:
        torch.testing.assert_close(phi, phi2)
        one, two = game.at(game.theta, phi), doubled.at(doubled.theta, phi2)
        solve = steering.gram_solver(two["differences"], two["curvature"], 0.3)
        expected = steering.influence(one["loss_gradients"], steering.dense_solver(game.hessian(game.theta, phi)))
        torch.testing.assert_close(steering.influence(two["loss_gradients"], solve), expected.repeat(2, 1))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_bt_loss_gradient_is_autograd(seed):
    generator = torch.Generator().manual_seed(seed)
    g, ref = torch.randn(2, 5, 3, generator=generator)
    target, phi = torch.rand(5, generator=generator), torch.randn(3, generator=generator, requires_grad=True)
    margins = (g - ref) @ phi
    slow = [
        torch.autograd.grad(torch.nn.functional.binary_cross_entropy_with_logits(m, t), phi, retain_graph=True)[0]
        for m, t in zip(margins, target, strict=True)
    ]
    fast = steering.bt_loss_gradients(margins.detach(), target, g, ref)
    torch.testing.assert_close(fast, torch.stack(slow))
    relaxed = steering.bt_relaxed_penalty(margins.detach(), target, g, ref)
    torch.testing.assert_close(relaxed, -(g * fast).sum(-1))


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
@settings(max_examples=20)
def test_relaxed_is_exact_with_two_things_simplified(seed, scale):
    """With H = I and the sample's own gradient for the mean one, the exact penalty is the relaxed one."""
    generator = torch.Generator().manual_seed(seed)
    g, r, u = torch.randn(4, 3, generator=generator) * scale, torch.randn(4, generator=generator), torch.randn(4)
    identity = steering.dense_solver(torch.eye(3))
    influences = steering.influence((r - u)[:, None] * g, identity)
    exact = torch.stack([steering.exact_penalty(g[i], influences[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(steering.relaxed_penalty(r, u, g), exact)
    torch.testing.assert_close(steering.practical_penalty(g), -steering.leverage(g, identity))
    torch.testing.assert_close(steering.relaxed_penalty(r, r - 1, g), steering.practical_penalty(g))


INDEFINITE = torch.diag(torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64))
SINGULAR = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
ONES = torch.ones(3, 3, dtype=torch.float64)


@pytest.mark.parametrize("hessian", [INDEFINITE, SINGULAR, ONES])
def test_an_indefinite_or_singular_hessian_is_refused_with_advice(hessian):
    with pytest.raises(steering.CurvatureError, match="damping > 0"):
        steering.dense_solver(hessian)
    if (torch.linalg.eigvalsh(hessian) < -1e-9).any():
        with pytest.raises(steering.CurvatureError, match="direction has curvature"):
            steering.cg_solver(lambda v: hessian @ v)(torch.ones(1, 3))
    steering.dense_solver(hessian, damping=1.0)(torch.ones(1, 3))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value)")
def test_cg_on_a_singular_hessian_does_not_answer_silently():
    with pytest.raises(steering.CurvatureError):
        steering.cg_solver(lambda v: SINGULAR @ v)(torch.ones(1, 3))


def test_a_nearly_singular_hessian_is_refused():
    with pytest.raises(steering.CurvatureError, match="condition number"):
        steering.dense_solver(torch.diag(torch.tensor([1.0, 1e-17])))


def test_cg_says_when_it_gives_up():
    h = positive(6, 1e6, 0)
    with pytest.raises(steering.CurvatureError, match="within 2 iterations"):
        steering.cg_solver(lambda v: h @ v, limit=2)(torch.ones(1, 6))


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_bad_damping_is_refused(damping):
    for make in (
        lambda: steering.dense_solver(torch.eye(2), damping),
        lambda: steering.gram_solver(torch.eye(2), torch.ones(2), 1.0, damping),
        lambda: steering.cg_solver(lambda v: v, damping),
    ):
        with pytest.raises(ValueError, match="damping = .*finite number, 0 or larger"):
            make()


def test_gram_refuses_what_is_not_a_gauss_newton_hessian():
    with pytest.raises(steering.CurvatureError, match="negative curvature"):
        steering.gram_solver(torch.eye(2), torch.tensor([1.0, -1.0]), 1.0)
    with pytest.raises(steering.CurvatureError, match="singular"):
        steering.gram_solver(torch.eye(2), torch.ones(2), 0.0)


@given(damping=st.floats(0, 3), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_damping_is_added_to_the_diagonal(damping, seed):
    h = positive(4, 10.0, seed)
    v = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
    expected = torch.linalg.solve(h + damping * torch.eye(4), v.T).T
    torch.testing.assert_close(steering.dense_solver(h, damping)(v), expected)
    torch.testing.assert_close(steering.cg_solver(lambda x: h @ x, damping)(v), expected)
    g, d = torch.linalg.cholesky(h).T, torch.ones(4)
    assume(damping > 1e-3)
    torch.testing.assert_close(steering.gram_solver(g, d, 0.0, damping)(v), expected)
