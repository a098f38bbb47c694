"""True utilities: one implementation for arrays and tensors, against finite differences and autograd."""

import numpy as np
import pytest
import slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fpo import linear, neural
from fpo.landscapes import Bell, Biased, Peaks, Stretched


@st.composite
def bells(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d, rows = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    bell = Bell(rng.normal(size=d), draw(st.floats(0.1, 20)), draw(st.floats(0.01, 2)))
    stretched = Stretched(rng.normal(size=d), draw(st.floats(0.1, 20)), rng.uniform(0.01, 2, size=d))
    tilted = Biased(stretched, draw(st.floats(-3, 3)), rng.normal(size=d))
    return draw(st.sampled_from([bell, stretched, tilted, Peaks((bell, stretched))])), rng.normal(size=(rows, d))


def height(landscape):
    if isinstance(landscape, Biased):
        return 10 + height(landscape.utility)
    return sum(part.scale for part in landscape.parts) if isinstance(landscape, Peaks) else landscape.scale


@given(bells())
@settings(max_examples=100)
def test_gradient_is_the_central_difference_and_autograds(case):
    bell, y = case
    wanted = np.stack([slow.differences(bell, row, 1e-5, central=True) for row in y])
    np.testing.assert_allclose(bell.gradient(y), wanted, atol=1e-7 * height(bell), rtol=0)
    at = torch.from_numpy(y).requires_grad_()
    (found,) = torch.autograd.grad(bell(at).sum(), at)
    np.testing.assert_allclose(bell.gradient(y), found.numpy(), atol=1e-12 * height(bell), rtol=0)


@given(bells(), st.floats(1e-4, 1))
@settings(max_examples=60)
def test_moved_is_the_utility_at_each_moved_point(case, step):
    bell, y = case
    wanted = bell(y[:, None] + step * np.eye(y.shape[1]))
    np.testing.assert_allclose(bell.moved(y, step), wanted, atol=1e-12 * height(bell), rtol=0)


@given(bells())
@settings(max_examples=40)
def test_arrays_and_tensors_see_one_utility(case):
    bell, y = case
    for method in ("__call__", "gradient"):
        here = getattr(bell, method)(y)
        there = getattr(bell, method)(torch.from_numpy(y))
        np.testing.assert_allclose(here, there.numpy(), rtol=1e-13, atol=1e-300)
    assert bell.like(torch.from_numpy(y))(torch.from_numpy(y)).equal(bell(torch.from_numpy(y)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_that_of_the_points(dtype):
    bell = Bell(np.array([1.0, 2.0]), 10.0, 0.3)
    y = torch.tensor([[0.0, 0.5]], dtype=dtype)
    assert bell(y).dtype == bell.gradient(y).dtype == bell.like(y)(y).dtype == dtype
    assert bell(np.zeros(2, np.float32)).shape == () and isinstance(bell(np.zeros((3, 2))), np.ndarray)


@pytest.mark.parametrize("game", [linear, neural])
def test_both_games_have_the_bell_of_their_settings(game):
    config = game.Config(dimensions=4, signal_dimensions=2, target=1.5, utility_scale=7.0, utility_sharpness=0.6)
    U = config.landscape()
    assert U.center.tolist() == [1.5, 1.5, 0.0, 0.0] and float(U(U.center)) == 7.0
    assert float(U(np.zeros(4))) == pytest.approx(7.0 * np.exp(-0.6 * 4.5))


def test_a_moved_game_has_the_landscape_that_its_settings_say():
    factors = (0.5, 1.5, 0.25, 0.5, 1.0, 2.0, 4.0, 0.25, 1.0, 4.0)
    moved = neural.Config(offset=1.5, noise_target=1.0, sharpness_factors=factors, second_peak=True).landscape()
    rng = np.random.default_rng(0)
    for y in rng.normal(size=(20, 10)):
        first = 0.2 * np.array(factors) @ (y - np.array([2.5, 2.5] + [1.0] * 8)) ** 2
        second = 0.7 * np.sum((y - np.array([1.5, -1.5] + [0.0] * 8)) ** 2)
        assert float(moved(y + 1.5)) == pytest.approx(10 * np.exp(-first) + 4 * np.exp(-second))
